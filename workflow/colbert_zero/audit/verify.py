"""Verify every artifact of a study.

colbert-zero verify --directory local
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

from colbert_zero.audit.findings import Check, Finding
from colbert_zero.graph.artifact import (
    KEY_DIGITS,
    MANIFEST_FILE,
    SPEC_FILE,
    Artifact,
    content_digest,
    published_folders,
)
from colbert_zero.graph.console import UserError, one_line
from colbert_zero.graph.digests import digest, file_digest


def add_options(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(_options: argparse.Namespace) -> int:
    """Write a line for each finding; return 1 if there is one, else 0."""
    folders = list(published_folders(Path()))
    findings = [finding for folder in folders for finding in check_artifact(folder)]
    for finding in findings:
        sys.stdout.write(one_line(finding.problem) + "\n")
    sys.stdout.write(f"{len(folders)} artifacts, {len(findings)} findings\n")
    return 1 if findings else 0


def check_artifact(folder: Path) -> Iterator[Finding]:
    """What is wrong with the spec, the manifest, the files or the inputs of the artifact in `folder`."""
    name = f"{folder.parent.name}/{folder.name}"

    def wrong(problem: str, check: Check = Check.ARTIFACT) -> Finding:
        return Finding(name, check, problem)

    missing = [file for file in (SPEC_FILE, MANIFEST_FILE) if not (folder / file).is_file()]
    if missing:
        yield from (wrong(f"{folder / file} is missing") for file in missing)
        return
    text = (folder / SPEC_FILE).read_bytes().decode("utf-8", errors="replace")
    if digest(text)[:KEY_DIGITS] != folder.name[-KEY_DIGITS:]:
        yield wrong(f"{folder / SPEC_FILE} was edited: its digest is not in the folder's name")
        return
    try:
        artifact = Artifact.open(name)
        input_records, outputs = artifact.manifest["inputs"], artifact.manifest["outputs"]
    except (UserError, KeyError) as error:
        yield wrong(f"{folder / MANIFEST_FILE} cannot be read: {error}")
        return
    if artifact.manifest["name"] != name:
        yield wrong(f"{folder / MANIFEST_FILE} is another artifact's: {artifact.manifest['name']}")
    for file in outputs:
        problem = artifact.problem_with(file)
        if problem:
            yield wrong(problem)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for file in sorted(present - set(outputs) - {SPEC_FILE, MANIFEST_FILE}):
        yield wrong(f"{folder / file} is not in the manifest")
    for input_name in artifact.spec.input_names:
        problem = _problem_with_input(input_name, input_records.get(input_name))
        if problem:
            yield wrong(f"{folder}: {problem}", Check.CONSUMERS)


def _problem_with_input(name: str, record: str | dict[str, str] | None) -> str | None:
    """What is wrong with the input `name`, of which its consumer has `record`: in an older manifest, only a digest."""
    try:
        artifact = Artifact.open(name)
    except UserError as error:
        # Intermediate artifacts may be deleted to free space, but then they cannot be verified.
        return f"its input is not there: {error}"
    recorded = record["files"] if isinstance(record, dict) else record
    if content_digest(artifact.manifest["outputs"]) != recorded:
        return f"its input {name} is not the one it was made from"
    if isinstance(record, dict) and file_digest(artifact.folder / MANIFEST_FILE) != record["manifest"]:
        return f"its input {name} has the files it was made from, and another record: it was made again, or edited"
    return None


def findings(folder: Path) -> list[Finding]:
    """All findings in the study in `folder`, in the order in which `verify` tells them."""
    with chdir(folder):
        return [finding for artifact in published_folders(Path()) for finding in check_artifact(artifact)]
