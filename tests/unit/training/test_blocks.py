"""How often a step calls its scorer at the paper's shape and a GPU's sizes, and what scores together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from colbert_zero.graph.paths import REPOSITORY
from colbert_zero.machine.distributed import ProcessGroup
from colbert_zero.models.colbert import EncodingSettings, TokenizedTexts, load_colbert, tokenize
from colbert_zero.training import gradcache
from colbert_zero.training.budget import TOKENS_PER_CHUNK
from colbert_zero.training.gradcache import GradCache, MemoryBudget, contrastive_loss, distillation_loss
from colbert_zero.training.losses import maxsim
from tiny_stages import STAGES, random_rows

MOST_CALLS = 300
"""Of the scorer, in a process and step on the paper's four GPUs of a node."""


class FourProcesses(ProcessGroup):
    """The first of four; the others' documents are as many and as long as its own."""

    size = 4

    def all_gather_object(self, value: Any) -> list[Any]:
        texts = sum(len(rows) for rows, _ in value)
        return [[(rows + rank * texts, width) for rows, width in value] for rank in range(self.size)]


class Scorer:
    """Counts its calls and what they score; its scores are sums, which take no time."""

    def __init__(self) -> None:
        self.calls, self.pairs, self.widest = 0, 0, 0

    def __call__(self, queries: Tensor, _: Tensor, documents: Tensor, mask: Tensor, padded_to: int) -> Tensor:
        self.calls += 1
        self.pairs += len(queries) * len(documents)
        self.widest = max(self.widest, mask.numel())
        return queries.sum((1, 2))[:, None] + documents.sum((1, 2))

    def of_pairs(self, queries: Tensor, _: Tensor, documents: Tensor, mask: Tensor, padded_to: int) -> Tensor:
        self.calls += 1
        self.pairs += len(documents)
        self.widest = max(self.widest, mask.numel())
        return queries.sum((1, 2)) + documents.sum((1, 2))


def texts(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> TokenizedTexts:
    return TokenizedTexts(np.ones(lengths.sum(), np.int64), lengths, 0)


def calls_of(stage: str, settings: dict[str, Any], shortest: float, monkeypatch: pytest.MonkeyPatch) -> Scorer:
    """One step of a stage of the paper, as the first of four processes with a GPU each computes it.

    Args:
        stage: The stage.
        settings: Its settings in `config.yaml`.
        shortest: The shortest document's share of the longest one's tokens; the others are drawn between them.
        monkeypatch: Gives a CPU the sizes of a GPU, and embeddings of one dimension.
    """
    for sizes in (gradcache.PAIRS_PER_BLOCK, gradcache.TOKENS_SCORED):
        monkeypatch.setitem(sizes, "cpu", sizes["cuda"])
    weight = torch.ones((), requires_grad=True)
    monkeypatch.setattr(gradcache, "embed", lambda _model, features, _bf16: features["input_ids"][..., None] * weight)
    scorer = Scorer()
    monkeypatch.setattr(gradcache, "maxsim_pairs", scorer.of_pairs)
    queries = settings["batch_size"] // FourProcesses.size
    negatives, documents = settings.get("negatives", 0), settings.get("documents")
    per_query = {"unsupervised": 1, "supervised": 1 + negatives, "distillation": documents}[stage]
    longest = settings["document_length"]
    drawn = np.random.default_rng(0).integers(round(shortest * longest), longest, queries * per_query, endpoint=True)
    loss = contrastive_loss(per_query, 0.2, longest, scorer=scorer)
    if stage == "distillation":
        loss = distillation_loss(torch.rand(queries, per_query), longest)
    model: Any = SimpleNamespace(device="cpu", do_query_expansion=False, skiplist=[])
    GradCache(model, MemoryBudget(TOKENS_PER_CHUNK["cuda"], 0), group=FourProcesses()).backward(
        0, texts(np.full(queries, settings["query_length"])), texts(drawn), loss, settings["batch_size"]
    )
    assert weight.grad is not None
    # Each of its queries with the documents of all, or with its own.
    assert scorer.pairs == queries * per_query * (settings["batch_size"] if loss.over_all_documents else 1)
    return scorer


@pytest.mark.parametrize("shortest", [1.0, 0.1])
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_of_the_paper_calls_its_scorer_at_most_300_times(
    stage: str, shortest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))["stages"][stage]
    scorer = calls_of(stage, settings, shortest, monkeypatch)
    assert 0 < scorer.calls <= MOST_CALLS
    assert scorer.widest <= gradcache.TOKENS_SCORED["cuda"]


def gradient(model: Any, per_query: int, teacher: Tensor | None) -> tuple[float, dict[str, Tensor]]:
    """The loss of eight queries and its gradient, from chunks of 40 tokens."""
    rows = random_rows("unsupervised", 8 * per_query)
    queries = tokenize(model, [row["query"] for row in rows[:8]], True, "q: ")
    documents = tokenize(model, [row["document"] for row in rows], False, "d: ")
    loss = contrastive_loss(per_query, 0.2, 20) if teacher is None else distillation_loss(teacher, 20)
    model.zero_grad()
    value = GradCache(model, MemoryBudget(40, 0)).backward(0, queries, documents, loss)
    return value, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("distils", [False, True])
@pytest.mark.parametrize("tokens", [100, 10**6])
def test_chunks_that_are_scored_together_have_the_gradient_of_each_alone(
    modernbert: Path, tokens: int, distils: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_colbert(modernbert, EncodingSettings("q: ", "d: ", 14, 20))
    teacher = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)) if distils else None
    alone = gradient(model, 3, teacher)
    monkeypatch.setitem(gradcache.TOKENS_SCORED, "cpu", tokens)
    together = gradient(model, 3, teacher)
    assert together[0] == pytest.approx(alone[0], abs=1e-6)
    for name, expected in alone[1].items():
        torch.testing.assert_close(together[1][name], expected, atol=1e-5, rtol=1e-5)


def test_documents_that_are_scored_together_are_neighbours_of_one_width() -> None:
    chunks: Any = [
        SimpleNamespace(rows=np.arange(count), mask=torch.empty(count, width))
        for count, width in ((3, 10), (2, 9), (1, 8), (5, 8), (2, 8), (1, 2))
    ]
    found = [[chunk.mask.shape for chunk in part] for part in gradcache._scored_together(chunks, 60)]
    # Six texts of ten tokens, seven of eight; another text would be too much.
    assert found == [[(3, 10), (2, 9), (1, 8)], [(5, 8), (2, 8)], [(1, 2)]]
    assert [len(part) for part in gradcache._scored_together(chunks, 1)] == [1] * 6


def test_winners_are_kept_in_32_bits() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    mask = torch.ones(2, 3, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maxsim(torch.randn(2, 3, 4, requires_grad=True), mask, torch.randn(2, 3, 4), mask)
    # A pair of a query token and a document: 6 x 2 of them.
    assert [tensor.dtype for tensor in kept if tensor.shape == (6, 2) and not tensor.dtype.is_floating_point] == [
        torch.int32
    ]
