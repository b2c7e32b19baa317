"""The sections of a report below its figures: tables of what the specs and manifests say."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from colbert_zero.graph.artifact import Artifact
from colbert_zero.report.columns import duration
from colbert_zero.report.results import Lineage

SECTIONS = (
    (
        "Collections",
        "What is searched. A judgement of a document or query that does not exist counts as never found.",
        "collections",
    ),
    ("Data", "What is trained on: the sources, and those of their rows that became shards.", "sources", "shards"),
    (
        "Mining",
        "The candidates of each query, and the negatives that the positive-aware filter kept. Above the positive: how "
        "many of them score more than the row's own document, by each miner and by their fused scores.",
        "candidates",
        "negatives",
    ),
    ("Bases", "The models that training starts from.", "bases"),
    ("Training", "", "models", "batches"),
    (
        "Selection",
        "Stages that were trained with several values of a setting: the mean of the first measure with each, and the "
        "one that was gone on with. The collections that it was selected on are not held out for it.",
        "selections",
    ),
    (
        "Evaluation",
        "An index's encoding has the prompts and lengths of its queries and documents, which may differ from training.",
        "indexes",
        "runs",
    ),
)
"""Of each section: its title, its text, and the kinds of artifacts whose facts it shows."""
NOT_IN_TABLES = frozenset({"files", "score_histograms"})
"""Facts that are too long for a table, or are drawn."""
COLLAPSED_KINDS = frozenset({"sources", "candidates", "batches", "indexes", "runs"})
"""Kinds whose tables are collapsed at first: they have many artifacts, of little interest."""
FIRST_FACTS = ("steps", "read", "kept", "rows", "dropped", "documents", "queries", "judgements")
"""Columns that come first, if an artifact has these facts; the other facts follow by name."""
ABSENT = "–"
"""Shown where there is no value."""


@dataclass(frozen=True)
class Cell:
    """A value as the page shows it; numbers are aligned to the right."""

    text: str
    numeric: bool = False


@dataclass(frozen=True)
class TableRow:
    """A row of a table in the page: its name, its cells, and a CSS class (`differs` highlights the name)."""

    name: str
    cells: Sequence[Cell]
    css_class: str = ""


@dataclass(frozen=True)
class Table:
    """A table in the page; `header` begins with an empty cell, above the names of the rows."""

    title: str
    header: Sequence[Cell]
    rows: Sequence[TableRow]
    collapsed: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure in the page: its SVG (see `figures`), what it shows for who cannot see it, and the text below it."""

    svg: str
    label: str
    caption: str


ROWS_FILE = "negatives.html"
"""The page beside the report's with some rows of mined negatives."""


@dataclass(frozen=True)
class Page:
    """A page beside the report's, which one of its sections leads to."""

    file: str
    title: str


@dataclass(frozen=True)
class Section:
    """A section of the page below the results; its figures stand above its tables."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = field(default_factory=list)
    figures: Sequence[Figure] = ()
    page: Page | None = None

    @property
    def anchor(self) -> str:
        """The id of the section's heading, which the navigation links to."""
        return self.title.lower().replace(" ", "-")


def format_cell(value: Any) -> Cell:
    """Format a fact or a setting: numbers with digits grouped, a mapping in one line, a long list as its length."""
    if isinstance(value, bool) or value is None:
        return Cell({True: "yes", False: "no", None: ABSENT}[value])
    if isinstance(value, int):
        return Cell(f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value), numeric=True)
    if isinstance(value, float):
        text = f"{value:,.1f}".replace(",", "\u202f") if abs(value) >= 100 else f"{value:.4g}"
        return Cell(text, numeric=True)
    if isinstance(value, Mapping):
        return Cell(" · ".join(f"{name} {format_cell(inner).text}" for name, inner in value.items()) or ABSENT)
    if isinstance(value, list):
        return Cell(", ".join(format_cell(inner).text for inner in value) if len(value) <= 4 else f"{len(value)} items")
    return Cell(str(value) or ABSENT)


def fact_table(
    kind: str, artifacts: Sequence[Artifact], rows_using: Mapping[str, str], left_out: Collection[str] = NOT_IN_TABLES
) -> Table:
    """Tabulate the facts of artifacts of one kind, a row for each artifact.

    Args:
        kind: The artifacts' kind, which is the table's title.
        artifacts: The artifacts.
        rows_using: By artifact name, the rows of the results table that depend on the artifact.
        left_out: Facts that are not for this table.
    """
    known = {name for artifact in artifacts for name in artifact.facts if name not in left_out}
    columns = [name for name in FIRST_FACTS if name in known] + sorted(known.difference(FIRST_FACTS))
    rows = []
    for artifact in artifacts:
        facts = [format_cell(artifact.facts.get(column)) for column in columns]
        key = artifact.name.rpartition("-")[2]
        cells = [*facts, format_cell(artifact.manifest["seconds"]), Cell(rows_using[artifact.name]), Cell(key)]
        rows.append(TableRow(artifact.spec.label, cells))
    return build_table(kind, [*columns, "step, s", "used by", "key"], rows, collapsed=kind in COLLAPSED_KINDS)


def build_table(title: str, header: Sequence[str], rows: Sequence[TableRow], *, collapsed: bool = False) -> Table:
    """Build a table, its columns of numbers aligned to the right; `header` leaves out the column of row names."""
    columns = [[row.cells[position] for row in rows] for position in range(len(header))]
    header_cells = [
        Cell(name.replace("_", " "), _is_numeric(column)) for name, column in zip(header, columns, strict=True)
    ]
    return Table(title, [Cell(""), *header_cells], rows, collapsed)


def _is_numeric(column: Sequence[Cell]) -> bool:
    """Whether a column holds at least one number, and nothing but numbers and absent values."""
    return any(cell.numeric for cell in column) and all(cell.numeric or cell.text == ABSENT for cell in column)


def settings_tables(models: Sequence[Artifact], rows_using: Mapping[str, str]) -> Iterator[Table]:
    """Tabulate the settings of each stage, a column for each model; settings that differ between models are marked."""
    for stage in dict.fromkeys(map(stage_name, models)):
        stage_models = [model for model in models if stage_name(model) == stage]
        names = dict.fromkeys(name for model in stage_models for name in model.spec.settings if name != "stage")
        rows = [_settings_row(name, [model.spec.settings.get(name) for model in stage_models]) for name in names]
        for role in ("start", "rows"):
            rows.append(_settings_row(role, [list(model.spec.inputs.get(role, ())) for model in stage_models]))
        yield build_table(f"settings of {stage}", [rows_using[model.name] for model in stage_models], rows)


def _settings_row(name: str, values: Sequence[Any]) -> TableRow:
    """A row of the values of one setting; prompts are quoted, so that a space at their end is visible."""
    cells = [
        Cell(json.dumps(value, ensure_ascii=False)) if name.endswith("prompt") else format_cell(value)
        for value in values
    ]
    return TableRow(name.replace("_", " "), cells, "differs" if len({cell.text for cell in cells}) > 1 else "")


def stage_name(model: Artifact) -> str:
    """The name of the stage that trained a model."""
    return str(model.spec.settings.get("stage", model.spec.label))


def provenance_section(lineage: Lineage, seed: int) -> Section:
    """List seeds, code, packages and machines, and every artifact's name with the time and memory that it took."""
    manifests = [artifact.manifest for artifact in lineage.artifacts.values()]
    packages: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, version in manifest["packages"].items():
            packages.setdefault(name, set()).add(version)
    codes = {(manifest["code"]["digest"][:12], manifest["code"].get("commit")) for manifest in manifests}
    hosts = {attempt["host"] for manifest in manifests for attempt in manifest["attempts"]}
    machines = {f"Python {manifest['python']}, {manifest['platform']}" for manifest in manifests}
    seeds = {str(value) for artifact in lineage.artifacts.values() for value in _find_seeds(artifact.spec.settings)}
    code = [f"{digest}, at commit {commit[:12]}" if commit else digest for digest, commit in sorted(codes, key=str)]
    entries = {
        "seed of the study": str(seed),
        "seeds of its artifacts": ", ".join(sorted(seeds)) or "none",
        "code digest": "; ".join(code),
        "machine": "; ".join(sorted(machines)),
        "host": ", ".join(sorted(hosts)),
        "sum of all steps": duration(math.fsum(manifest["seconds"] for manifest in manifests)),
    }
    entry_rows = [TableRow(name, [Cell(text)]) for name, text in entries.items()]
    package_rows = [TableRow(name, [Cell(", ".join(sorted(packages[name])))]) for name in sorted(packages)]
    artifact_rows = [
        TableRow(
            name,
            [
                format_cell(manifest["seconds"]),
                format_cell(manifest["peak_memory_mb"]),
                format_cell(manifest["threads"]),
                format_cell(len(manifest["attempts"])),
                format_cell(sum(entry["bytes"] for entry in manifest["outputs"].values())),
            ],
        )
        for name, manifest in sorted((name, artifact.manifest) for name, artifact in lineage.artifacts.items())
    ]
    text = "More than one code digest means that the code changed between steps; each manifest names its own."
    return Section(
        "Provenance",
        [text] if len(codes) > 1 else [],
        [
            build_table("", [""], entry_rows),
            build_table("packages", ["version"], package_rows, collapsed=True),
            build_table(
                "artifacts and times",
                ["seconds", "peak memory, MB", "threads", "attempts", "bytes"],
                artifact_rows,
                collapsed=True,
            ),
        ],
    )


def _find_seeds(settings: Any) -> Iterator[int]:
    """Yield every `seed` in nested settings."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            if name == "seed":
                yield value
            else:
                yield from _find_seeds(value)
