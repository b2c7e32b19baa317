"""The section of a report on the teachers: what their scores are like, as the facts of the teaching steps say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from colbert_zero.graph.artifact import KEY_DIGITS, Artifact
from colbert_zero.report import figures
from colbert_zero.report.sections import (
    ABSENT,
    NOT_IN_TABLES,
    Cell,
    Figure,
    Section,
    Table,
    TableRow,
    build_table,
    fact_table,
)

TEXT = (
    "Candidates and their teacher scores, which distillation learns from. Its target is the softmax of the scores, "
    "min-max normalised per query and divided by a temperature. The table has the mean entropy of that target by "
    "temperature, of which the logarithm of the number of documents, ln n, is the most: a target as flat as that "
    "teaches nothing. A score that is not finite ends the step, so that there is none."
)
TOLD = frozenset({"positive_first", "ties", "entropy", "raw", "histogram", "agreement"})
"""The facts that tables and figures of their own tell of."""

COUNTED = {"a row's own document": "own", "its other documents": "others"}
"""What the histograms of the facts count, by the words for it."""


def teachers_section(scores: Sequence[Artifact], rows_using: Mapping[str, str]) -> Section:
    """The tables and the figure of a study's teacher scores.

    Args:
        scores: The scores, one artifact at least. What the facts of earlier versions do not have is left out.
        rows_using: By artifact name, the rows of the results table that depend on the artifact.
    """
    tables = [fact_table("scores", scores, rows_using, left_out=NOT_IN_TABLES | TOLD)]
    if described := [artifact for artifact in scores if "entropy" in artifact.facts]:
        tables.append(_targets(described))
    if agreements := [row for artifact in scores for row in _agreements(artifact)]:
        tables.append(build_table("agreement of teachers, Kendall's tau", ["and", "mean tau", "rows"], agreements))
    return Section("Teachers", [TEXT], tables, list(_figures(scores)))


def _targets(scores: Sequence[Artifact]) -> Table:
    temperatures = list(dict.fromkeys(of for artifact in scores for of in artifact.facts["entropy"]))
    header = [
        "key",
        "own document first",
        "rows with ties",
        "ln n",
        *(f"entropy at {of}" for of in temperatures),
        "own, mean ± sd",
        "others, mean ± sd",
    ]
    return build_table("what distillation learns from", header, [_target(of, temperatures) for of in scores])


def _target(artifact: Artifact, temperatures: Sequence[str]) -> TableRow:
    facts, most = artifact.facts, math.log(artifact.spec.settings["documents"])
    entropy = facts["entropy"]
    cells = [
        Cell(artifact.name[-KEY_DIGITS:]),
        *(Cell(f"{100 * facts[name] / max(1, facts['rows']):.1f} %", True) for name in ("positive_first", "ties")),
        Cell(f"{most:.3f}", True),
        *(Cell(f"{most * entropy[of]:.3f}", True) if of in entropy else Cell(ABSENT) for of in temperatures),
        *(Cell(f"{facts['raw'][of]['mean']:.2f} ± {facts['raw'][of]['sd']:.2f}", True) for of in ("own", "others")),
    ]
    return TableRow(artifact.spec.label, cells)


def _agreements(artifact: Artifact) -> Iterator[TableRow]:
    """A row for each pair of an ensemble's members: how much alike they order a query's documents."""
    for pair in artifact.facts.get("agreement", ()):
        one, other = (name.partition("/")[2] for name in pair["teachers"])
        cells = [Cell(other), Cell(f"{pair['kendall_tau']:.3f}", True), Cell(str(pair["rows"]), True)]
        yield TableRow(one, cells)


def _figures(scores: Sequence[Artifact]) -> Iterator[Figure]:
    panels = {
        f"{artifact.name[-KEY_DIGITS:]} {artifact.spec.label}": figures.Histogram(
            0.0,
            1 / len(artifact.facts["histogram"]["own"]),
            {name: artifact.facts["histogram"][of] for name, of in COUNTED.items()},
        )
        for artifact in scores
        if "histogram" in artifact.facts
    }
    if panels:
        yield Figure(
            figures.histograms(panels),
            "The distribution of normalised scores of each teacher, for rows' own documents and for the others",
            "Scores after the min-max normalisation, in twentieths: in each row one document has 0 and one has 1. "
            "The more the two overlap, the less the teacher tells a row's own document from the others.",
        )
