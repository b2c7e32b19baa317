"""A study's results: rows, columns and means, and the artifacts behind them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from colbert_zero.evaluation.values import VALUES_FILE, mean_value, read_values
from colbert_zero.graph.artifact import Artifact


@dataclass(frozen=True)
class Column:
    """A column of the table: one collection, or a group of collections that is averaged first."""

    name: str
    collections: tuple[str, ...]


def replicate_names(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """By row of the table that a report's settings describe, the names of its replicates: ROW@SEED, or ROW alone."""
    seeds: Mapping[str, Sequence[str]] = settings.get("seeds", {})
    row_of = {replicate: row for row, replicates in seeds.items() for replicate in replicates}
    names: dict[str, list[str]] = {}
    for name in settings["rows"]:
        names.setdefault(row_of.get(name, name), []).append(name)
    return names


@dataclass
class Replicate:
    """What one seed gave: the models of a row's stages, and what they are worth.

    Attributes:
        name: The name in the report's spec: the row's, or `ROW@SEED`.
        stages: The models of the recipe's stages, in order; none for a baseline.
        measures: The `measures` artifact of each collection.
        measure: The name of the measure that the table shows.
    """

    name: str
    stages: Sequence[Artifact]
    measures: Mapping[str, Artifact]
    measure: str

    def value(self, column: Column) -> float:
        """The mean over queries, averaged over the column's collections: of the values themselves, not of a record."""
        return fmean(mean_value(self.values_per_query[collection]) for collection in column.collections)

    @property
    def training_seconds(self) -> float:
        """The training time of all stages; a stage shared with another recipe counts in full."""
        return math.fsum(stage.facts["seconds"] for stage in self.stages)

    @cached_property
    def values_per_query(self) -> dict[str, dict[str, float]]:
        """The value for each query, by collection."""
        values = {}
        for collection, artifact in self.measures.items():
            values[collection] = read_values(artifact.file(VALUES_FILE))[self.measure]
        return values


@dataclass
class Row:
    """A row of the table.

    Attributes:
        name: The name in the config.
        kind: `recipe` or `baseline`.
        replicates: The row with each of its seeds; a single one, if its recipe has no seeds of its own.
    """

    name: str
    kind: str
    replicates: Sequence[Replicate]

    @property
    def measure(self) -> str:
        """The name of the measure that the table shows."""
        return self.replicates[0].measure

    @property
    def stages(self) -> Sequence[Artifact]:
        """The models of the first seed's stages, in order; none for a baseline."""
        return self.replicates[0].stages

    @property
    def collections(self) -> Iterable[str]:
        """The names of its collections."""
        return self.replicates[0].measures

    def value(self, column: Column) -> float:
        """The mean over queries, collections of the column, and seeds."""
        return fmean(replicate.value(column) for replicate in self.replicates)

    def spread(self, columns: Sequence[Column]) -> float | None:
        """The standard deviation over seeds of the mean over columns; None without several seeds."""
        means = [fmean(map(replicate.value, columns)) for replicate in self.replicates]
        return stdev(means) if len(means) > 1 else None

    @property
    def training_seconds(self) -> float:
        """The training time of all stages, the mean over seeds."""
        return fmean(replicate.training_seconds for replicate in self.replicates)

    @cached_property
    def values_per_query(self) -> dict[str, dict[str, float]]:
        """The value for each query, by collection: the mean over seeds."""
        of_seeds = [replicate.values_per_query for replicate in self.replicates]
        return {
            collection: {
                query: fmean(values[collection][query] for values in of_seeds) for query in of_seeds[0][collection]
            }
            for collection in self.collections
        }


class Lineage:
    """Some artifacts and all artifacts that they are made from, each opened once.

    Attributes:
        artifacts: The artifacts by name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Open the artifacts with these names, their inputs, the inputs of those, and so on."""
        self.artifacts: dict[str, Artifact] = {}
        pending = list(names)
        while pending:
            name = pending.pop()
            if name not in self.artifacts:
                self.artifacts[name] = Artifact.open(name)
                pending += _input_names(self.artifacts[name])

    def of_kind(self, kind: str) -> list[Artifact]:
        """The artifacts of one kind, sorted by name."""
        return [artifact for name, artifact in sorted(self.artifacts.items()) if name.startswith(f"{kind}/")]

    def with_ancestors(self, names: Iterable[str]) -> set[str]:
        """These names, and the names of all artifacts that the named ones are made from."""
        visited: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            if name not in visited:
                visited.add(name)
                pending += _input_names(self.artifacts[name])
        return visited


def _input_names(artifact: Artifact) -> list[str]:
    return [name for names in artifact.spec.inputs.values() for name in names]
