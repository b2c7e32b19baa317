"""Show how a training goes: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from colbert_zero.graph.console import SECONDS_BETWEEN_LINES, log
from colbert_zero.training.trainer import Trainer


class ProgressBar:
    """Shows how a run goes."""

    def __init__(self, trainer: Trainer) -> None:
        """Measure from where `trainer` is."""
        self.trainer = trainer
        self._first = trainer.step
        self._started = self._last = time.monotonic()
        self._tokens = self._tokens_done()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=len(trainer.plan), initial=trainer.step, unit=" steps", dynamic_ncols=True)

    def show(self, line: Mapping[str, Any]) -> None:
        """Show the step just done, given its line of the record."""
        now = time.monotonic()
        if self._bar is None and now - self._last < SECONDS_BETWEEN_LINES:
            return
        trainer, seconds = self.trainer, now - self._started
        done = trainer.step - self._first
        shown = (
            f"loss {line['loss']:.4f}, {done * trainer.plan.size / seconds:.1f} samples/s, "
            f"{(self._tokens_done() - self._tokens) / seconds:.0f} tokens/s"
        )
        if "gpu_utilisation" in line:
            shown += f", GPU {line['gpu_utilisation']} % busy"
        if "gpu_memory_mb" in line:
            shown += f", {line['gpu_memory_mb'] / 1024:.1f} GB of GPU memory"
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update()
        else:
            steps = len(trainer.plan)
            left = (steps - trainer.step) * seconds / done
            log.info("step %d of %d, %s, %.0f s left", trainer.step, steps, shown, left)
            self._last = now

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _tokens_done(self) -> int:
        return self.trainer.counts.query_tokens + self.trainer.counts.document_tokens
