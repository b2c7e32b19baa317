"""Look at a study from outside Snakemake: what there is, whether it is intact, what came out.

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

from colbert_zero.graph.artifact import KEY_DIGITS, MANIFEST, SPEC, Artifact, Spec, content_digest, published
from colbert_zero.graph.config import read_config
from colbert_zero.graph.console import UserError, run_reporting_errors
from colbert_zero.graph.digests import digest
from colbert_zero.graph.study import Study


def status(study: Study) -> int:
    """Write each row's stages and its report with key, state and path."""
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
        sys.stdout.write("  ".join([*cells, line[-1]]) + "\n")
    there = sum((spec.folder / MANIFEST).is_file() for spec in study.specs.values())
    sys.stdout.write(f"{there} of {len(study.specs)} artifacts of study {study.name} are there\n")
    return 0


def _state(spec: Spec) -> str:
    if (spec.folder / MANIFEST).is_file():
        return "done"
    if spec.state.is_dir():
        return "begun"
    return "missing"


def verify() -> int:
    """Walk every artifact of the current folder; write a line per finding.

    Returns:
        1 if there is any finding, else 0.
    """
    folders = list(published(Path()))
    findings = [finding for folder in folders for finding in _findings(folder)]
    for finding in findings:
        sys.stdout.write(finding + "\n")
    sys.stdout.write(f"{len(folders)} artifacts, {len(findings)} findings\n")
    return 1 if findings else 0


def _findings(folder: Path) -> Iterator[str]:
    """What is wrong with one artifact: its spec, its files, or its inputs."""
    missing = [name for name in (SPEC, MANIFEST) if not (folder / name).is_file()]
    if missing:
        yield from (f"{folder / name} is missing" for name in missing)
        return
    text = (folder / SPEC).read_bytes().decode("utf-8", errors="replace")
    if digest(text)[:KEY_DIGITS] != folder.name[-KEY_DIGITS:]:
        yield f"{folder / SPEC} was edited: its digest is not in the folder's name"
        return
    name = f"{folder.parent.name}/{folder.name}"
    try:
        artifact = Artifact.open(name)
        recorded, outputs = artifact.manifest["inputs"], artifact.manifest["outputs"]
    except (UserError, KeyError) as error:
        yield f"{folder / MANIFEST} cannot be read: {error}"
        return
    if artifact.manifest["name"] != name:
        yield f"{folder / MANIFEST} is another artifact's: {artifact.manifest['name']}"
    for file in outputs:
        finding = artifact.problem_with(file)
        if finding:
            yield finding
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for file in sorted(present - set(outputs) - {SPEC, MANIFEST}):
        yield f"{folder / file} is not in the manifest"
    for names in artifact.spec.inputs.values():
        for input_name in names:
            yield from _input_findings(folder, input_name, recorded.get(input_name))


def _input_findings(folder: Path, input_name: str, recorded: str | None) -> Iterator[str]:
    try:
        given = Artifact.open(input_name)
    except UserError as error:
        # Making room by deleting an intermediate is allowed, but then nothing vouches for it.
        yield f"{folder}: its input is not there: {error}"
        return
    if content_digest(given.manifest["outputs"]) != recorded:
        yield f"{folder}: its input {input_name} is not the one it was made from"


def table(study: Study) -> int:
    """Write the report's table and where the report is.

    Raises:
        UserError: There is no report yet.
    """
    report = Artifact.open(study.report.name)
    sys.stdout.write(report.file("table.md").read_text(encoding="utf-8"))
    sys.stdout.write(f"\nThe report: {(study.folder / report.folder / 'report.html').resolve()}\n")
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
