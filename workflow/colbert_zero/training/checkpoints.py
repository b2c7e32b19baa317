"""Checkpoints: tensors and notes from which a run resumes after its process was killed.

A checkpoint is a folder `step-000000120` with `state.safetensors` and `notes.json`. The notes hold a digest of the
tensors and one of themselves, the name of the artifact that is trained, and the records of its inputs; all are checked
on reading. A checkpoint is written to a temporary folder, which is then renamed, so a killed process leaves no partial
checkpoint. The last two checkpoints are kept.
"""

from __future__ import annotations

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

from colbert_zero.graph.console import RetryableError, UserError, log
from colbert_zero.graph.digests import canonical_json, digest, file_digest
from colbert_zero.graph.json_values import read_json

CHECKPOINTS_KEPT = 2
TENSORS_FILE, NOTES_FILE = "state.safetensors", "notes.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state after a step.

    Attributes:
        step: The number of steps done.
        tensors: The tensors, by name.
        notes: The rest of the state, as JSON values.
    """

    step: int
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one training, in one folder."""

    def __init__(self, folder: Path, name: str, inputs: Mapping[str, Mapping[str, str]]) -> None:
        """Keep the checkpoints of the artifact `name`, which is made from `inputs`, in `folder`; `save` creates it.

        Args:
            folder: Where the checkpoints are.
            name: The artifact's name.
            inputs: What its manifest will say of each input, by name.
        """
        self.folder, self._name, self._inputs = folder, name, inputs

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
            # Free the disk space: other jobs, or the next attempt, may need exactly this space.
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for old in self._folders()[:-CHECKPOINTS_KEPT]:
            shutil.rmtree(old)

    def load(self, step: int) -> Checkpoint:
        """Load the checkpoint of a step.

        Raises:
            RetryableError: The checkpoint is missing or damaged.
            UserError: It is one of another training.
        """
        path = self._folder(step)
        checkpoint = self._read(path)
        if checkpoint is None:
            raise RetryableError(
                f"{path} cannot be read on this node, although rank 0 has read it; do all nodes share this folder?"
            )
        return checkpoint

    def load_last(self) -> Checkpoint | None:
        """Load the last intact checkpoint, None if there is none; damaged ones are logged and removed.

        Raises:
            UserError: It is one of another training: of another artifact, or from inputs that were made again since,
                with other files.
        """
        for path in reversed(self._folders()):
            checkpoint = self._read(path)
            if checkpoint is not None:
                return checkpoint
            log.info("%s is damaged and was removed; the checkpoint before it is used, if there is one", path)
            # Otherwise `save` would count the damaged checkpoint among the two to keep.
            shutil.rmtree(path)
        return None

    def _folder(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _write(self, checkpoint: Checkpoint, folder: Path) -> None:
        path = folder / TENSORS_FILE
        try:
            save_file({name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}, path)
        except SafetensorError as error:
            # The library reports an error of the operating system, such as a full disk, only in its message.
            error_number = re.search(r"os error (\d+)", str(error))
            if error_number is None:
                raise
            raise OSError(int(error_number[1]), os.strerror(int(error_number[1])), str(path)) from error
        content = {
            "step": checkpoint.step,
            "artifact": self._name,
            "inputs": self._inputs,
            "notes": checkpoint.notes,
            "sha256": file_digest(path),
        }
        notes = canonical_json({"content": content, "sha256": digest(canonical_json(content))})
        (folder / NOTES_FILE).write_text(notes, encoding="utf-8")
        for path in (folder / TENSORS_FILE, folder / NOTES_FILE):
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _read(self, path: Path) -> Checkpoint | None:
        try:
            notes = read_json(path / NOTES_FILE)
            content = notes["content"]
            if digest(canonical_json(content)) != notes["sha256"]:
                return None
            if file_digest(path / TENSORS_FILE) != content["sha256"]:
                return None
            self._refuse_foreign(path, content)
            return Checkpoint(content["step"], load_file(path / TENSORS_FILE), content["notes"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError):
            return None

    def _refuse_foreign(self, path: Path, content: Mapping[str, Any]) -> None:
        """Raise `UserError` for a checkpoint of another training."""
        advice = f"move {self.folder} away and run snakemake again"
        # The first version of this project wrote no name.
        if content.get("artifact", self._name) != self._name:
            raise UserError(f"{path} is a checkpoint of {content['artifact']}, not of {self._name}: {advice}")
        for name, record in content.get("inputs", {}).items():
            now = self._inputs.get(name, {})
            if now.get("files") != record["files"]:
                raise UserError(f"{path} was trained from other files of {name} than are there now: {advice}")
            if now != record:
                log.info("%s was made again since %s was written, with the same files", name, path)
