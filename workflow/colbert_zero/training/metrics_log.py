"""Log the metrics of a training while it runs: a line of JSON per step, and TensorBoard files if requested."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from colbert_zero.graph.digests import digest
from colbert_zero.graph.text_files import replace_text

LOSSES_FILE = "losses.jsonl"
NOT_METRICS = frozenset({"step", "source"})
"""The fields of a step's record that TensorBoard cannot plot."""


def losses_text(history: Sequence[str]) -> str:
    """The text of `LOSSES_FILE` after some steps.

    Args:
        history: The record of each step, as a line of JSON.
    """
    return "".join(line + "\n" for line in history)


def losses_digest(history: Sequence[str]) -> str:
    """SHA-256 of `losses_text(history)`: what an attempt says of its steps and of all before them."""
    return digest(losses_text(history))


class MetricsLog:
    """The files that show a running training."""

    def __init__(self, losses_file: Path, history: Sequence[str], tensorboard_folder: Path | None) -> None:
        """Write the steps done so far, and open the files for more.

        Args:
            losses_file: The file with a line per step; lines that a stopped attempt wrote beyond `history` are dropped.
            history: The lines of the steps done so far.
            tensorboard_folder: The folder for TensorBoard files, or None.
        """
        replace_text(losses_file, losses_text(history))
        self._losses = losses_file.open("a", encoding="utf-8", buffering=1)
        self._tensorboard: Any = None
        if tensorboard_folder is not None:
            from tensorboardX import SummaryWriter

            # Without the suffix, the files of two attempts that start in the same second would have the same name.
            steps_done = len(history)
            self._tensorboard = SummaryWriter(
                str(tensorboard_folder), purge_step=steps_done + 1, filename_suffix=f".{steps_done}"
            )

    def log_step(self, record: Mapping[str, Any]) -> None:
        """Log the record of a step."""
        self._losses.write(json.dumps(record) + "\n")
        if self._tensorboard is not None:
            for name, value in record.items():
                if name not in NOT_METRICS:
                    self._tensorboard.add_scalar(f"training/{name}", value, record["step"])

    def log_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of an evaluation after a step, by collection."""
        if self._tensorboard is not None:
            for collection, value in values.items():
                self._tensorboard.add_scalar(f"evaluation/{collection}", value, step)

    def close(self) -> None:
        """Close the files."""
        self._losses.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
