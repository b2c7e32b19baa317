"""Columns of text on a terminal, and numbers, sizes and durations for people to read."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from colbert_zero.graph.console import one_line

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def write_columns(lines: Sequence[Sequence[str]], right: bool = True) -> None:
    """Write lines of cells under each other; with `right`, all but the first column are aligned to the right.

    The lines may have different numbers of cells.
    """
    widths = [0] * max(map(len, lines), default=0)
    for line in lines:
        for column, cell in enumerate(line):
            widths[column] = max(widths[column], len(cell))
    for line in lines:
        cells = [
            cell.rjust(width) if right and column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=False))
        ]
        sys.stdout.write(one_line("  ".join(cells).rstrip()) + "\n")


def counted(count: int, what: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count} {what}{'s' * (count != 1)}"


def number(value: float) -> str:
    """A number of hours or the like: two digits, or whole from 10 on; 0 is none at all."""
    if value == 0:
        return "0"
    if value < 0.005:
        return "<0.01"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def size(count: float) -> str:
    """A number of bytes: `512 B`, `1.8 GB`, `482 GB`."""
    for unit in UNITS:
        if count < 999.5 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.2g} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """A duration for people: `45 s`, `12 min 05 s`, `8 h 30 min`, `408 h`."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    if seconds < 3600:
        return "{} min {:02} s".format(*divmod(round(seconds), 60))
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours < 24 else f"{seconds / 3600:,.0f} h"
