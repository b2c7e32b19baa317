"""The parts of a report below its figures: what the manifests say, as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from colbert_zero.graph.artifact import Artifact
from colbert_zero.report import figures
from colbert_zero.report.results import Lineage

SECTIONS = (
    (
        "Collections",
        "What is searched. Judgements of documents or queries that do not exist count as never found.",
        "collections",
    ),
    ("Data", "What is trained on: sources as they come, and what of them became shards.", "sources", "shards"),
    (
        "Mining",
        "Candidates for each query, and the negatives that the positive-aware filter left.",
        "candidates",
        "negatives",
    ),
    ("Teachers", "Candidates and their scores, which distillation learns from.", "scores"),
    ("Bases", "What training starts from.", "bases"),
    ("Training", "", "models", "batches"),
    ("Evaluation", "", "indexes", "runs"),
)
"""Title, text and the kinds of artifacts whose facts are shown."""
FOLDED = frozenset({"sources", "candidates", "batches", "indexes", "runs"})
"""Kinds with many artifacts of little interest."""
FIRST_FACTS = ("steps", "read", "kept", "rows", "dropped", "documents", "queries", "judgements")
"""Facts that come first, where there are any; the others follow by name."""
NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """A value as the page shows it."""

    text: str
    number: bool = False


@dataclass(frozen=True)
class TableRow:
    """A row of a table of the page."""

    name: str
    cells: Sequence[Cell]
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    title: str
    heads: Sequence[Cell]
    rows: Sequence[TableRow]
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page below the figures."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return self.title.lower().replace(" ", "-")


def cell(value: Any) -> Cell:
    """A fact or a setting: numbers grouped, small tables in one line, long lists by their length."""
    if isinstance(value, bool) or value is None:
        return Cell({True: "yes", False: "no", None: NOTHING}[value])
    if isinstance(value, int):
        return Cell(f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value), number=True)
    if isinstance(value, float):
        text = f"{value:,.1f}".replace(",", "\u202f") if abs(value) >= 100 else f"{value:.4g}"
        return Cell(text, number=True)
    if isinstance(value, Mapping):
        return Cell(" · ".join(f"{name} {cell(inner).text}" for name, inner in value.items()) or NOTHING)
    if isinstance(value, list):
        return Cell(", ".join(cell(inner).text for inner in value) if len(value) <= 4 else f"{len(value)} items")
    return Cell(str(value) or NOTHING)


def fact_table(kind: str, artifacts: Sequence[Artifact], users: Mapping[str, str]) -> Table:
    """The facts of artifacts of one kind, a line each.

    Args:
        kind: Their kind.
        artifacts: The artifacts.
        users: By name, the rows of the table that need it.
    """
    known = {name for artifact in artifacts for name in artifact.facts if name != "files"}
    columns = [name for name in FIRST_FACTS if name in known] + sorted(known.difference(FIRST_FACTS))
    lines = []
    for artifact in artifacts:
        facts = [cell(artifact.facts.get(column)) for column in columns]
        key = artifact.name.rpartition("-")[2]
        told = [*facts, cell(artifact.manifest["seconds"]), Cell(users[artifact.name]), Cell(key)]
        lines.append(TableRow(artifact.spec.label, told))
    return _table(kind, [*columns, "step, s", "used by", "key"], lines, folded=kind in FOLDED)


def _table(title: str, heads: Sequence[str], lines: Sequence[TableRow], *, folded: bool = False) -> Table:
    """A table whose columns are set right where they hold numbers only; `heads` has none for the names."""
    columns = [[line.cells[place] for line in lines] for place in range(len(heads))]
    numeric = [any(value.number for value in column) and _only_numbers(column) for column in columns]
    shown = [Cell(head.replace("_", " "), number) for head, number in zip(heads, numeric, strict=True)]
    return Table(title, [Cell(""), *shown], lines, folded)


def _only_numbers(column: Sequence[Cell]) -> bool:
    return all(value.number or value.text == NOTHING for value in column)


def settings_tables(models: Sequence[Artifact], users: Mapping[str, str]) -> Iterator[Table]:
    """For each stage, its settings by model; where models differ, the setting is marked."""
    for stage in dict.fromkeys(map(stage_of, models)):
        trained = [model for model in models if stage_of(model) == stage]
        names = dict.fromkeys(name for model in trained for name in model.spec.settings if name != "stage")
        lines = [_setting(name, [model.spec.settings.get(name) for model in trained]) for name in names]
        for role in ("start", "rows"):
            lines.append(_setting(role, [list(model.spec.inputs.get(role, ())) for model in trained]))
        yield _table(f"settings of {stage}", [users[model.name] for model in trained], lines)


def _setting(name: str, values: Sequence[Any]) -> TableRow:
    """Texts are quoted where white space at their end would not be seen."""
    cells = [
        Cell(json.dumps(value, ensure_ascii=False)) if name.endswith("prompt") else cell(value) for value in values
    ]
    return TableRow(name.replace("_", " "), cells, "differs" if len({shown.text for shown in cells}) > 1 else "")


def stage_of(model: Artifact) -> str:
    """A model's stage."""
    return str(model.spec.settings.get("stage", model.spec.label))


def provenance(graph: Lineage, seed: int) -> Section:
    """Seeds, code, packages, machines, and the name of every artifact with what it took."""
    manifests = [artifact.manifest for artifact in graph.artifacts.values()]
    packages: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, version in manifest["packages"].items():
            packages.setdefault(name, set()).add(version)
    codes = {(manifest["code"]["digest"][:12], manifest["code"].get("commit")) for manifest in manifests}
    hosts = {attempt["host"] for manifest in manifests for attempt in manifest["attempts"]}
    machines = {f"Python {manifest['python']}, {manifest['platform']}" for manifest in manifests}
    drawn = {str(value) for artifact in graph.artifacts.values() for value in _seeds(artifact.spec.settings)}
    code = [f"{digest}, at commit {commit[:12]}" if commit else digest for digest, commit in sorted(codes, key=str)]
    entries = {
        "seed of the study": str(seed),
        "seeds of its artifacts": ", ".join(sorted(drawn)) or "none",
        "code digest": "; ".join(code),
        "machine": "; ".join(sorted(machines)),
        "host": ", ".join(sorted(hosts)),
        "sum of all steps": figures.duration(math.fsum(manifest["seconds"] for manifest in manifests)),
    }
    lines = [TableRow(name, [Cell(text)]) for name, text in entries.items()]
    versions = [TableRow(name, [Cell(", ".join(sorted(packages[name])))]) for name in sorted(packages)]
    steps = [
        TableRow(
            name,
            [
                cell(manifest["seconds"]),
                cell(manifest["peak_memory_mb"]),
                cell(manifest["threads"]),
                cell(len(manifest["attempts"])),
                cell(sum(entry["bytes"] for entry in manifest["outputs"].values())),
            ],
        )
        for name, manifest in sorted((name, artifact.manifest) for name, artifact in graph.artifacts.items())
    ]
    text = "More than one code digest means that the code changed between steps; the audit says which it is for each."
    return Section(
        "Provenance",
        [text] if len(codes) > 1 else [],
        [
            _table("", [""], lines),
            _table("packages", ["version"], versions, folded=True),
            _table(
                "artifacts and times",
                ["seconds", "peak memory, MB", "threads", "attempts", "bytes"],
                steps,
                folded=True,
            ),
        ],
    )


def _seeds(settings: Any) -> Iterator[int]:
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            if name == "seed":
                yield value
            else:
                yield from _seeds(value)
