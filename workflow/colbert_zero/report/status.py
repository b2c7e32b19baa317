"""Show how far a study is: the stages of each row, and the report, with key, state and path.

colbert-zero status --directory local
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from colbert_zero.graph.artifact import MANIFEST_FILE, Spec
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.console import one_line
from colbert_zero.graph.study import Study


def add_options(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(_options: argparse.Namespace) -> int:
    """Write a line for each stage of each row, and for the report; return 0."""
    study = Study(read_config(Path(CONFIG_FILE)), Path())
    lines = [
        (row.name, spec.label, spec.key, _state(spec), str(spec.folder)) for row in study.rows for spec in row.stages
    ]
    report = study.report
    lines.append((study.name, "report", report.key, _state(report), str(report.folder)))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        sys.stdout.write(one_line("  ".join([*cells, line[-1]])) + "\n")
    finished = sum((spec.folder / MANIFEST_FILE).is_file() for spec in study.specs.values())
    sys.stdout.write(f"{finished} of {len(study.specs)} artifacts of study {study.name} are there\n")
    return 0


def _state(spec: Spec) -> str:
    if (spec.folder / MANIFEST_FILE).is_file():
        return "done"
    if spec.state.is_dir():
        return "begun"
    return "missing"
