"""What is shown, written down and measured of a training on its way, which it changes in nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from colbert_zero.graph.artifact import Job
from colbert_zero.graph.console import log
from colbert_zero.machine.gpus import Gpu
from colbert_zero.training.metrics_log import LOSSES, MetricsLog
from colbert_zero.training.progress_bar import ProgressBar
from colbert_zero.training.trainer import Trainer


class TrainingMonitor:
    """Looks on in each process; the first one tells."""

    def __init__(self, job: Job, trainer: Trainer, device: str) -> None:
        """Begin where `trainer` is, as the job's flags ask for.

        Raises:
            UserError: A collection is too large to be evaluated on on the way.
        """
        self._trainer = trainer
        self._gpu = Gpu.of(torch.cuda.current_device()) if device == "cuda" else None
        self._joules = self._gpu.joules() if self._gpu else 0.0
        self._teller = _Reporter(job, trainer) if trainer.group.rank == 0 else None

    def joules(self) -> float:
        """What this process's GPU has used since this was last asked; 0 without one."""
        before, self._joules = self._joules, self._gpu.joules() if self._gpu else 0.0
        return self._joules - before

    def look(self, line: Mapping[str, Any]) -> None:
        """Tell of the step just done, whose line of the history this is."""
        if self._teller is not None:
            self._teller.tell({**line, **(self._gpu.look() if self._gpu else {})})

    def close(self) -> None:
        """Close what is open."""
        if self._teller is not None:
            self._teller.close()


class _Reporter:
    def __init__(self, job: Job, trainer: Trainer) -> None:
        wanted = job.options.evaluate
        self._trainer = trainer
        self._evaluator: Any = None
        if wanted:
            # What searches and measures takes seconds to import.
            from colbert_zero.training.evaluator import Evaluator

            self._evaluator = Evaluator(wanted["collections"])
        self._at = frozenset(wanted.get("steps", ()))
        beyond = sorted(step for step in self._at if step > len(trainer.plan))
        if beyond:
            log.info("no evaluation at %s: there are %d steps", ", ".join(map(str, beyond)), len(trainer.plan))
        folder = Path("logs/tensorboard") / job.spec.folder.name
        self._record = MetricsLog(job.state / LOSSES, trainer.history, folder if job.options.tensorboard else None)
        self._meter = ProgressBar(trainer)

    def tell(self, line: Mapping[str, Any]) -> None:
        self._record.step(line)
        self._meter.show(line)
        step = line["step"]
        if step in self._at:
            values = self._evaluator.evaluate(self._trainer.model)
            for collection, value in values.items():
                log.info("step %d: nDCG@10 %.2f on %s", step, 100 * value, collection)
                self._trainer.evaluations.append({"step": step, "collection": collection, "nDCG@10": value})
            self._record.evaluation(step, values)

    def close(self) -> None:
        self._meter.close()
        self._record.close()
