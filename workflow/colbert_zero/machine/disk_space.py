"""Whether a disk has room for what a step is about to write, before it works for hours."""

from __future__ import annotations

import shutil
from pathlib import Path

from colbert_zero.graph.console import UserError

GB = 10**9


def check_space(folder: Path, needed: float, what: str, remedy: str) -> None:
    """Refuse to begin what a folder's disk has too little room for.

    Args:
        folder: An existing folder.
        needed: Bytes.
        what: What they are, for the message.
        remedy: What to do.

    Raises:
        UserError: So many bytes are not free; the message says how many are.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{what} take about {needed / GB:.1f} GB in {folder.resolve()}, of which {free / GB:.1f} GB are free: "
            f"{remedy}"
        )
