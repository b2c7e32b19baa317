"""What a training writes down as it goes: a line of JSON per step, and TensorBoard's files where they are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LOSSES = "losses.jsonl"
WORDS = frozenset({"step", "source"})
"""What of a line is no measurement."""


class MetricsLog:
    """Files for whoever watches a training from outside."""

    def __init__(self, lines: Path, history: Sequence[str], tensorboard: Path | None) -> None:
        """Begin with the steps done so far.

        Args:
            lines: The file of lines; what a stopped attempt wrote beyond `history` goes.
            history: The lines so far.
            tensorboard: The folder for TensorBoard's files, or None.
        """
        lines.write_text("".join(line + "\n" for line in history), encoding="utf-8")
        self._lines = lines.open("a", encoding="utf-8", buffering=1)
        self._board: Any = None
        if tensorboard is not None:
            from tensorboardX import SummaryWriter

            # The files of two attempts that begin within a second would have one name.
            begun = len(history)
            self._board = SummaryWriter(str(tensorboard), purge_step=begun + 1, filename_suffix=f".{begun}")

    def step(self, line: Mapping[str, Any]) -> None:
        """Write down a step."""
        self._lines.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in line.items():
                if name not in WORDS:
                    self._board.add_scalar(f"training/{name}", value, line["step"])

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Write down what was measured after a step, by collection."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"evaluation/{name}", value, step)

    def close(self) -> None:
        """Close the files."""
        self._lines.close()
        if self._board is not None:
            self._board.close()
