"""Inspect a study without Snakemake: `colbert-zero COMMAND [--directory STUDY] ...`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from colbert_zero.graph.console import UserError, run_reporting_errors

COMMANDS = {
    "status": ("report.status", "recipes x stages: key, state, path"),
    "table": ("report.table", "the table, and where the report is"),
    "verify": ("audit.verify", "whether everything is as it was made; exit 1 and a line for each thing that is not"),
}
"""By command, the module that defines `add_options(parser)` and `run(options)`, and what it answers. A module is
imported only when its command is asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command `colbert-zero`; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words and words[0] in COMMANDS else None
    parser = argparse.ArgumentParser(prog="colbert-zero", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, (_, answers) in COMMANDS.items():
        options = commands.add_parser(
            name, help=answers, description=f"{name}: {answers}.", formatter_class=argparse.RawDescriptionHelpFormatter
        )
        options.add_argument("--directory", type=Path, default=Path(), help="the study's folder (this one)")
        if name == command:
            module = import_module(f"colbert_zero.{COMMANDS[name][0]}")
            options.description = module.__doc__
            module.add_options(options)
    parsed = parser.parse_args(words)

    def run() -> int:
        if not parsed.directory.is_dir():
            raise UserError(f"{parsed.directory} is not a folder")
        os.chdir(parsed.directory)
        return int(module.run(parsed))

    return run_reporting_errors(run)


if __name__ == "__main__":
    sys.exit(main())
