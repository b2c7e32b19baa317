"""Compare rows of a study with published ones: differences, and whether they are within tolerance.

All numbers are points, the measure x 100. Verdicts are of differences as printed, with two decimals, so that nobody who
reads them comes to another verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from statistics import fmean

import numpy as np

from colbert_zero.graph.published import Claim, Paper, Published, paper
from colbert_zero.report.columns import counted


class Verdict(StrEnum):
    """What a number of ours is beside the published one."""

    WITHIN = "within"
    ABOVE = "above"
    BELOW = "below"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class Compared:
    """A published number, and ours.

    Attributes:
        published: The published one; None if there is none.
        ours: Ours; None if it is not measured.
        tolerance: How far they may be from each other; None if it is not known.
    """

    published: float | None
    ours: float | None
    tolerance: float | None

    @property
    def difference(self) -> float | None:
        """Ours minus the published one, to two decimals; None if one is missing."""
        return None if self.published is None or self.ours is None else round(self.ours - self.published, 2) + 0.0

    @property
    def verdict(self) -> Verdict:
        """The verdict; unknown without both numbers and a tolerance."""
        if self.difference is None or self.tolerance is None:
            return Verdict.UNKNOWN
        if abs(self.difference) <= self.tolerance:
            return Verdict.WITHIN
        return Verdict.ABOVE if self.difference > 0 else Verdict.BELOW


@dataclass(frozen=True)
class Comparison:
    """A row of the study beside a published one.

    Attributes:
        row: The row's name; empty for a published row that no row of the study is compared with.
        trained: Whether it is trained in this study.
        published: The published row.
        ours: The row's values by column; the study may have other columns than the published row.
    """

    row: str
    trained: bool
    published: Published
    ours: Mapping[str, float]

    @cached_property
    def cells(self) -> dict[str, Compared]:
        """By published column, in the paper's order, the two values."""
        published = self.published
        return {
            column: Compared(value, self.ours.get(column), published.tolerance.collection)
            for column, value in published.numbers.values.items()
        }

    @property
    def common(self) -> list[str]:
        """The columns that both have."""
        return [column for column in self.published.numbers.values if column in self.ours]

    @property
    def complete(self) -> bool:
        """Whether every published column is measured."""
        return len(self.common) == len(self.published.numbers.values)

    @property
    def mean(self) -> Compared:
        """The means: over all published columns, else over those that both have, for which no tolerance is known."""
        means = self.mean_over(self.common)
        if not self.complete:
            return means
        return Compared(self.published.numbers.average, means.ours, self.published.tolerance.mean)

    def mean_over(self, columns: Sequence[str]) -> Compared:
        """The means over some of the columns that both have."""
        values = [(self.published.numbers.values[column], self.ours[column]) for column in columns]
        if not values:
            return Compared(None, None, None)
        published, ours = (fmean(side) for side in zip(*values, strict=True))
        return Compared(published, ours, None)

    def again(self, column: str | None = None) -> float | None:
        """The published row's second measurement: of a column, or the mean where ours is complete."""
        numbers = self.published.again
        if numbers is None:
            return None
        if column is not None:
            return numbers.values.get(column)
        return (
            numbers.average if self.complete and numbers.values.keys() == self.published.numbers.values.keys() else None
        )


@dataclass(frozen=True)
class Gap:
    """The gap between two rows, column by column.

    Attributes:
        mean: The mean over columns, the first row minus the second.
        wins: The number of columns in which the first row is higher.
        columns: The number of columns.
        p: How often a gap as large comes about if each column's sign is a coin's: see `sign_flip_p`.
    """

    mean: float
    wins: int
    columns: int
    p: float


def gap(first: Mapping[str, float], second: Mapping[str, float]) -> Gap | None:
    """The gap over the columns that both rows have; None if they have none in common."""
    differences = [first[column] - second[column] for column in first if column in second]
    if not differences:
        return None
    wins = sum(difference > 0 for difference in differences)
    return Gap(fmean(differences), wins, len(differences), sign_flip_p(differences))


def sign_flip_p(differences: Sequence[float]) -> float:
    """The two-sided p value of a mean of differences, by flipping the sign of each in all 2^n ways (Fisher 1935).

    It asks whether a gap is the same over collections. It does not know how much another training seed would change.
    """
    values = np.asarray(differences, dtype=float)
    others = np.arange(len(values) - 1)
    # The first sign stays: flipping all of them gives the same absolute sum. Equal sums may differ by rounding.
    signs = 1.0 - 2.0 * (np.arange(2 ** len(others))[:, np.newaxis] >> others & 1)
    sums = np.abs(values[0] + signs @ values[1:])
    return float(np.mean(sums >= abs(values.sum()) - 1e-9))


WIKIPEDIA = ("fever", "climate-fever", "hotpotqa")
"""Columns that have most of the paper's gaps. The rows of its supervised stage are of FEVER and HotpotQA, too, and
ClimateFEVER asks for evidence in Wikipedia as FEVER does."""


@dataclass(frozen=True)
class TestedClaim:
    """A claim and the gap that it rests on.

    Attributes:
        claim: What is claimed.
        published: The published gap.
        without: The published gap without the columns of `WIKIPEDIA`.
        ours: The gap between our rows; None without both of them.
    """

    claim: Claim
    published: Gap
    without: Gap
    ours: Gap | None


class AgainstThePaper:
    """The rows of a study beside the published ones that they name.

    Attributes:
        paper: Everything published.
        comparisons: One for each row that names a published one: trained rows first, each kind by name.
    """

    def __init__(self, comparisons: Sequence[Comparison]) -> None:
        """Compare these rows."""
        self.paper: Paper = paper()
        order = list(self.paper.rows)
        self.comparisons = sorted(
            comparisons, key=lambda each: (not each.trained, order.index(each.published.id), each.row)
        )

    def of(self, name: str) -> list[Comparison]:
        """The comparisons with the published row of this id, trained rows first."""
        return [each for each in self.comparisons if each.published.id == name]

    @property
    def common(self) -> list[str]:
        """The paper's columns that the study has, in the paper's order."""
        measured = set().union(*(each.ours for each in self.comparisons))
        return [column for column in self.paper.columns if column in measured]

    @property
    def complete(self) -> bool:
        """Whether the study has all of the paper's columns."""
        return len(self.common) == len(self.paper.columns)

    def published_mean(self, row: Published) -> float | None:
        """A published row's mean over the study's columns, as printed if these are all; None if one has no value."""
        values = row.numbers.values
        if not self.common or not all(column in values for column in self.common):
            return None
        return row.numbers.average if self.complete else fmean(values[column] for column in self.common)

    @property
    def verdict(self) -> str:
        """What came of it all, in a few sentences; more is not claimed."""
        cells = Counter(cell.verdict for each in self.comparisons for cell in each.cells.values())
        judged = [each for each in self.comparisons if each.complete]
        means = Counter(each.mean.verdict for each in judged)
        sentences = []
        if judged:
            of = len(judged)
            sentences.append(
                f"{means[Verdict.WITHIN]} of {counted(of, 'row')} within tolerance on the mean{_outside(means)}."
            )
        if left := len(self.comparisons) - len(judged):
            sentences.append(
                f"The mean of {counted(left, 'row')} has no verdict: not all published collections are measured."
            )
        if measured := cells.total() - cells[Verdict.UNKNOWN]:
            sentences.append(
                f"{cells[Verdict.WITHIN]} of {measured} measured cells within tolerance{_outside(cells)}; "
                f"{cells[Verdict.UNKNOWN]} not measured."
            )
        else:
            sentences.append("No collection of the published tables is measured here, so nothing is compared.")
        return " ".join(sentences)

    @property
    def claims(self) -> list[TestedClaim]:
        """The claims with their gaps, published and ours."""
        return [self._tested(claim) for claim in self.paper.claims]

    def _tested(self, claim: Claim) -> TestedClaim:
        rows = [self.paper.rows[name].numbers.values for name in (claim.first, claim.second)]
        published = gap(*rows)
        without = gap({name: value for name, value in rows[0].items() if name not in WIKIPEDIA}, rows[1])
        assert published is not None is not without, "all models of the paper have all columns"
        ours = [next(iter(self.of(name)), None) for name in (claim.first, claim.second)]
        first, second = (None if each is None else each.ours for each in ours)
        measured = gap(self._columns(first), self._columns(second)) if first and second else None
        return TestedClaim(claim, published, without, measured)

    def _columns(self, values: Mapping[str, float]) -> dict[str, float]:
        return {column: values[column] for column in self.paper.columns if column in values}


def _outside(verdicts: Counter[Verdict]) -> str:
    counts = [f"{verdicts[verdict]} {verdict}" for verdict in (Verdict.ABOVE, Verdict.BELOW) if verdicts[verdict]]
    return f", {' and '.join(counts)}" if counts else ""
