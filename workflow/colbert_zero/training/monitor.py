"""Report a running training: progress, metrics, evaluations and energy. None of it changes the trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from colbert_zero.graph.artifact import Job
from colbert_zero.graph.console import log
from colbert_zero.machine.gpus import Gpu
from colbert_zero.training.metrics_log import LOSSES_FILE, MetricsLog
from colbert_zero.training.progress_bar import ProgressBar
from colbert_zero.training.progress_file import ProgressFile
from colbert_zero.training.trainer import Trainer


class TrainingMonitor:
    """Measures each process's GPU; rank 0 also shows progress, logs metrics and evaluates."""

    def __init__(self, job: Job, trainer: Trainer, device: str) -> None:
        """Monitor `trainer` from its current step on, as the job's flags say.

        Raises:
            UserError: A collection is too large to be evaluated on during training.
        """
        self._gpu = Gpu.open(torch.cuda.current_device()) if device == "cuda" else None
        self._joules = self._gpu.energy_joules() if self._gpu else 0.0
        self._reporter = _Reporter(job, trainer) if trainer.group.rank == 0 else None

    def joules_since_last_call(self) -> float:
        """The energy that this process's GPU has used since the last call; 0 without a GPU."""
        before, self._joules = self._joules, self._gpu.energy_joules() if self._gpu else 0.0
        return self._joules - before

    def on_step(self, record: Mapping[str, Any]) -> None:
        """Report the step just done, given its record."""
        if self._reporter is not None:
            self._reporter.on_step({**record, **(self._gpu.readings() if self._gpu else {})})

    def close(self) -> None:
        """Close the files and the progress bar."""
        if self._reporter is not None:
            self._reporter.close()


class _Reporter:
    def __init__(self, job: Job, trainer: Trainer) -> None:
        evaluate = job.options.evaluate
        self._trainer = trainer
        self._evaluator: Any = None
        if evaluate:
            # Import only here: the search and measure libraries take seconds to import.
            from colbert_zero.training.evaluator import Evaluator

            self._evaluator = Evaluator(evaluate["collections"])
        self._evaluation_steps = frozenset(evaluate.get("steps", ()))
        beyond = sorted(step for step in self._evaluation_steps if step > len(trainer.plan))
        if beyond:
            log.info("no evaluation at %s: there are %d steps", ", ".join(map(str, beyond)), len(trainer.plan))
        folder = Path("logs/tensorboard") / job.spec.folder.name
        self._metrics_log = MetricsLog(
            job.state / LOSSES_FILE, trainer.history, folder if job.options.tensorboard else None
        )
        self._progress_bar = ProgressBar(trainer)
        self._progress_file = ProgressFile(job.state, len(trainer.plan), trainer.plan.batch_size, trainer.step)

    def on_step(self, record: Mapping[str, Any]) -> None:
        self._metrics_log.log_step(record)
        self._progress_bar.update(record)
        self._progress_file.update(record)
        step = record["step"]
        if step in self._evaluation_steps:
            values = self._evaluator.evaluate(self._trainer.model)
            for collection, value in values.items():
                log.info("step %d: nDCG@10 %.2f on %s", step, 100 * value, collection)
                self._trainer.evaluations.append({"step": step, "collection": collection, "nDCG@10": value})
            self._metrics_log.log_evaluation(step, values)

    def close(self) -> None:
        self._progress_bar.close()
        self._progress_file.close()
        self._metrics_log.close()
