"""A study's results: rows, columns and means, and the graph of artifacts behind them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import pyarrow.compute as pc
import pyarrow.parquet as pq

from colbert_zero.graph.artifact import Artifact

Z = 1.96
"""Half the width of a 95 % interval, in standard errors, by the normal approximation."""


@dataclass(frozen=True)
class Difference:
    """A difference of means, and half its 95 % interval, both as printed."""

    value: float
    margin: float


@dataclass(frozen=True)
class Column:
    """A column of the table: a collection, or a group of them that is averaged first."""

    name: str
    members: tuple[str, ...]


@dataclass
class Row:
    """A row of the table.

    Attributes:
        name: As in the config.
        kind: `recipe` or `baseline`.
        stages: The models of its stages, in order.
        measures: Its measures by collection.
        measure: Which of them is shown.
    """

    name: str
    kind: str
    stages: Sequence[Artifact]
    measures: Mapping[str, Artifact]
    measure: str

    def value(self, column: Column) -> float:
        """Its mean on a column."""
        return fmean(self.measures[member].facts["means"][self.measure] for member in column.members)

    @property
    def seconds(self) -> float:
        """What the training of all its stages took, shared ones in full."""
        return math.fsum(stage.facts["seconds"] for stage in self.stages)

    @cached_property
    def per_query(self) -> dict[str, dict[str, float]]:
        """Its value for each query of each collection."""
        found = {}
        for collection, artifact in self.measures.items():
            table = pq.read_table(artifact.file("measures.parquet"))
            table = table.filter(pc.equal(table["measure"], self.measure))
            found[collection] = dict(zip(table["query_id"].to_pylist(), table["value"].to_pylist(), strict=True))
        return found

    def differences_to(self, other: Row, columns: Sequence[Column]) -> list[Difference]:
        """Its differences to another row, by column and for their mean, in points, paired query by query."""
        pairs = []
        for column in columns:
            ends = [_paired(self.per_query[member], other.per_query[member]) for member in column.members]
            pairs.append((fmean(mean for mean, _ in ends), math.hypot(*(error for _, error in ends)) / len(ends)))
        pairs.append((fmean(mean for mean, _ in pairs), math.hypot(*(error for _, error in pairs)) / len(pairs)))
        return [Difference(100 * mean, 100 * Z * error) for mean, error in pairs]


def _paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, float]:
    """Mean and standard error of the differences of paired values; the error of a single pair is taken as 0."""
    differences = [ours[query] - theirs[query] for query in ours]
    mean = fmean(differences)
    if len(differences) < 2:
        return mean, 0.0
    variance = math.fsum((difference - mean) ** 2 for difference in differences) / (len(differences) - 1)
    return mean, math.sqrt(variance / len(differences))


class Lineage:
    """Everything behind some artifacts, opened once."""

    def __init__(self, names: Iterable[str]) -> None:
        """Open the artifacts called `names`, those they are made from, and so on."""
        self.artifacts: dict[str, Artifact] = {}
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in self.artifacts:
                self.artifacts[name] = Artifact.open(name)
                todo += _input_names(self.artifacts[name])

    def of_kind(self, kind: str) -> list[Artifact]:
        """Those of one kind, by name."""
        return [artifact for name, artifact in sorted(self.artifacts.items()) if name.startswith(f"{kind}/")]

    def ancestors(self, names: Iterable[str]) -> set[str]:
        """The names of all that some of them are made from, themselves among them."""
        seen: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += _input_names(self.artifacts[name])
        return seen


def _input_names(artifact: Artifact) -> list[str]:
    return [name for names in artifact.spec.inputs.values() for name in names]
