"""Compare two chains: which leaves make their keys differ, what each of these reaches, and how the making differed.

The artifacts of two chains are paired from the number down, by the roles in which they are used. Of a pair, only what
its own specs say counts as a cause: that an input has another key is told once, where the input's own specs differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from colbert_zero.audit.links import Link, is_name
from colbert_zero.graph.artifact import EXTERNAL_KINDS
from colbert_zero.graph.digests import canonical_json
from colbert_zero.report.chain import depths, kind_of, label_of, leaves, rank

ABSENT: Final = "(not there)"
"""Stands for a leaf that one side does not have, in text and in JSON."""
SUBJECTS = ("data", "seed", "setting", "label", "input")
"""What a cause can be about, in the order in which causes are told."""

Pair = tuple[str, str]
"""The names of two artifacts that play the same role."""


@dataclass(frozen=True)
class Side:
    """One of the two things that are compared.

    Attributes:
        asked: What it was called.
        study: Where it is; an artifact of one study and one name is compared with itself.
        links: The artifacts of its chain, by name.
        roots: Those that nothing else in the chain is made from.
        records: What their manifests say; see `Link.record`.
        value: The number of a cell.
        measure: The number's measure.
    """

    asked: str
    study: str
    links: Mapping[str, Link]
    roots: tuple[str, ...]
    records: Mapping[str, Mapping[str, Any]]
    value: float | None = None
    measure: str | None = None


@dataclass
class Cause:
    """A leaf of specs that differs, of one artifact or of several in which it is the same leaf.

    Attributes:
        about: One of `SUBJECTS`.
        path: The leaf's dotted path.
        values: Both values; `ABSENT` where there is none.
        places: The pairs whose specs have it.
        reach: The pairs that have other keys because of it, and are no places of it.
    """

    about: str
    path: str
    values: tuple[Any, Any]
    places: list[Pair]
    reach: list[Pair] = field(default_factory=list)


@dataclass(frozen=True)
class Making:
    """Something that differed when artifacts were made.

    Attributes:
        about: `code`, `python`, `packages`, `image`, `machine` or `attempts`.
        path: What of it.
        values: Both values.
        places: The pairs of artifacts.
    """

    about: str
    path: str
    values: tuple[Any, Any]
    places: tuple[Pair, ...]


class Comparison:
    """What differs between two chains."""

    def __init__(self, one: Side, other: Side) -> None:
        """Pair the artifacts of the two sides, and compare the specs of each pair."""
        self.one, self.other = one, other
        self.pairs: list[Pair] = []
        self._sources: dict[Pair, list[Pair]] = {}
        self._causes: dict[tuple[str, str, str], Cause] = {}
        self._pair_up()

    def _pair_up(self) -> None:
        pending, _, _ = _align(self.one.roots, self.other.roots)
        roots = list(pending)
        unlike = [name for name in self.one.roots if name not in [pair[0] for pair in roots]]
        others = [name for name in self.other.roots if name not in [pair[1] for pair in roots]]
        if unlike or others:
            self._add("input", "what is asked for", (unlike or ABSENT, others or ABSENT), ("", ""))
        while pending:
            pair = pending.pop()
            if pair in self._sources:
                continue
            self.pairs.append(pair)
            self._sources[pair] = self._compare_specs(pair)
            pending += self._sources[pair]
        paired = {name for pair in self.pairs for name in pair}
        # What both have, in roles that the other does not have, is one artifact nonetheless.
        for name in sorted((self.one.links.keys() & self.other.links.keys()) - paired):
            self.pairs.append((name, name))
            self._sources[name, name] = [(source, source) for source in self.one.links[name].inputs]
        order = depths(self.one.roots, {name: link.inputs for name, link in self.one.links.items()})
        self.pairs.sort(key=lambda pair: (rank(pair[0]), order.get(pair[0], 0), pair))

    def _compare_specs(self, pair: Pair) -> list[Pair]:
        """Add the causes that the specs of a pair have; return the pairs of its inputs."""
        one, other = self.one.links[pair[0]].spec, self.other.links[pair[1]].spec
        if one is None or other is None:
            return []
        if one.label != other.label:
            self._add("label", "label", (one.label, other.label), pair)
        found, others = (dict(_own_leaves(spec.settings)) for spec in (one, other))
        for path in sorted({*found, *others}):
            values = found.get(path, ABSENT), others.get(path, ABSENT)
            if canonical_json(values[0]) != canonical_json(values[1]):
                self._add(_subject(one.kind, path), path, values, pair)
        pairs = []
        for role in sorted({*one.inputs, *other.inputs}):
            aligned, only_one, only_other = _align(one.inputs.get(role, ()), other.inputs.get(role, ()))
            pairs += aligned
            if only_one or only_other:
                self._add("input", role, (only_one or ABSENT, only_other or ABSENT), pair)
        return pairs

    def _add(self, about: str, path: str, values: tuple[Any, Any], pair: Pair) -> None:
        """Add a cause, or a place of one that is there: one change of a config is in the specs of many artifacts."""
        key = about, path.rpartition(".")[2], canonical_json(values)
        cause = self._causes.setdefault(key, Cause(about, path, values, []))
        cause.path = min(cause.path, path, key=len)
        cause.places += [pair] if any(pair) else []

    @cached_property
    def causes(self) -> list[Cause]:
        """What makes keys differ, each with what it reaches."""
        consumers: dict[Pair, list[Pair]] = {}
        for pair, sources in self._sources.items():
            for source in sources:
                consumers.setdefault(source, []).append(pair)
        order = {pair: position for position, pair in enumerate(self.pairs)}
        for cause in self._causes.values():
            cause.places.sort(key=lambda pair: order[pair])
            reached: set[Pair] = set()
            pending = list(cause.places)
            while pending:
                new = [pair for pair in consumers.get(pending.pop(), ()) if pair not in reached]
                reached.update(new)
                pending += new
            cause.reach = [
                pair for pair in self.pairs if pair in reached and pair not in cause.places and pair[0] != pair[1]
            ]
        return sorted(
            self._causes.values(), key=lambda of: (SUBJECTS.index(of.about), of.path, canonical_json(of.values))
        )

    @cached_property
    def only(self) -> tuple[list[str], list[str]]:
        """The artifacts of each side that have no counterpart."""
        return (
            sorted(set(self.one.links) - {pair[0] for pair in self.pairs}),
            sorted(set(self.other.links) - {pair[1] for pair in self.pairs}),
        )

    @cached_property
    def _made_pairs(self) -> list[Pair]:
        """The pairs of two artifacts that are both there, and are not one."""
        same_study = self.one.study == self.other.study
        return [
            pair
            for pair in self.pairs
            if self.one.links[pair[0]].manifest
            and self.other.links[pair[1]].manifest
            and not (same_study and pair[0] == pair[1])
        ]

    @cached_property
    def other_files(self) -> dict[Pair, list[str]]:
        """The files that differ between artifacts of one name, by pair: of those whose inputs' files do not differ."""
        differing = {pair: files for pair in self._made_pairs if pair[0] == pair[1] and (files := self._files(pair))}
        return {
            pair: files
            for pair, files in differing.items()
            if not any(source in differing for source in self._sources[pair])
        }

    @cached_property
    def other_files_reached(self) -> list[Pair]:
        """The pairs of one name whose files differ, as do those of an input."""
        return [
            pair
            for pair in self._made_pairs
            if pair[0] == pair[1] and pair not in self.other_files and self._files(pair)
        ]

    @cached_property
    def same_files(self) -> list[Pair]:
        """The pairs of other names that have the same files nonetheless."""
        return [
            pair
            for pair in self._made_pairs
            if pair[0] != pair[1] and self.one.links[pair[0]].outputs and not self._files(pair)
        ]

    def _files(self, pair: Pair) -> list[str]:
        """The names of the files in which two artifacts differ."""
        one, other = self.one.links[pair[0]].outputs, self.other.links[pair[1]].outputs
        digests = [{name: entry["sha256"] for name, entry in files.items()} for files in (one, other)]
        return sorted(name for name in {**one, **other} if digests[0].get(name) != digests[1].get(name))

    @cached_property
    def makings(self) -> list[Making]:
        """How the making differed, where both sides recorded it."""
        found: dict[tuple[str, str, str], tuple[tuple[Any, Any], list[Pair]]] = {}
        for pair in self._made_pairs:
            one, other = (
                dict(_made(self.one.links[pair[0]], self.one.records[pair[0]])),
                dict(_made(self.other.links[pair[1]], self.other.records[pair[1]])),
            )
            for about, path in one:
                values = one[about, path], other.get((about, path))
                if None not in values and values[0] != values[1]:
                    found.setdefault((about, path, json.dumps(values, sort_keys=True)), (values, []))[1].append(pair)
        return [Making(about, path, values, tuple(places)) for (about, path, _), (values, places) in found.items()]

    @cached_property
    def unknown(self) -> list[str]:
        """What could not be compared, in words."""
        problems = [
            f"{side.asked}: {link.problem}"
            for side in (self.one, self.other)
            for link in side.links.values()
            if link.problem
        ]
        missing = [
            (side, sum(not link.manifest and not link.problem for link in side.links.values()))
            for side in (self.one, self.other)
        ]
        problems += [
            f"{side.asked}: {count} artifacts are not there: only their specs are compared"
            for side, count in missing
            if count
        ]
        return list(dict.fromkeys(problems))

    @property
    def differs(self) -> bool:
        """Whether anything differs."""
        return bool(self.causes or self.other_files or self.other_files_reached or self.makings or self.values_differ)

    @property
    def values_differ(self) -> bool:
        """Whether the numbers of two cells differ."""
        return self.one.value is not None and self.other.value is not None and self.one.value != self.other.value


def _align(one: Sequence[str], other: Sequence[str]) -> tuple[list[Pair], list[str], list[str]]:
    """Pair artifacts that are used in one role: those of one name, then of one kind and label, then the last ones.

    Returns:
        The pairs, and what is left of each side.
    """
    pairs = [(name, name) for name in one if name in other]
    left, right = [name for name in one if name not in other], [name for name in other if name not in one]
    for name in list(left):
        alike = [found for found in right if (kind_of(found), label_of(found)) == (kind_of(name), label_of(name))]
        if alike:
            pairs.append((name, alike[0]))
            left.remove(name)
            right.remove(alike[0])
    if len(left) == len(right) == 1 and kind_of(left[0]) == kind_of(right[0]):
        return [*pairs, (left[0], right[0])], [], []
    return pairs, left, right


def _own_leaves(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The leaves of a spec's settings; of names of artifacts, only kind and label: their keys are others' affair."""
    for path, value in leaves(settings):
        if isinstance(value, list | tuple):
            yield path, [_without_key(inner) for inner in value]
        else:
            yield path, _without_key(value)


def _without_key(value: Any) -> Any:
    return f"{kind_of(value)}/{label_of(value)}" if is_name(value) else value


def _subject(kind: str, path: str) -> str:
    """What a leaf of the settings of an artifact is about."""
    if path.rpartition(".")[2] == "seed":
        return "seed"
    return "data" if kind in EXTERNAL_KINDS else "setting"


def _made(link: Link, record: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Any]]:
    """What a record says of the making, as (about, path) and value; None for what is not recorded."""
    code, parts, modules = record["code"], record["code"]["parts"], link.code.get("modules")
    yield ("code", "commit"), code["commit"]
    if isinstance(parts, Mapping):
        yield from ((("code", f"part {name}"), digest) for name, digest in sorted(parts.items()))
    else:
        yield ("code", "part package"), code["digest"]
    if isinstance(modules, Mapping):
        yield from ((("code", f"module {name}"), digest) for name, digest in sorted(modules.items()))
    yield ("python", "version"), record["python"]
    if isinstance(record["packages"], Mapping):
        yield from ((("packages", name), version) for name, version in sorted(record["packages"].items()))
    if link.manifest:
        image = record["image"] if isinstance(record["image"], Mapping) else {"": "none"}
        yield ("image", "labels"), json.dumps(image, sort_keys=True)
    yield from ((("machine", name), value) for name, value in record["machine"].items())
    attempts = record["attempts"]
    yield ("machine", "host"), str(attempts[-1]["host"]) if attempts and "host" in attempts[-1] else None
    yield ("attempts", "how they ended"), ", ".join(str(attempt.get("end")) for attempt in attempts) or None
