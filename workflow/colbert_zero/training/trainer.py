"""The state of a training, as checkpoints hold it, and the training step that changes this state."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from pylate import models
from torch import Tensor

from colbert_zero.data.batches import BatchPlan
from colbert_zero.graph.console import UserError
from colbert_zero.machine.distributed import ProcessGroup
from colbert_zero.training.checkpoints import Checkpoint
from colbert_zero.training.gradcache import GradCache
from colbert_zero.training.loader import BatchLoader, LocalBatch
from colbert_zero.training.losses import Scorer, maxsim
from colbert_zero.training.stages import Stage

EXPLODING_FACTOR, NORM_WINDOW, NORM_WARMUP_STEPS = 1000.0, 100, 10
"""The run ends if a gradient norm is more than 1000 times the median norm of the last 100 steps (at least 1). The first
10 steps are not checked: they have too few norms to compare with."""


class DivergedError(UserError):
    """The loss or gradient of a step is infinite, NaN, or far larger than in the steps before."""


@dataclass
class Totals:
    """Tokens, time and energy of a run so far, summed over all its attempts; padding tokens do not count."""

    query_tokens: int = 0
    document_tokens: int = 0
    seconds: float = 0.0
    joules: float = 0.0


@dataclass
class Trainer:
    """The training of a stage: its state, and the training step.

    Attributes:
        stage: The settings.
        plan: The batch plan.
        model: The model that is trained.
        grad_cache: Computes the gradients.
        loader: Loads this process's part of each batch.
        group: The processes that share each step.
        scorer: Scores each query with the documents of all queries.
        step: The number of steps done.
        history: The record of each step, as a line of JSON.
        totals: Tokens, time and energy of these steps.
        evaluations: The values of the evaluations during training.
        temperature: The learnable temperature of the loss, or None.
        optimiser: AdamW over all `parameters`.
    """

    stage: Stage
    plan: BatchPlan
    model: models.ColBERT
    grad_cache: GradCache
    loader: BatchLoader
    group: ProcessGroup
    scorer: Scorer = maxsim
    step: int = 0
    history: list[str] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    temperature: torch.nn.Parameter | None = field(init=False, default=None)
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        """Create the learnable temperature and the optimiser."""
        if self.stage.learnable_temperature:
            initial = torch.tensor(self.stage.temperature, device=self.grad_cache.device)
            self.temperature = torch.nn.Parameter(initial)
        self.optimiser = adamw(self.parameters(), self.stage.weight_decay)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """All trained parameters, by name."""
        parameters = {f"model.{name}": parameter for name, parameter in self.model.named_parameters()}
        return parameters if self.temperature is None else parameters | {"temperature": self.temperature}

    def train_step(self) -> Mapping[str, Any]:
        """Do the next step.

        Returns:
            The record of the step: step (from 1), source, loss, learning_rate, gradient_norm, and temperature if it is
            learnable.

        Raises:
            DivergedError: The loss or gradient is not finite, or has exploded; the parameters are not updated.
            UserError: The rows of the step lack something that the stage needs.
        """
        started = time.monotonic()
        local_batch = self.group.run_on_all(lambda: self.loader.load(self.step))
        local_loss = self._backward(local_batch)
        gradients = [parameter.grad for parameter in self.parameters().values() if parameter.grad is not None]
        self.group.all_reduce(gradients)
        loss, query_tokens, document_tokens = self.group.all_reduce_sum(
            local_loss, len(local_batch.queries.ids), len(local_batch.documents.ids)
        )
        clip = self.stage.gradient_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip).item()
        record = {
            "step": self.step + 1,
            "source": self.plan.source(self.step).spec.label,
            "loss": loss,
            "learning_rate": self.stage.learning_rate_at(self.step, len(self.plan)),
            "gradient_norm": norm,
        }
        if self.temperature is not None:
            record["temperature"] = self.temperature.item()
        self._raise_if_diverged(record)
        for group in self.optimiser.param_groups:
            group["lr"] = record["learning_rate"]
        self.optimiser.step()
        self.step += 1
        self.history.append(json.dumps(record))
        self.totals.query_tokens += int(query_tokens)
        self.totals.document_tokens += int(document_tokens)
        self.totals.seconds += time.monotonic() - started
        return record

    def _backward(self, local_batch: LocalBatch) -> float:
        """Set the gradients to those of this process's part of the batch, and return its part of the loss."""
        while True:
            self.optimiser.zero_grad()
            loss = self.stage.make_loss(
                local_batch.batch, self.plan.batch_size, self.temperature, self.grad_cache.device, self.scorer
            )
            try:
                return self.grad_cache.backward(
                    self.step, local_batch.queries, local_batch.documents, loss, self.plan.batch_size
                )
            except torch.OutOfMemoryError:
                self.group.run_on_all(self.grad_cache.lower_budget)

    def _raise_if_diverged(self, record: Mapping[str, Any]) -> None:
        norm = record["gradient_norm"]
        numbers = [value for value in record.values() if isinstance(value, float)]
        if self.temperature is not None and self.temperature.grad is not None:
            numbers.append(self.temperature.grad.item())
        typical_norm = self._typical_gradient_norm()
        if not all(map(math.isfinite, numbers)):
            detail = ""
        elif typical_norm is not None and norm > EXPLODING_FACTOR * typical_norm:
            detail = f" (usually {typical_norm:.3g})"
        elif self.temperature is not None and record["temperature"] <= 0:
            detail = f", temperature {record['temperature']:.3g}"
        else:
            return
        raise DivergedError(
            f"{self.stage.stage}: loss {record['loss']}, gradient norm {norm}{detail} at step {record['step']} of "
            f"{len(self.plan)} ({self.plan.describe_step(self.step)}; learning rate "
            f"{record['learning_rate']:.3g}): lower the learning rate or fix the rows"
        )

    def _typical_gradient_norm(self) -> float | None:
        """The median gradient norm of the last steps, at least the gradient's factor; None in the first steps."""
        if self.step < NORM_WARMUP_STEPS:
            return None
        norms: list[float] = [json.loads(line)["gradient_norm"] for line in self.history[-NORM_WINDOW:]]
        return max(self.stage.gradient_factor(self.plan.batch_size), statistics.median(norms))

    def checkpoint(self) -> Checkpoint:
        """Everything that a run needs to resume from here."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters().items():
            tensors[name] = parameter
            state = self.optimiser.state.get(parameter, {})
            tensors |= {f"optimiser.{key}.{name}": value for key, value in state.items()}
        notes = {"history": self.history, "counts": asdict(self.totals), "evaluations": self.evaluations}
        return Checkpoint(self.step, tensors, notes)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint of the same stage."""
        self.step = checkpoint.step
        self.history = list(checkpoint.notes["history"])
        self.totals = Totals(**checkpoint.notes["counts"])
        self.evaluations = list(checkpoint.notes["evaluations"])
        for name, parameter in self.parameters().items():
            with torch.no_grad():
                parameter.copy_(checkpoint.tensors[name])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = checkpoint.tensors.get(f"optimiser.{key}.{name}")
                if value is not None:
                    self.optimiser.state[parameter][key] = value.to(parameter.device)


def adamw(parameters: Mapping[str, torch.nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """AdamW as in the reference's trainer: biases and norms do not decay, nor, unlike there, the temperature."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.999), eps=1e-8, fused=True)
