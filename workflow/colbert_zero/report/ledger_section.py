"""The ledger of a report: what all that its table rests on has cost, as a section and as a file, by the manifests."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping

from colbert_zero.report import figures
from colbert_zero.report.columns import duration, number
from colbert_zero.report.costs import Cost, Entry, entry_of, total
from colbert_zero.report.paper_costs import counterpart_hours
from colbert_zero.report.results import Lineage, Replicate
from colbert_zero.report.sections import ABSENT, Cell, Figure, Section, TableRow, build_table, format_cell
from colbert_zero.report.sizes import Sizes

LEDGER_FILE = "ledger.csv"
GROUPS = {
    "data": ("sources", "collections", "bases", "shards", "batches"),
    "mining": ("candidates", "negatives"),
    "teachers": ("scores",),
    "training": ("models", "selections"),
    "indexes": ("indexes",),
    "search": ("runs", "measures"),
    "audit": ("contamination", "audits"),
}
"""What the figure tells apart, by the kinds of artifacts."""
COLUMNS = ("time", "CPU-hours", "GPU-hours", "of these lost", "GPU energy, kWh")
ALL = "all, each once"


class ReportLedger:
    """What the artifacts of a report cost, whose report itself is not among them."""

    def __init__(self, lineage: Lineage, replicates: Iterable[Replicate], rows_using: Mapping[str, str]) -> None:
        """Take the costs from the manifests.

        Args:
            lineage: All artifacts.
            replicates: The rows of the table, those with seeds once for each.
            rows_using: By artifact name, the rows that depend on it, in words.
        """
        artifacts = lineage.artifacts
        self._lineage, self._rows_using = lineage, rows_using
        self._entries = {name: entry_of(artifacts[name].spec, artifacts[name].manifest) for name in sorted(artifacts)}
        self._replicates = sorted(replicates, key=lambda replicate: replicate.name)
        self._sizes = Sizes(
            {name: artifact.spec for name, artifact in artifacts.items()},
            lambda name: artifacts[name].manifest if name in artifacts else None,
        )

    def csv(self) -> str:
        """A line for each artifact: what it cost, and which rows rest on it."""
        file = io.StringIO(newline="")
        writer = csv.writer(file, lineterminator="\n")
        fields = ("attempts", "seconds", "cpu_seconds", "gpu_seconds", "lost_seconds", "lost_gpu_seconds", "untimed")
        writer.writerow(["artifact", "rule", "stage", "rows", *fields, "watt_hours"])
        for name, entry in self._entries.items():
            costs = [getattr(entry.cost, field) for field in fields]
            energy = entry.cost.watt_hours or ""
            writer.writerow([name, entry.rule, entry.stage, self._rows_using.get(name, ""), *costs, energy])
        return file.getvalue()

    def section(self) -> Section:
        """The tables by rule and by row, and where the time went."""
        by_rule: dict[str, list[Entry]] = {}
        for entry in self._entries.values():
            by_rule.setdefault(f"{entry.rule} {entry.stage}".strip(), []).append(entry)
        rules = [
            TableRow(name, [format_cell(len(entries)), format_cell(total(entries).attempts), *_cells(total(entries))])
            for name, entries in sorted(by_rule.items())
        ]
        everything = total(self._entries.values())
        rules.append(
            TableRow(ALL, [format_cell(len(self._entries)), format_cell(everything.attempts), *_cells(everything)])
        )
        rows = [self._row(replicate) for replicate in self._replicates]
        text = [
            "By the manifests, attempts that failed or were killed included. A row has all that it rests on, also what "
            "other rows share; in the total, each artifact counts once. GPU-hours are those of a step's GPUs, "
            "CPU-hours those of its threads. Energy is that of the GPUs while they train, where they count it."
        ]
        if everything.untimed:
            text.append(
                f"{everything.untimed} attempts were killed, and count until they were last heard of: too little."
            )
        return Section(
            "Ledger",
            text,
            [
                build_table("by rule", ["artifacts", "attempts", *COLUMNS], rules),
                build_table("by row", [*COLUMNS, "GPU-hours of its trainings", "the paper's"], rows),
            ],
            [self._figure()],
        )

    def _names(self, replicate: Replicate) -> list[str]:
        """What a row rests on, sorted."""
        measures = (artifact.name for artifact in replicate.measures.values())
        return sorted(self._lineage.with_ancestors(measures))

    def _row(self, replicate: Replicate) -> TableRow:
        cost = total(self._entries[name] for name in self._names(replicate))
        trained = total(self._entries[stage.name] for stage in replicate.stages)
        paper = counterpart_hours([stage.spec for stage in replicate.stages], self._sizes)
        compared = Cell(ABSENT if paper is None else number(paper), numeric=paper is not None)
        hours = Cell(number(trained.gpu_hours), numeric=True) if replicate.stages else Cell(ABSENT)
        return TableRow(replicate.name, [*_cells(cost), hours, compared])

    def _figure(self) -> Figure:
        group_of = {kind: group for group, kinds in GROUPS.items() for kind in kinds}

        def seconds(names: Iterable[str]) -> list[float]:
            sums = dict.fromkeys(GROUPS, 0.0)
            for name in names:
                sums[group_of[name.partition("/")[0]]] += self._entries[name].cost.seconds
            return list(sums.values())

        bars = {ALL: seconds(self._entries)}
        bars |= {replicate.name: seconds(self._names(replicate)) for replicate in self._replicates}
        return Figure(
            figures.stacked_bars(bars, list(GROUPS)),
            "The time of all steps, by what they do, for the whole study and for each row",
            "Where the time went: that of all attempts, one after the other. A row has all that it rests on, shared or "
            "not.",
        )


def _cells(cost: Cost) -> list[Cell]:
    energy = Cell(number(cost.watt_hours / 1000), numeric=True) if cost.watt_hours else Cell(ABSENT)
    numbers = (cost.cpu_hours, cost.gpu_hours, cost.lost_gpu_hours)
    return [
        Cell(duration(cost.seconds), numeric=True),
        *(Cell(number(hours), numeric=True) for hours in numbers),
        energy,
    ]
