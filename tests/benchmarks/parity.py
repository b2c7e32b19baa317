"""Our losses and gradients against PyLate's on a device: all stages, in fp32 and bf16, with each attention and MaxSim.

PyLate has its own collator, full padding and, in bf16, the wrapping that accelerate gives the model of its trainer.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from pylate import losses
from torch import Tensor
from transformers.utils import is_flash_attn_2_available

from colbert_zero.models.colbert import EncodingSettings, load_colbert, tokenize
from colbert_zero.training.gradcache import GradCache, MemoryBudget, contrastive_loss, distillation_loss
from colbert_zero.training.train import SCORERS
from pylate_batch import collate

ENCODING = EncodingSettings("search_query: ", "search_document: ", 20, 60)
QUERIES, DIMENSIONS, TEMPERATURE = 8, 64, 0.2
PER_QUERY = {"unsupervised": 1, "supervised": 3, "distillation": 4}
BUDGETS = (MemoryBudget(10**6, 10**6), MemoryBudget(256, 0))
"""All at once with one forward pass; chunks of a few texts with two."""
WORDS = ["a", "model", "scores", "every", "query", "document", "it", "sums", "best", "the", "quick", "fox", ",", "!"]


@dataclass(frozen=True)
class Case:
    """What is compared.

    Attributes:
        stage: `unsupervised`, `supervised` or `distillation`.
        precision: `fp32` or `bf16`.
        attention: As transformers names it.
        maxsim: `torch` or `fused`.
    """

    stage: str
    precision: str
    attention: str
    maxsim: str

    def __str__(self) -> str:
        """Words for a line of the report."""
        return f"{self.stage} in {self.precision}, attention {self.attention}, maxsim {self.maxsim}"

    @property
    def tolerance(self) -> float:
        """How far loss and gradient may be from PyLate's, relative to their size."""
        return 1e-4 if self.precision == "fp32" else 0.1

    def obstacle(self, device: str) -> str | None:
        """Why this cannot be computed on a device; None if it can."""
        if self.attention == "flash_attention_2" and not is_flash_attn_2_available():
            return "the package flash-attn, or a GPU for it, is not here"
        if self.maxsim == "fused" and device != "cuda":
            return "the fused kernels need a GPU"
        if self.maxsim == "fused" and importlib.util.find_spec("late_interaction_kernels") is None:
            return "the package late-interaction-kernels is not installed"
        return None


def cases() -> Iterator[Case]:
    """All that a study may ask for."""
    for stage, attention, maxsim in product(PER_QUERY, ("sdpa", "flash_attention_2"), ("torch", "fused")):
        if attention == "sdpa" and maxsim == "torch":
            yield Case(stage, "fp32", attention, maxsim)
        if stage != "distillation" or maxsim == "torch":
            yield Case(stage, "bf16", attention, maxsim)


@dataclass(frozen=True)
class Distance:
    """How far ours is from PyLate, relative to PyLate's size.

    Attributes:
        loss: Of the losses.
        gradient: Of the gradients of all parameters together; the larger one of one and two forward passes.
        repeated: Whether a second computation gave the same bits.
    """

    loss: float
    gradient: float
    repeated: bool


def measure_distance(case: Case, base: Path, device: str) -> Distance:
    """Compute a case here and with PyLate, from the same weights; the weights of the projection are drawn.

    Args:
        case: What to compare.
        base: The folder of a small ModernBERT.
        device: `cpu` or `cuda`.
    """
    generator = np.random.default_rng(0)
    # Long and short ones, so that PyLate pads and ours does not; the last of each kind is cut.
    lengths = [*generator.integers(1, 40, QUERIES * PER_QUERY[case.stage] - 1), 90]
    documents = [" ".join(generator.choice(WORDS, length)) for length in lengths]
    queries = [" ".join(generator.choice(WORDS, length)) for length in (*range(1, QUERIES), 40)]
    teacher = torch.from_numpy(generator.random((QUERIES, PER_QUERY[case.stage]), np.float32))
    expected = _of_pylate(case, base, device, queries, documents, teacher)
    model = _load(base, device, case.attention)
    # As a training does; some of PyTorch's sums have no order otherwise.
    torch.use_deterministic_algorithms(True, warn_only=True)
    found = [_ours(case, model, budget, queries, documents, teacher) for budget in BUDGETS for _ in range(2)]
    return Distance(
        max(abs(value - expected[0]) / abs(expected[0]) for value, _ in found),
        max(((vector - expected[1]).norm() / expected[1].norm()).item() for _, vector in found),
        all(torch.equal(first[1], second[1]) for first, second in (found[:2], found[2:])),
    )


@cache
def _load(base: Path, device: str, attention: str, wrapped: bool = False) -> Any:
    """A model for all cases; `wrapped` by accelerate as in the reference's trainer with bf16."""
    model = load_colbert(base, ENCODING, device, dimensions=DIMENSIONS, attention=attention)
    return Accelerator(mixed_precision="bf16", cpu=device == "cpu").prepare_model(model) if wrapped else model


def _ours(
    case: Case, model: Any, budget: MemoryBudget, queries: list[str], documents: list[str], teacher: Tensor
) -> tuple[float, Tensor]:
    """Our loss, and the gradient of all parameters in one vector."""
    model.zero_grad()
    scale = float(QUERIES) if case.stage == "unsupervised" else 1.0
    loss = (
        distillation_loss(teacher.to(model.device), ENCODING.document_length)
        if case.stage == "distillation"
        else contrastive_loss(PER_QUERY[case.stage], TEMPERATURE, ENCODING.document_length, scale, SCORERS[case.maxsim])
    )
    value = GradCache(model, budget, case.precision).backward(
        0,
        tokenize(model, queries, True, ENCODING.query_prompt),
        tokenize(model, documents, False, ENCODING.document_prompt),
        loss,
    )
    return value, _gradient(model)


def _of_pylate(
    case: Case, base: Path, device: str, queries: list[str], documents: list[str], teacher: Tensor
) -> tuple[float, Tensor]:
    """PyLate's loss, and the gradient of all parameters in one vector; its MaxSim is PyTorch's, in fp32."""
    model = _load(base, device, "sdpa", wrapped=case.precision == "bf16")
    model.zero_grad()
    loss: torch.nn.Module = losses.Contrastive(model, temperature=TEMPERATURE)
    if case.stage == "unsupervised":
        loss = losses.CachedContrastive(model, mini_batch_size=3, temperature=TEMPERATURE)
    elif case.stage == "distillation":
        loss = losses.Distillation(model)
    count = PER_QUERY[case.stage]
    by_query = [documents[row * count : (row + 1) * count] for row in range(QUERIES)]
    rows: list[dict[str, Any]] = [
        {"query": query, "documents": own, "scores": scores}
        if case.stage == "distillation"
        else {"query": query, **{f"document{place}": text for place, text in enumerate(own)}}
        for query, own, scores in zip(queries, by_query, teacher.tolist(), strict=True)
    ]
    features, labels = collate(model, rows, ENCODING)
    on_device = [
        {name: part.to(device) if isinstance(part, Tensor) else part for name, part in side.items()}
        for side in features
    ]
    # By default its MaxSim on a GPU is that of kernels in half precision, in fp32 as well.
    with patch.dict(os.environ, PYLATE_SCORES_BACKEND="torch"):
        value = loss(on_device, None if labels is None else torch.as_tensor(labels).to(device))
    value.backward()
    return value.item(), _gradient(model)


def _gradient(model: Any) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]).cpu()
