"""How an artifact was made, for its manifest: attempts, packages, image, machine."""

from __future__ import annotations

import os
import platform
import socket
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from colbert_zero.graph.console import log
from colbert_zero.graph.digests import canonical_json
from colbert_zero.graph.json_values import parse_json, read_json
from colbert_zero.graph.text_files import replace_text

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

    def begin(self, **facts: Any) -> None:
        """Record that an attempt starts, with time, host, `RECORDED_VARIABLES` and `facts`."""
        attempt = {"started": _now(), "host": socket.gethostname(), **facts}
        environment = {name: os.environ.get(variable) for name, variable in RECORDED_VARIABLES.items()}
        self._attempts.append(attempt | {name: value for name, value in environment.items() if value})
        self._write()

    def record(self, **facts: Any) -> None:
        """Add facts to the record of the current attempt, and write the record to disk.

        The time is recorded too: should the attempt be killed, it was at work until then at least.
        """
        self._attempts[-1] |= {**facts, "seen": _now()}
        self._write()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of all attempts."""
        return list(self._attempts)

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
        return {"end": "killed", **parse_json(line)}
    except (ValueError, TypeError):
        return UNREADABLE


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def image_labels() -> dict[str, str] | None:
    """The labels of this process's Apptainer image, which identify its contents; None outside an image."""
    try:
        labels: dict[str, str] = read_json(Path("/.singularity.d/labels.json"))
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


def c_library(platform_name: str) -> str | None:
    """The C library in a platform's name, such as glibc2.36; None if it names none.

    PyTorch leaves some functions to it, such as the error function of a GELU on a part of a tensor, and versions of it
    round the last bit otherwise.
    """
    return platform_name.partition("-with-")[2] or None


def machine() -> dict[str, Any]:
    """This machine: its kernel's name, its processor's, how many it has, and its memory in MB."""
    processor = None
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {
        "platform": platform.platform(),
        "processor": processor or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_mb": memory_mb,
    }
