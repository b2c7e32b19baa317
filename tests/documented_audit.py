"""The commands of docs/audit.md, which is about the demo, and what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from colbert_zero.graph.paths import WORKFLOW
from documents import ROOT, Command, blocks, commands

COMMANDS = [command for block in blocks("console", "demo") for command in commands(block)]
CUT = "..."
"""Stands in a quoted output for lines that are left out, and at the end of a line for its rest."""


def run(command: Command, study: Path, folder: Path) -> tuple[int, str]:
    """Run a command on the study in place of the demo; what it writes goes into `folder`.

    Returns:
        The exit status, and the output without the path of `folder`.
    """
    words = [str(study) if word == "local" else word for word in command.words[1:]]
    words = [str(folder / word) if word.endswith((".zip", ".html")) else word for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "colbert_zero.cli", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(WORKFLOW)},
    )
    return done.returncode, (done.stdout + done.stderr).replace(f"{folder}{os.sep}", "")


def status_of(command: Command) -> int:
    """The exit status that the command's comment says; 0 if it says none."""
    said = re.match(r"exit (\d)", command.comment)
    return int(said[1]) if said else 0


def shape(line: str) -> str:
    """A line without what differs from machine to machine and from run to run: digests, numbers, and how wide it is."""
    line = re.sub(r"\b[0-9a-f]{12,64}\b", "#", line)
    return re.sub(r"\s+", " ", re.sub(r"[-+]?\d[\d.,:e+-]*", "#", line)).strip()
