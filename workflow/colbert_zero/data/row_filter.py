"""Which rows of a source are valid, and a count of why the others are not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class RowFilter:
    """Says which rows are valid, and counts why the others are not.

    Attributes:
        minimum: Characters that a text must have.
        maximum: Characters that it may have, or None.
        read: Rows seen.
        dropped: Rows dropped, by reason.
    """

    minimum: int
    maximum: int | None
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def reject_reason(self, what: str, text: str) -> str | None:
        """Why a stripped text is not valid, or None."""
        if not text:
            return f"no {what}"
        if len(text) < self.minimum:
            return f"{what} is too short"
        if self.maximum is not None and len(text) > self.maximum:
            return f"{what} is too long"
        return None
