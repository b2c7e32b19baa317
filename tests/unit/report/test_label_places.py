"""The names beside the plot of quality against cost: as many as there are, none over another, in order of value."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from colbert_zero.report import figures

POINTS = 72
"""SVG units of an inch."""


def places(points: list[figures.Point]) -> dict[str, float]:
    """By label, how far down it stands, in SVG units."""
    svg = figures.quality_against_cost(points, "nDCG@10")
    found = re.findall(
        r'<text style="[^"]*" (?:x="[\d.-]+" y="([\d.-]+)"|transform="translate\([\d.-]+ ([\d.-]+)\)")[^>]*>(row-\d+)<',
        svg,
    )
    return {label: float(y or shifted) for y, shifted, label in found}


@pytest.mark.parametrize("rows", [2, 12, 45])
@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0])
def test_labels_are_apart_and_in_order(rows, spread):
    points = [
        figures.Point(
            f"row-{row}", None if row % 5 == 0 else 60.0 * row, 50 + spread * (row % 7), figures.palette_colour(row)
        )
        for row in range(rows)
    ]
    found = places(points)
    assert set(found) == {point.label for point in points}
    downwards = sorted(points, key=lambda point: found[point.label])
    assert all(above.value >= below.value for above, below in pairwise(downwards))
    distances = [found[below.label] - found[above.label] for above, below in pairwise(downwards)]
    assert min(distances) >= figures.LABEL_HEIGHT * POINTS - 0.01


def test_a_label_with_room_stands_at_the_height_of_its_point():
    points = [figures.Point(f"row-{row}", 60.0, 10.0 * row, figures.palette_colour(row)) for row in range(4)]
    found = places(points)
    distances = [found[f"row-{row}"] - found[f"row-{row + 1}"] for row in range(3)]
    assert max(distances) - min(distances) < 0.01


def test_a_long_name_is_shortened():
    svg = figures.quality_against_cost([figures.Point("x" * 100, 60.0, 50.0, figures.PALETTE[0])], "nDCG@10")
    assert f">{'x' * (figures.LONGEST_LABEL - 1)}…<" in svg
