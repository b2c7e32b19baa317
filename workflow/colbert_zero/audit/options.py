"""Values of the audit's command-line options."""

from __future__ import annotations


def megabytes(text: str) -> float:
    """A number of megabytes, 0 or more.

    Raises:
        ValueError: It is none.
    """
    number = float(text)
    if not number >= 0:
        raise ValueError("below 0")
    return number
