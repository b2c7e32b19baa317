"""Checkpoints: tensors and notes that outlive a killed process, written whole and checked when read.

A checkpoint is a folder `step-000000120` with `state.safetensors` and `notes.json`; the notes hold the digest of the
tensors and of themselves. It is written beside and renamed, and the last two are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from colbert_zero.console import log
from colbert_zero.digests import canonical, digest, file_digest

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
        target = self.folder / f"step-{checkpoint.step:09d}"
        partial = self.folder / f".{target.name}.partial"
        for leftover in (partial, target):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}, partial / TENSORS
        )
        content = {
            "step": checkpoint.step,
            "notes": checkpoint.notes,
            "sha256": file_digest(partial / TENSORS),
        }
        (partial / NOTES).write_text(
            canonical({"content": content, "sha256": digest(canonical(content))}), encoding="utf-8"
        )
        for path in (partial / TENSORS, partial / NOTES):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, target)
        for old in self._steps()[:-KEPT]:
            shutil.rmtree(old)

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
