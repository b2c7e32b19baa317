"""What figures draw of the paper: its three pipelines by their cost, and prompts × lengths (table 4)."""

from __future__ import annotations

from collections.abc import Sequence

from colbert_zero.graph.published import Published
from colbert_zero.report import figures
from colbert_zero.report.paper import AgainstThePaper
from colbert_zero.report.sections import Figure

PIPELINES = ("a-distilled", "b-distilled", "c-distilled")
"""The published rows of the three pipelines."""
LENGTHS = {"plain": 0, "plus_7": 1, "plus_7_at_evaluation": 1}
"""The row of a square that a length is in."""


def pipeline_points(against: AgainstThePaper, columns: Sequence[str]) -> list[figures.Point]:
    """The paper's pipelines, to draw beside rows whose means are over these columns.

    There are none if no row that is trained is compared with the paper, or if the means are over a column that the
    paper does not have: they would be of something else.
    """
    trained = any(each.trained and each.published.stages for each in against.comparisons)
    if not trained or set(columns) != set(against.common):
        return []
    rows = [against.paper.rows[name] for name in PIPELINES]
    means = [against.published_mean(row) for row in rows]
    return [
        figures.Point(f"paper: {row.id}", 3600 * against.paper.cost(row), mean, figures.MUTED, published=True)
        for row, mean in zip(rows, means, strict=True)
        if mean is not None
    ]


def grid_figure(against: AgainstThePaper) -> list[Figure]:
    """The figure of prompts × lengths, a square for each block and stage; none if no row of the study is in it."""
    table = against.paper.tables["table4"]
    rows = {row.model: against.paper.rows[row.model] for row in table.rows}
    if not any(against.of(name) for name in rows) or not against.common:
        return []
    corners: dict[str, list[figures.Corner]] = {}
    for row in rows.values():
        corners.setdefault(f"{row.block}, {row.stages[-1]}", []).append(_corner(against, row))
    panels = {title: _filled(square) for title, square in corners.items()}
    svg = figures.squares(panels, ("no prompts", "prompts"), ("plain", "+ 7 tokens"))
    blocks = "; ".join(f"{letter}: {words}" for letter, words in against.paper.blocks.items())
    caption = (
        f"{len(against.common)} columns, mean nDCG@10 x 100: the paper's number and, in bold, ours. Lengths are plain, "
        f"or have 7 more tokens; *: only in evaluation. {blocks}."
    )
    label = "Mean of the models of table 4 by prompts and lengths, the paper's and ours"
    return [Figure(svg, label, caption)]


def _corner(against: AgainstThePaper, row: Published) -> figures.Corner:
    ours = next((each.mean.ours for each in against.of(row.id)), None)
    note = "*" if row.length == "plus_7_at_evaluation" else ""
    return figures.Corner(int(row.prompts), LENGTHS[row.length], against.published_mean(row), ours, note)


def _filled(corners: Sequence[figures.Corner]) -> list[figures.Corner]:
    """The corners of a square, and an empty one where the paper has no number."""
    places = {(corner.column, corner.row) for corner in corners}
    missing = [(column, row) for column in (0, 1) for row in (0, 1) if (column, row) not in places]
    return [*corners, *(figures.Corner(column, row, None, None) for column, row in missing)]
