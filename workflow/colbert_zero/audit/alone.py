"""What an artifact shows by itself: its spec, its manifest, and which files it should have. No bytes are read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colbert_zero.audit import records
from colbert_zero.audit.findings import Check, Finding
from colbert_zero.audit.walk import contents, problem_with_path
from colbert_zero.graph.artifact import KEY_DIGITS, LET_GO_FILE, MANIFEST_FILE, RECORD, SPEC_FILE, Spec, content_digest
from colbert_zero.graph.digests import canonical_json, digest
from colbert_zero.graph.json_values import kind_of, parse_json
from colbert_zero.graph.let_go import LET_GO_KIND

LARGEST_RECORD = 2**28
"""Bytes that a spec or a manifest may have."""


@dataclass
class Examined:
    """An artifact's folder, and what its spec and manifest say.

    Attributes:
        name: `KIND/LABEL-KEY`, by the folder.
        folder: The folder.
        findings: What is wrong with it so far.
        spec: Its spec; None if that cannot be read.
        manifest: Its manifest; None if that cannot be read. Dropped once its files are checked.
        summary: What other artifacts are compared with; None if there is no manifest.
        files: The files that are there and listed: of each its size and SHA-256 by the manifest.
    """

    name: str
    folder: Path
    findings: list[Finding] = field(default_factory=list)
    spec: Spec | None = None
    manifest: Mapping[str, Any] | None = None
    summary: Summary | None = None
    files: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, problem: str, check: Check = Check.ARTIFACT) -> None:
        """Add a finding."""
        self.findings.append(Finding(self.name, check, problem))


@dataclass(frozen=True)
class Summary:
    """What is kept of an artifact to the end of an audit.

    Attributes:
        spec: SHA-256 of its `spec.json`, None if that is not there or damaged.
        files: The digest of its files, by its manifest.
        manifest: SHA-256 of its `manifest.json`.
        record: The format of its manifest.
        inputs: What its manifest says of each input; in the older format, the digest of its files alone.
        started: When its last attempt started, in seconds since 1970, if it says so.
        ended: When it ended.
        edited: How many seconds after the artifact's other files its manifest was last written.
        changed: The parts of the code that changed on disk while it was made.
        let_go: The bytes of its files that were let go; None if none were.
        former: What artifacts have on record of it that were made before its files were let go, and came out otherwise.
    """

    spec: str | None
    files: str
    manifest: str
    record: int
    inputs: Mapping[str, Any]
    started: float | None
    ended: float | None
    edited: float
    changed: tuple[str, ...] = ()
    let_go: int | None = None
    former: tuple[Mapping[str, str], ...] = ()


def examine(folder: Path) -> Examined:
    """Examine the artifact in `folder`; whatever is in its files, this raises nothing."""
    examined = Examined(f"{folder.parent.name}/{folder.name}", folder)
    try:
        _examine(examined)
    except Exception as error:  # An artifact that nobody foresaw must not hide the findings of others.
        examined.manifest = None
        examined.add(f"{folder} cannot be verified: {type(error).__name__}: {error}")
    return examined


def _examine(examined: Examined) -> None:
    folder = examined.folder
    found = contents(folder)
    for problem in found.problems:
        examined.add(problem)
    spec_text = _read(examined, SPEC_FILE, found.files)
    if spec_text is not None:
        _check_spec(examined, spec_text)
    text = _read(examined, MANIFEST_FILE, found.files)
    manifest = None if text is None else _parse(examined, text)
    if text is None or manifest is None:
        return
    for problem in _problems_with_manifest(examined, manifest):
        examined.add(f"{folder / MANIFEST_FILE} {problem}")
    examined.manifest = manifest
    let_go = LET_GO_FILE in found.files and folder.parent.name == LET_GO_KIND
    if let_go:
        del found.files[LET_GO_FILE]
    _check_files(examined, manifest["outputs"], found.files, let_go=let_go)
    gone = [entry["bytes"] for name, entry in manifest["outputs"].items() if name not in found.files]
    started, ended = records.span(manifest)
    examined.summary = Summary(
        examined.spec.digest if examined.spec else None,
        content_digest(manifest["outputs"]),
        digest(text),
        records.record_of(manifest),
        manifest["inputs"],
        started,
        ended,
        _seconds_after_files(found.files),
        tuple(manifest["code"].get("changed", ())),
        sum(gone) if let_go else None,
        tuple(manifest.get("former", ())),
    )


def _read(examined: Examined, name: str, files: Mapping[str, os.stat_result]) -> str | None:
    """The text of a file of the artifact; None, and a finding, if there is none to read."""
    path = examined.folder / name
    if name not in files:
        # What is there instead of a file is a finding already.
        if not path.is_symlink() and not path.exists():
            examined.add(f"{path} is missing" + ("; run snakemake: it writes it again" if name == SPEC_FILE else ""))
        return None
    if files[name].st_size > LARGEST_RECORD:
        examined.add(f"{path} has {files[name].st_size} bytes, which no step writes")
        return None
    try:
        return path.read_bytes().decode()
    except OSError as error:
        examined.add(f"{path} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        examined.add(f"{path} was edited: it is not UTF-8")
    return None


def _check_spec(examined: Examined, text: str) -> None:
    path = examined.folder / SPEC_FILE
    if not examined.name.endswith("-" + digest(text)[:KEY_DIGITS]):
        examined.add(f"{path} was edited: its digest is not in the folder's name")
        return
    try:
        value = parse_json(text)
        canonical = canonical_json(value) == text
        spec = Spec.parse(text)
        well_formed = canonical and spec.text == text
        name = spec.name
    except (ValueError, TypeError, KeyError, AttributeError):
        examined.add(f"{path} is no spec")
        return
    if not well_formed:
        examined.add(f"{path} is not written as specs are: its digest stands for nothing")
    elif name != examined.name:
        examined.add(f"{path} is the spec of {name}, not of {examined.name}")
    else:
        examined.spec = spec


def _parse(examined: Examined, text: str) -> Mapping[str, Any] | None:
    """The manifest in `text`; None, and a finding, if there is none that can be compared with anything."""
    path = examined.folder / MANIFEST_FILE
    try:
        manifest = parse_json(text)
    except ValueError:
        examined.add(f"{path} is no manifest, it is damaged; move {examined.folder} away and run snakemake again")
        return None
    if not isinstance(manifest, dict):
        examined.add(f"{path} is no manifest: it holds {kind_of(manifest)}")
        return None
    if isinstance(manifest.get("record"), int) and manifest["record"] > RECORD:
        examined.add(f"{path} was written by a later version, of record {manifest['record']}: verify it with that one")
        return None
    problem = records.problem_with_form(manifest, text)
    if problem is None:
        return manifest
    examined.add(f"{path} {problem}")
    return None


def _problems_with_manifest(examined: Examined, manifest: Mapping[str, Any]) -> Iterator[str]:
    if manifest["name"] != examined.name:
        yield f"is another artifact's: {manifest['name']}"
    yield from records.problems_with_history(manifest, examined.name)
    spec = examined.spec
    if spec is None:
        return
    if manifest.get("spec", spec.digest) != spec.digest:
        yield f"is that of another spec than {SPEC_FILE}: their digests differ"
    recorded, planned = set(manifest["inputs"]), set(spec.input_names)
    if missing := sorted(planned - recorded):
        yield f"says nothing of its input {missing[0]}"
    if extra := sorted(recorded - planned):
        yield f"names the input {extra[0]}, which its spec does not have"


def _check_files(
    examined: Examined,
    outputs: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, os.stat_result],
    *,
    let_go: bool,
) -> None:
    folder = examined.folder
    for name, entry in sorted(outputs.items()):
        path = folder / name
        if problem := problem_with_path(name):
            examined.add(f"{folder / MANIFEST_FILE} lists {name}, which {problem}")
        elif name not in files:
            # A link or a pipe in its place is a finding already.
            if not let_go and not path.is_symlink() and not path.exists():
                examined.add(f"{path} is missing")
        elif files[name].st_size != entry["bytes"]:
            examined.add(f"{path} has {files[name].st_size} bytes, its manifest says {entry['bytes']}")
        else:
            examined.files[name] = entry["bytes"], entry["sha256"]
    for name in sorted(files.keys() - outputs.keys() - {SPEC_FILE, MANIFEST_FILE}):
        examined.add(f"{folder / name} is not in the manifest")


def _seconds_after_files(files: Mapping[str, os.stat_result]) -> float:
    """How many seconds after the other files of a folder its manifest was last written."""
    times = {name: file.st_mtime for name, file in files.items()}
    written = times.pop(MANIFEST_FILE)
    return max(0.0, written - max(times.values(), default=written))
