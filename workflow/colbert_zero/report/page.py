"""Write a study's table: as Markdown, as numbers, and as one page to read offline.

    python -m colbert_zero.report.page --spec '{"kind":"reports","label":"embedded",...}'

Everything the page says beyond the table is in the specs and manifests behind the measures: they are walked from there
to the sources. Of the files, only the measures and the loss histories are read.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2

from colbert_zero.graph.artifact import Artifact, Job, Spec, step_main
from colbert_zero.graph.config import WORKFLOW
from colbert_zero.report import figures
from colbert_zero.report.results import Column, Lineage, Row
from colbert_zero.report.sections import (
    NOTHING,
    SECTIONS,
    Section,
    cell,
    fact_table,
    provenance,
    settings_tables,
    stage_of,
)

TEMPLATES = WORKFLOW / "report"


@dataclass
class Report:
    """A study's rows and columns, and what is behind them.

    Attributes:
        spec: The report's.
        graph: Everything behind the measures.
    """

    spec: Spec
    graph: Lineage

    @classmethod
    def of(cls, spec: Spec) -> Report:
        """Open what a report's spec names."""
        return cls(spec, Lineage(name for names in spec.inputs.values() for name in names))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The spec's settings."""
        return self.spec.settings

    @cached_property
    def rows(self) -> list[Row]:
        """Baselines, then recipes, each from the best to the worst."""
        rows = []
        for name, row in self.settings["rows"].items():
            measures = [self.graph.artifacts[measure] for measure in self.spec.inputs[name]]
            stages = [self.graph.artifacts[stage] for stage in row["stages"]]
            by_collection = {artifact.spec.label: artifact for artifact in measures}
            rows.append(Row(name, row["kind"], stages, by_collection, self.settings["measure"]))
        columns = self._columns(rows)
        return sorted(rows, key=lambda row: (row.kind, -fmean(map(row.value, columns)), row.name))

    @property
    def recipes(self) -> list[Row]:
        """The rows that are trained here."""
        return [row for row in self.rows if row.kind == "recipe"]

    @property
    def models(self) -> list[Artifact]:
        """Every model that is trained, in the order of the rows, each once."""
        return list({stage.name: stage for row in self.recipes for stage in row.stages}.values())

    @cached_property
    def columns(self) -> list[Column]:
        """The table's columns but the mean, by name; a group stands where its first collection does."""
        return self._columns(self.rows)

    def _columns(self, rows: Sequence[Row]) -> list[Column]:
        groups: Mapping[str, Sequence[str]] = self.settings["groups"]
        group_of = {member: name for name, members in groups.items() for member in members}
        names = dict.fromkeys(group_of.get(name, name) for name in sorted(rows[0].measures))
        return [Column(name, tuple(groups.get(name, (name,)))) for name in names]

    def mean(self, row: Row) -> float:
        """Over columns: a group counts once."""
        return fmean(row.value(column) for column in self.columns)

    def values(self, row: Row) -> list[float]:
        """A row's values, its mean last."""
        return [*(row.value(column) for column in self.columns), self.mean(row)]

    @cached_property
    def best(self) -> list[str]:
        """As printed, the best value of any recipe in each column."""
        return [f"{100 * max(column):.2f}" for column in zip(*map(self.values, self.recipes), strict=True)]

    def printed(self, row: Row) -> list[tuple[str, bool]]:
        """A row's values as the table has them, and which of them are the best recipe's."""
        texts = [f"{100 * value:.2f}" for value in self.values(row)]
        if row.kind != "recipe":
            return [(text, False) for text in texts]
        return [(text, text == best) for text, best in zip(texts, self.best, strict=True)]

    @cached_property
    def reference(self) -> Row:
        """What recipes are compared with: the best baseline, or the first recipe where there is none."""
        baselines = [row for row in self.rows if row.kind == "baseline"]
        return max(baselines, key=self.mean) if baselines else self.recipes[0]

    @cached_property
    def users(self) -> dict[str, str]:
        """By artifact, the rows that need it."""
        needed = {
            row.name: self.graph.ancestors(artifact.name for artifact in row.measures.values()) for row in self.rows
        }
        found = {}
        for name in self.graph.artifacts:
            names = [row for row, behind in needed.items() if name in behind]
            found[name] = "all" if len(names) == len(needed) > 1 else ", ".join(names)
        return found

    @property
    def legend(self) -> str:
        """What the numbers of the table are."""
        grouped = [
            f"{column.name} is the mean of {len(column.members)}"
            for column in self.columns
            if column.members != (column.name,)
        ]
        notes = f"; {', '.join(grouped)}, and counts once" if grouped else ""
        return (
            f"{self.settings['measure']} x 100. The mean is over {len(self.columns)} column(s){notes}. "
            f"Bold: the best recipe. Training is the sum over a row's stages; a stage that several recipes share "
            f"counts in full for each. Seed {self.settings['seed']}."
        )

    def markdown(self) -> str:
        """The table for a terminal or a README, its columns aligned."""
        heads = ["recipe", "stages", *(column.name for column in self.columns), "mean", "training"]
        lines = [heads]
        for row in self.rows:
            values = [f"**{text}**" if best else text for text, best in self.printed(row)]
            lines.append([row.name, _stages(row), *values, _training(row)])
        lines = [[text.replace("|", "\\|") for text in line] for line in lines]
        widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
        rule = ["-" * width if place < 2 else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
        table = [
            "| "
            + " | ".join(
                text.ljust(width) if place < 2 else text.rjust(width)
                for place, (text, width) in enumerate(zip(line, widths, strict=True))
            )
            + " |"
            for line in (lines[0], rule, *lines[1:])
        ]
        return "\n".join([*table, "", self.legend]) + "\n"

    def write_csv(self, path: Path) -> None:
        """Write the table in full precision, measures between 0 and 1."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(
                ["name", "kind", "stages", *(column.name for column in self.columns), "mean", "training_seconds"]
            )
            for row in self.rows:
                stages = " ".join(stage.name for stage in row.stages)
                writer.writerow([row.name, row.kind, stages, *self.values(row), row.seconds])

    def page(self) -> str:
        """The page."""
        tints = {row.name: figures.colour(place) for place, row in enumerate(self.recipes)}
        compared = [row for row in self.recipes if row is not self.reference]
        by_row = [row.differences_to(self.reference, self.columns) for row in compared]
        names = [*(column.name for column in self.columns), "mean"]
        points = [
            figures.Point(row.name, row.seconds if row.stages else None, 100 * self.mean(row), tints.get(row.name, ""))
            for row in self.rows
        ]
        curves = self._curves(tints)
        measure = self.settings["measure"]
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        return environment.get_template("page.html").render(
            study=self.settings["study"],
            measure=measure,
            lead=self._lead(),
            legend=self.legend,
            columns=[column.name for column in self.columns],
            results=[
                {
                    "name": row.name,
                    "kind": row.kind,
                    "first": place > 0 and self.rows[place - 1].kind != row.kind,
                    "stages": _stages(row),
                    "cells": [{"text": text, "best": best} for text, best in self.printed(row)],
                    "training": _training(row),
                }
                for place, row in enumerate(self.rows)
            ],
            cost=figures.quality_against_cost(points, measure),
            cost_caption="Mean over columns against the training time of a recipe's stages. Dashed: not trained here.",
            losses=figures.loss_curves(curves) if curves else "",
            losses_caption="Loss of each training step, long histories averaged to 200 points. "
            "Stages have different losses, so heights compare within a panel only.",
            reference=self.reference.name,
            differences=figures.differences(
                [row.name for row in compared],
                {name: [found[place] for found in by_row] for place, name in enumerate(names)},
                [tints[row.name] for row in compared],
            )
            if compared
            else "",
            differences_caption=f"{measure} x 100 minus that of {self.reference.name}"
            + (", the best baseline" if self.reference.kind == "baseline" else "")
            + ", paired query by query, with 95 % intervals over queries (normal approximation). "
            "They say nothing of another seed's training.",
            sections=list(self._sections()),
        )

    def _lead(self) -> str:
        collections = self.graph.of_kind("collections")
        documents, queries = (sum(found.facts[name] for found in collections) for name in ("documents", "queries"))
        shards = self.graph.of_kind("shards")
        rows = sum(artifact.facts["rows"] for artifact in shards)
        return (
            f"{len(self.recipes)} recipes trained on {cell(rows).text} rows of {len(shards)} sources, compared on "
            f"{len(collections)} collections with {cell(documents).text} documents and {cell(queries).text} queries. "
            f"Seed {self.settings['seed']}."
        )

    def _curves(self, tints: Mapping[str, str]) -> dict[str, list[figures.Curve]]:
        """The loss of each distinct model, in the colour of the first row that has it."""
        rows_of: dict[str, list[str]] = {}
        for row in self.recipes:
            for stage in row.stages:
                rows_of.setdefault(stage.name, []).append(row.name)
        curves: dict[str, list[figures.Curve]] = {}
        for name, rows in rows_of.items():
            model = self.graph.artifacts[name]
            lines = model.file("losses.jsonl").read_text(encoding="utf-8").splitlines()
            label = rows[0] + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")
            curve = figures.Curve(label, [json.loads(line)["loss"] for line in lines], tints[rows[0]])
            curves.setdefault(stage_of(model), []).append(curve)
        return curves

    def _sections(self) -> Iterator[Section]:
        for title, text, *kinds in SECTIONS:
            tables = [
                fact_table(kind, artifacts, self.users) for kind in kinds if (artifacts := self.graph.of_kind(kind))
            ]
            if title == "Training":
                tables += settings_tables(self.models, self.users)
            if tables:
                yield Section(title, [text] if text else [], tables)
        yield provenance(self.graph, self.settings["seed"])


def _stages(row: Row) -> str:
    return " → ".join(map(stage_of, row.stages)) or NOTHING


def _training(row: Row) -> str:
    return figures.duration(row.seconds) if row.stages else NOTHING


def make(job: Job) -> Mapping[str, Any]:
    """Write `table.md`, `table.csv` and `report.html`; returns the means."""
    report = Report.of(job.spec)
    (job.folder / "table.md").write_text(report.markdown(), encoding="utf-8")
    report.write_csv(job.folder / "table.csv")
    (job.folder / "report.html").write_text(report.page(), encoding="utf-8")
    return {"means": {row.name: report.mean(row) for row in report.rows}, "reference": report.reference.name}


if __name__ == "__main__":
    step_main(make, __doc__)
