"""Show a study's table, and where the page of its report is.

colbert-zero table --directory local
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.console import one_line
from colbert_zero.graph.study import Study


def add_options(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(_options: argparse.Namespace) -> int:
    """Write the report's table and the path of its page; return 0.

    Raises:
        UserError: The report has not been made yet.
    """
    report = Artifact.open(Study(read_config(Path(CONFIG_FILE)), Path()).report.name)
    sys.stdout.write(report.file("table.md").read_text(encoding="utf-8"))
    sys.stdout.write(f"\nThe report: {one_line(str((report.folder / 'report.html').resolve()))}\n")
    return 0
