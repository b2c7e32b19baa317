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

from colbert_zero.console import log
from colbert_zero.digests import canonical, digest, file_digest

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


class Attempts:
    """The attempts at one artifact, kept beside its state so that a kill is seen by the next one."""

    def __init__(self, path: Path) -> None:
        """Take up the earlier attempts in `path`; one that never said how it ended was killed."""
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._all: list[dict[str, Any]] = [{"end": "killed", **json.loads(line)} for line in lines]

    def begin(self) -> None:
        """Record that an attempt starts now, here."""
        self._all.append({"started": _now(), "host": socket.gethostname(), "job": os.environ.get("SLURM_JOB_ID")})
        self._write()

    def end(self, how: str) -> list[dict[str, Any]]:
        """Record how the present attempt ends; return all of them."""
        self._all[-1] |= {"ended": _now(), "end": how}
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
    """Digest of this package's sources, and the commit they are at where git knows it."""
    package = Path(__file__).parent
    sources = {path.name: file_digest(path) for path in sorted(package.glob("*.py"))}
    git = ["git", "-C", str(package)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return {"digest": digest(canonical(sources)), "commit": None}
    return {"digest": digest(canonical(sources)), "commit": commit, "changed": bool(changed.strip())}


def package_versions() -> dict[str, str]:
    """Versions of the packages that can change an artifact's bytes, of those that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
