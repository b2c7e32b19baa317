"""Draw the report's figures as SVG that is inlined into the page and takes its fonts and its light or dark colours.

The SVG holds no URL and no date: the same arguments give the same text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter
from scipy.optimize import isotonic_regression

INK, MUTED, LINE = "#010101", "#020202", "#030303"
"""Placeholders, which are replaced by the page's CSS colours when a figure is finished."""
PAGE_COLOURS = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)"}
PALETTE = ("#3b76b0", "#d9564a", "#3a9256", "#9a63b5", "#c98a1b", "#2aa0a8", "#c4558f", "#7d8a2e")
POINTS_PER_CURVE = 200
LABEL_HEIGHT = 0.183
"""The distance between two labels under each other, in inches."""
LETTER_WIDTH = 0.0098
"""The width of a letter of a label, as a part of a figure's."""
LONGEST_LABEL = 36
"""Letters of a label; the rest is left out."""
LONGEST_TITLE = 30
"""Letters of the title of a histogram; the rest is left out."""
LONGEST_IN_LEGEND = 92
"""Letters of the legends of all panels of loss curves beside each other."""
MOST_DECADES = 3
"""A logarithmic axis of more decades has labels at powers of ten alone."""
TIME_UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class Point:
    """A row of the table in the plot of quality against cost.

    Attributes:
        label: The row's name.
        training_seconds: The training time; None if the row is not trained here, which draws a line instead of a point.
        value: The row's mean x 100.
        colour: A colour of the palette.
        published: Whether it is the paper's, which draws a ring.
    """

    label: str
    training_seconds: float | None
    value: float
    colour: str
    published: bool = False


@dataclass(frozen=True)
class Difference:
    """A difference of means and the ends of its interval, in points (measure x 100)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """The losses of one training, step by step.

    Attributes:
        label: A row that it belongs to.
        others: How many other rows it belongs to.
        losses: The loss of each step.
        colour: A colour of the palette.
    """

    label: str
    others: int
    losses: Sequence[float]
    colour: str


def palette_colour(position: int) -> str:
    """The colour of the recipe at a position in the table."""
    return PALETTE[position % len(PALETTE)]


def _shortened(label: str, longest: int = LONGEST_LABEL) -> str:
    return label if len(label) <= longest else f"{label[: longest - 1]}…"


def quality_against_cost(points: Sequence[Point], measure: str, cost: str = "training time of all stages") -> str:
    """Draw a labelled point for each trained row, and a labelled dashed line for each other row.

    Args:
        points: The rows.
        measure: The name of the measure.
        cost: What the training time of a point is.
    """
    times = [point.training_seconds for point in points if point.training_seconds is not None]
    longest = max([*times, 1.0])
    unit, unit_name = next(pair for pair in TIME_UNITS if longest >= 3 * pair[0] or pair[0] == 1)
    height = max(4.2, LABEL_HEIGHT * len(points) + 0.7)
    with _figure("cost", 8.2, height) as (figure, svg):
        label_width = 0.045 + LETTER_WIDTH * max(len(_shortened(point.label)) for point in points)
        bottom = 0.57 / height
        axes = figure.add_axes((0.075, bottom, 0.925 - label_width, 1 - bottom - 0.1 / height))
        if times and min(times) > 0 and longest > 12 * min(times):
            axes.set_xscale("log")
            axes.set_xlim(min(times) / unit / 1.5, longest / unit * 1.6)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            minor = "25" if longest <= 10**MOST_DECADES * min(times) else ""
            axes.xaxis.set_minor_formatter(
                FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in minor else "")
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
                    point.training_seconds / unit,
                    point.value,
                    "o",
                    color=point.colour,
                    markersize=11 if point.published else 8,
                    markerfacecolor="none" if point.published else point.colour,
                    zorder=4 if point.published else 3,
                    clip_on=False,
                )
        _draw_labels(axes, points, unit, LABEL_HEIGHT / (height * axes.get_position().height))
        axes.set_xlabel(f"{cost}, {unit_name}")
        axes.set_ylabel(f"mean {measure} x 100")
    return svg[0]


def _draw_labels(axes: Axes, points: Sequence[Point], unit: float, distance: float) -> None:
    """Draw the rows' names right of the axes, each as near to its value's height as possible, with a leader line.

    Args:
        axes: The axes.
        points: The rows.
        unit: Seconds of the unit of time.
        distance: The least distance between two names, as a part of the axes' height.
    """
    low, high = axes.get_ylim()
    ordered = sorted(points, key=lambda point: point.value)
    # What each height has above those of the labels below it, packed as densely as may be, must not fall from label to
    # label: the nearest such heights are an isotonic regression, and clipping keeps them inside the axes.
    packed = distance * (high - low) * np.arange(len(ordered))
    free = isotonic_regression(np.array([point.value for point in ordered]) - packed).x
    heights = packed + np.clip(free, low, max(low, high - packed[-1]))
    for point, height in zip(ordered, heights, strict=True):
        colour = MUTED if point.training_seconds is None else point.colour
        axes.annotate(
            _shortened(point.label),
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
                others = f" and {curve.others} more" if curve.others else ""
                label = _shortened(curve.label, LONGEST_IN_LEGEND // len(stages) - len(others)) + others
                axes.plot(steps, losses, color=curve.colour, linewidth=1.3, label=label)
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
        rows = list(map(_shortened, rows))
        left = 0.02 + LETTER_WIDTH * max(map(len, rows))
        panels = np.asarray(figure.subplots(grid_rows, grid_columns, sharex=True, sharey=True, squeeze=False)).ravel()
        top, bottom = 1 - 0.3 / height, 0.3 / height
        figure.subplots_adjust(left=left, right=0.985, bottom=bottom, top=top, wspace=0.1, hspace=gap / panel_height)
        heights = np.arange(len(rows))[::-1]
        for axes, (column, column_differences) in zip(panels, columns.items(), strict=False):
            axes.axvline(0, color=MUTED, linewidth=1)
            for y, difference, colour in zip(heights, column_differences, colours, strict=True):
                axes.hlines(y, difference.low, difference.high, color=colour, linewidth=1.4)
                axes.plot(difference.value, y, "o", color=colour, markersize=5)
            axes.set_title(column, loc="left", color=INK, fontweight="bold" if column == "mean" else "normal")
            axes.set_yticks(heights, rows)
            axes.set_ylim(-0.7, len(rows) - 0.3)
            axes.grid(True, axis="x")
            axes.tick_params(axis="x", labelbottom=True)
        for axes in panels[len(columns) :]:
            axes.set_visible(False)
    return svg[0]


@dataclass(frozen=True)
class Corner:
    """A number of a square of two settings.

    Attributes:
        column: 0 for the left, 1 for the right.
        row: 0 for the bottom, 1 for the top.
        published: The paper's number; None if it has none.
        ours: Ours; None if it is not measured.
        note: What else is said of it, in a few letters; empty if there is nothing.
    """

    column: int
    row: int
    published: float | None
    ours: float | None
    note: str = ""


def squares(
    panels: Mapping[str, Sequence[Corner]], columns: tuple[str, str], rows: tuple[str, str], per_line: int = 4
) -> str:
    """Draw a square of four fields for each panel, which have the published number and, below it in bold, ours.

    Args:
        panels: The corners by the panel's title.
        columns: What the left and the right column are.
        rows: What the bottom and the top row are.
        per_line: Panels side by side.
    """
    lines = -(-len(panels) // per_line)
    values = [number for corners in panels.values() for corner in corners if (number := corner.published) is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    height = 1.95 * lines
    with _figure("squares", 8.2, height) as (figure, svg):
        grid = np.asarray(figure.subplots(lines, per_line, squeeze=False), dtype=object)
        figure.subplots_adjust(
            left=0.075, right=0.995, bottom=0.3 / height, top=1 - 0.28 / height, wspace=0.12, hspace=0.45
        )
        for axes in grid.ravel()[len(panels) :]:
            axes.set_visible(False)
        for number, (axes, (title, corners)) in enumerate(zip(grid.ravel(), panels.items(), strict=False)):
            axes.set_title(title, loc="left", color=INK)
            axes.set(xlim=(0, 2), ylim=(0, 2), xticks=(0.5, 1.5), yticks=(0.5, 1.5))
            axes.set_xticklabels(columns)
            axes.set_yticklabels(rows if number % per_line == 0 else ("", ""), rotation=90, va="center")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            for corner in corners:
                _draw_corner(axes, corner, (corner.published or low) - low, high - low)
    return svg[0]


def _draw_corner(axes: Axes, corner: Corner, above: float, span: float) -> None:
    """Draw a field, the darker the higher the published number is `above` the lowest one."""
    x, y = corner.column, corner.row
    tint = 0.06 + 0.3 * above / (span or 1.0)
    axes.add_patch(Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, facecolor=PALETTE[0], alpha=tint, edgecolor="none"))
    published, ours = ("–" if number is None else f"{number:.2f}" for number in (corner.published, corner.ours))
    if corner.published is None is corner.ours:
        axes.text(x + 0.5, y + 0.5, "–", ha="center", va="center", color=MUTED)
        return
    for height, text, colour, weight in (
        (0.70, published, MUTED, "normal"),
        (0.40, ours, INK, "bold"),
        (0.14, corner.note, MUTED, "normal"),
    ):
        axes.text(x + 0.5, y + height, text, ha="center", va="center", color=colour, fontweight=weight)


def stacked_bars(bars: Mapping[str, Sequence[float]], parts: Sequence[str]) -> str:
    """Draw a bar for each row, of parts of different colours one after the other.

    Args:
        bars: By row, the seconds of each part.
        parts: What the parts are called.
    """
    longest = max([sum(seconds) for seconds in bars.values()] + [1.0])
    unit, unit_name = next(pair for pair in TIME_UNITS if longest >= 3 * pair[0] or pair[0] == 1)
    drawn = [number for number in range(len(parts)) if any(seconds[number] for seconds in bars.values())]
    height = 0.24 * len(bars) + 0.9
    with _figure("ledger", 8.2, height) as (figure, svg):
        left = min(0.4, 0.02 + 0.0086 * max(map(len, bars)))
        axes = figure.add_axes((left, 0.5 / height, 0.98 - left, 1 - 0.9 / height))
        heights = np.arange(len(bars))[::-1]
        starts = np.zeros(len(bars))
        for number in drawn:
            lengths = np.array([seconds[number] / unit for seconds in bars.values()])
            axes.barh(heights, lengths, left=starts, height=0.68, color=palette_colour(number), label=parts[number])
            starts += lengths
        axes.set_yticks(heights, list(bars))
        axes.set_ylim(-0.6, len(bars) - 0.4)
        axes.grid(True, axis="x")
        axes.set_xlabel(unit_name)
        if drawn:
            axes.legend(
                frameon=False,
                fontsize=8,
                labelcolor=INK,
                loc="lower left",
                bbox_to_anchor=(-left / (0.98 - left), 1.0),
                ncols=len(drawn),
                handlelength=1.0,
                columnspacing=1.2,
            )
    return svg[0]


@dataclass(frozen=True)
class Histogram:
    """Counts of scores in bins of one width, of several kinds of texts.

    Attributes:
        low: Where the first bin begins.
        width: The width of each.
        counts: How many texts score in each bin, by what they are.
    """

    low: float
    width: float
    counts: Mapping[str, Sequence[int]]


def histograms(panels: Mapping[str, Histogram]) -> str:
    """Draw a panel for each title: the histograms of its counts over each other, each as shares of its own.

    Args:
        panels: By title; all count the same kinds of texts.
    """
    per_line = min(3, len(panels))
    lines = -(-len(panels) // per_line)
    height = 1.65 * lines + 0.3
    with _figure("histograms", 8.2, height) as (figure, svg):
        grid = np.asarray(figure.subplots(lines, per_line, squeeze=False), dtype=object).ravel()
        figure.subplots_adjust(
            left=0.02, right=0.98, bottom=0.3 / height, top=1 - 0.55 / height, wspace=0.08, hspace=0.55
        )
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, histogram) in zip(grid, panels.items(), strict=False):
            for number, (name, counts) in enumerate(histogram.counts.items()):
                edges = histogram.low + histogram.width * np.arange(len(counts) + 1)
                shares = np.array(counts) / max(1, sum(counts))
                axes.stairs(shares, edges, fill=True, color=palette_colour(number), alpha=0.25)
                axes.stairs(shares, edges, color=palette_colour(number), linewidth=1.1, label=name)
            axes.set_title(_shortened(title), loc="left", color=INK)
            axes.set_yticks(())
            axes.set_ylim(0)
            axes.spines["left"].set_visible(False)
        figure.legend(
            *grid[0].get_legend_handles_labels(),
            frameon=False,
            fontsize=8,
            labelcolor=INK,
            loc="upper left",
            bbox_to_anchor=(0.005, 1.0),
            ncols=2,
            handlelength=1.2,
        )
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
