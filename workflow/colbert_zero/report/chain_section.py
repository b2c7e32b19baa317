"""The section of a report that the table's numbers lead to: the chain of each row as a figure, and that of each cell.

What cells of a row share, from the model down, is drawn once for the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from colbert_zero.graph.artifact import Artifact, content_digest
from colbert_zero.report.chain import origin
from colbert_zero.report.chain_figure import draw_chain
from colbert_zero.report.results import Column, Lineage, Row
from colbert_zero.report.sections import ABSENT, Cell, Table, TableRow, format_cell

DIGEST_DIGITS = 16
"""So many digits of the digest of an artifact's files are shown when one points at its box."""
OUTSIDE = ("collections", "sources", "bases")


@dataclass(frozen=True)
class CollectionChain:
    """The names of the artifacts of one collection behind a cell; `ABSENT` where there is none."""

    measures: str
    run: str
    index: str
    collection: str


@dataclass(frozen=True)
class CellChain:
    """The artifacts behind a cell, from the number to the index; what is before them is the row's.

    Attributes:
        anchor: What the cell in the table leads to.
        column: The column's name.
        text: The number as printed.
        collections: The artifacts of each of the column's collections.
    """

    anchor: str
    column: str
    text: str
    collections: Sequence[CollectionChain]


@dataclass(frozen=True)
class RowChain:
    """The chain of a row of the table.

    Attributes:
        anchor: What the row's mean leads to.
        name: The row's name.
        stages: The names of the models of its stages.
        figure: Its chain, as SVG.
        cells: The chain of each of its cells but the mean.
    """

    anchor: str
    name: str
    stages: Sequence[str]
    figure: str
    cells: Sequence[CellChain]

    @property
    def anchors(self) -> list[str]:
        """What its cells lead to, the mean's last."""
        return [*(cell.anchor for cell in self.cells), self.anchor]


def row_chain(position: int, row: Row, columns: Sequence[Column], texts: Sequence[str], lineage: Lineage) -> RowChain:
    """The chain of a row.

    Args:
        position: The row's place in the table, from 0.
        row: The row.
        columns: The table's columns.
        texts: The row's numbers as printed, the mean last.
        lineage: The artifacts of the report.
    """
    inputs = {name: artifact.spec.input_names for name, artifact in lineage.artifacts.items()}
    roots = [artifact.name for replicate in row.replicates for artifact in replicate.measures.values()]
    notes = {name: _note(artifact) for name, artifact in lineage.artifacts.items()}
    cells = [
        CellChain(
            f"cell-{position + 1}-{number}",
            column.name,
            text,
            [
                _collection_chain(replicate.measures[name], lineage.artifacts)
                for name in column.collections
                for replicate in row.replicates
            ],
        )
        for number, (column, text) in enumerate(zip(columns, texts, strict=False), 1)
    ]
    return RowChain(
        f"chain-{position + 1}",
        row.name,
        [stage.name for replicate in row.replicates for stage in replicate.stages],
        draw_chain(f"{row.measure} {texts[-1]}", roots, inputs, notes),
        cells,
    )


def _note(artifact: Artifact) -> str:
    """What is shown when one points at an artifact's box."""
    files = f"files {content_digest(artifact.manifest['outputs'])[:DIGEST_DIGITS]}"
    return " · ".join(part for part in (artifact.name, origin(artifact.spec.settings), files) if part)


def _collection_chain(measures: Artifact, artifacts: Mapping[str, Artifact]) -> CollectionChain:
    run = next(iter(measures.spec.inputs.get("run", ())), ABSENT)
    index = next(iter(artifacts[run].spec.inputs.get("index", ())), ABSENT) if run in artifacts else ABSENT
    collection = next(iter(measures.spec.inputs.get("collection", ())), ABSENT)
    return CollectionChain(measures.name, run, index, collection)


def outside_table(lineage: Lineage) -> Table:
    """Tabulate what came from outside the study, and what pins its bytes."""
    artifacts = [artifact for kind in OUTSIDE for artifact in lineage.of_kind(kind)]
    rows = [
        TableRow(
            artifact.name,
            [
                Cell(origin(artifact.spec.settings) or "made here"),
                format_cell(content_digest(artifact.manifest["outputs"])[:DIGEST_DIGITS]),
            ],
        )
        for artifact in artifacts
    ]
    header = [Cell(""), Cell("what pins its bytes"), Cell("digest of its files")]
    return Table("what came from outside", header, rows, collapsed=True)
