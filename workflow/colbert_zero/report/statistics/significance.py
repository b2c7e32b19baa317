"""P values from draws and their corrections for many comparisons; and without draws, t tests, effects and power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from colbert_zero.report.statistics.resampling import QUANTUM, Array, Sample, mean_of

ALPHA = 0.05
"""The chance of a claim without a difference that is put up with."""
POWER = 0.8
"""The chance with which a detectable difference is found."""
CONFIDENCE = 0.95
"""How often an interval holds the difference."""
TIE = QUANTUM
"""Means that differ by less are equal: each value is rounded to a `QUANTUM`."""


def p_values(observed: Array, drawn: Array, *, every: bool) -> Array:
    """The two-sided p value of each row: how often the drawn mean is as far from 0 as the observed one.

    With all possible draws that is a share of them; otherwise the observed one is counted among the draws, so that no p
    value is 0 (Phipson and Smyth 2010).

    Args:
        observed: (rows) means.
        drawn: (rows, draws) means where the null hypothesis holds.
        every: Whether these are all possible draws.
    """
    counts = [np.count_nonzero(np.abs(means) >= abs(value) - TIE) for value, means in zip(observed, drawn, strict=True)]
    return _shares(np.array(counts, dtype=np.float64), drawn.shape[1], every)


def max_t(observed: Array, drawn: Array, scales: Array, *, every: bool) -> Array:
    """P values corrected for the number of rows: how often the largest of all rows is as far from 0 as this one.

    It is the single-step MaxT of Westfall and Young, as in Boytsov, Belova and Westfall (CIKM 2013): what the rows have
    in common is in the draws, so it gives away less than Bonferroni.

    Args:
        observed: (rows) means.
        drawn: (rows, draws) means where the null hypothesis holds, drawn for all rows together.
        scales: (rows) what each row is divided by before rows are compared; 0 for a row without any difference.
        every: Whether these are all possible draws.
    """
    divisors = np.where(scales > 0, scales, 1.0)
    largest = np.zeros(drawn.shape[1])
    for means, divisor in zip(drawn, divisors, strict=True):
        np.maximum(largest, np.abs(means) / divisor, out=largest)
    limits = (np.abs(observed) - TIE) / divisors
    counts = [np.count_nonzero(largest >= limit) for limit in limits]
    return _shares(np.array(counts, dtype=np.float64), drawn.shape[1], every)


def range_test(observed: Array, drawn: Array, *, every: bool) -> Array:
    """Randomised Tukey, (rows, rows): how often the range of all rows is as large as the difference of these two.

    As in Carterette (TOIS 2012): it corrects for all pairs.

    Args:
        observed: (rows) means.
        drawn: (rows, draws) means where each query's values stand in any order.
        every: Whether these are all possible draws.
    """
    ranges = np.sort(drawn.max(axis=0) - drawn.min(axis=0))
    limits = np.abs(observed[:, None] - observed[None, :]) - TIE
    below = np.searchsorted(ranges, limits).astype(np.float64)
    return _shares(len(ranges) - below, len(ranges), every)


def _shares(counts: Array, draws: int, every: bool) -> Array:
    return counts / draws if every else (1 + counts) / (1 + draws)


def step_down(p: Array) -> Array:
    """P values corrected for rows and columns together: Holm's procedure over columns, of MaxT p values.

    A hypothesis is rejected where its p value is at most the level divided by the number of columns that still have one
    not rejected. Within a column MaxT holds the level for all its rows, so by Bonferroni over columns this holds it for
    all of them (the sequential rejection principle, Goeman and Solari 2010). With one row it is Holm's procedure, with
    one column it changes nothing.

    Args:
        p: (rows, columns), each column corrected for its rows.
    """
    corrected = np.ones_like(p)
    left = np.full(p.shape[1], p.shape[0])
    highest = 0.0
    for cell in np.argsort(p, axis=None, kind="stable"):
        row, column = np.unravel_index(cell, p.shape)
        highest = max(highest, min(1.0, float(np.count_nonzero(left) * p[row, column])))
        corrected[row, column] = highest
        left[column] -= 1
    return corrected


def holm(p: Sequence[float]) -> list[float]:
    """P values corrected for their number, by Holm's step-down procedure."""
    corrected: list[float] = step_down(np.array([p])).ravel().tolist()
    return corrected


@dataclass(frozen=True)
class Spread:
    """How a row's mean difference varies over queries.

    Attributes:
        mean: The mean over collections, by their weights.
        error: Its standard error, queries within each collection being drawn independently.
        deviation: The standard deviation of a query's difference within a collection, of a collection drawn by weight.
        degrees: The degrees of freedom of `error` (Welch and Satterthwaite): queries - 1 for one collection.
    """

    mean: float
    error: float
    deviation: float
    degrees: float

    @property
    def t(self) -> float | None:
        """Student's paired t; None where differences do not vary."""
        return self.mean / self.error if self.error > 0 else None

    @property
    def p(self) -> float | None:
        """The two-sided p value of the paired t test."""
        return None if self.t is None else float(2 * special.stdtr(self.degrees, -abs(self.t)))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The t test's interval of the mean."""
        if self.t is None:
            return None
        margin = float(special.stdtrit(self.degrees, (1 + CONFIDENCE) / 2)) * self.error
        return self.mean - margin, self.mean + margin

    @property
    def effect(self) -> float | None:
        """Cohen's d_z: the mean difference in standard deviations of a query's difference."""
        return self.mean / self.deviation if self.deviation > 0 else None

    @property
    def detectable(self) -> float:
        """The difference that a single test of level `ALPHA` finds with probability `POWER`; see `detectable`."""
        return detectable(self.error)


def detectable(error: float) -> float:
    """The difference that a two-sided test finds with probability `POWER`, where the mean has this standard error."""
    return float(special.ndtri(1 - ALPHA / 2) + special.ndtri(POWER)) * error


def spreads(samples: Sequence[Sample]) -> list[Spread]:
    """How each row's differences vary.

    Args:
        samples: Differences, by collection.
    """
    means = mean_of(samples)
    return [_spread(float(mean), [(sample, row) for sample in samples]) for row, mean in enumerate(means)]


def _spread(mean: float, of_row: Sequence[tuple[Sample, int]]) -> Spread:
    errors, variance, divisor = [], 0.0, 0.0
    for sample, row in of_row:
        values = sample.whole[:, row] * QUANTUM
        squares = ((values - values.sum() / len(values)) ** 2).tolist()
        of_query = math.fsum(squares) / (len(values) - 1) if len(values) > 1 else 0.0
        error = sample.weight**2 * of_query / len(values)
        errors.append(error)
        variance += sample.weight * of_query
        divisor += error**2 / max(len(values) - 1, 1)
    total = math.fsum(errors)
    return Spread(mean, math.sqrt(total), math.sqrt(variance), total**2 / divisor if divisor > 0 else 1.0)
