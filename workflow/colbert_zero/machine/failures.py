"""What went wrong in a run, in a line for each artifact that is missing for it: which, for which rows, what to do."""

from __future__ import annotations

import re
from pathlib import Path

from colbert_zero.graph.artifact import KEY_DIGITS, Spec
from colbert_zero.graph.study import Study
from colbert_zero.machine.images import hint_for

ERROR = re.compile(
    r"^Error in rule (?P<rule>\w+):\n(?P<fields>(?:(?!Error in rule ).*\n)*?    output: .*\n(?:    .*\n)*)",
    re.MULTILINE,
)
"""How Snakemake reports a failed attempt; before the output, a message of SLURM's may have lines of any kind."""
SUBMITTED = "\n    external_jobid: "
REFUSED = re.compile(
    r"^    message: (?:SLURM sbatch failed\.|Job submission failed with exception:) (.*?)(?:For further.*)?$",
    re.MULTILINE,
)
OWN = "colbert-zero: "
GPU_MEMORY = re.compile(r"(CUDA|HIP) (error: )?out of memory", re.IGNORECASE)
MEMORY = re.compile(r"oom.?kill|exceeded (job |step )?memory limit|out of memory", re.IGNORECASE)


def explain(log: str, study: Study) -> list[str]:
    """A line for each artifact that a run failed to make.

    Args:
        log: What Snakemake wrote, all of it.
        study: What it was to make.

    Returns:
        The lines, in the order in which the artifacts first failed; none for what another attempt has made.
    """
    last: dict[str, tuple[str, str, int]] = {}
    for found in ERROR.finditer(log):
        fields = found["fields"]
        output = _field(fields, "output")
        _, before, times = last.get(output, ("", "", 0))
        # A failed job's log is shown below what SLURM says of it. There, the Snakemake inside of the job says it again.
        if not (SUBMITTED in before and _field(fields, "message") == "None"):
            last[output] = found["rule"], fields, times + 1
    return [
        f"{_what(output, study)}: {_why(output, rule, fields, times, study)}"
        for output, (rule, fields, times) in last.items()
        if output and not Path(output).is_file()
    ]


def _field(fields: str, name: str) -> str:
    found = re.search(rf"^    {name}: (.*)$", fields, re.MULTILINE)
    return found[1] if found else ""


def _spec(output: str, study: Study) -> Spec | None:
    return study.specs.get(Path(output).parent.name[-KEY_DIGITS:])


def _what(output: str, study: Study) -> str:
    spec = _spec(output, study)
    if spec is None:
        return output
    rows = ", ".join(sorted(study.used_by.get(spec.key, ())))
    return f"{spec.name}" + (f" (of {rows})" if rows else "")


def _why(output: str, rule: str, fields: str, times: int, study: Study) -> str:
    spec = _spec(output, study)
    # Steps are named in the config by their rule, trainings by their stage.
    step = spec.label if spec is not None and spec.kind == "models" else re.sub("_(source|collection)$", "", rule)
    found = re.search(r"SLURM status is: '(\w+)", fields)
    status = found[1] if found else None
    logs = [Path(name) for name in _field(fields, "log").rpartition(" (check log")[0].split(", ")]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in logs if path.is_file()]
    said = "".join(texts)
    again = f", {times} times" if times > 1 else ""
    refused = REFUSED.search(fields)
    if refused:
        why = re.search(r"sbatch: error: (.*?)'?\.?$", fields, re.MULTILINE) or refused
        return f"SLURM did not take the job: {why[1].strip()}"
    if GPU_MEMORY.search(said):
        return (
            f"the GPU's memory was too little{again}: ask for a larger one, resources.{step}.gpu_model in config.yaml"
        )
    if status == "OUT_OF_MEMORY" or MEMORY.search(said):
        return (
            f"killed for memory{again}: {rule} had {study.resource(step, 'mem_mb')} MB; "
            f"raise resources.{step}.mem_mb in config.yaml"
        )
    if status == "TIMEOUT":
        return (
            f"ran into its time limit{again}: {rule} had {study.resource(step, 'runtime')} minutes; "
            f"raise resources.{step}.runtime in config.yaml"
        )
    own = [line for line in said.splitlines() if line.startswith(OWN)]
    if own:
        return own[-1].removeprefix(OWN)
    hint = hint_for(said)
    if hint:
        return hint
    ended = f"SLURM says {status}; " if status else ""
    written = " and ".join(str(path) for path in logs if path.is_file())
    return f"{ended}see {written or 'what Snakemake said of it'}"
