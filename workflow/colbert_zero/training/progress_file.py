"""How far a training is: a small file in its state folder, for whoever asks from another process or another node."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from colbert_zero.graph.json_values import read_json
from colbert_zero.graph.text_files import replace_text

PROGRESS_FILE = "progress.json"
SECONDS_BETWEEN_WRITES = 5.0


class ProgressFile:
    """Writes `progress.json`: `step` of `steps`, `loss`, `rows_per_second` and `seconds_left`."""

    def __init__(self, state: Path, steps: int, batch_size: int, first_step: int) -> None:
        """Measure from now on, after so many steps.

        Args:
            state: The state folder.
            steps: The steps of the whole training.
            batch_size: The rows of a step.
            first_step: The steps that are done already.
        """
        self._path = state / PROGRESS_FILE
        self._steps, self._batch_size, self._first_step = steps, batch_size, first_step
        self._started = time.monotonic()
        self._written: float | None = None
        self._record: Mapping[str, Any] | None = None

    def update(self, record: Mapping[str, Any]) -> None:
        """Note the record of the step just done; it is written if the last one was some seconds ago."""
        self._record = record
        if self._written is None or time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self._write(record)

    def close(self) -> None:
        """Write the last step."""
        if self._record is not None:
            self._write(self._record)

    def _write(self, record: Mapping[str, Any]) -> None:
        self._written = time.monotonic()
        step, seconds = record["step"], self._written - self._started
        seconds_of_step = seconds / (step - self._first_step)
        progress = {
            "step": step,
            "steps": self._steps,
            "loss": record["loss"],
            "rows_per_second": self._batch_size / max(seconds_of_step, 1e-9),
            "seconds_left": (self._steps - step) * seconds_of_step,
        }
        # A training needs no such file: a disk that is full ends it with the next checkpoint, which says so.
        with suppress(OSError):
            replace_text(self._path, json.dumps(progress) + "\n")


def read_progress(state: Path) -> dict[str, Any]:
    """What a state folder says of its training; nothing where it says nothing that can be read."""
    try:
        progress = read_json(state / PROGRESS_FILE)
    except (OSError, ValueError):
        return {}
    return progress if isinstance(progress, dict) else {}
