"""Compare recipes with the reference row, column by column and in the mean over columns; and all rows in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from colbert_zero.report.results import Column, Row
from colbert_zero.report.statistics import resampling, significance
from colbert_zero.report.statistics.resampling import Array, Sample, mean_of, whole
from colbert_zero.report.statistics.significance import ALPHA, CONFIDENCE, Spread, spreads
from colbert_zero.report.statistics.values import Table

Interval = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """A row minus the reference, on a column or in the mean over columns; in units of the measure.

    Attributes:
        row: The row's name.
        column: The column's name; None for the mean over columns.
        spread: The mean difference and how it varies over queries, with the paired t test.
        interval: The bootstrap's interval of the mean difference, over queries and, where there are several, seeds.
        p: The p value of the sign-flip test, for this comparison alone.
        p_holm: The same, corrected for the row's columns; None for the mean.
        p_max_t: The same, corrected for the rows that are compared on this column.
        p_corrected: The same, corrected for both: what decides whether a row is better.
        p_over_columns: That of the columns' differences, as if each were a query's; None for a column.
        every_sign: Whether `p` and `p_max_t` come from all signs there are.
        signs: Wins, ties and losses: how many queries, or for the mean columns, have a higher, an equal and a lower
            value than the reference.
    """

    row: str
    column: str | None
    spread: Spread
    interval: Interval
    p: float
    p_holm: float | None
    p_max_t: float
    p_corrected: float
    p_over_columns: float | None
    every_sign: bool
    signs: tuple[int, int, int]

    @property
    def verdict(self) -> str | None:
        """`better` or `worse`; None where chance may have made the difference, by the test or by the interval."""
        if self.p_corrected > ALPHA or self.interval[0] <= 0 <= self.interval[1]:
            return None
        return "better" if self.spread.mean > 0 else "worse"


@dataclass(frozen=True)
class Pairs:
    """All pairs of rows, in the mean over columns.

    Attributes:
        rows: The rows' names.
        means: (rows) their means over columns.
        p: (rows, rows) the p values of randomised Tukey.
        draws: How many orders of rows were tried.
        every_order: Whether these are all there are.
    """

    rows: Sequence[str]
    means: Array
    p: Array
    draws: int
    every_order: bool


@dataclass(frozen=True)
class Statistics:
    """What can be said of the differences between rows.

    Attributes:
        reference: The name of the row that others are compared with.
        rows: The names of the rows that are compared with it.
        seeds: By row, the reference included, how many seeds it has.
        columns: By column, the number of judged queries of each of its collections.
        comparisons: By row and column, in the order of both; the column None is the mean over columns, and the last.
        pairs: All pairs of all rows.
    """

    reference: str
    rows: Sequence[str]
    seeds: Mapping[str, int]
    columns: Mapping[str, Mapping[str, int]]
    comparisons: Mapping[tuple[str, str | None], Comparison]
    pairs: Pairs

    def of_row(self, row: str) -> list[Comparison]:
        """A row's comparisons on each column."""
        return [self.comparisons[row, column] for column in self.columns]


def compare(
    rows: Sequence[Row], compared: Sequence[Row], reference: Row, columns: Sequence[Column], seed: int
) -> Statistics:
    """Compare rows.

    Args:
        rows: All rows, which are compared in pairs.
        compared: Those that are compared with the reference, if any.
        reference: The reference.
        columns: The table's columns.
        seed: The study's seed.
    """
    # By name, so that the order of rows decides no draw.
    table = Table.of(sorted(rows, key=lambda row: row.name), columns)
    names = [row.name for row in compared]
    return Statistics(
        reference.name,
        names,
        {row.name: len(row.replicates) for row in (reference, *compared)},
        {column.name: {name: len(table.values[name].of_rows) for name in column.collections} for column in columns},
        _comparisons(table, names, reference.name, seed) if names else {},
        _pairs(table, seed),
    )


def _pairs(table: Table, seed: int) -> Pairs:
    samples = over_columns(table.samples())
    means = mean_of(samples)
    drawn, every = resampling.reordered_means(samples, seed)
    return Pairs(table.rows, means, significance.range_test(means, drawn, every=every), drawn.shape[1], every)


def over_columns(samples: Sequence[Sequence[Sample]]) -> list[Sample]:
    """The samples of all columns, weighted for the mean over columns."""
    return [replace(sample, weight=sample.weight / len(samples)) for of_column in samples for sample in of_column]


def _comparisons(
    table: Table, names: Sequence[str], reference: str, seed: int
) -> dict[tuple[str, str | None], Comparison]:
    chosen, base = [table.rows.index(name) for name in names], table.rows.index(reference)
    samples = table.differences(chosen, base)
    *tests, test_of_mean = sign_tests(samples, seed)
    intervals = _intervals(table, chosen, base, seed)
    p, p_max_t = (np.stack(each, axis=1) for each in zip(*((test.p, test.p_max_t) for test in tests), strict=True))
    p_corrected = significance.step_down(p_max_t)
    spread = [*map(spreads, samples), spreads(over_columns(samples))]
    # The columns' differences, as if columns were queries.
    columns = [Sample("", whole(np.array([[each.mean for each in of_column] for of_column in spread[:-1]])))]
    (test_of_columns, _) = sign_tests([columns], seed)

    comparisons: dict[tuple[str, str | None], Comparison] = {}
    for number, row in enumerate(names):
        holm = significance.holm(p[number].tolist())
        for position, column in enumerate(table.columns):
            comparisons[row, column.name] = Comparison(
                row,
                column.name,
                spread[position][number],
                intervals[position][number],
                float(p[number, position]),
                holm[position],
                float(p_max_t[number, position]),
                float(p_corrected[number, position]),
                None,
                tests[position].every_sign,
                _signs([sample.whole[:, number] for sample in samples[position]]),
            )
        comparisons[row, None] = Comparison(
            row,
            None,
            spread[-1][number],
            intervals[-1][number],
            float(test_of_mean.p[number]),
            None,
            float(test_of_mean.p_max_t[number]),
            float(test_of_mean.p_max_t[number]),
            float(test_of_columns.p[number]),
            test_of_mean.every_sign,
            _signs([columns[0].whole[:, number]]),
        )
    return comparisons


def _signs(differences: Sequence[Array]) -> tuple[int, int, int]:
    """How many differences are above 0, are 0, and are below."""
    signs = np.sign(np.concatenate(differences))
    higher, equal, lower = (int(np.count_nonzero(signs == sign)) for sign in (1, 0, -1))
    return higher, equal, lower


@dataclass(frozen=True)
class SignTest:
    """The sign-flip test of the mean differences of several rows.

    Attributes:
        p: (rows) the p value of each for itself.
        p_max_t: (rows) those corrected for the number of rows.
        every_sign: Whether all signs were tried.
    """

    p: Array
    p_max_t: Array
    every_sign: bool

    @classmethod
    def of(cls, samples: Sequence[Sample], drawn: Array, *, every: bool) -> SignTest:
        """Test the mean of `samples`, of which (rows, draws) means with other signs are drawn; perhaps every one."""
        means, scales = mean_of(samples), resampling.root_square_of(samples)
        p = significance.p_values(means, drawn, every=every)
        return cls(p, significance.max_t(means, drawn, scales, every=every), every)


def sign_tests(columns: Sequence[Sequence[Sample]], seed: int) -> list[SignTest]:
    """Test the differences of several rows on each column, and last in the mean over columns.

    Args:
        columns: By column, the differences on its collections, weighted for the column's mean.
        seed: The study's seed.
    """
    tests = []
    total = None
    for samples in columns:
        drawn = resampling.flipped_means(samples, seed)
        tests.append(_exactly(samples) or SignTest.of(samples, drawn, every=False))
        # In the mean over columns each column's draw has its share.
        drawn /= len(columns)
        total = drawn if total is None else np.add(total, drawn, out=total)
    assert total is not None, "there is a column"
    everything = over_columns(columns)
    return [*tests, _exactly(everything) or SignTest.of(everything, total, every=False)]


def _exactly(samples: Sequence[Sample]) -> SignTest | None:
    every = resampling.all_flipped_means(samples)
    return None if every is None else SignTest.of(samples, every, every=True)


def _intervals(table: Table, chosen: Sequence[int], base: int, seed: int) -> list[list[Interval]]:
    """By column and last for the mean over columns, the interval of each chosen row minus the one at `base`."""
    ends = np.cumsum([0, *table.seeds])
    weights = [resampling.resampled_seeds(seeds, row, seed) for row, seeds in zip(table.rows, table.seeds, strict=True)]

    def of_rows(means: Array) -> list[Interval]:
        """Those of (replicates, draws) means."""
        base_means, *chosen_means = (
            (weights[row] * means[ends[row] : ends[row + 1]]).sum(axis=0) for row in (base, *chosen)
        )
        tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        quantiles = (np.quantile(each - base_means, tails) for each in chosen_means)
        return [(float(low), float(high)) for low, high in quantiles]

    intervals = []
    total = None
    for samples in table.samples(replicates=True):
        means = resampling.resampled_means(samples, seed)
        intervals.append(of_rows(means))
        means /= len(table.columns)
        total = means if total is None else np.add(total, means, out=total)
    assert total is not None, "there is a column"
    return [*intervals, of_rows(total)]
