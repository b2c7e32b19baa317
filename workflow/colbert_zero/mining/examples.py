"""A few rows with their negatives, for people to look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

from colbert_zero.graph.draws import draw

EXAMPLES_FILE = "examples.json"
EXAMPLES = 3
"""How many rows of a source are kept as examples."""


class Examples:
    """Some of the rows that pass by: those with the lowest draws.

    Attributes:
        drawn: The draw of each, and the row.
    """

    def __init__(self, seed: int, label: str) -> None:
        """Draw by the study's seed and the source."""
        self._seed, self._label = seed, label
        self.drawn: list[tuple[int, dict[str, Any]]] = []

    def drawn_from(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield rows as they are, and remember some."""
        for row in rows:
            self.include([(draw(self._seed, "examples", self._label, row["row"]), row)])
            yield row

    def include(self, drawn: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """Remember some of what was drawn from other rows."""
        self.drawn = sorted([*self.drawn, *drawn], key=itemgetter(0))[:EXAMPLES]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows, in the order of their numbers."""
        return sorted((row for _, row in self.drawn), key=itemgetter("row"))
