"""Show how far a study is: the stages of each row, and the report, with key, state and path; what runs, and what waits.

    colbert-zero status --directory local

A stage that is trained says which step of how many, its loss, its speed and the time left; one that was interrupted,
after which step it goes on; one that waits, for which artifacts, the nearest first. Other steps that have begun follow.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.inventory import Inventory
from colbert_zero.report.activity import describe_begun
from colbert_zero.report.columns import write_columns
from colbert_zero.report.offline_study import offline_study

NAMED = 2
"""How many of the artifacts that a stage waits for are named."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(_options: argparse.Namespace) -> int:
    """Write a line for each stage of each row, for the report, and for what else has begun; return 0."""
    study, _ = offline_study(read_config(Path(CONFIG_FILE)))
    inventory = Inventory(study)
    stages = [(row.name, spec.label, spec) for row in study.rows for spec in row.stages]
    lines = [
        [name, label, spec.key, _state(spec, inventory), str(spec.folder), _words(spec, inventory)]
        for name, label, spec in [*stages, (study.name, "report", study.report)]
    ]
    write_columns(lines, right=False)
    shown = {spec.name for _, _, spec in stages} | {study.report.name}
    others = [spec for spec in study.specs.values() if spec.name in inventory.begun - shown]
    write_columns(
        [[spec.name, "begun", _words(spec, inventory), f"for {study.rows_using(spec.key)}"] for spec in others],
        right=False,
    )
    sys.stdout.write(f"{len(inventory.done)} of {len(study.specs)} artifacts of study {study.name} are there\n")
    return 0


def _state(spec: Spec, inventory: Inventory) -> str:
    if spec.name in inventory.done:
        return "done"
    return "begun" if spec.name in inventory.begun else "missing"


def _words(spec: Spec, inventory: Inventory) -> str:
    """What an artifact that is not there does, or waits for."""
    if spec.name in inventory.done:
        return ""
    if spec.name in inventory.begun:
        return describe_begun(spec)
    missing = inventory.missing_before(spec)
    if not missing:
        return "waits for nothing: run snakemake"
    names = ", ".join(source.name for source in missing[:NAMED])
    more = len(missing) - NAMED
    return f"waits for {names}" + (f" and {more} more" if more > 0 else "")
