"""What a teacher's scores are like: how sharp, how far a row's own document stands out, and how many are equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

TEMPERATURES = (1.0, 0.5, 0.25)
"""By which the normalised scores are divided before the softmax whose entropy is told."""
BINS = 20
"""Into so many parts of equal width, from 0 to 1, the histograms divide the normalised scores."""


def relative_entropy(scores: npt.NDArray[np.float32], temperature: float) -> float:
    """The entropy of softmax(scores / temperature), as a share of the largest possible: 1 for equal scores.

    Args:
        scores: Those of one query's documents, two at least.
        temperature: Above 0.
    """
    scaled = scores.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    shares = weights / weights.sum()
    return float(-(shares * np.log(shares, where=shares > 0, out=np.zeros_like(shares))).sum() / np.log(len(shares)))


class ScoreReport:
    """Counts of the rows that are written; a process holds no more than sums."""

    def __init__(self) -> None:
        """Start counting."""
        self._rows = self._first = self._tied = 0
        self._entropies = np.zeros(len(TEMPERATURES))
        self._raw = {"own": np.zeros(3), "others": np.zeros(3)}
        self._histogram = {"own": np.zeros(BINS, np.int64), "others": np.zeros(BINS, np.int64)}

    def add(self, raw: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> bool:
        """Count a row: the raw and the normalised scores of its documents, its own first; unless they are all equal.

        Returns:
            Whether they differ.
        """
        if raw.min() == raw.max():
            return False
        self._rows += 1
        self._first += bool(raw.argmax() == 0)
        self._tied += len(np.unique(raw)) < len(raw)
        self._entropies += [relative_entropy(scores, temperature) for temperature in TEMPERATURES]
        for name, of in (("own", slice(1)), ("others", slice(1, None))):
            values = raw[of].astype(np.float64)
            self._raw[name] += (len(values), values.sum(), (values**2).sum())
            self._histogram[name] += np.histogram(scores[of], BINS, (0, 1))[0]
        return True

    @property
    def facts(self) -> dict[str, Any]:
        """`positive_first`: rows whose own document scores highest. `ties`: rows with equal scores.

        `entropy`: by temperature, the mean of `relative_entropy`. `raw`: mean and standard deviation of the raw scores
        of rows' own documents and of the others. `histogram`: how many normalised scores of both are in each of `BINS`.
        """
        rows = max(1, self._rows)
        return {
            "positive_first": self._first,
            "ties": self._tied,
            "entropy": {
                f"{of:g}": round(float(total) / rows, 6)
                for of, total in zip(TEMPERATURES, self._entropies, strict=True)
            },
            "raw": {name: _mean_and_deviation(*sums) for name, sums in self._raw.items()},
            "histogram": {name: counts.tolist() for name, counts in self._histogram.items()},
        }


def _mean_and_deviation(count: float, total: float, squares: float) -> dict[str, float]:
    mean = total / max(1.0, count)
    return {"mean": round(mean, 6), "sd": round(max(0.0, squares / max(1.0, count) - mean**2) ** 0.5, 6)}
