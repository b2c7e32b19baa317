"""Bundle a study for others: its report, all that it rests on, the workflow, and a description that machines can read.

colbert-zero bundle --directory local
colbert-zero bundle --output study.zip --directory local
colbert-zero bundle --output folder --max-file-mb 100 --directory local

The bundle is a Workflow Run RO-Crate (Provenance Run Crate 0.5). It has every spec and manifest of what the report
rests on, the files up to a size, and of larger ones the digest and the size. Files of artifacts that others may not
read here, and of indexes that were let go, are in it by digest alone, whatever their size; the report is always in it.
checklist.md says what the records answer to the questions of ACM's badges and of the NeurIPS checklist.

The same study and workflow give the same bytes. A study with findings is not bundled.
"""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from colbert_zero.audit import signatures
from colbert_zero.audit.checklist import CHECKLIST_FILE, checklist
from colbert_zero.audit.crate import (
    METADATA_FILE,
    README_FILE,
    WORKFLOW_FILE,
    Contents,
    code_digest,
    describe,
    span,
    without_folders,
)
from colbert_zero.audit.options import megabytes
from colbert_zero.audit.verify import findings
from colbert_zero.graph.artifact import MANIFEST_FILE, SPEC_FILE, Artifact, is_let_go
from colbert_zero.graph.code import PARTS, part_digests
from colbert_zero.graph.config import CONFIG_FILE, LOCK_FILE, read_config
from colbert_zero.graph.console import UserError, one_line
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.local_files import absolute_path, new_folder
from colbert_zero.graph.paths import REPOSITORY
from colbert_zero.graph.study import Study
from colbert_zero.machine.images import planned_images
from colbert_zero.report.sections import ROWS_FILE

MAXIMUM_MB = 10.0
"""Files of more megabytes are in a bundle by digest alone, unless another size is asked for."""
OTHER_WORKFLOW_FILES = (
    WORKFLOW_FILE,
    "envs/*.excludes",
    "envs/*.in",
    "envs/*.py",
    "envs/*.yaml",
    "local/profile*.yaml",
    "slurm/profile.yaml",
    "CITATION.cff",
    "LICENSE",
    "Makefile",
    "pyproject.toml",
)
"""The files of the workflow beside those of `PARTS`, as patterns in the repository."""
README = """\
# The study {study}, bundled

The report is `{report}/report.html`, its table `{report}/table.csv`. SHA-256 of the report's `manifest.json`:

    {manifest}

{chain}

{artifacts} artifacts are here, each with its `spec.json` (what decides it) and `manifest.json` (how it was made);
{left_out} of their files are here by digest and size alone.

- `ro-crate-metadata.json`: all of this for machines, a Provenance Run Crate (https://w3id.org/ro/wfrun/provenance/0.5).
- `checklist.md`: what the records answer to the questions of ACM's badges and of the NeurIPS checklist.
- `config.yaml`: the study. `config.lock.yaml`, if it is there: the commits that names of the Hugging Face Hub in it
  stand for. `Snakefile`, `workflow/`, `envs/`, `containers/`: the workflow that makes it.
- `signatures/`, if it is there: who vouches for the report (`colbert-zero verify --signers FILE`).
"""
WHOLE_CHAIN = """\
That file has the digests of the report's files and of the manifests of what it was made from, and so on down to what
came from outside: this one number stands for every byte and record that the report rests on."""
OLDER_CHAIN = """\
That file has the digests of the report's files. Some artifacts have an older record, without the digests of the
manifests of what they were made from: their files are vouched for, how they were made is not."""
OLDEST_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The time of each file in a ZIP: none is one of this machine."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where the bundle goes, and what goes into it."""
    parser.add_argument("--output", type=absolute_path, help="a file that ends with .zip, or a new folder")
    parser.add_argument(
        "--max-file-mb", type=megabytes, default=MAXIMUM_MB, help="larger files are in it by digest alone (10)"
    )
    parser.add_argument("--agent", help="who ran the study: a name, or an address such as an ORCID's")


def run(options: argparse.Namespace) -> int:
    """Write a bundle, and say where it is and what whoever gets it should know; return 0.

    Raises:
        UserError: The study is not finished or has findings, or the bundle cannot be written.
    """
    study = Study(read_config(Path(CONFIG_FILE)), Path())
    report = Artifact.open(study.report.name)
    artifacts = dict(sorted(_with_inputs(report).items()))
    found = [finding for finding in findings(Path()) if finding.artifact in artifacts]
    if found:
        raise UserError(f"the study is not bundled: verify has {len(found)} findings, the first: {found[0].problem}")
    output = options.output or Path(f"{report.folder.name}.crate.zip")
    _check_output(output)
    private = {name for name, artifact in artifacts.items() if artifact is not report and not artifact.is_public}
    config = {name: Path(name) for name in (CONFIG_FILE, LOCK_FILE) if Path(name).is_file()}
    own = {**workflow_files(), **config, **_signature_files(report)}
    kept = _artifact_files(artifacts, private, options.max_file_mb * 1e6)
    digests = _recorded_digests(artifacts)
    left_out = len(digests.keys() - kept.keys())
    digests |= {path: file_digest(source) for path, source in own.items()}
    with tempfile.TemporaryDirectory() as temporary:
        answers, readme = Path(temporary) / CHECKLIST_FILE, Path(temporary) / README_FILE
        files = {**own, **kept, CHECKLIST_FILE: answers, README_FILE: readme}
        contents = Contents(study.name, report, artifacts, dict(sorted(files.items())), _images(study), options.agent)
        if span(report.manifest)[1] is None:
            raise UserError(f"{report.folder / MANIFEST_FILE} does not say when the report was made")
        answers.write_text(checklist(contents, left_out), encoding="utf-8")
        readme.write_text(_readme(contents, left_out), encoding="utf-8")
        description = Path(temporary) / METADATA_FILE
        description.write_text(describe(contents), encoding="utf-8")
        everything = {METADATA_FILE: description, **contents.files}
        if output.suffix == ".zip":
            _write_zip(output, everything, digests)
        else:
            _write_folder(output, everything, digests)
    told = [
        f"{output}: {len(artifacts)} artifacts, {len(everything)} files; {left_out} files by digest alone",
        *_warnings(artifacts, private),
    ]
    sys.stdout.write("".join(one_line(line) + "\n" for line in told))
    return 0


def _readme(contents: Contents, left_out: int) -> str:
    records = [artifact.manifest.get("record", 1) for artifact in contents.artifacts.values()]
    return README.format(
        study=one_line(contents.study),
        report=contents.report.folder.as_posix(),
        manifest=file_digest(contents.report.folder / MANIFEST_FILE),
        chain=WHOLE_CHAIN if all(record >= 2 for record in records) else OLDER_CHAIN,
        artifacts=len(contents.artifacts),
        left_out=left_out,
    )


def _with_inputs(report: Artifact) -> dict[str, Artifact]:
    """The report and all that it is made from, by name."""
    found: dict[str, Artifact] = {}
    pending = [report]
    while pending:
        artifact = pending.pop()
        if artifact.name not in found:
            found[artifact.name] = artifact
            pending += map(Artifact.open, artifact.spec.input_names)
    found[report.name] = report
    return found


def _check_output(output: Path) -> None:
    if output.suffix == ".zip":
        if output.is_dir():
            raise UserError(f"{output} is a folder: name a file, or a new folder whose name does not end with .zip")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there: name a new folder, or a file that ends with .zip")
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output.absolute().parent} is not a folder: make it first")


def workflow_files() -> dict[str, Path]:
    """The files of the workflow that is here, by their path in its repository."""
    patterns = [*OTHER_WORKFLOW_FILES, *PARTS.values()]
    paths = {path for pattern in patterns for path in REPOSITORY.glob(pattern) if path.is_file()}
    files = {path.relative_to(REPOSITORY).as_posix(): path for path in sorted(paths)}
    if WORKFLOW_FILE not in files:
        raise UserError(f"{REPOSITORY / WORKFLOW_FILE} is missing: run this in a clone of the workflow")
    return files


def _signature_files(report: Artifact) -> dict[str, Path]:
    paths = sorted(signatures.FOLDER.glob(f"{report.folder.name}.*"))
    return {path.as_posix(): path for path in paths if path.is_file()}


def _artifact_files(artifacts: Mapping[str, Artifact], private: set[str], maximum_bytes: float) -> dict[str, Path]:
    """The files of artifacts that go into the bundle, by path."""
    files = {}
    for name, artifact in artifacts.items():
        for file in (SPEC_FILE, MANIFEST_FILE):
            files[(artifact.folder / file).as_posix()] = artifact.folder / file
        for file, entry in artifact.manifest["outputs"].items():
            if name in private or is_let_go(artifact.folder):
                continue
            if artifact.spec.kind == "reports" and file == ROWS_FILE and private:
                continue
            if entry["bytes"] <= maximum_bytes or artifact.spec.kind == "reports":
                files[(artifact.folder / file).as_posix()] = artifact.folder / file
    return files


def _images(study: Study) -> dict[str, str]:
    """SHA-256 of the files of the images that the study would run in now, by the digest of their contents."""
    images = planned_images(study.config["images"], Path()).values()
    files = {image.contents_digest: Path(image.address) for image in images}
    # An image has gigabytes, and most steps of a study ran in it: it is read once.
    return {contents: file_digest(file) for contents, file in files.items() if file.is_file()}


def _recorded_digests(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    return {
        (artifact.folder / file).as_posix(): str(entry["sha256"])
        for artifact in artifacts.values()
        for file, entry in artifact.manifest["outputs"].items()
    }


def _checked(path: str, copy: Path, digests: Mapping[str, str]) -> None:
    if path in digests and file_digest(copy) != digests[path]:
        raise UserError(f"{path} changed while it was bundled; run the same command again")


def _write_folder(output: Path, files: Mapping[str, Path], digests: Mapping[str, str]) -> None:
    """Write the files into a folder that takes its name when it is complete."""
    with new_folder(output) as folder:
        for path, source in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            _checked(path, target, digests)


def _write_zip(output: Path, files: Mapping[str, Path], digests: Mapping[str, str]) -> None:
    """Write the files into a ZIP that takes its name when it is complete.

    They are stored as they are: what compression gives depends on the library's version, and most are small or
    compressed already.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as bundle:
            for path, source in files.items():
                entry = zipfile.ZipInfo(path, OLDEST_ZIP_TIME)
                entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                entry.file_size = source.stat().st_size
                _checked(path, source, digests)
                with source.open("rb") as file, bundle.open(entry, "w") as target:
                    shutil.copyfileobj(file, target, 2**20)
        partial.replace(output)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _warnings(artifacts: Mapping[str, Artifact], private: set[str]) -> Iterator[str]:
    """What whoever hands over the bundle should know, a line each."""
    if private:
        yield (
            f"{len(private)} artifacts may not be read by others here, such as {min(private)}: their files are in the "
            "bundle by digest alone; their specs, their manifests and the report are in it, without its page of rows"
        )
    records = [Path(CONFIG_FILE), *(artifact.folder / MANIFEST_FILE for artifact in artifacts.values())]
    named = [path for path in records if _names_folders(path)]
    if named:
        yield (
            f"{len(named)} records name folders of this machine, such as {named[0]}: they are in the bundle as they "
            "are, since digests rest on them"
        )
    here = part_digests()["package"]
    other = [name for name, artifact in artifacts.items() if code_digest(artifact.manifest) != here]
    if other:
        yield (
            f"the code in the bundle is what is here now; {len(other)} of {len(artifacts)} artifacts were made by "
            "other code: see colbert-zero drift"
        )


def _names_folders(path: Path) -> bool:
    text = path.read_text(encoding="utf-8", errors="replace")
    return without_folders(text) != text
