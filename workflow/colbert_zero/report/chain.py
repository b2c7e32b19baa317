"""The chain of a number: the artifacts that it rests on, in order from the number to what came from outside.

Nothing here opens an artifact: a chain is given as the names of the inputs of each artifact in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from colbert_zero.graph.artifact import KEY_DIGITS
from colbert_zero.graph.console import one_line

Inputs = Mapping[str, Sequence[str]]
"""The names of an artifact's inputs, by the artifact's name: a chain."""

KINDS = {
    "releases": "release",
    "reports": "report",
    "audits": "audit",
    "contamination": "contamination",
    "measures": "measure",
    "runs": "run",
    "indexes": "index",
    "selections": "selected model",
    "models": "model",
    "scores": "teacher scores",
    "negatives": "negatives",
    "candidates": "candidates",
    "batches": "batch plan",
    "shards": "shards",
    "bases": "base",
    "sources": "source",
    "collections": "collection",
}
"""What one artifact of a kind is called, in the order from the number to what came from outside."""
STAGED_KINDS = frozenset({"models", "selections", "batches"})
"""Kinds whose label is a stage; that of others names data, after a word for how it is made: `bm25.scipy`."""
GROUP_MINIMUM = 4
"""So many artifacts that are alike are shown as one group."""


def kind_of(name: str) -> str:
    """An artifact's kind, by its name."""
    return name.partition("/")[0]


def label_of(name: str) -> str:
    """An artifact's label, by its name."""
    return name.partition("/")[2][: -KEY_DIGITS - 1]


def key_of(name: str) -> str:
    """An artifact's key, by its name."""
    return name[-KEY_DIGITS:]


def rank(name: str) -> int:
    """The place of an artifact's kind between the number, 0, and what came from outside."""
    kinds = list(KINDS)
    return kinds.index(kind_of(name)) if kind_of(name) in kinds else len(kinds)


def depths(roots: Iterable[str], inputs: Inputs) -> dict[str, int]:
    """The length of the longest way from one of a chain's roots to each of its artifacts."""
    found: dict[str, int] = {}
    order = _consumers_first(roots, inputs)
    for name in order:
        found.setdefault(name, 0)
        for source in inputs.get(name, ()):
            found[source] = max(found.get(source, 0), found[name] + 1)
    return found


def _consumers_first(roots: Iterable[str], inputs: Inputs) -> list[str]:
    """All artifacts of a chain, each after all that are made from it."""
    done: list[str] = []
    visited: set[str] = set()
    pending = [(name, iter(inputs.get(name, ()))) for name in roots]
    visited.update(name for name, _ in pending)
    while pending:
        name, sources = pending[-1]
        source = next((source for source in sources if source not in visited), None)
        if source is None:
            done.append(name)
            pending.pop()
        else:
            visited.add(source)
            pending.append((source, iter(inputs.get(source, ()))))
    return done[::-1]


@dataclass(frozen=True)
class Group:
    """One artifact of a chain, or several that are alike: of one kind, and made into the same.

    Attributes:
        names: Their names, sorted.
        depth: How far from the number they are.
    """

    names: tuple[str, ...]
    depth: int

    @property
    def kind(self) -> str:
        """Their kind."""
        return kind_of(self.names[0])


def group(roots: Sequence[str], inputs: Inputs) -> list[Group]:
    """The artifacts of a chain in groups, in order from the number to what came from outside."""
    depth_of = depths(roots, inputs)
    consumers: dict[str, set[str]] = {}
    for name in depth_of:
        for source in inputs.get(name, ()):
            consumers.setdefault(source, set()).add(name)
    group_of: dict[str, Group] = {}
    for depth in range(max(depth_of.values(), default=-1) + 1):
        alike: dict[tuple[str, str, frozenset[Group]], list[str]] = {}
        for name in sorted(name for name in depth_of if depth_of[name] == depth):
            made_into = frozenset(group_of[consumer] for consumer in consumers.get(name, ()))
            alike.setdefault((kind_of(name), _family(name), made_into), []).append(name)
        for names in alike.values():
            whole = [tuple(names)] if len(names) >= GROUP_MINIMUM else [(name,) for name in names]
            group_of |= {name: Group(members, depth) for members in whole for name in members}
    return sorted(set(group_of.values()), key=lambda found: (rank(found.names[0]), found.depth, found.names))


def _family(name: str) -> str:
    """What artifacts of one kind have in common if they are alike but for their data."""
    label = label_of(name)
    return label if kind_of(name) in STAGED_KINDS else label.rpartition(".")[0].partition(".")[0]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested settings, each with its dotted path; a list of plain values, or of nothing, is a leaf."""
    if isinstance(value, Mapping) and value:
        for name in sorted(value):
            yield from leaves(value[name], f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping | list | tuple) for inner in value):
        for position, inner in enumerate(value):
            yield from leaves(inner, f"{path}.{position}" if path else str(position))
    else:
        yield path, value


def show(path: str, value: Any) -> str:
    """A leaf's value in one line: as JSON, and a text without quotation marks where nothing in it would be missed."""
    plain = (
        isinstance(value, str)
        and not path.endswith("prompt")
        and value == value.strip()
        and value.isprintable()
        and value not in ("", "true", "false", "null")
        and not value[0].isdigit()
        and value[0] not in '"[{-'
    )
    return str(value) if plain else one_line(json.dumps(value, ensure_ascii=False))


def origin(settings: Mapping[str, Any]) -> str | None:
    """What pins the bytes of an artifact that came from outside, in words; None for one that is made here."""
    if "hub" in settings:
        split = f", split {settings['split']}" if "split" in settings else ""
        qrels = settings.get("qrels")
        judged = ""
        if isinstance(qrels, Mapping):
            judged = f", judgements of {qrels.get('hub')} at revision {qrels.get('revision')}"
        return f"{settings['hub']} of the Hub at revision {settings.get('revision')}{split}{judged}"
    if "package" in settings:
        return f"package {settings['package']} {settings.get('version')}"
    if "sha256" in settings:
        what = settings.get("file", "a folder of one's own")
        return f"{what}, SHA-256 {settings['sha256']}"
    if isinstance(settings.get("files"), list):
        return f"{len(settings['files'])} files of one's own, each by its SHA-256"
    return None
