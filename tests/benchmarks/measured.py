"""Run a command and measure it: seconds, and the most memory that it and its children held together."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SECONDS_BETWEEN_LOOKS = 0.1
MIB = 2**20


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes:
        seconds: From start to end.
        resident: Most MiB in memory at a time, all processes together, pages of mapped files among them.
        anonymous: The same without those pages, which the system may drop at any time.
        largest: Most MiB in memory in one process.
        output: What it wrote.
    """

    seconds: float
    resident: int
    anonymous: int
    largest: int
    output: str


def work_folder(name: str) -> Path:
    """A folder that is asked for on a command line, made if need be."""
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error.strerror}") from None
    return path


def measure(command: Sequence[str], folder: Path, **variables: str) -> Measured:
    """Run a command in `folder`, with `variables` added to its environment.

    Raises:
        SystemExit: It failed.
    """
    output = folder / "output.txt"
    resident = anonymous = largest = 0
    started = time.monotonic()
    with output.open("w") as file:
        process = subprocess.Popen(
            list(command), cwd=folder, env=os.environ | variables, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                each = [memory_of(found) for found in family(process.pid)]
                resident = max(resident, sum(both for both, _ in each))
                anonymous = max(anonymous, sum(own for _, own in each))
                largest = max(largest, max((both for both, _ in each), default=0))
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            # Whoever is interrupted here leaves nothing behind that computes.
            if process.poll() is None:
                process.kill()
    seconds = time.monotonic() - started
    said = output.read_text()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{said}")
    return Measured(seconds, resident // MIB, anonymous // MIB, largest // MIB, said)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it has started, as far as they run."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_of(process: psutil.Process) -> tuple[int, int]:
    """Bytes in memory, and those of them that are no pages of files."""
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0, 0
    return memory.rss, memory.rss - memory.shared


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; numbers stand right."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in cells
    ]
    rule = (
        "|"
        + "|".join("-" * (width + 2) if column == 0 else "-" * (width + 1) + ":" for column, width in enumerate(widths))
        + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])
