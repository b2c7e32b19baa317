"""The report's section of hard negatives: what became of the candidates, how scores lie; and a page of some rows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.json_values import read_json
from colbert_zero.mining.examples import EXAMPLES_FILE
from colbert_zero.report import figures
from colbert_zero.report.sections import (
    ROWS_FILE,
    Cell,
    Figure,
    Page,
    Section,
    Table,
    TableRow,
    build_table,
    format_cell,
)
from colbert_zero.report.template import fill

ROWS_TITLE = "Rows with their negatives"
LONGEST_TEXT = 400
"""Characters of a text in an example; the rest is left out."""


def negatives_sections(artifacts: Sequence[Artifact]) -> Iterator[Section]:
    """The section, if there are `negatives/*` artifacts; not of those of version 0.1.0, which counted otherwise."""
    counted = {_title(artifact, artifacts): artifact for artifact in artifacts if "kept" in artifact.facts}
    if not counted:
        return
    panels = {
        f"{title}, {miner}": figures.Histogram(
            histogram["low"], histogram["width"], {name: histogram[name] for name in ("positives", "negatives")}
        )
        for title, artifact in counted.items()
        for miner, histogram in artifact.facts.get("score_histograms", {}).items()
    }
    yield Section(
        "Negatives",
        ["What became of the candidates: each was kept, or is counted under the first reason to drop it."],
        [_funnel(counted)],
        [
            Figure(
                figures.histograms(panels),
                "The distributions of the scores of positives and of negatives, by source and miner",
                "How a miner scores the rows' own documents, and those of their negatives that it retrieved. Where the "
                "two lie apart, what was kept is easy; a negative as high as most positives may be a false one.",
            )
        ]
        if panels
        else [],
        Page(ROWS_FILE, ROWS_TITLE) if _with_rows(artifacts) else None,
    )


def negatives_pages(artifacts: Sequence[Artifact], study: str) -> Iterator[tuple[str, str]]:
    """The path and the text of the page with some rows of `negatives/*` artifacts, if any of them has rows to show.

    The page stands beside the report's, which has no text of any row: a report may be handed on where rows may not.
    """
    if shown := _with_rows(artifacts):
        about = "Some rows of the mined negatives of each source, drawn by the seed."
        tables = [_examples(_title(artifact, artifacts), artifact) for artifact in shown]
        yield ROWS_FILE, fill("rows.html", title=ROWS_TITLE, study=study, about=about, tables=tables)


def _with_rows(artifacts: Sequence[Artifact]) -> list[Artifact]:
    return [artifact for artifact in artifacts if EXAMPLES_FILE in artifact.manifest["outputs"]]


def _title(artifact: Artifact, others: Sequence[Artifact]) -> str:
    """The source of some negatives, with their key if others have the same source."""
    label = artifact.spec.label
    return label if sum(other.spec.label == label for other in others) == 1 else f"{label}-{artifact.spec.key}"


def _funnel(counted: dict[str, Artifact]) -> Table:
    reasons = dict.fromkeys(
        reason for artifact in counted.values() for reason, count in artifact.facts["dropped"].items() if count
    )
    rows = [
        TableRow(
            title,
            [
                format_cell(artifact.facts["candidates"]),
                *(format_cell(artifact.facts["dropped"].get(reason, 0)) for reason in reasons),
                *(format_cell(artifact.facts[name]) for name in ("kept", "rows_read", "rows_kept")),
            ],
        )
        for title, artifact in counted.items()
    ]
    return build_table("", ["candidates", *reasons, "kept", "rows_read", "rows_kept"], rows)


def _examples(title: str, artifact: Artifact) -> Table:
    rows = []
    for example in read_json(artifact.file(EXAMPLES_FILE)):
        rows.append(TableRow("query", [_text(example["query"])], "first"))
        rows.append(TableRow("positive", [_text(example["document"])]))
        rows += [TableRow("negative", [_text(negative)]) for negative in example["negatives"]]
    return build_table(title, [""], rows)


def _text(text: str) -> Cell:
    return Cell(textwrap.shorten(text, LONGEST_TEXT, placeholder=" …"))
