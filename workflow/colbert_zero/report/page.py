"""Write a study's table: as Markdown, as numbers, and as one page to read offline.

    python -m colbert_zero.report.page --spec '{"kind":"reports","label":"embedded",...}'

The page shows facts and settings from the specs and manifests of all artifacts that the measures depend on, back to the
sources. Of the artifacts' other files, only `measures.parquet`, `losses.jsonl` and `examples.json` are read.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from colbert_zero.graph.artifact import Artifact, Job, Spec, step_main
from colbert_zero.graph.json_values import parse_json
from colbert_zero.graph.published import other_collections, paper
from colbert_zero.report import figures
from colbert_zero.report.audit_section import audit_sections
from colbert_zero.report.chain_section import outside_table, row_chain
from colbert_zero.report.columns import counted, duration
from colbert_zero.report.ledger_section import LEDGER_FILE, ReportLedger
from colbert_zero.report.mteb_results import mteb_files
from colbert_zero.report.negatives_section import negatives_pages, negatives_sections
from colbert_zero.report.paper import AgainstThePaper, Comparison
from colbert_zero.report.paper_figures import grid_figure, pipeline_points
from colbert_zero.report.paper_section import comparison_csv, comparison_markdown, paper_section
from colbert_zero.report.paper_tables import paper_files
from colbert_zero.report.results import Column, Lineage, Replicate, Row, replicate_names
from colbert_zero.report.sections import (
    ABSENT,
    SECTIONS,
    Section,
    fact_table,
    format_cell,
    provenance_section,
    settings_tables,
    stage_name,
)
from colbert_zero.report.statistics.comparison import Statistics, compare
from colbert_zero.report.statistics.record import STATISTICS_FILE, record
from colbert_zero.report.statistics.section import statistics_sections
from colbert_zero.report.teachers_section import teachers_section
from colbert_zero.report.template import fill
from colbert_zero.report.text_tables import markdown_table

MODEL_FOLDER = "results/models/distillation-KEY"
"""The model's folder in `LOADING`."""
LOADING = {
    "PyLate": f"""\
from pylate import models

model = models.ColBERT("{MODEL_FOLDER}")
query_embeddings = model.encode(queries, prompt_name="query", is_query=True)
document_embeddings = model.encode(documents, prompt_name="document", is_query=False)
""",
    "sentence-transformers 6": f"""\
from sentence_transformers import MultiVectorEncoder

model = MultiVectorEncoder("{MODEL_FOLDER}")
query_embeddings = model.encode_query(queries)
document_embeddings = model.encode_document(documents)
""",
}
"""By library, how it loads a model. They are the recipes of `docs/loading.md`, which the tests run."""


@dataclass
class Report:
    """A study's rows and columns, and the artifacts that they come from.

    Attributes:
        spec: The report's spec.
        lineage: The measures and all artifacts that they are made from.
    """

    spec: Spec
    lineage: Lineage

    @classmethod
    def open(cls, spec: Spec) -> Report:
        """Open the artifacts that a report's spec names, and all artifacts that these are made from."""
        return cls(spec, Lineage(name for names in spec.inputs.values() for name in names))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The spec's settings."""
        return self.spec.settings

    @cached_property
    def rows(self) -> list[Row]:
        """Baselines, then recipes, each sorted from the highest mean to the lowest."""
        replicates = {name: self._replicate(name) for name in self.settings["rows"]}
        names = replicate_names(self.settings)
        rows = [
            Row(name, self.settings["rows"][of[0]]["kind"], [replicates[replicate] for replicate in of])
            for name, of in names.items()
        ]
        columns = self._columns(rows)
        return sorted(rows, key=lambda row: (row.kind, -fmean(map(row.value, columns)), row.name))

    def _replicate(self, name: str) -> Replicate:
        measures = [self.lineage.artifacts[measure] for measure in self.spec.inputs[name]]
        stages = [self.lineage.artifacts[stage] for stage in self.settings["rows"][name]["stages"]]
        by_collection = {artifact.spec.label: artifact for artifact in measures}
        return Replicate(name, stages, by_collection, self.settings["measure"])

    @property
    def recipes(self) -> list[Row]:
        """The rows of this study's recipes."""
        return [row for row in self.rows if row.kind == "recipe"]

    @property
    def models(self) -> list[Artifact]:
        """Every trained model, once, in the order of the rows."""
        stages = (stage for row in self.recipes for replicate in row.replicates for stage in replicate.stages)
        return list({model.name: model for stage in stages for model in self._models_of(stage)}.values())

    def _models_of(self, stage: Artifact) -> list[Artifact]:
        """The models that a stage trained: one, or those that it was selected from."""
        names = stage.spec.inputs.get("models", [stage.name])
        return [self.lineage.artifacts[name] for name in names]

    @cached_property
    def columns(self) -> list[Column]:
        """The table's columns except the mean, sorted by collection; a group stands at its first collection."""
        return self._columns(self.rows)

    def _columns(self, rows: Sequence[Row]) -> list[Column]:
        groups: Mapping[str, Sequence[str]] = self.settings["groups"]
        group_of = {collection: name for name, collections in groups.items() for collection in collections}
        names = dict.fromkeys(group_of.get(name, name) for name in sorted(rows[0].collections))
        return [Column(name, tuple(groups.get(name, (name,)))) for name in names]

    def mean(self, row: Row) -> float:
        """A row's mean over columns: a group counts once."""
        return fmean(row.value(column) for column in self.columns)

    def values(self, row: Row) -> list[float]:
        """A row's value in each column, and their mean last."""
        return [*(row.value(column) for column in self.columns), self.mean(row)]

    @cached_property
    def best_texts(self) -> list[str]:
        """The best value of any recipe in each column, as printed."""
        return [f"{100 * max(column):.2f}" for column in zip(*map(self.values, self.recipes), strict=True)]

    def formatted_values(self, row: Row) -> list[tuple[str, bool]]:
        """A row's values as printed, with their spread over seeds, each with whether it equals the best recipe's."""
        texts = [f"{100 * value:.2f}" for value in self.values(row)]
        spreads = [row.spread(columns) for columns in (*([column] for column in self.columns), self.columns)]
        printed = [
            text if spread is None else f"{text} ± {100 * spread:.2f}"
            for text, spread in zip(texts, spreads, strict=True)
        ]
        if row.kind != "recipe":
            return [(text, False) for text in printed]
        return [(text, mean == best) for text, mean, best in zip(printed, texts, self.best_texts, strict=True)]

    @cached_property
    def reference(self) -> Row:
        """The row that others are compared with: the config's, or the highest baseline, or recipe if there is none."""
        if name := self.settings.get("reference"):
            return next(row for row in self.rows if row.name == name)
        return self.rows[0]

    @property
    def compared(self) -> list[Row]:
        """The rows that are compared with the reference: recipes, or baselines where there are no recipes."""
        return [row for row in self.recipes or self.rows if row is not self.reference]

    @cached_property
    def statistics(self) -> Statistics:
        """What can be said of the differences between rows."""
        return compare(self.rows, self.compared, self.reference, self.columns, self.settings["seed"])

    @cached_property
    def rows_using(self) -> dict[str, str]:
        """By artifact name, the rows whose measures depend on the artifact: `all`, or their names."""
        dependencies = {
            replicate.name: self.lineage.with_ancestors(artifact.name for artifact in replicate.measures.values())
            for row in self.rows
            for replicate in row.replicates
        }
        rows_using = {}
        for name in self.lineage.artifacts:
            rows = [row for row, artifacts in dependencies.items() if name in artifacts]
            rows_using[name] = "all" if len(rows) == len(dependencies) > 1 else ", ".join(rows)
        return rows_using

    @cached_property
    def ledger(self) -> ReportLedger:
        """What all that the table rests on has cost."""
        replicates = (replicate for row in self.rows for replicate in row.replicates)
        return ReportLedger(self.lineage, replicates, self.rows_using)

    @property
    def legend(self) -> str:
        """The explanation of the table's numbers, printed below the table."""
        grouped = [
            f"{column.name} is the mean of {len(column.collections)} collections and counts once"
            for column in self.columns
            if column.collections != (column.name,)
        ]
        notes = f"; {', '.join(grouped)}" if grouped else ""
        of_recipes = (
            "Bold: the highest value of a recipe in a column, by chance or not. Training is the total time of a row's "
            "stages; a stage that several recipes share counts in full for each. "
        )
        return (
            f"{self.settings['measure']} x 100. The mean is over {counted(len(self.columns), 'column')}{notes}. "
            f"{of_recipes if self.recipes else ''}{self._seeds}{self._selected_on}"
        )

    @property
    def _selected_on(self) -> str:
        """Which rows have a model that was selected by its numbers on some collections."""
        rows = {
            row.name: dict.fromkeys(
                name
                for replicate in row.replicates
                for stage in replicate.stages
                if stage.spec.kind == "selections"
                for name in stage.facts["collections"]
                if name in row.collections
            )
            for row in self.recipes
        }
        return "".join(
            f" A model of {row} was selected by its numbers on {', '.join(names)}: there they are not held out."
            for row, names in rows.items()
            if names
        )

    @property
    def _seeds(self) -> str:
        several = {row.name: len(row.replicates) for row in self.rows if len(row.replicates) > 1}
        if not several:
            return f"Seed {self.settings['seed']}."
        rows = ", ".join(f"{name} ({number})" for name, number in several.items())
        return (
            f"Of several seeds, the mean and ± the standard deviation: {rows}; training is that of one. "
            f"Seed {self.settings['seed']} for the others."
        )

    def markdown(self) -> str:
        """The table in Markdown, its columns aligned to read well in a terminal."""
        header = ["recipe", "stages", *(column.name for column in self.columns), "mean", "training"]
        lines = [header]
        for row in self.rows:
            values = [f"**{text}**" if best else text for text, best in self.formatted_values(row)]
            lines.append([row.name, _format_stages(row), *values, _format_training_time(row)])
        return "\n".join([*markdown_table(lines, range(2)), "", self.legend]) + "\n"

    def csv(self) -> str:
        """The table as CSV in full precision, with measures between 0 and 1; with seeds, a line for each of them."""
        file = io.StringIO(newline="")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["name", "kind", "stages", *(column.name for column in self.columns), "mean", "training_seconds"]
        )
        for row in self.rows:
            for replicate in row.replicates:
                values = [replicate.value(column) for column in self.columns]
                stages = " ".join(stage.name for stage in replicate.stages)
                writer.writerow([replicate.name, row.kind, stages, *values, fmean(values), replicate.training_seconds])
        return file.getvalue()

    def files(self) -> Iterator[tuple[str, str]]:
        """The path and the text of each file of the report."""
        yield "table.md", self.markdown()
        yield "table.csv", self.csv()
        if self.against is not None:
            yield "paper/comparison.md", comparison_markdown(self.against, self._paper_notes)
            yield "paper/comparison.csv", comparison_csv(self.against)
            yield from paper_files(self.against)
        replicates = [replicate for row in self.rows for replicate in row.replicates]
        yield from mteb_files(self.settings["study"], replicates, self.lineage)
        settings = self.settings
        yield STATISTICS_FILE, record(self.statistics, settings["study"], settings["measure"], settings["seed"])
        yield LEDGER_FILE, self.ledger.csv()
        yield from negatives_pages(self.lineage.of_kind("negatives"), settings["study"])
        yield "report.html", self.html()

    def html(self) -> str:
        """The page, as one HTML document."""
        colours = {row.name: figures.palette_colour(position) for position, row in enumerate(self.recipes or self.rows)}
        names = [*(column.name for column in self.columns), "mean"]
        pipelines = pipeline_points(self.against, names[:-1]) if self.against else []
        points = [
            figures.Point(
                row.name,
                None if not row.stages else self._gpu_seconds(row) if pipelines else row.training_seconds,
                100 * self.mean(row),
                colours.get(row.name, ""),
            )
            for row in self.rows
        ] + pipelines
        curves = self._loss_curves(colours)
        chains = [
            row_chain(position, row, self.columns, [text for text, _ in self.formatted_values(row)], self.lineage)
            for position, row in enumerate(self.rows)
        ]
        measure = self.settings["measure"]
        return fill(
            "page.html",
            study=self.settings["study"],
            measure=measure,
            summary=self._summary(),
            legend=self.legend,
            columns=[column.name for column in self.columns],
            results=[
                {
                    "name": row.name,
                    "kind": row.kind,
                    "first": position > 0 and self.rows[position - 1].kind != row.kind,
                    "stages": _format_stages(row),
                    "cells": [
                        {"text": text, "best": best, "anchor": anchor}
                        for (text, best), anchor in zip(self.formatted_values(row), chain.anchors, strict=True)
                    ],
                    "training": _format_training_time(row),
                }
                for position, (row, chain) in enumerate(zip(self.rows, chains, strict=True))
            ],
            cost=figures.quality_against_cost(
                points, measure, "training time × GPUs of all stages" if pipelines else "training time of all stages"
            )
            if self.recipes or pipelines
            else "",
            cost_caption="Mean over columns against the total training time of a recipe's stages"
            + (", times the processes that train it, one on each GPU; rings: the paper's GH200-hours" * bool(pipelines))
            + ". Dashed lines: rows that are not trained here.",
            losses=figures.loss_curves(curves) if curves else "",
            losses_caption="Loss of each training step; trainings of more than 200 steps are averaged to 200 points. "
            "Stages have different loss functions: compare losses within a panel only.",
            reference=self.reference.name,
            differences=figures.differences(
                [row.name for row in self.compared],
                dict(zip(names, self._differences(), strict=True)),
                [colours[row.name] for row in self.compared],
            )
            if self.compared
            else "",
            differences_caption=f"{measure} x 100 minus that of {self.reference.name}"
            + (", the highest baseline" if self._is_highest_baseline else "")
            + ", paired query by query, with the bootstrap's 95 % intervals, as under Statistics.",
            loading=self._loading(),
            sections=list(self._sections()),
            chains=chains,
            outside=outside_table(self.lineage),
        )

    @property
    def _is_highest_baseline(self) -> bool:
        return self.reference.kind == "baseline" and self.reference is self.rows[0]

    def _differences(self) -> list[list[figures.Difference]]:
        """By column and last for the mean, how the compared rows differ from the reference."""
        comparisons = self.statistics.comparisons
        return [
            [
                figures.Difference(100 * each.spread.mean, 100 * each.interval[0], 100 * each.interval[1])
                for each in (comparisons[row.name, column] for row in self.compared)
            ]
            for column in (*self.statistics.columns, None)
        ]

    def _loading(self) -> dict[str, Any] | None:
        """How the last model of the recipe with the highest mean is loaded; None where nothing is trained."""
        trained = next((row for row in self.recipes if row.stages), None)
        if trained is None:
            return None
        folder = trained.stages[-1].spec.folder.as_posix()
        codes = {library: code.replace(MODEL_FOLDER, folder) for library, code in LOADING.items()}
        return {"recipe": trained.name, "codes": codes}

    def _summary(self) -> str:
        """The study's size in a few sentences, for the top of the page."""
        measures = (of for row in self.rows for replicate in row.replicates for of in replicate.measures.values())
        names = {name for measure in measures for name in measure.spec.inputs["collection"]}
        collections = [self.lineage.artifacts[name] for name in names]
        documents, queries = (
            sum(artifact.facts[name] for artifact in collections) for name in ("documents", "queries")
        )
        shards = self.lineage.of_kind("shards")
        rows = sum(artifact.facts["rows"] for artifact in shards)
        compared = (
            f"{counted(len(self.recipes), 'recipe')} trained on {format_cell(rows).text} rows of "
            f"{counted(len(shards), 'source')}"
            if self.recipes
            else f"{counted(len(self.rows), 'row')}, not trained here"
        )
        return (
            f"{compared}, compared on {counted(len(collections), 'collection')} with {format_cell(documents).text} "
            f"documents and {format_cell(queries).text} queries. {self._seeds}"
        )

    def _loss_curves(self, colours: Mapping[str, str]) -> dict[str, list[figures.Curve]]:
        """By stage, the loss curve of each distinct model, in the colour of the first row that uses the model."""
        rows_of: dict[str, list[str]] = {}
        for row in self.recipes:
            for stage in (stage for replicate in row.replicates for stage in replicate.stages):
                rows_of.setdefault(stage.name, []).append(row.name)
        curves: dict[str, list[figures.Curve]] = {}
        for name, rows in rows_of.items():
            model = self.lineage.artifacts[name]
            lines = model.file("losses.jsonl").read_text(encoding="utf-8").splitlines()
            losses = [parse_json(line)["loss"] for line in lines]
            curve = figures.Curve(rows[0], len(rows) - 1, losses, colours[rows[0]])
            curves.setdefault(stage_name(model), []).append(curve)
        return curves

    @cached_property
    def against(self) -> AgainstThePaper | None:
        """The rows beside the published ones that they name; None if none does."""
        published: Mapping[str, str] = self.settings.get("published", {})
        comparisons = [
            Comparison(
                row.name,
                row.kind == "recipe",
                paper().rows[published[row.name]],
                {column.name: 100 * row.value(column) for column in self.columns},
            )
            for row in self.rows
            if row.name in published
        ]
        return AgainstThePaper(comparisons) if comparisons else None

    @property
    def _paper_notes(self) -> list[str]:
        """What limits a comparison with published numbers, in sentences."""
        notes = []
        if others := other_collections(artifact.spec for artifact in self.lineage.of_kind("collections")):
            notes.append(
                f"Of another collection than the registry pins, so that their verdicts say little: {', '.join(others)}."
            )
        shares = {artifact.spec.settings.get("share", 1) for artifact in self.lineage.of_kind("shards")} - {1}
        if shares:
            notes.append(
                f"Trained on {' and '.join(f'{100 * share:g} %' for share in sorted(shares))} of the rows, where the "
                "paper trains on all."
            )
        return notes

    def _gpu_seconds(self, row: Row) -> float:
        """The training time of all stages of a row times their processes, the mean over its seeds."""
        return fmean(
            math.fsum(
                model.facts["seconds"] * model.facts.get("processes", 1)
                for stage in replicate.stages
                for model in self._models_of(stage)
            )
            for replicate in row.replicates
        )

    def _sections(self) -> Iterator[Section]:
        yield from statistics_sections(self.statistics, self.settings["measure"])
        if self.against is not None:
            yield paper_section(self.against, self._paper_notes, grid_figure(self.against))
        for title, text, *kinds in SECTIONS:
            tables = [
                fact_table(kind, artifacts, self.rows_using)
                for kind in kinds
                if (artifacts := self.lineage.of_kind(kind))
            ]
            if title == "Training":
                tables += settings_tables(self.models, self.rows_using)
            if tables:
                yield Section(title, [text] if text else [], tables)
            if title == "Mining":
                yield from negatives_sections(self.lineage.of_kind("negatives"))
                if scores := self.lineage.of_kind("scores"):
                    yield teachers_section(scores, self.rows_using)
        yield self.ledger.section()
        yield from audit_sections(self.spec.inputs, self.lineage)
        yield provenance_section(self.lineage, self.settings["seed"])


def _format_stages(row: Row) -> str:
    return " → ".join(map(stage_name, row.stages)) or ABSENT


def _format_training_time(row: Row) -> str:
    return duration(row.training_seconds) if row.stages else ABSENT


def make(job: Job) -> Mapping[str, Any]:
    """Write the report's files; return the means."""
    report = Report.open(job.spec)
    for name, text in report.files():
        path = job.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return {"means": {row.name: report.mean(row) for row in report.rows}, "reference": report.reference.name}


if __name__ == "__main__":
    step_main(make, __doc__)
