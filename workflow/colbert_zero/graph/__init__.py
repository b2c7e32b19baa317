"""From a config to artifacts: what to make, under which name, and how to publish it.

In: a study's `config.yaml`, the schema and the registries, and each step's files. Out: a `Study` with the spec of every
artifact that the report needs, and artifacts published as folders with `spec.json` and `manifest.json`. Nothing here
imports PyTorch, NumPy or PyArrow, since the Snakefile imports this room.

Open `study.py` first: it validates the config (`config.py`) and calls the `planners/`. Then `artifact.py`: `Spec`,
`Artifact`, and `run_step`, through which every step publishes. The other modules are small tools of these two.
"""
