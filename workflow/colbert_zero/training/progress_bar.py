"""Show the progress of a training: a bar on a terminal, a log line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from colbert_zero.graph.console import SECONDS_BETWEEN_LINES, log
from colbert_zero.training.trainer import Trainer


class ProgressBar:
    """Shows loss, speed and GPU use."""

    def __init__(self, trainer: Trainer) -> None:
        """Measure speed from the trainer's current step on."""
        self.trainer = trainer
        self._first_step = trainer.step
        self._started = self._last_line = time.monotonic()
        self._tokens_at_start = self._tokens_done()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=len(trainer.plan), initial=trainer.step, unit=" steps", dynamic_ncols=True)

    def update(self, record: Mapping[str, Any]) -> None:
        """Show the step just done, given its record and the GPU's memory and utilisation."""
        now = time.monotonic()
        if self._bar is None and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        trainer, seconds = self.trainer, now - self._started
        steps_done = trainer.step - self._first_step
        status = (
            f"loss {record['loss']:.4f}, {steps_done * trainer.plan.batch_size / seconds:.1f} samples/s, "
            f"{(self._tokens_done() - self._tokens_at_start) / seconds:.0f} tokens/s"
        )
        if "gpu_utilisation" in record:
            status += f", GPU {record['gpu_utilisation']} % busy"
        if "gpu_memory_mb" in record:
            status += f", {record['gpu_memory_mb'] / 1024:.1f} GB of GPU memory"
        if self._bar is not None:
            self._bar.set_postfix_str(status, refresh=False)
            self._bar.update()
        else:
            steps = len(trainer.plan)
            seconds_left = (steps - trainer.step) * seconds / steps_done
            log.info("step %d of %d, %s, %.0f s left", trainer.step, steps, status, seconds_left)
            self._last_line = now

    def close(self) -> None:
        """Close the bar, and leave it on the terminal."""
        if self._bar is not None:
            self._bar.close()

    def _tokens_done(self) -> int:
        return self.trainer.totals.query_tokens + self.trainer.totals.document_tokens
