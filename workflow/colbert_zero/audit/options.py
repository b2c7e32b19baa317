"""Values of the audit's command-line options."""

from __future__ import annotations

from pathlib import Path


def absolute_path(text: str) -> Path:
    """A path from where the command was started: the command changes into the study's folder before it runs."""
    return Path(text).expanduser().absolute()


def megabytes(text: str) -> float:
    """A number of megabytes, 0 or more.

    Raises:
        ValueError: It is none.
    """
    number = float(text)
    if not number >= 0:
        raise ValueError("below 0")
    return number
