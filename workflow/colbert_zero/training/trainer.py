"""One step of a stage after the other: the state that a checkpoint holds, and what makes a step of it."""

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

from colbert_zero.data.batches import Plan
from colbert_zero.graph.console import UserError
from colbert_zero.machine.distributed import ProcessGroup
from colbert_zero.training.checkpoints import Checkpoint
from colbert_zero.training.gradcache import GradCache
from colbert_zero.training.loader import BatchLoader
from colbert_zero.training.losses import Scorer, maxsim
from colbert_zero.training.stages import Stage

EXPLODING_FACTOR, NORM_WINDOW, NORM_WARMUP_STEPS = 1000.0, 100, 10
"""A gradient norm so many times the median of those of the last 100 steps, and of 1, ends the run; not in the first 10
steps, which have none to compare with."""


class DivergedError(UserError):
    """A step whose loss or gradient is infinite, not a number, or far beyond all before."""


@dataclass
class Counts:
    """What a run has done so far, over all its attempts; tokens are without padding."""

    query_tokens: int = 0
    document_tokens: int = 0
    seconds: float = 0.0
    joules: float = 0.0


@dataclass
class Trainer:
    """A stage on its way: all that a checkpoint holds, and what makes a step.

    Attributes:
        stage: The settings.
        plan: The batches.
        model: What is trained.
        engine: What computes its gradients.
        loader: What hands out this process's shares of the steps.
        group: The processes that share each step.
        scorer: What scores queries with the documents of all of them.
        step: How many steps are done.
        history: A line of JSON for each.
        counts: What that took.
        evaluations: What the model was measured to be worth on the way.
        temperature: The loss's, where it is learned.
        optimiser: What moves the parameters.
    """

    stage: Stage
    plan: Plan
    model: models.ColBERT
    engine: GradCache
    loader: BatchLoader
    group: ProcessGroup
    scorer: Scorer = maxsim
    step: int = 0
    history: list[str] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    temperature: torch.nn.Parameter | None = field(init=False, default=None)
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        """Set up what learns."""
        if self.stage.learnable_temperature:
            start = torch.tensor(self.stage.temperature, device=self.engine.device)
            self.temperature = torch.nn.Parameter(start)
        self.optimiser = adamw(self.parameters(), self.stage.weight_decay)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """All that is learned, by name."""
        parameters = {f"model.{name}": parameter for name, parameter in self.model.named_parameters()}
        return parameters if self.temperature is None else parameters | {"temperature": self.temperature}

    def train_step(self) -> Mapping[str, Any]:
        """Do the next step.

        Returns:
            Its line of the history: step (from 1), source, loss, learning_rate, gradient_norm, perhaps temperature.

        Raises:
            DivergedError: Its loss or gradient is not finite, or has exploded; the parameters are those before the step.
            UserError: Its rows lack what the stage needs.
        """
        started = time.monotonic()
        share = self.group.run_on_all(lambda: self.loader.get(self.step))
        part = self._backward(share)
        gradients = [parameter.grad for parameter in self.parameters().values() if parameter.grad is not None]
        self.group.all_reduce(gradients)
        loss, query_tokens, document_tokens = self.group.all_reduce_sum(
            part, len(share.queries.ids), len(share.documents.ids)
        )
        clip = self.stage.gradient_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip).item()
        line = {
            "step": self.step + 1,
            "source": self.plan.source(self.step).spec.label,
            "loss": loss,
            "learning_rate": self.stage.learning_rate_at(self.step, len(self.plan)),
            "gradient_norm": norm,
        }
        if self.temperature is not None:
            line["temperature"] = self.temperature.item()
        self._check(line)
        for group in self.optimiser.param_groups:
            group["lr"] = line["learning_rate"]
        self.optimiser.step()
        self.step += 1
        self.history.append(json.dumps(line))
        self.counts.query_tokens += int(query_tokens)
        self.counts.document_tokens += int(document_tokens)
        self.counts.seconds += time.monotonic() - started
        return line

    def _backward(self, share: Any) -> float:
        """The gradient of this process's share, added to nothing; its part of the loss."""
        while True:
            self.optimiser.zero_grad()
            loss = self.stage.loss(share.batch, self.plan.size, self.temperature, self.engine.device, self.scorer)
            try:
                return self.engine.backward(self.step, share.queries, share.documents, loss, self.plan.size)
            except torch.OutOfMemoryError:
                self.group.run_on_all(self.engine.reduce_memory)

    def _check(self, line: Mapping[str, Any]) -> None:
        """Whether a step is one to make."""
        norm = line["gradient_norm"]
        numbers = [value for value in line.values() if isinstance(value, float)]
        if self.temperature is not None and self.temperature.grad is not None:
            numbers.append(self.temperature.grad.item())
        usual = self._usual_norm()
        if not all(map(math.isfinite, numbers)):
            what = ""
        elif usual is not None and norm > EXPLODING_FACTOR * usual:
            what = f" (usually {usual:.3g})"
        elif line.get("temperature", 1.0) <= 0:
            what = f", temperature {line['temperature']:.3g}"
        else:
            return
        raise DivergedError(
            f"{self.stage.stage}: loss {line['loss']}, gradient norm {norm}{what} at step {line['step']} of "
            f"{len(self.plan)} ({self.plan.where(self.step)}; learning rate {line['learning_rate']:.3g}): lower the "
            "learning rate or mend the rows"
        )

    def _usual_norm(self) -> float | None:
        """The median of the last steps' gradient norms, and at least 1; None in the first steps."""
        if self.step < NORM_WARMUP_STEPS:
            return None
        norms: list[float] = [json.loads(line)["gradient_norm"] for line in self.history[-NORM_WINDOW:]]
        scale = self.plan.size if self.stage.gradient == "reference" else 1
        return max(float(scale), statistics.median(norms))

    def checkpoint(self) -> Checkpoint:
        """What is needed to go on from here."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters().items():
            tensors[name] = parameter
            state = self.optimiser.state.get(parameter, {})
            tensors |= {f"optimiser.{key}.{name}": value for key, value in state.items()}
        notes = {"history": self.history, "counts": asdict(self.counts), "evaluations": self.evaluations}
        return Checkpoint(self.step, tensors, notes)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same stage."""
        self.step = checkpoint.step
        self.history = list(checkpoint.notes["history"])
        self.counts = Counts(**checkpoint.notes["counts"])
        self.evaluations = list(checkpoint.notes["evaluations"])
        for name, parameter in self.parameters().items():
            with torch.no_grad():
                parameter.copy_(checkpoint.tensors[name])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = checkpoint.tensors.get(f"optimiser.{key}.{name}")
                if value is not None:
                    self.optimiser.state[parameter][key] = value.to(parameter.device)


def adamw(parameters: Mapping[str, torch.nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """AdamW as the reference's trainer sets it up; biases, norms and the temperature do not decay."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.999), eps=1e-8, fused=True)
