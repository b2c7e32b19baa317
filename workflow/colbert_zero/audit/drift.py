"""Say which artifacts today's code, images, libraries and machine would not make, or would make otherwise.

colbert-zero drift --directory local [--all] [--json]

Code is compared module by module, by syntax trees: a comment or a change in a module that the step does not import is
no drift. A processor counts for what PyTorch computed on it, a GPU model for what was computed on a GPU. Libraries are
those whose versions are recorded; in an image they are those of its lock. That something differs does not mean that
the files would: `colbert-zero replay` tells. Exit 0: no drift that reaches an artifact; 1: there is; 2: cannot tell.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from colbert_zero.audit.selection import (
    count_by_kind,
    format_cost,
    gpu_hours_of,
    gpu_of,
    open_artifacts,
    seconds_of,
    with_consumers,
)
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.code import module_digests, part_digests
from colbert_zero.graph.console import one_line
from colbert_zero.graph.provenance import c_library, machine, package_versions
from colbert_zero.machine.images import CONTENTS_LABEL, IMAGE_NAMES, Image
from colbert_zero.report.columns import counted

FAILED = 2
IMAGE_LABEL = "colbert-zero.image"
PARTS_OF_KIND = {"report": "reports"}
"""Parts of the code besides modules that a step reads, each with the kind of artifacts that it makes."""
PLANNING_PARTS = {
    "rules": "they decide where and when a step runs",
    "schema": "it decides which specs are planned",
    "registry": "it decides which specs are planned",
    "locks": "the versions of the recorded libraries are compared one by one",
    "images": "the image of an artifact is compared by its labels",
}
"""The other parts, and why a change of them reaches no artifact that is there."""


class Reach(StrEnum):
    """Whether a change reaches an artifact."""

    YES = "reaches"
    UNKNOWN = "may reach"
    NO = "does not reach"


@dataclass(frozen=True, order=True)
class Change:
    """Something that is otherwise now than when an artifact was made.

    Attributes:
        aspect: What: `code`, `library`, `image`, `Python`, `C library`, `processor`, `GPU`, `attempt`, or a part of the
            code.
        text: What has changed, for people.
        reach: Whether it reaches the artifact.
    """

    aspect: str
    text: str
    reach: Reach


@dataclass(frozen=True)
class Today:
    """What artifacts would be made by now.

    Attributes:
        parts: The digest of each part of the code.
        packages: The versions of the recorded libraries.
        python: Python's version.
        c_library: The C library's name and version; None if the platform's name has none.
        processor: The processor's model.
        gpus: The GPUs' models.
    """

    parts: Mapping[str, str | None]
    packages: Mapping[str, str]
    python: str
    c_library: str | None
    processor: str
    gpus: tuple[str, ...]

    @classmethod
    def look(cls) -> Today:
        """Look at this clone and this machine."""
        here = machine()
        return cls(
            part_digests(),
            package_versions(),
            platform.python_version(),
            c_library(here["platform"]),
            here["processor"],
            gpus_here(),
        )


def gpus_here() -> tuple[str, ...]:
    """The models of this machine's GPUs, as the driver names them."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ()
    return tuple(line.strip() for line in names.splitlines() if line.strip())


def changes_of(artifact: Artifact, today: Today) -> Iterator[Change]:
    """What is otherwise now than when the artifact was made."""
    manifest = artifact.manifest
    code = _mapping(manifest.get("code"))
    yield from code_changes(manifest, today.parts)
    yield from _part_changes(artifact.spec.kind, _mapping(code.get("parts")), today.parts)
    yield from _attempt_changes(manifest, code)
    if manifest.get("image") is not None:
        yield from _image_changes(manifest)
    else:
        yield from _library_changes(_mapping(manifest.get("packages")), today.packages, "here")
        if isinstance(python := manifest.get("python"), str) and python != today.python:
            yield Change("Python", f"{python}, here {today.python}", Reach.YES)
    yield from _hardware_changes(artifact, today)


def code_changes(manifest: Mapping[str, Any], parts: Mapping[str, str | None]) -> Iterator[Change]:
    """Which of the modules that made an artifact are others now."""
    code = _mapping(manifest.get("code"))
    modules, module = _mapping(code.get("modules")), code.get("module")
    if not (modules and isinstance(module, str)):
        if code.get("digest") != parts["package"]:
            yield Change("code", "the package has changed since, and the record names no modules", Reach.UNKNOWN)
        return
    now = module_digests(module)
    if not now:
        yield Change("code", f"{module}, which made it, is no more", Reach.YES)
        return
    for name in sorted(modules.keys() | now.keys()):
        if modules.get(name) != now.get(name):
            what = "has changed" if modules.keys() & now.keys() >= {name} else "is imported now"
            yield Change("code", f"{name} {what if name in now else 'is not imported now'}", Reach.YES)
    if modules == now and code.get("digest") != parts["package"]:
        yield Change("code", "changed, but in no module that made them", Reach.NO)


def _part_changes(kind: str, before: Mapping[str, Any], now: Mapping[str, str | None]) -> Iterator[Change]:
    for part, made_by in PARTS_OF_KIND.items():
        if kind == made_by and _differ(before.get(part), now.get(part)):
            yield Change(part, "the template of the page has changed", Reach.YES)
    for part, why in PLANNING_PARTS.items():
        if _differ(before.get(part), now.get(part)):
            yield Change(part, f"changed ({why})", Reach.NO)


def _differ(before: Any, now: Any) -> bool:
    """Whether two digests differ; what could not be seen then or now cannot."""
    return before is not None and now is not None and before != now


def _attempt_changes(manifest: Mapping[str, Any], code: Mapping[str, Any]) -> Iterator[Change]:
    attempts = manifest.get("attempts")
    for attempt in attempts if isinstance(attempts, list) else []:
        if _differ(_mapping(attempt).get("code"), code.get("digest")):
            text = (
                f"an earlier attempt was made by other code ({str(attempt['code'])[:12]}), of which only this is known"
            )
            yield Change("attempt", text, Reach.UNKNOWN)
    changed = code.get("changed")
    if isinstance(changed, list) and changed:
        reach = Reach.UNKNOWN if {"package", "packages", "report"} & set(map(str, changed)) else Reach.NO
        yield Change("attempt", f"while it ran, {', '.join(sorted(map(str, changed)))} changed on disk", reach)


def _library_changes(before: Mapping[str, Any], now: Mapping[str, str], where: str) -> Iterator[Change]:
    for name in sorted(before):
        if name not in now:
            yield Change("library", f"{name} {before[name]}, not installed {where}", Reach.UNKNOWN)
        elif now[name] != before[name]:
            yield Change("library", f"{name} {before[name]}, {where} {now[name]}", Reach.YES)


def _image_changes(manifest: Mapping[str, Any]) -> Iterator[Change]:
    labels = _mapping(manifest["image"])
    name, contents = labels.get(IMAGE_LABEL), labels.get(CONTENTS_LABEL)
    planned = planned_contents(name) if isinstance(name, str) else None
    if planned is None or contents is None:
        yield Change("image", f"made in an image that cannot be compared ({name or 'without a name'})", Reach.UNKNOWN)
    elif contents != planned:
        yield Change("image", f"{name} with the contents {contents}, now {planned}", Reach.YES)
        locked = locked_versions(name) if isinstance(name, str) else {}
        yield from _library_changes(_mapping(manifest.get("packages")), locked, "in the lock")


@cache
def planned_contents(name: str) -> str | None:
    """The digest of the definition and the lock of an image; None if this clone has no such image."""
    image = Image(name, Path(), None, {})
    there = name in IMAGE_NAMES and image.definition.is_file() and image.lock.is_file()
    return image.contents_digest if there else None


def locked_versions(name: str) -> dict[str, str]:
    """The versions of the libraries in an image's lock."""
    text = Image(name, Path(), None, {}).lock.read_text(encoding="utf-8")
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE))


def _hardware_changes(artifact: Artifact, today: Today) -> Iterator[Change]:
    gpu, device = gpu_of(artifact.manifest), artifact.facts.get("device")
    processor, library = artifact.manifest.get("processor"), c_library(str(artifact.manifest.get("platform")))
    if gpu is not None:
        if not today.gpus:
            yield Change("GPU", f"{gpu}, none here to compare with", Reach.UNKNOWN)
        elif gpu not in today.gpus:
            yield Change("GPU", f"{gpu}, here {', '.join(sorted(set(today.gpus)))}", Reach.YES)
    elif device == "cpu":
        if isinstance(processor, str) and processor != today.processor:
            yield Change("processor", f"{processor}, here {today.processor}", Reach.YES)
        # An image brings its own.
        if library is not None and library != today.c_library and artifact.manifest.get("image") is None:
            yield Change("C library", f"{library}, here {today.c_library}", Reach.YES)


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one: a record may be older, or damaged."""
    return value if isinstance(value, dict) else {}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags for what is shown."""
    parser.add_argument("--all", action="store_true", help="name each artifact that a change reaches")
    parser.add_argument("--json", action="store_true", help="write the changes and their artifacts as JSON")


def run(options: argparse.Namespace) -> int:
    """Write each change once, with what it reaches; return 0 if none reaches an artifact, 1 if one does, else 2."""
    artifacts, problems = open_artifacts()
    today = Today.look()
    reached: dict[Change, list[str]] = {}
    for artifact in artifacts:
        for change in dict.fromkeys(changes_of(artifact, today)):
            reached.setdefault(change, []).append(artifact.name)
    drifted = {name for change, names in reached.items() if change.reach == Reach.YES for name in names}
    unknown = {name for change, names in reached.items() if change.reach == Reach.UNKNOWN for name in names} - drifted
    status = 1 if drifted else 2 if unknown or problems or not artifacts else 0
    again = [artifact for artifact in artifacts if artifact.name in with_consumers(drifted, artifacts)]
    if options.json:
        _write_json(artifacts, problems, reached, drifted, unknown, again)
        return status
    lines = []
    for reach in Reach:
        changes = sorted(change for change in reached if change.reach == reach)
        for change in changes:
            names = reached[change]
            of_all = len(names) == len(artifacts) > 1
            kinds = f"all {len(names)}" if of_all else counted(len(names), "artifact")
            lines.append(f"{change.aspect}: {change.text}: {reach} {kinds} ({count_by_kind(names)})")
            if options.all:
                lines += [f"  {name}" for name in names]
    lines += problems.values()
    same = len(artifacts) - len(drifted) - len(unknown)
    lines.append(
        f"{counted(len(artifacts), 'artifact')}: {same} as today's code would make them, "
        f"{len(drifted)} by other means, {len(unknown) + len(problems)} that cannot be told"
        if artifacts or problems
        else "no artifacts here: nothing to compare"
    )
    if again:
        more = f" and the {len(again) - len(drifted)} made from them" if len(again) > len(drifted) else ""
        lines.append(f"making the {len(drifted)}{more} again would take what they took: {format_cost(again)}")
    sys.stdout.write("".join(one_line(line) + "\n" for line in lines))
    return status


def _write_json(
    artifacts: list[Artifact],
    problems: Mapping[str, str],
    reached: Mapping[Change, list[str]],
    drifted: set[str],
    unknown: set[str],
    again: list[Artifact],
) -> None:
    value = {
        "artifacts": len(artifacts),
        "changes": [
            {"aspect": change.aspect, "change": change.text, "reach": change.reach, "artifacts": reached[change]}
            for change in sorted(reached, key=lambda change: (list(Reach).index(change.reach), change))
        ],
        "drifted": sorted(drifted),
        "unknown": sorted(unknown),
        "unreadable": list(problems.values()),
        "again": {
            "artifacts": [artifact.name for artifact in again],
            "seconds": round(sum(map(seconds_of, again)), 3),
            "gpu_hours": round(sum(map(gpu_hours_of, again)), 3),
        },
    }
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
