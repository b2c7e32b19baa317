"""The values of all rows, query by query, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from colbert_zero.report.results import Column, Row
from colbert_zero.report.statistics.resampling import Array, Sample, whole


@dataclass(frozen=True)
class Values:
    """Values on a collection, by judged query in the order of their ids.

    Attributes:
        of_rows: (queries, rows): of a row with seeds, the mean over them.
        of_replicates: (queries, replicates): of each row with each of its seeds, those of the first row first.
    """

    of_rows: Array
    of_replicates: Array


@dataclass(frozen=True)
class Table:
    """The values of a report.

    Attributes:
        rows: The rows' names.
        seeds: How many seeds each row has.
        columns: The columns; the collections of one are averaged first.
        values: The values by collection.
    """

    rows: Sequence[str]
    seeds: Sequence[int]
    columns: Sequence[Column]
    values: Mapping[str, Values]

    @classmethod
    def of(cls, rows: Sequence[Row], columns: Sequence[Column]) -> Table:
        """Take the values of rows; a query that a row lacks counts as 0."""
        collections = [name for column in columns for name in column.collections]
        seeds = [len(row.replicates) for row in rows]
        return cls([row.name for row in rows], seeds, columns, {name: _values(rows, name) for name in collections})

    def differences(self, rows: Sequence[int], base: int) -> list[list[Sample]]:
        """By column, these rows minus the row at `base` on each of its collections, weighted for the column's mean."""
        return [
            [
                Sample(name, whole(of_rows[:, rows] - of_rows[:, [base]]), 1 / len(column.collections))
                for name, of_rows in ((name, self.values[name].of_rows) for name in column.collections)
            ]
            for column in self.columns
        ]

    def samples(self, *, replicates: bool = False) -> list[list[Sample]]:
        """By column, the values of all rows, or replicates, on each of its collections, weighted for its mean."""
        return [
            [
                Sample(name, whole(of.of_replicates if replicates else of.of_rows), 1 / len(column.collections))
                for name, of in ((name, self.values[name]) for name in column.collections)
            ]
            for column in self.columns
        ]


def _values(rows: Sequence[Row], collection: str) -> Values:
    by_query = [replicate.values_per_query[collection] for row in rows for replicate in row.replicates]
    queries = sorted(set().union(*by_query))
    replicates = np.array([[values.get(query, 0.0) for query in queries] for values in by_query]).T
    ends = np.cumsum([len(row.replicates) for row in rows])
    of_rows = [of_row.mean(axis=1) for of_row in np.split(replicates, ends[:-1], axis=1)]
    return Values(np.stack(of_rows, axis=1), replicates)
