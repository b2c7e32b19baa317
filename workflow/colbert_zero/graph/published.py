"""The numbers that a study can be compared with: those of `workflow/registry/paper.yaml`, and Pyserini's BM25.

A recipe or a baseline names one of them with `published: ID`. All numbers are points, the measure x 100.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean
from typing import Any

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import read_yaml, require_known
from colbert_zero.graph.console import UserError
from colbert_zero.graph.registry import REGISTRY

MEASURE = "nDCG@10"
"""What all published numbers are of."""
LENGTHS = ("plain", "plus_7", "plus_7_at_evaluation")


@dataclass(frozen=True)
class Tolerance:
    """How far a number measured again may be from the published one.

    Attributes:
        of: What kind of rows it is for.
        mean: Of the mean over all published columns.
        collection: Of one column.
        reason: Why so far, in a sentence.
    """

    of: str
    mean: float
    collection: float
    reason: str


PAPER_TOLERANCE = Tolerance(
    "models",
    0.15,
    1.0,
    "The released checkpoints, measured a second time in MTEB by an author, differ from the paper by 0.04 to 0.12 on "
    "the mean and by up to 0.9 on a collection, and nothing was trained anew.",
)
"""Of models. The differences: `workflow/registry/paper.yaml` has both measurements."""
BM25_TOLERANCE = Tolerance(
    "BM25",
    0.2,
    0.5,
    "Nothing is trained or drawn: Lucene, analyser, parameters and text field are Pyserini's. What may differ are "
    "Lucene's version, the order of ties, and the texts, which are MTEB's copies of BEIR's.",
)
"""Of BM25 with Pyserini's parameters."""


@dataclass(frozen=True)
class Numbers:
    """Values of a row of a table.

    Attributes:
        values: By column; a column without a published value is left out.
        average: The mean over `values`, as published.
    """

    values: Mapping[str, float]
    average: float


@dataclass(frozen=True)
class Published:
    """A published row.

    Attributes:
        id: What `published` names it by.
        name: Its name for people.
        numbers: Its values.
        again: The same model measured by others, or another implementation; None if there is none.
        tolerance: How far ours may be from `numbers`.
        stages: The stages that the paper trained it with; none if it took a released model.
        block: Where its training starts: A, B, C or D; empty without training.
        prompts: Whether its last stage had prompts.
        length: One of `LENGTHS`: whether lengths had room for a prompt's 7 tokens.
        note: What a reader of its numbers should know; empty if there is nothing.
    """

    id: str
    name: str
    numbers: Numbers
    again: Numbers | None = None
    tolerance: Tolerance = PAPER_TOLERANCE
    stages: tuple[str, ...] = ()
    block: str = ""
    prompts: bool = False
    length: str = LENGTHS[0]
    note: str = ""


@dataclass(frozen=True)
class TableRow:
    """A row of a table of the paper.

    Attributes:
        model: The id of its model.
        label: What it is called in the table.
        against: The id of the model that it is compared with; None if with none.
    """

    model: str
    label: str
    against: str | None


@dataclass(frozen=True)
class Block:
    """Some rows of a table under one heading."""

    title: str
    rows: Sequence[TableRow]


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: `table2`.
        title: What it shows.
        blocks: Its rows.
    """

    name: str
    title: str
    blocks: Sequence[Block]

    @property
    def number(self) -> str:
        """Its number in the paper."""
        return self.name.removeprefix("table")

    @property
    def rows(self) -> list[TableRow]:
        """The rows of all blocks."""
        return [row for block in self.blocks for row in block.rows]


@dataclass(frozen=True)
class Claim:
    """A gap between two rows that a conclusion rests on: `first` is said to be better than `second`."""

    says: str
    first: str
    second: str


@dataclass(frozen=True)
class Paper:
    """Everything published.

    Attributes:
        columns: The 15 columns of the paper's tables.
        in_domain: Those of them that MTEB lists as training data of the paper's models.
        gpu_hours: GH200-hours of each stage.
        blocks: What the letters of the blocks stand for.
        rows: Every published row by its id.
        tables: The tables by name.
        claims: Gaps that the paper's conclusions rest on.
    """

    columns: Sequence[str]
    in_domain: frozenset[str]
    gpu_hours: Mapping[str, float]
    blocks: Mapping[str, str]
    rows: Mapping[str, Published] = field(repr=False)
    tables: Mapping[str, Table] = field(repr=False)
    claims: Sequence[Claim] = field(repr=False)

    def cost(self, row: Published) -> float:
        """GH200-hours of all stages of a row."""
        return sum(self.gpu_hours[stage] for stage in row.stages)


@cache
def paper() -> Paper:
    """What the registry has, read once."""
    entries = read_yaml(REGISTRY / "paper.yaml")
    columns: list[str] = entries["columns"]
    collections = read_yaml(REGISTRY / "collections.yaml")
    rows = {name: _model(name, columns, entry) for name, entry in entries["models"].items()}
    rows |= {name: _bm25(name, columns, entry, collections) for name, entry in entries["bm25"].items()}
    return Paper(
        columns=columns,
        in_domain=frozenset(name for name, entry in collections["collections"].items() if entry.get("in_domain")),
        gpu_hours=entries["gpu_hours"],
        blocks=entries["blocks"],
        rows=rows,
        tables={name: _table(name, entry, rows) for name, entry in entries["tables"].items()},
        claims=[Claim(**entry) for entry in entries["claims"]],
    )


def _numbers(columns: Sequence[str], entry: Mapping[str, Any]) -> Numbers:
    return Numbers(dict(zip(columns, entry["values"], strict=True)), entry["average"])


def _model(name: str, columns: Sequence[str], entry: Mapping[str, Any]) -> Published:
    trained = {key: entry[key] for key in ("block", "prompts", "length") if key in entry}
    return Published(
        name,
        entry["name"],
        _numbers(columns, entry),
        _numbers(columns, entry["mteb"]) if "mteb" in entry else None,
        stages=tuple(entry.get("stages", ())),
        note=entry.get("note", ""),
        **trained,
    )


def _bm25(name: str, columns: Sequence[str], entry: Mapping[str, Any], collections: Mapping[str, Any]) -> Published:
    """Pyserini's BM25, whose values stand beside the collections; a group's is the mean of its members'."""
    values = {}
    for column in columns:
        members = [collections["collections"][member] for member in collections["groups"].get(column, [column])]
        if all("bm25" in member for member in members):
            values[column] = 100 * fmean(member["bm25"]["flat"] for member in members)
    return Published(
        name,
        entry["name"],
        Numbers(values, fmean(values.values())),
        _numbers(columns, entry["mteb"]),
        BM25_TOLERANCE,
        note=entry["note"],
    )


def _table(name: str, entry: Mapping[str, Any], rows: Mapping[str, Published]) -> Table:
    blocks = [
        Block(
            block["title"],
            [
                TableRow(row["model"], row.get("label", rows[row["model"]].name), row.get("against"))
                for row in block["rows"]
            ],
        )
        for block in entry["blocks"]
    ]
    return Table(name, entry["title"], blocks)


def other_collections(specs: Iterable[Spec]) -> list[str]:
    """The names of those collections that are called as one of the registry's, and are not the one that it pins."""
    entries = read_yaml(REGISTRY / "collections.yaml")["collections"]
    planned = {spec.label.partition(".")[2]: spec.settings for spec in specs}
    pins = ("hub", "revision", "split")
    return sorted(
        name
        for name, settings in planned.items()
        if name in entries and any(settings.get(pin) != entries[name][pin] for pin in pins)
    )


def check_published(name: str, where: str, measure: str, *, bm25: bool) -> str:
    """`name`, if it is the id of a published row that fits.

    Args:
        name: The value of a row's `published`.
        where: The row's place in the config.
        measure: The measure of the study's table.
        bm25: Whether the row is BM25.

    Raises:
        UserError: There is no such row, it is another kind of row, or the study's table shows another measure.
    """
    row = paper().rows[require_known(name, paper().rows, f"{where}.published", "workflow/registry/paper.yaml")]
    if bm25 != (row.tolerance is BM25_TOLERANCE):
        fitting = "the one of BM25 is pyserini-bm25" if bm25 else "name a model"
        raise UserError(f"{where}.published: {name} is {row.name}, which this row is not; {fitting}")
    if measure != MEASURE:
        raise UserError(
            f"{where}.published: the published numbers are {MEASURE}, but evaluation.measures begins with {measure}; "
            f"put {MEASURE} first, or leave out published"
        )
    return name
