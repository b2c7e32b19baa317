"""A small finished study, made by today's code: every kind of step in a process, without Snakemake.

It is that of `fixtures/study-0.1.0`, whose config and data it takes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import chdir
from importlib import import_module
from pathlib import Path

from colbert_zero.graph.artifact import SPEC_FILE, Spec, run_step
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.paths import WORKFLOW
from colbert_zero.graph.study import Study

KEPT = Path(__file__).parent / "fixtures" / "study-0.1.0"
STEPS = {
    "sources/file": ("data.fetch", "add_options"),
    "collections/folder": ("data.fetch", "add_options"),
    "bases/folder": ("data.fetch", "add_options"),
    "bases/random": ("models.random_base", None),
    "shards": ("data.shards", None),
    "candidates/bm25": ("mining.bm25", "add_heap_option"),
    "candidates/dense": ("mining.dense", "add_device_option"),
    "negatives": ("mining.negatives", None),
    "scores/bm25": ("teaching.bm25", "add_heap_option"),
    "scores/neural": ("teaching.neural", "add_device_option"),
    "scores/ensemble": ("teaching.ensemble", None),
    "batches": ("data.batches", None),
    "models": ("training.train", "add_options"),
    "selections": ("training.selection", None),
    "indexes/dense": ("evaluation.dense_index", "add_index_options"),
    "indexes": ("evaluation.index", "add_index_options"),
    "runs/colbert": ("evaluation.search", "add_search_options"),
    "runs/dense": ("evaluation.dense_search", "add_device_option"),
    "runs/bm25": ("evaluation.bm25", "add_heap_option"),
    "measures": ("evaluation.measure", None),
    "contamination": ("audit.find_contamination", None),
    "audits": ("audit.study_audit", None),
    "reports": ("report.page", None),
    "releases": ("report.release", None),
}
"""The module that makes the artifacts of a kind, or of a kind and the beginning of a label, and what adds its flags."""


def make(study: Study, spec: Spec) -> None:
    """Make one artifact of the study in the current folder, whose inputs are there."""
    place = f"{spec.kind}/{spec.label.partition('.')[0]}"
    place = place if place in STEPS else spec.kind
    module_name, adder = STEPS[place]
    module = import_module(f"colbert_zero.{module_name}")
    path = study.paths.get(spec.key)
    arguments = ["--spec", spec.text, *([f"--path={path}"] if path else [])]
    add_options = getattr(module, adder) if adder else None
    assert run_step(module.make, None, arguments, add_options, getattr(module, "PARTS", None)) == 0, spec.name


def make_study(folder: Path) -> None:
    """Make the study with all artifacts of its report in `folder`, which does not exist yet."""
    folder.mkdir(parents=True)
    shutil.copy(KEPT / CONFIG_FILE, folder)
    shutil.copytree(KEPT / "data", folder / "data")
    make_missing(folder, lambda study: [study.report])


def make_in_another_process(folder: Path, keys: Sequence[str] = ()) -> None:
    """Make the report of the study in `folder`, or the artifacts with some keys, and all that they rest on.

    Step after step, in one process of its own.
    """
    wanted = f"[study.spec_of(key) for key in {list(keys)!r}] or [study.report]"
    program = f"import pathlib, finished_study as f; f.make_missing(pathlib.Path(), lambda study: {wanted})"
    path = os.pathsep.join(str(WORKFLOW.parent / name) for name in ("tests", "workflow"))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, env=environment)


def make_missing(folder: Path, wanted: Callable[[Study], Iterable[Spec]]) -> None:
    """Make the artifacts that are wanted of the study in `folder`, and those they are made from, if not there."""
    with chdir(folder):
        study = Study(read_config(Path(CONFIG_FILE)), Path())

        def make_with_inputs(spec: Spec) -> None:
            if (spec.folder / SPEC_FILE).is_file():
                return
            for source in study.inputs_of(spec):
                make_with_inputs(source)
            make(study, spec)

        for spec in wanted(study):
            make_with_inputs(spec)
    os.sync()


if __name__ == "__main__":
    make_study(Path(sys.argv[1]))
