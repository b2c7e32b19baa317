"""Draw the chain of a number as SVG: a box for each artifact or group of artifacts, an arrow from input to output.

The number is at the top, and what came from outside at the bottom. As the other figures, it holds no URL and no date,
and takes the page's fonts and its light or dark colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from xml.etree import ElementTree

from colbert_zero.graph.console import one_line
from colbert_zero.report.chain import KINDS, Group, Inputs, group, key_of, label_of

BOX_WIDTH, BOX_HEIGHT = 156.0, 52.0
LANE_WIDTH = 8.0
"""The room that an arrow takes where it passes by the boxes of a layer."""
GAP, LAYER_GAP, MARGIN = 16.0, 40.0, 6.0
SWEEPS = 12
SMALLEST_SCALE = 0.85
"""A chain is drawn this small where it would be wider than the page: its letters can be read, and it is scrolled."""
LABEL_CHARACTERS = 21
COLOURS = {
    "measures": "#3b76b0",
    "runs": "#3b76b0",
    "indexes": "#3b76b0",
    "models": "#d9564a",
    "batches": "#c98a1b",
    "scores": "#9a63b5",
    "negatives": "#9a63b5",
    "candidates": "#9a63b5",
    "shards": "#3a9256",
    "sources": "#3a9256",
    "collections": "#2aa0a8",
    "bases": "#7d8a2e",
}
"""The colour of a kind's boxes: evaluation, training, mining and teaching, data."""


@dataclass(eq=False)
class _Place:
    """A box, or the lane of an arrow through a layer.

    Attributes:
        layer: From the top.
        group: Whose box it is; None for a lane and for the number.
        width: Its width.
        above: The places in the layer above that lines lead to.
        below: The places in the layer below that lines come from.
        x: Its middle.
    """

    layer: int
    group: Group | None
    width: float
    above: list[_Place] = field(default_factory=list)
    below: list[_Place] = field(default_factory=list)
    x: float = 0.0


def draw_chain(number: str, roots: Sequence[str], inputs: Inputs, notes: Mapping[str, str]) -> str:
    """Draw a chain.

    Args:
        number: The text of the box at the top.
        roots: The artifacts that the number is computed from.
        inputs: The chain.
        notes: By artifact, what is shown when one points at its box.

    Returns:
        The SVG element.
    """
    groups = group(roots, inputs)
    group_of = {name: found for found in groups for name in found.names}
    made_into: dict[Group, set[Group]] = {found: set() for found in groups}
    for name, sources in inputs.items():
        for source in sources:
            if name in group_of and source in group_of:
                made_into[group_of[source]].add(group_of[name])
    top = _Place(0, None, BOX_WIDTH)
    boxes = {found: _Place(found.depth + 1, found, BOX_WIDTH) for found in groups}
    layers: list[list[_Place]] = [[] for _ in range(max(place.layer for place in [top, *boxes.values()]) + 1)]
    for place in [top, *boxes.values()]:
        layers[place.layer].append(place)
    ways: list[tuple[Group, Group | None, list[_Place]]] = []
    for found in groups:
        consumers: list[tuple[Group | None, _Place]] = [
            (consumer, boxes[consumer]) for consumer in groups if consumer in made_into[found]
        ]
        if set(found.names) & set(roots):
            consumers.append((None, top))
        # All arrows from a box share one lane through each layer, and leave it where they lead to.
        lanes = {boxes[found].layer: boxes[found]}
        for layer in range(boxes[found].layer - 1, min((place.layer for _, place in consumers), default=0), -1):
            lanes[layer] = _Place(layer, None, LANE_WIDTH)
            _connect(lanes[layer + 1], lanes[layer])
            layers[layer].append(lanes[layer])
        for consumer, place in consumers:
            _connect(lanes[place.layer + 1], place)
            ways.append(
                (found, consumer, [lanes[layer] for layer in range(boxes[found].layer, place.layer, -1)] + [place])
            )
    width = _arrange(layers)
    height = len(layers) * BOX_HEIGHT + (len(layers) - 1) * LAYER_GAP + 2 * MARGIN
    size = f"min-width: {SMALLEST_SCALE * width:.0f}px; max-width: {width:.0f}px"
    svg = ElementTree.Element("svg", {"viewBox": f"0 0 {width:.0f} {height:.0f}", "style": size})
    lines = {"fill": "none", "stroke-width": "1.2"}
    implied = ElementTree.SubElement(svg, "g", {"stroke": "var(--line)"} | lines)
    needed = ElementTree.SubElement(svg, "g", {"stroke": "var(--muted)"} | lines)
    heads = ""
    for found, consumer, way in ways:
        title = f"{_title(found)} → {_title(consumer) if consumer else number}"
        heads += _draw_way(implied if _implied(found, consumer, made_into) else needed, way, title)
    ElementTree.SubElement(svg, "path", {"d": heads, "fill": "var(--muted)"})
    drawn = ElementTree.SubElement(
        svg, "g", {"fill": "currentColor", "stroke-width": "1.3", "font-size": "11", "text-anchor": "middle"}
    )
    for place in boxes.values():
        assert place.group is not None
        names = place.group.names
        texts = (
            (KINDS.get(place.group.kind, place.group.kind), label_of(names[0]), key_of(names[0]))
            if len(names) == 1
            else (f"{len(names)} × {KINDS.get(place.group.kind, place.group.kind)}", *_some(names))
        )
        title = "\n".join(one_line(notes.get(name, name)) for name in names)
        _draw_box(drawn, place, texts, title, COLOURS.get(place.group.kind, "currentColor"))
    _draw_box(drawn, top, ("", number, ""), number, "currentColor")
    return ElementTree.tostring(svg, encoding="unicode")


def _some(names: Sequence[str]) -> tuple[str, str]:
    """Two lines that tell a group: the labels of its first and last artifact."""
    return label_of(names[0]), f"… {label_of(names[-1])}"


def _title(found: Group) -> str:
    return found.names[0] if len(found.names) == 1 else f"{len(found.names)} {found.kind}"


def _connect(below: _Place, above: _Place) -> None:
    below.above.append(above)
    above.below.append(below)


def _implied(found: Group, consumer: Group | None, made_into: Mapping[Group, set[Group]]) -> bool:
    """Whether a longer way leads from an input to an output as well."""
    pending = [other for other in made_into[found] if other is not consumer]
    visited: set[Group] = set()
    while pending:
        current = pending.pop()
        if current is consumer:
            return True
        if current not in visited:
            visited.add(current)
            pending += made_into[current]
    return consumer is None and bool(made_into[found])


def _arrange(layers: Sequence[list[_Place]]) -> float:
    """Order the places of each layer so that few lines cross, set where they are, and return the width of it all."""
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            position = {id(place): at for other in layers for at, place in enumerate(other)}
            middle = {
                id(place): sum(position[id(other)] / max(1, len(layers[other.layer]) - 1) for other in near) / len(near)
                for place in layer
                if (near := place.above if down else place.below)
            }
            layer.sort(key=lambda place: middle.get(id(place), position[id(place)] / max(1, len(layer) - 1)))
    for layer in layers:
        start = -sum(place.width + GAP for place in layer) / 2
        for place in layer:
            place.x = start + place.width / 2
            start += place.width + GAP
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            neighbours = [(place.above if down else place.below) or [place] for place in layer]
            _move(layer, [sum(other.x for other in others) / len(others) for others in neighbours])
    left = min(place.x - place.width / 2 for layer in layers for place in layer)
    for layer in layers:
        for place in layer:
            place.x += MARGIN - left
    return max(place.x + place.width / 2 for layer in layers for place in layer) + MARGIN


def _move(layer: Sequence[_Place], wanted: Sequence[float]) -> None:
    """Put the places of a layer as near to where they are wanted as their order and their widths allow.

    Least squares under an order is isotonic regression: neighbours that would overlap are pooled at their mean.
    """
    offsets = [0.0]
    for before, place in pairwise(layer):
        offsets.append(offsets[-1] + (before.width + place.width) / 2 + GAP)
    pools: list[list[float]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        pools.append([want - offset])
        while len(pools) > 1 and sum(pools[-2]) / len(pools[-2]) > sum(pools[-1]) / len(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    means = [sum(pool) / len(pool) for pool in pools for _ in pool]
    for place, mean, offset in zip(layer, means, offsets, strict=True):
        place.x = mean + offset


def _top(place: _Place) -> float:
    return MARGIN + place.layer * (BOX_HEIGHT + LAYER_GAP)


def _draw_way(parent: ElementTree.Element, way: Sequence[_Place], title: str) -> str:
    """Draw a line from the first place, at the bottom, to the last; return the path of its head."""
    x, y = way[0].x, _top(way[0])
    path = f"M{x:.0f} {y:.0f}"
    for place in way[1:]:
        bottom = _top(place) + BOX_HEIGHT
        middle = (y + bottom) / 2
        path += f"C{x:.0f} {middle:.0f} {place.x:.0f} {middle:.0f} {place.x:.0f} {bottom:.0f}"
        x, y = place.x, _top(place)
        if place is not way[-1]:
            path += f"V{y:.0f}"
    line = ElementTree.SubElement(parent, "path", {"d": path})
    ElementTree.SubElement(line, "title").text = one_line(title)
    return f"M{x - 3.5:.1f} {bottom + 7:.0f}L{x:.1f} {bottom:.0f}L{x + 3.5:.1f} {bottom + 7:.0f}Z"


def _draw_box(parent: ElementTree.Element, place: _Place, lines: tuple[str, str, str], title: str, colour: str) -> None:
    """Draw a box with its kind, its label and its key; a line may be empty."""
    left, top = place.x - place.width / 2, _top(place)
    box = ElementTree.SubElement(parent, "g")
    ElementTree.SubElement(box, "title").text = title
    size = {"width": f"{place.width:.0f}", "height": f"{BOX_HEIGHT:.0f}", "rx": "4"}
    style = {"fill": "var(--tint)", "stroke": colour}
    ElementTree.SubElement(box, "rect", {"x": f"{left:.0f}", "y": f"{top:.0f}"} | size | style)
    muted = {"fill": "var(--muted)"}
    for text, down, style in zip(lines, (15, 30, 44), (muted, {"font-weight": "600"}, muted), strict=True):
        if text:
            shown = one_line(text)
            shown = shown if len(shown) <= LABEL_CHARACTERS else shown[: LABEL_CHARACTERS - 1] + "…"
            at = {"x": f"{place.x:.0f}", "y": f"{top + down:.0f}"}
            ElementTree.SubElement(box, "text", at | style).text = shown
