"""What the files of each artifact of a chain say of it, in one form for every version of the record.

Nothing here stops at an artifact that is missing or damaged: what can be told is told, and the problem beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from colbert_zero.graph.artifact import (
    KEY_DIGITS,
    MANIFEST_FILE,
    SPEC_FILE,
    Artifact,
    Spec,
    artifact_folder,
    content_digest,
)
from colbert_zero.graph.console import UserError
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.study import Study

NAME_PATTERN = re.compile(rf"[^/]+/[^/]+-[0-9a-f]{{{KEY_DIGITS}}}")
"""The form of an artifact's name."""
MACHINE = ("platform", "processor", "cores", "memory_mb", "threads")
"""Of a manifest, what it says of the machine."""
DEVICES = ("device", "devices", "gpu", "gpus", "nodes", "processes")
"""Of a manifest or its facts, what computed."""
TOLERANCE = 1e-12
"""Sums of the same values in another order differ by less, relative to the sum."""


@dataclass(frozen=True)
class Link:
    """An artifact of a chain, as far as its files can be read.

    Attributes:
        name: Its name.
        spec: What decides it; None if that cannot be read.
        manifest: How it was made; empty if that cannot be read.
        problem: Why something cannot be read, in one line; None if all can.
    """

    name: str
    spec: Spec | None
    manifest: Mapping[str, Any]
    problem: str | None = None

    @classmethod
    def open(cls, name: str) -> Link:
        """Read the spec and the manifest of an artifact of the current study."""
        for path in (artifact_folder(name) / file for file in (SPEC_FILE, MANIFEST_FILE)):
            # Reading a pipe would wait for ever.
            if path.exists() and not path.is_file():
                return cls(name, None, {}, f"{path} is no file")
        try:
            artifact = Artifact.open(name)
            spec = artifact.spec
            # What is not in the canonical form, such as a forged spec, has another name than its folder.
            well_formed = (
                isinstance(spec.settings, Mapping) and spec.name == name and all(map(is_name, spec.input_names))
            )
        except UserError as error:
            return cls(name, None, {}, str(error))
        except OSError as error:
            return cls(name, None, {}, f"{artifact_folder(name)} cannot be read: {error.strerror}")
        except (ValueError, TypeError, KeyError, AttributeError):
            well_formed = False
        if not well_formed:
            return cls(name, None, {}, f"{artifact_folder(name)}: its spec.json is no spec")
        return cls(name, spec, artifact.manifest)

    @property
    def inputs(self) -> list[str]:
        """The names of its inputs, as far as they are known."""
        return self.spec.input_names if self.spec else []

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of its spec, as far as they are known."""
        return self.spec.settings if self.spec else {}

    @property
    def facts(self) -> Mapping[str, Any]:
        """What its step counted and measured."""
        return _mapping(self.manifest.get("facts"))

    @property
    def code(self) -> Mapping[str, Any]:
        """The code that made it."""
        return _mapping(self.manifest.get("code"))

    @property
    def attempts(self) -> list[Mapping[str, Any]]:
        """The attempts at it, the last one last."""
        attempts = self.manifest.get("attempts")
        return [attempt for attempt in attempts if isinstance(attempt, Mapping)] if isinstance(attempts, list) else []

    @property
    def outputs(self) -> dict[str, Mapping[str, Any]]:
        """The SHA-256 and the size of each of its files."""
        return {
            name: entry
            for name, entry in _mapping(self.manifest.get("outputs")).items()
            if isinstance(entry, Mapping)
            and isinstance(entry.get("sha256"), str)
            and isinstance(entry.get("bytes"), int)
        }

    def record(self) -> dict[str, Any]:
        """What its manifest says, under the same names for each version of the record; None for what it does not say.

        The keys are those of `made` in the JSON of a trace.
        """
        machine = {name: self.manifest.get(name) for name in MACHINE}
        machine |= {
            name: value for name in DEVICES if (value := self.manifest.get(name, self.facts.get(name))) is not None
        }
        path = artifact_folder(self.name) / MANIFEST_FILE
        files = {
            "count": len(self.outputs),
            "bytes": sum(entry["bytes"] for entry in self.outputs.values()),
            "digest": content_digest(self.outputs),
        }
        return {
            "record": self.manifest.get("record", 1) if self.manifest else None,
            "manifest": file_digest(path) if self.manifest and path.is_file() else None,
            "files": files if self.manifest else None,
            "code": {name: self.code.get(name) for name in ("digest", "commit", "module", "parts")}
            | {"changed": _list(self.code.get("changed"))},
            "python": self.manifest.get("python"),
            "packages": self.manifest.get("packages"),
            "image": self.manifest.get("image"),
            "machine": machine,
            "arguments": _list(self.manifest.get("arguments")),
            "seconds": self.manifest.get("seconds"),
            "peak_memory_mb": self.manifest.get("peak_memory_mb"),
            "attempts": [dict(attempt) for attempt in self.attempts],
        }

    def values(self) -> dict[str, dict[str, Any]]:
        """Of measures, by measure: `value`, recomputed from the values per query, `recorded`, and whether these agree.

        `problem` says what is wrong with the file of values, if anything is; then there may be no value.
        """
        from colbert_zero.evaluation.values import VALUES_FILE, mean_value, read_values

        recorded = _mapping(self.facts.get("means"))
        computed: dict[str, dict[str, Any]] = {}
        problem = self.problem
        if self.spec is not None:
            path = self.spec.folder / VALUES_FILE
            problem = Artifact(self.spec, {"outputs": self.outputs}, self.spec.folder).problem_with(VALUES_FILE)
            try:
                values = read_values(path) if path.is_file() else {}
                computed = {name: {"value": mean_value(of), "queries": len(of)} for name, of in values.items()}
            except (OSError, ValueError, TypeError, KeyError):
                problem = problem or f"{path} is no table of values"
        return {
            name: {
                "value": None,
                "queries": None,
                **computed.get(name, {}),
                "recorded": recorded.get(name),
                "agrees": problem is None and same_number(computed.get(name, {}).get("value"), recorded.get(name)),
                "problem": problem,
            }
            for name in dict.fromkeys([*recorded, *computed])
        }


def is_name(text: Any) -> bool:
    """Whether a value has the form of an artifact's name."""
    return isinstance(text, str) and NAME_PATTERN.fullmatch(text) is not None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any] | None:
    return value if isinstance(value, list) else None


def same_number(one: Any, other: Any) -> bool:
    """Whether two numbers are the same but for the order in which they were summed; what is no number is none."""
    if not (isinstance(one, float | int) and isinstance(other, float | int)):
        return False
    try:
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except OverflowError:
        return False


def follow(roots: Iterable[str]) -> dict[str, Link]:
    """These artifacts of the current study and all that they are made from, by name, each once."""
    links: dict[str, Link] = {}
    pending = list(roots)
    while pending:
        name = pending.pop()
        if name not in links:
            links[name] = Link.open(name)
            pending += links[name].inputs
    return links


def planned_links(study: Study) -> dict[str, Link]:
    """The artifacts that a config plans, by name, with the manifests of those that are there."""
    links = {}
    for spec in study.specs.values():
        there = Link.open(spec.name) if (spec.folder / MANIFEST_FILE).is_file() else None
        links[spec.name] = Link(spec.name, spec, there.manifest if there else {}, there.problem if there else None)
    return links


def inputs_of(links: Mapping[str, Link]) -> dict[str, list[str]]:
    """A chain, as the names of the inputs of each artifact."""
    return {name: link.inputs for name, link in links.items()}
