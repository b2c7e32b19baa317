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
    "plan": ("report.plan", "what is still to be made: jobs, GPU-hours and disk; --set: what a change would redo"),
    "ledger": ("report.ledger", "what it has cost: GPU-hours, CPU-hours and energy by rule, stage and recipe"),
    "table": ("report.table", "the table, and where the report is"),
    "search": ("report.search", "what a row finds for words of yours, and which tokens met; where two rows differ"),
    "export": ("teaching.export", "write a teacher's scores as a dataset, in the layout of the published ones"),
    "compare": ("report.compare", "ours beside the paper's numbers: within tolerance or not, and its tables"),
    "trace": ("audit.trace", "where a number comes from: every artifact behind it, and how each was made"),
    "diff": ("audit.diff", "what differs between two cells, artifacts, studies or clones, and what that reaches"),
    "drift": ("audit.drift", "what today's code, libraries or machine would make otherwise"),
    "replay": ("audit.replay", "whether an artifact's own command makes it again, byte by byte or within tolerance"),
    "ladder": ("audit.ladder", "what can be checked without the GPUs, level by level"),
    "contamination": ("audit.contamination", "how many texts of the test stand in the training rows of each recipe"),
    "prompts": ("audit.prompts", "whether a recipe's prompts are the same bytes from its config to its index"),
    "bundle": ("audit.bundle", "the study as a Workflow Run RO-Crate, to hand over or to publish"),
    "sign": ("audit.sign", "sign the report, and with it all that it rests on; or a model, or its release"),
    "verify": ("audit.verify", "whether everything is as it was made; exit 1 and a line for each thing that is not"),
}
"""By command, the module that defines `add_options(parser)` and `run(options)`, and what it answers. A module is
imported only when its command is asked for. It may define `FAILED`, the exit status where it cannot run (1)."""


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line: its options, `run` that answers it, and `failed`, the exit status where that cannot run."""
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
            options.set_defaults(run=module.run, failed=getattr(module, "FAILED", 1))
            module.add_options(options)
    return parser.parse_args(words)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `colbert-zero`; return the exit status."""
    parsed = parse(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        if not parsed.directory.is_dir():
            raise UserError(f"{parsed.directory} is not a folder")
        os.chdir(parsed.directory)
        try:
            status = int(parsed.run(parsed))
            sys.stdout.flush()
        except BrokenPipeError:
            # Who reads the output, such as head, has seen enough: there is nothing to report, and nobody to report to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return int(parsed.failed)
        return status

    return run_reporting_errors(run, parsed.failed)


if __name__ == "__main__":
    sys.exit(main())
