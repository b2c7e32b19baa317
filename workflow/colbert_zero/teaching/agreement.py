"""How far teachers that score the same documents agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau


class Agreement:
    """Counts how much alike teachers order the documents of each row, by Kendall's tau-b as scipy computes it."""

    def __init__(self, teachers: Sequence[str]) -> None:
        """Compare each pair of teachers, which have these names."""
        self._teachers = teachers
        self._sums = {pair: np.zeros(2) for pair in combinations(range(len(teachers)), 2)}

    def add(self, raw: Mapping[int, npt.NDArray[np.float32]]) -> None:
        """Count a row: the scores of its documents by each teacher's number, of teachers that tell them apart."""
        for pair, sums in self._sums.items():
            if all(number in raw for number in pair):
                sums += (1, kendalltau(*(raw[number] for number in pair)).statistic)

    @property
    def facts(self) -> list[dict[str, Any]]:
        """Of each pair: the `teachers`, the `rows` that both tell apart, and over these the mean `kendall_tau`."""
        return [
            {
                "teachers": [self._teachers[number] for number in pair],
                "rows": int(rows),
                "kendall_tau": round(float(total / rows), 6),
            }
            for pair, (rows, total) in self._sums.items()
            if rows
        ]
