"""Draw the report's figures as SVG that is inlined into the page and takes its fonts and its light or dark colours.

The SVG holds no URL and no date: the same arguments give the same text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from colbert_zero.report.results import Difference

INK, MUTED, LINE = "#010101", "#020202", "#030303"
"""Placeholders, which are replaced by the page's CSS colours when a figure is finished."""
PAGE_COLOURS = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)"}
PALETTE = ("#3b76b0", "#d9564a", "#3a9256", "#9a63b5", "#c98a1b", "#2aa0a8", "#c4558f", "#7d8a2e")
POINTS_PER_CURVE = 200
TIME_UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class Point:
    """A row of the table in the plot of quality against cost.

    Attributes:
        label: The row's name.
        training_seconds: The training time; None if the row is not trained here, which draws a line instead of a point.
        value: The row's mean x 100.
        colour: A colour of the palette.
    """

    label: str
    training_seconds: float | None
    value: float
    colour: str


@dataclass(frozen=True)
class Curve:
    """The losses of one training, step by step."""

    label: str
    losses: Sequence[float]
    colour: str


def palette_colour(position: int) -> str:
    """The colour of the recipe at a position in the table."""
    return PALETTE[position % len(PALETTE)]


def quality_against_cost(points: Sequence[Point], measure: str) -> str:
    """Draw a labelled point for each trained row, and a labelled dashed line for each other row."""
    times = [point.training_seconds for point in points if point.training_seconds is not None]
    longest = max([*times, 1.0])
    unit, unit_name = next(pair for pair in TIME_UNITS if longest >= 3 * pair[0] or pair[0] == 1)
    with _figure("cost", 8.2, 4.2) as (figure, svg):
        label_width = min(0.4, 0.045 + 0.0088 * max(len(point.label) for point in points))
        axes = figure.add_axes((0.075, 0.135, 0.925 - label_width, 0.84))
        if times and min(times) > 0 and longest > 12 * min(times):
            axes.set_xscale("log")
            axes.set_xlim(min(times) / unit / 1.5, longest / unit * 1.6)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(
                FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
            )
        else:
            axes.set_xlim(0, longest / unit * 1.12)
        low, high = min(point.value for point in points), max(point.value for point in points)
        margin = 0.1 * (high - low or 1.0)
        axes.set_ylim(low - margin, high + margin)
        axes.grid(True, axis="y")
        for point in points:
            if point.training_seconds is None:
                axes.axhline(point.value, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
            else:
                axes.plot(
                    point.training_seconds / unit, point.value, "o", color=point.colour, markersize=8, clip_on=False
                )
        _draw_labels(axes, points, unit)
        axes.set_xlabel(f"training time of all stages, {unit_name}")
        axes.set_ylabel(f"mean {measure} x 100")
    return svg[0]


def _draw_labels(axes: Axes, points: Sequence[Point], unit: float) -> None:
    """Draw the rows' names right of the axes, each as near to its value's height as possible, with a leader line."""
    low, high = axes.get_ylim()
    ordered = sorted(points, key=lambda point: point.value)
    min_distance = 0.052 * (high - low)
    heights = np.array([point.value for point in ordered])
    # Two labels that overlap move apart by the same amount, so a crowd of labels spreads around its middle. Clipping
    # keeps the labels inside the axes.
    for _ in range(500):
        heights = np.clip(heights, low, high)
        for below, above in pairwise(range(len(heights))):
            overlap = max(0.0, min_distance - (heights[above] - heights[below]))
            heights[below] -= overlap / 2
            heights[above] += overlap / 2
    for point, height in zip(ordered, heights, strict=True):
        colour = MUTED if point.training_seconds is None else point.colour
        axes.annotate(
            point.label,
            xy=(1, point.value),
            xytext=(1.035, height),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=INK,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.9,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )
        if point.training_seconds is not None:
            start, end = point.training_seconds / unit, axes.get_xlim()[1]
            axes.hlines(point.value, start, end, color=colour, linewidth=0.7, alpha=0.35)


def loss_curves(stages: Mapping[str, Sequence[Curve]]) -> str:
    """Draw a panel for each stage; trainings of more than 200 steps are averaged to 200 points."""
    legend_height = 0.17 * max(map(len, stages.values()))
    height = 2.75 + legend_height
    with _figure("losses", 8.2, height) as (figure, svg):
        panels = np.atleast_1d(np.asarray(figure.subplots(1, len(stages)), dtype=object))
        top, bottom = 1 - 0.3 / height, (0.6 + legend_height) / height
        figure.subplots_adjust(left=0.06, right=0.99, bottom=bottom, top=top, wspace=0.22)
        for axes, (stage, curves) in zip(panels, stages.items(), strict=True):
            for curve in curves:
                steps, losses = _downsample(curve.losses)
                axes.plot(steps, losses, color=curve.colour, linewidth=1.3, label=curve.label)
            axes.set_title(stage, loc="left", color=INK)
            axes.set_xlabel("step")
            axes.grid(True, axis="y")
            legend_top = -0.48 / (height * (top - bottom))
            axes.legend(
                frameon=False,
                fontsize=8,
                labelcolor=INK,
                loc="upper left",
                bbox_to_anchor=(-0.03, legend_top),
                handlelength=1.2,
            )
        panels[0].set_ylabel("loss")
    return svg[0]


def _downsample(losses: Sequence[float]) -> tuple[list[float], list[float]]:
    """Average over bins of equally many successive steps: the mean step (from 1) and the mean loss of each bin."""
    bins = np.array_split(np.arange(len(losses)), min(len(losses), POINTS_PER_CURVE))
    values = np.asarray(losses)
    return [float(indices.mean()) + 1 for indices in bins], [float(values[indices].mean()) for indices in bins]


def differences(rows: Sequence[str], columns: Mapping[str, Sequence[Difference]], colours: Sequence[str]) -> str:
    """Draw a panel for each column, with a dot and its interval for each row; zero is the reference row."""
    grid_columns = min(len(columns), min((5, 4, 3), key=lambda width: -len(columns) % width))
    grid_rows = -(-len(columns) // grid_columns)
    panel_height, gap = 0.2 * len(rows) + 0.1, 0.55
    height = 0.3 + grid_rows * panel_height + (grid_rows - 1) * gap + 0.3
    with _figure("differences", 8.2, height) as (figure, svg):
        left = min(0.36, 0.02 + 0.0086 * max(len(row) for row in rows))
        panels = np.asarray(figure.subplots(grid_rows, grid_columns, sharex=True, sharey=True, squeeze=False)).ravel()
        top, bottom = 1 - 0.3 / height, 0.3 / height
        figure.subplots_adjust(left=left, right=0.985, bottom=bottom, top=top, wspace=0.1, hspace=gap / panel_height)
        heights = np.arange(len(rows))[::-1]
        for axes, (column, column_differences) in zip(panels, columns.items(), strict=False):
            axes.axvline(0, color=MUTED, linewidth=1)
            for y, difference, colour in zip(heights, column_differences, colours, strict=True):
                axes.errorbar(
                    difference.value, y, xerr=difference.margin, fmt="o", color=colour, markersize=5, elinewidth=1.4
                )
            axes.set_title(column, loc="left", color=INK, fontweight="bold" if column == "mean" else "normal")
            axes.set_yticks(heights, rows)
            axes.set_ylim(-0.7, len(rows) - 0.3)
            axes.grid(True, axis="x")
            axes.tick_params(axis="x", labelbottom=True)
        for axes in panels[len(columns) :]:
            axes.set_visible(False)
    return svg[0]


@contextmanager
def _figure(name: str, width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """Yield a figure in the page's style and an empty list; on exit, the figure's SVG is appended to the list."""
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"colbert-zero {name}",
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "text.color": INK,
        # Draw a `$` in a name as it is instead of starting a formula.
        "text.parse_math": False,
    }
    svg: list[str] = []
    with mpl.rc_context():
        # A `matplotlibrc` in the study's folder has been read: it could have programs of TeX set the text.
        mpl.rcdefaults()
        mpl.rcParams.update(style)
        figure = Figure(figsize=(width, height))
        figure.patch.set_alpha(0)
        yield figure, svg
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg.append(_inline_svg(buffer.getvalue()))


def _inline_svg(text: str) -> str:
    """Keep the SVG element only, without unused ids, fonts and a fixed size, and with the page's colours."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style).*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = re.sub(r"<svg[^>]*>", lambda match: re.sub(r' (?:width|height)="[^"]*"', "", match[0]), text, count=1)
    used = set(re.findall(r"#([\w-]+)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r"font-family: [^;]*; ?", "", text)
    for placeholder, page_colour in PAGE_COLOURS.items():
        text = text.replace(placeholder, page_colour)
    return text.strip()
