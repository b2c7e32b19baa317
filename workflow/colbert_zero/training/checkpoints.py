"""Checkpoints: tensors and notes that outlive a killed process, written whole and checked when read.

A checkpoint is a folder `step-000000120` with `state.safetensors` and `notes.json`; the notes hold the digest of the
tensors and of themselves. It is written beside and renamed, and the last two are kept.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from colbert_zero.graph.console import RetryableError, log
from colbert_zero.graph.digests import canonical, digest, file_digest

KEPT = 2
TENSORS, NOTES = "state.safetensors", "notes.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state after a step.

    Attributes:
        step: How many steps were done.
        tensors: By name.
        notes: JSON values.
    """

    step: int
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path) -> None:
        """Keep them in `folder`, which is made when it is needed."""
        self.folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint to disk, then remove all but the last two."""
        target = self._folder(checkpoint.step)
        for leftover in self.folder.glob(".step-*.partial"):
            shutil.rmtree(leftover)
        partial = self.folder / f".{target.name}.partial"
        partial.mkdir(parents=True)
        try:
            self._write(checkpoint, partial)
            if target.exists():
                shutil.rmtree(target)
            os.replace(partial, target)
        except BaseException:
            # What it takes up may be the very space that others, or the next attempt, need.
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for old in self._steps()[:-KEPT]:
            shutil.rmtree(old)

    def of(self, step: int) -> Checkpoint:
        """The checkpoint of a step.

        Raises:
            RetryableError: It is not there, or not intact.
        """
        path = self._folder(step)
        checkpoint = self._read(path)
        if checkpoint is None:
            raise RetryableError(
                f"{path} cannot be read here, as it can in the first process; do all nodes share this folder?"
            )
        return checkpoint

    def last(self) -> Checkpoint | None:
        """The last checkpoint that is intact; a damaged one is named, passed over and removed."""
        for path in reversed(self._steps()):
            checkpoint = self._read(path)
            if checkpoint is not None:
                return checkpoint
            log.info("%s is damaged and was removed; the checkpoint before it is used, if there is one", path)
            # It would be taken for one of the last two.
            shutil.rmtree(path)
        return None

    def _folder(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _write(self, checkpoint: Checkpoint, folder: Path) -> None:
        path = folder / TENSORS
        try:
            save_file({name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}, path)
        except SafetensorError as error:
            # The library hides the operating system's error, a full disk among them, in its text.
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        content = {
            "step": checkpoint.step,
            "notes": checkpoint.notes,
            "sha256": file_digest(path),
        }
        notes = canonical({"content": content, "sha256": digest(canonical(content))})
        (folder / NOTES).write_text(notes, encoding="utf-8")
        for path in (folder / TENSORS, folder / NOTES):
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _read(self, path: Path) -> Checkpoint | None:
        try:
            notes = json.loads((path / NOTES).read_text(encoding="utf-8"))
            content = notes["content"]
            if digest(canonical(content)) != notes["sha256"] or file_digest(path / TENSORS) != content["sha256"]:
                return None
            return Checkpoint(content["step"], load_file(path / TENSORS), content["notes"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError):
            return None
