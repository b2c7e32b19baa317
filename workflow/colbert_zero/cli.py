"""Inspect a study without Snakemake: which artifacts exist, whether they are intact, and the report's table.

colbert-zero status --directory local
colbert-zero verify --directory local
colbert-zero table --directory local
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from colbert_zero.graph.artifact import (
    KEY_DIGITS,
    MANIFEST_FILE,
    SPEC_FILE,
    Artifact,
    Spec,
    content_digest,
    published_folders,
)
from colbert_zero.graph.config import read_config
from colbert_zero.graph.console import UserError, one_line, run_reporting_errors
from colbert_zero.graph.digests import digest
from colbert_zero.graph.study import Study


def status(study: Study) -> int:
    """Write the stages of each row, and the report, with key, state and path."""
    lines = [
        (row.name, spec.label, spec.key, _state(spec), str(study.folder / spec.folder))
        for row in study.rows
        for spec in row.stages
    ]
    report = study.report
    lines.append((study.name, "report", report.key, _state(report), str(study.folder / report.folder)))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        sys.stdout.write(one_line("  ".join([*cells, line[-1]])) + "\n")
    finished = sum((spec.folder / MANIFEST_FILE).is_file() for spec in study.specs.values())
    sys.stdout.write(f"{finished} of {len(study.specs)} artifacts of study {study.name} are there\n")
    return 0


def _state(spec: Spec) -> str:
    if (spec.folder / MANIFEST_FILE).is_file():
        return "done"
    if spec.state.is_dir():
        return "begun"
    return "missing"


def verify() -> int:
    """Verify every artifact of the study in the current folder; write a line for each finding.

    Returns:
        1 if there is a finding, else 0.
    """
    folders = list(published_folders(Path()))
    findings = [finding for folder in folders for finding in _check_artifact(folder)]
    for finding in findings:
        sys.stdout.write(one_line(finding) + "\n")
    sys.stdout.write(f"{len(folders)} artifacts, {len(findings)} findings\n")
    return 1 if findings else 0


def _check_artifact(folder: Path) -> Iterator[str]:
    """What is wrong with the spec, the manifest, the files or the inputs of the artifact in `folder`."""
    missing = [name for name in (SPEC_FILE, MANIFEST_FILE) if not (folder / name).is_file()]
    if missing:
        yield from (f"{folder / name} is missing" for name in missing)
        return
    text = (folder / SPEC_FILE).read_bytes().decode("utf-8", errors="replace")
    if digest(text)[:KEY_DIGITS] != folder.name[-KEY_DIGITS:]:
        yield f"{folder / SPEC_FILE} was edited: its digest is not in the folder's name"
        return
    name = f"{folder.parent.name}/{folder.name}"
    try:
        artifact = Artifact.open(name)
        input_digests, outputs = artifact.manifest["inputs"], artifact.manifest["outputs"]
    except (UserError, KeyError) as error:
        yield f"{folder / MANIFEST_FILE} cannot be read: {error}"
        return
    if artifact.manifest["name"] != name:
        yield f"{folder / MANIFEST_FILE} is another artifact's: {artifact.manifest['name']}"
    for file in outputs:
        problem = artifact.problem_with(file)
        if problem:
            yield problem
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for file in sorted(present - set(outputs) - {SPEC_FILE, MANIFEST_FILE}):
        yield f"{folder / file} is not in the manifest"
    for names in artifact.spec.inputs.values():
        for input_name in names:
            yield from _check_input(folder, input_name, input_digests.get(input_name))


def _check_input(folder: Path, input_name: str, recorded_digest: str | None) -> Iterator[str]:
    """Whether the input called `input_name` still has the content that the artifact in `folder` was made from."""
    try:
        artifact = Artifact.open(input_name)
    except UserError as error:
        # Intermediate artifacts may be deleted to free space, but then they cannot be verified.
        yield f"{folder}: its input is not there: {error}"
        return
    if content_digest(artifact.manifest["outputs"]) != recorded_digest:
        yield f"{folder}: its input {input_name} is not the one it was made from"


def table(study: Study) -> int:
    """Write the report's table and the path of its page.

    Raises:
        UserError: The report has not been made yet.
    """
    report = Artifact.open(study.report.name)
    sys.stdout.write(report.file("table.md").read_text(encoding="utf-8"))
    page = (study.folder / report.folder / "report.html").resolve()
    sys.stdout.write(f"\nThe report: {one_line(str(page))}\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command `colbert-zero`."""
    parser = argparse.ArgumentParser(
        prog="colbert-zero", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["status", "verify", "table"])
    parser.add_argument("--directory", type=Path, default=Path(), help="the study's folder (this one)")
    options = parser.parse_args(argv)

    def run() -> int:
        if not options.directory.is_dir():
            raise UserError(f"{options.directory} is not a folder")
        os.chdir(options.directory)
        if options.command == "verify":
            return verify()
        study = Study(read_config(Path("config.yaml")), Path())
        return status(study) if options.command == "status" else table(study)

    return run_reporting_errors(run)


if __name__ == "__main__":
    sys.exit(main())
