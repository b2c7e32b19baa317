"""Decide which rows of a source are valid, and count the dropped rows by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class RowFilter:
    """Checks the texts of rows, and counts the dropped rows by reason.

    Attributes:
        minimum_characters: The fewest characters that a text may have.
        maximum_characters: The most characters that a text may have, or None.
        rows_read: How many rows were read.
        dropped: How many rows were dropped, by reason.
    """

    minimum_characters: int
    maximum_characters: int | None
    rows_read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def reject_reason(self, column: str, text: str) -> str | None:
        """The reason to drop a row with this stripped text in `column`, or None if the text is valid."""
        if not text:
            return f"no {column}"
        if len(text) < self.minimum_characters:
            return f"{column} is too short"
        if self.maximum_characters is not None and len(text) > self.maximum_characters:
            return f"{column} is too long"
        return None
