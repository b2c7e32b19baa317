"""How an artifact was made, for its manifest: attempts, code, packages, image."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from colbert_zero.graph.console import log
from colbert_zero.graph.digests import canonical_json, digest, file_digest
from colbert_zero.graph.text_files import replace_text

PACKAGE_FOLDER = Path(__file__).parents[1]
"""The folder of this package's source files, rooms included."""

RECORDED_PACKAGES = (
    "datasets",
    "faiss-cpu",
    "fast-plaid",
    "huggingface-hub",
    "ir-measures",
    "numpy",
    "pyarrow",
    "pylate",
    "pyserini",
    "scikit-learn",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
)
"""Packages that can change an artifact's bytes: the manifest records their versions."""

RUN_VARIABLE = "COLBERT_ZERO_RUN"
"""The environment variable that identifies a run of Snakemake in all its jobs."""
COMMIT_VARIABLE = "COLBERT_ZERO_COMMIT"
"""The environment variable by which Snakemake tells its jobs the code's commit: images have no git."""
RECORDED_VARIABLES = {
    "run": RUN_VARIABLE,
    "job": "SLURM_JOB_ID",
    "node": "SLURM_STEP_NODELIST",
    "gpus": "CUDA_VISIBLE_DEVICES",
}
"""Facts that are recorded of an attempt, each with the environment variable it is read from."""


UNREADABLE = {"end": "its record cannot be read"}
"""Stands for an attempt whose record is damaged."""


class Attempts:
    """The attempts at one artifact, kept in a file: the next attempt can tell that the last one was killed."""

    def __init__(self, path: Path) -> None:
        """Read the earlier attempts from `path`. An attempt without a recorded end was killed.

        A line that cannot be read, as after a power loss, becomes an attempt of which only this is known.
        """
        self._path = path
        lines = path.read_bytes().splitlines() if path.is_file() else []
        self._attempts: list[dict[str, Any]] = [_read_attempt(line) for line in lines]
        unreadable = self._attempts.count(UNREADABLE)
        if unreadable:
            log.info("%s: of %d attempts no record can be read; going on", path, unreadable)

    def begin(self) -> None:
        """Record that an attempt starts, with time, host and `RECORDED_VARIABLES`."""
        attempt = {"started": _now(), "host": socket.gethostname()}
        environment = {name: os.environ.get(variable) for name, variable in RECORDED_VARIABLES.items()}
        self._attempts.append(attempt | {name: value for name, value in environment.items() if value})
        self._write()

    def record(self, **facts: Any) -> None:
        """Add facts to the record of the current attempt, and write the record to disk."""
        self._attempts[-1] |= facts
        self._write()

    @property
    def unrecoverable_error(self) -> str | None:
        """The user's mistake that ended the last attempt, if in this run of Snakemake: nobody has fixed it since."""
        last = self._attempts[-1] if self._attempts else {}
        same_run = last.get("run") is not None and last["run"] == os.environ.get(RUN_VARIABLE)
        return str(last["end"]) if same_run and last.get("mistake") else None

    def end(self, outcome: str, mistake: bool = False) -> list[dict[str, Any]]:
        """Record how the current attempt ends, and whether by a user's mistake; return the records of all attempts."""
        self._attempts[-1] |= {"ended": _now(), "end": outcome} | ({"mistake": True} if mistake else {})
        # The attempt may have failed because the disk is full. Do not hide that error behind this one.
        try:
            self._write()
        except OSError as error:
            log.info("could not record the attempt: %s", error)
        return self._attempts

    def _write(self) -> None:
        replace_text(self._path, "".join(canonical_json(attempt) + "\n" for attempt in self._attempts))


def _read_attempt(line: bytes) -> dict[str, Any]:
    try:
        return {"end": "killed", **json.loads(line)}
    except (ValueError, TypeError, RecursionError):
        return UNREADABLE


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def code_identity() -> dict[str, Any]:
    """The digest of this package's source files, and their git commit if it is known."""
    sources = {path.relative_to(PACKAGE_FOLDER).as_posix(): file_digest(path) for path in PACKAGE_FOLDER.rglob("*.py")}
    return {"digest": digest(canonical_json(sources)), "commit": os.environ.get(COMMIT_VARIABLE) or source_commit()}


def source_commit() -> str | None:
    """The git commit of this package's source files, and whether they have changed since; None without git."""
    git = ["git", "-C", str(PACKAGE_FOLDER)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--", "."]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}, changed" if changed.strip() else head


def image_labels() -> dict[str, str] | None:
    """The labels of this process's Apptainer image, which identify its contents; None outside an image."""
    try:
        labels: dict[str, str] = json.loads(Path("/.singularity.d/labels.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return labels


def package_versions() -> dict[str, str]:
    """The installed versions of `RECORDED_PACKAGES`."""
    versions = {}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
