"""How one miner's scores of rows' own documents, and of their negatives, are distributed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_BINS = 64
SMALLEST_WIDTH = 2.0**-12


class ScoreHistogram:
    """Counts scores in bins of one width: the smallest power of two with which `MOST_BINS` are enough.

    A bin begins at a multiple of its width, so bins of twice the width are pairs of them: neither the range of the
    scores has to be known before, nor does their order count.
    """

    def __init__(self) -> None:
        """Start counting."""
        self._width = SMALLEST_WIDTH
        self._counts: dict[str, Counter[int]] = {"positives": Counter(), "negatives": Counter()}

    def add(self, positive_score: float, scores: npt.NDArray[np.float32]) -> None:
        """Count the score of a row's own document, and those of its negatives, without those that are NaN."""
        for name, some in (("positives", np.array([positive_score])), ("negatives", scores[~np.isnan(scores)])):
            self._counts[name].update(np.floor(some.astype(np.float64) / self._width).astype(np.int64).tolist())
        self._widen()

    def include(self, facts: Mapping[str, Any]) -> None:
        """Count what another histogram has, by its facts."""
        self._widen(facts["width"])
        for name, counts in self._counts.items():
            for number, count in enumerate(facts[name]):
                if count:
                    counts[math.floor((facts["low"] + number * facts["width"]) / self._width)] += count
        self._widen()

    def _widen(self, least: float = SMALLEST_WIDTH) -> None:
        """Make the bins as wide as they must be, and `least` at least."""
        while len(self._bins) > MOST_BINS or self._width < least:
            self._width *= 2
            for name, counts in self._counts.items():
                wider: Counter[int] = Counter()
                for number, count in counts.items():
                    wider[number // 2] += count
                self._counts[name] = wider

    @property
    def _bins(self) -> range:
        """The numbers of all bins from that of the lowest score to that of the highest."""
        numbers = [number for counts in self._counts.values() for number in counts]
        return range(min(numbers), max(numbers) + 1) if numbers else range(0)

    @property
    def facts(self) -> dict[str, Any]:
        """`low`, where the first bin begins; `width`, of each; and the counts in all, of positives and of negatives."""
        bins = self._bins
        low = self._width * bins.start
        return {"low": low, "width": self._width} | {
            name: [counts[number] for number in bins] for name, counts in self._counts.items()
        }
