"""What a manifest says of how an artifact was made: attempts, code, packages."""

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
from colbert_zero.graph.digests import canonical, digest, file_digest

PACKAGE = Path(__file__).parents[1]
"""The folder of this package's sources, rooms included."""

PACKAGES = (
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
"""The packages whose versions a manifest records: those that can change an artifact's bytes."""

RUN = "COLBERT_ZERO_RUN"
"""Names one run of Snakemake to all its jobs."""
COMMIT = "COLBERT_ZERO_COMMIT"
"""Where a run of Snakemake says at which commit the code is: images have no git."""
GIVEN = {"run": RUN, "job": "SLURM_JOB_ID", "node": "SLURM_STEP_NODELIST", "gpus": "CUDA_VISIBLE_DEVICES"}
"""What is recorded of an attempt, and the variable that says it."""


class Attempts:
    """The attempts at one artifact, kept beside its state so that a kill is seen by the next one."""

    def __init__(self, path: Path) -> None:
        """Take up the earlier attempts in `path`; one that never said how it ended was killed."""
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._all: list[dict[str, Any]] = [{"end": "killed", **json.loads(line)} for line in lines]

    def begin(self) -> None:
        """Record that an attempt starts now, here."""
        attempt = {"started": _now(), "host": socket.gethostname()}
        given = {name: os.environ.get(variable) for name, variable in GIVEN.items()}
        self._all.append(attempt | {name: value for name, value in given.items() if value})
        self._write()

    def note(self, **facts: Any) -> None:
        """Add facts to the record of the present attempt."""
        self._all[-1] |= facts
        self._write()

    @property
    def unrecoverable_error(self) -> str | None:
        """The mistake that ended the last attempt, if that was in the same run of Snakemake: none mended it."""
        last = self._all[-1] if self._all else {}
        same = last.get("run") is not None and last["run"] == os.environ.get(RUN)
        return str(last["end"]) if same and last.get("mistake") else None

    def end(self, how: str, mistake: bool = False) -> list[dict[str, Any]]:
        """Record how the present attempt ends, and whether by a mistake; return all of them."""
        self._all[-1] |= {"ended": _now(), "end": how} | ({"mistake": True} if mistake else {})
        # A full disk may be why the attempt ended; that error, not this one, is the one to show.
        try:
            self._write()
        except OSError as error:
            log.info("could not record the attempt: %s", error)
        return self._all

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".partial")
        beside.write_text("".join(canonical(attempt) + "\n" for attempt in self._all), encoding="utf-8")
        beside.replace(self._path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def code_identity() -> dict[str, Any]:
    """Digest of this package's sources, and the commit they are at, where it is known."""
    sources = {path.relative_to(PACKAGE).as_posix(): file_digest(path) for path in PACKAGE.rglob("*.py")}
    return {"digest": digest(canonical(sources)), "commit": os.environ.get(COMMIT) or commit()}


def commit() -> str | None:
    """The commit that this package's sources are at, and whether they were changed since; None without git."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--", "."]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}, changed" if changed.strip() else head


def image_labels() -> dict[str, str] | None:
    """The labels of the Apptainer image that this process runs in, which say what it holds; None outside."""
    try:
        labels: dict[str, str] = json.loads(Path("/.singularity.d/labels.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return labels


def package_versions() -> dict[str, str]:
    """Versions of the packages that can change an artifact's bytes, of those that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
