"""The report's figures, as SVG to be put into a page: its fonts, its colours by day and night, no address, no date.

The same arguments give the same text.
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
"""Colours that stand for the page's own until the figure is put into it."""
OF_PAGE = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)"}
PALETTE = ("#3b76b0", "#d9564a", "#3a9256", "#9a63b5", "#c98a1b", "#2aa0a8", "#c4558f", "#7d8a2e")
POINTS_PER_CURVE = 200
UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class Point:
    """A row of the table in the plane of cost and quality.

    Attributes:
        label: Its name.
        seconds: What its training took; None for what is not trained here, which becomes a line.
        value: Its mean, as printed.
        colour: Of the palette.
    """

    label: str
    seconds: float | None
    value: float
    colour: str


@dataclass(frozen=True)
class Curve:
    """A training's losses, step by step."""

    label: str
    losses: Sequence[float]
    colour: str


def colour(position: int) -> str:
    """The colour of a row by its position among those of its kind."""
    return PALETTE[position % len(PALETTE)]


def duration(seconds: float) -> str:
    """A time in words: `45 s`, `12 min 05 s`, `8 h 30 min`, `408 h`."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    if seconds < 3600:
        return "{} min {:02} s".format(*divmod(round(seconds), 60))
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours < 24 else f"{seconds / 3600:,.0f} h"


def quality_against_cost(points: Sequence[Point], measure: str) -> str:
    """A point for each trained row, a dashed line for each other one; names beside them."""
    times = [point.seconds for point in points if point.seconds is not None]
    longest = max([*times, 1.0])
    unit, name = next(pair for pair in UNITS if longest >= 3 * pair[0] or pair[0] == 1)
    with _figure("cost", 8.2, 4.2) as (figure, svg):
        names = min(0.4, 0.045 + 0.0088 * max(len(point.label) for point in points))
        axes = figure.add_axes((0.075, 0.135, 0.925 - names, 0.84))
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
        room = 0.1 * (high - low or 1.0)
        axes.set_ylim(low - room, high + room)
        axes.grid(True, axis="y")
        for point in points:
            if point.seconds is None:
                axes.axhline(point.value, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
            else:
                axes.plot(point.seconds / unit, point.value, "o", color=point.colour, markersize=8, clip_on=False)
        _names(axes, points, unit)
        axes.set_xlabel(f"training time of all stages, {name}")
        axes.set_ylabel(f"mean {measure} x 100")
    return svg[0]


def _names(axes: Axes, points: Sequence[Point], unit: float) -> None:
    """The names right of the axes, each at its value's height or as near as the others let it, with a leader line."""
    low, high = axes.get_ylim()
    ordered = sorted(points, key=lambda point: point.value)
    step = 0.052 * (high - low)
    wanted = np.array([point.value for point in ordered])
    places = wanted.copy()
    # Parting those that are too near moves a crowd apart around its middle, and the frame keeps it inside.
    for _ in range(500):
        places = np.clip(places, low, high)
        for below, above in pairwise(range(len(places))):
            lack = max(0.0, step - (places[above] - places[below]))
            places[below] -= lack / 2
            places[above] += lack / 2
    for point, place in zip(ordered, places, strict=True):
        tint = MUTED if point.seconds is None else point.colour
        axes.annotate(
            point.label,
            xy=(1, point.value),
            xytext=(1.035, place),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=INK,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": tint,
                "linewidth": 0.9,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )
        if point.seconds is not None:
            axes.hlines(point.value, point.seconds / unit, axes.get_xlim()[1], color=tint, linewidth=0.7, alpha=0.35)


def loss_curves(stages: Mapping[str, Sequence[Curve]]) -> str:
    """A panel for each stage; long trainings are averaged to 200 points."""
    names = 0.17 * max(map(len, stages.values()))
    height = 2.75 + names
    with _figure("losses", 8.2, height) as (figure, svg):
        panels = np.atleast_1d(np.asarray(figure.subplots(1, len(stages)), dtype=object))
        top, bottom = 1 - 0.3 / height, (0.6 + names) / height
        figure.subplots_adjust(left=0.06, right=0.99, bottom=bottom, top=top, wspace=0.22)
        for axes, (stage, curves) in zip(panels, stages.items(), strict=True):
            for curve in curves:
                steps, losses = _thinned(curve.losses)
                axes.plot(steps, losses, color=curve.colour, linewidth=1.3, label=curve.label)
            axes.set_title(stage, loc="left", color=INK)
            axes.set_xlabel("step")
            axes.grid(True, axis="y")
            below = -0.48 / (height * (top - bottom))
            axes.legend(
                frameon=False,
                fontsize=8,
                labelcolor=INK,
                loc="upper left",
                bbox_to_anchor=(-0.03, below),
                handlelength=1.2,
            )
        panels[0].set_ylabel("loss")
    return svg[0]


def _thinned(losses: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over equal runs of steps, with the steps' middles."""
    runs = np.array_split(np.arange(len(losses)), min(len(losses), POINTS_PER_CURVE))
    values = np.asarray(losses)
    return [float(run.mean()) + 1 for run in runs], [float(values[run].mean()) for run in runs]


def differences(rows: Sequence[str], columns: Mapping[str, Sequence[Difference]], colours: Sequence[str]) -> str:
    """A panel for each column, a dot with its interval for each row; zero is the row compared with."""
    across = min(len(columns), min((5, 4, 3), key=lambda width: -len(columns) % width))
    down = -(-len(columns) // across)
    panel, gap = 0.2 * len(rows) + 0.1, 0.55
    height = 0.3 + down * panel + (down - 1) * gap + 0.3
    with _figure("differences", 8.2, height) as (figure, svg):
        left = min(0.36, 0.02 + 0.0086 * max(len(row) for row in rows))
        panels = np.asarray(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)).ravel()
        top, bottom = 1 - 0.3 / height, 0.3 / height
        figure.subplots_adjust(left=left, right=0.985, bottom=bottom, top=top, wspace=0.1, hspace=gap / panel)
        places = np.arange(len(rows))[::-1]
        for axes, (column, found) in zip(panels, columns.items(), strict=False):
            axes.axvline(0, color=MUTED, linewidth=1)
            for place, difference, tint in zip(places, found, colours, strict=True):
                axes.errorbar(
                    difference.value, place, xerr=difference.margin, fmt="o", color=tint, markersize=5, elinewidth=1.4
                )
            axes.set_title(column, loc="left", color=INK, fontweight="bold" if column == "mean" else "normal")
            axes.set_yticks(places, rows)
            axes.set_ylim(-0.7, len(rows) - 0.3)
            axes.grid(True, axis="x")
            axes.tick_params(axis="x", labelbottom=True)
        for axes in panels[len(columns) :]:
            axes.set_visible(False)
    return svg[0]


@contextmanager
def _figure(name: str, width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """A figure in the page's style; on leaving, the list has its SVG."""
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
        # A name is a name, whatever signs it has.
        "text.parse_math": False,
    }
    svg: list[str] = []
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height))
        figure.patch.set_alpha(0)
        yield figure, svg
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg.append(_inline(buffer.getvalue()))


def _inline(text: str) -> str:
    """The SVG element alone, without ids that nothing refers to, in the page's colours and size."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style).*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = re.sub(r"<svg[^>]*>", lambda match: re.sub(r' (?:width|height)="[^"]*"', "", match[0]), text, count=1)
    used = set(re.findall(r"#([\w-]+)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r"font-family: [^;]*; ?", "", text)
    for stand_in, real in OF_PAGE.items():
        text = text.replace(stand_in, real)
    return text.strip()
