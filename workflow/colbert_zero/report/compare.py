"""Compare a study with the published numbers that its rows name: the verdict, means, and cells outside tolerance.

colbert-zero compare --directory mystudy          what is the same within tolerance, and what is not
colbert-zero compare --markdown                   the paper's tables 2 to 4, ours beside, as Markdown
colbert-zero compare --latex                      the same as LaTeX (booktabs, graphicx)

A row names its published one with `published: ID`; the ids are those of workflow/registry/paper.yaml. Every cell and
mean with its verdict is in paper/comparison.csv beside the report.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from colbert_zero.graph.artifact import SPEC_FILE, Artifact
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.console import UserError
from colbert_zero.graph.published import paper
from colbert_zero.report.offline_study import offline_study


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the forms that the paper's tables can be written in."""
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--markdown", action="store_const", dest="form", const="md", help="the paper's tables: Markdown")
    forms.add_argument("--latex", action="store_const", dest="form", const="tex", help="the paper's tables: LaTeX")


def run(options: argparse.Namespace) -> int:
    """Write the report's comparison, or its tables; return 0.

    Raises:
        UserError: No row names a published one, or the report has not been made yet.
    """
    study, _ = offline_study(read_config(Path(CONFIG_FILE)))
    if "published" not in study.report.settings:
        raise UserError(
            f"{CONFIG_FILE}: no row says what it is compared with; give a recipe or a baseline its published row, such "
            "as published: c-distilled (the ids are those of workflow/registry/paper.yaml)"
        )
    # Who has not trained yet compares the released models.
    made = (spec for spec in (study.report, study.released) if (spec.folder / SPEC_FILE).is_file())
    report = Artifact.open(next((spec for spec in made if "published" in spec.settings), study.report).name)
    names = [f"{table}.{options.form}" for table in paper().tables] if options.form else ["comparison.md"]
    sys.stdout.write("\n".join(report.file(f"paper/{name}").read_text(encoding="utf-8") for name in names))
    return 0
