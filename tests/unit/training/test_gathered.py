"""The gradient of a step whose queries several processes share, the draws of each, and what they do short of memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

from colbert_zero.graph.console import UserError
from colbert_zero.graph.draws import draw
from colbert_zero.machine.distributed import SINGLE_PROCESS, ProcessGroup
from colbert_zero.models.colbert import EncodingSettings, load_colbert, tokenize
from colbert_zero.training import gradcache
from colbert_zero.training.gradcache import GradCache, Loss, MemoryBudget, contrastive_loss, distillation_loss
from tiny_stages import random_rows

QUERIES, PER_QUERY = 5, 3
TEACHER = torch.arange(QUERIES * PER_QUERY).remainder(4).div(4).view(QUERIES, PER_QUERY)


class Threads(ProcessGroup):
    """Ranks that are threads of one process."""

    def __init__(self, rank: int, size: int, barrier: Barrier, values: list[Any]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._values = barrier, values

    def all_gather_object(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait(60)
        values = list(self._values)
        self._barrier.wait(60)
        return values

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(map(any, zip(*self.all_gather_object(flags), strict=True)))

    def all_gather(self, parts: Any) -> None:
        for rank, theirs in enumerate(self.all_gather_object(parts)):
            parts[rank].copy_(theirs[rank])
        self._barrier.wait(60)

    def reduce_scatter(self, parts: Any) -> None:
        total = torch.stack([theirs[self.rank] for theirs in self.all_gather_object(parts)]).sum(dim=0)
        parts[self.rank].copy_(total)
        self._barrier.wait(60)


def step_of(group: ProcessGroup, model: Any, stage: str, budget: MemoryBudget) -> tuple[float, dict[str, Tensor]]:
    """A rank's part of a step's loss and gradient."""
    rows = random_rows("distillation", QUERIES)
    own = group.local_slice(QUERIES)
    queries = tokenize(model, [row["query"] for row in rows[own]], True, "q: ")
    texts = [text for row in rows[own] for text in row["documents"][:PER_QUERY]]
    documents = tokenize(model, texts, False, "d: ")
    loss: Loss = (
        distillation_loss(TEACHER[own], 20) if stage == "distillation" else contrastive_loss(PER_QUERY, 0.2, 20, 3.0)
    )
    value = GradCache(model, budget, group=group).backward(1, queries, documents, loss, QUERIES)
    return value, {name: part.grad for name, part in model.named_parameters() if part.grad is not None}


@pytest.mark.parametrize("stage", ["supervised", "distillation"])
@pytest.mark.parametrize(("size", "in_memory", "scored"), [(1, 0, 1), (2, 10**6, 1), (3, 0, 200)])
def test_the_parts_of_all_ranks_add_up_to_the_step_of_one(
    stage: str, size: int, in_memory: int, scored: int, modernbert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_colbert(modernbert, EncodingSettings("q: ", "d: ", 14, 20), dimensions=16)
    value, expected = step_of(SINGLE_PROCESS, deepcopy(model), stage, MemoryBudget(10**6, 10**6))
    monkeypatch.setitem(gradcache.TOKENS_SCORED, "cpu", scored)
    barrier, values = Barrier(size), [None] * size
    groups = [Threads(rank, size, barrier, values) for rank in range(size)]
    models = [deepcopy(model) for _ in groups]
    with ThreadPoolExecutor(size) as threads:
        parts = list(threads.map(lambda *of: step_of(*of, stage, MemoryBudget(60, in_memory)), groups, models))
    assert sum(part for part, _ in parts) == pytest.approx(value, abs=1e-5)
    assert expected.keys() == parts[0][1].keys()
    for name, gradient in expected.items():
        total = torch.stack([gradients[name] for _, gradients in parts]).sum(dim=0)
        torch.testing.assert_close(total, gradient, atol=1e-5, rtol=1e-4)


class Rank(ProcessGroup):
    def __init__(self, rank: int) -> None:
        self.rank, self.size = rank, 2


def test_dropout_follows_from_seed_step_side_and_chunk_and_on_other_ranks_from_the_rank(modernbert: Path) -> None:
    # The draws of rank 0 are those of a training in one process, as every version has drawn them.
    model = load_colbert(modernbert, EncodingSettings("", "", 14, 20))
    tokens = tokenize(model, ["the quick brown fox"] * 2, False, "")
    for rank, further in ((0, ()), (1, (1,))):
        cache = GradCache(model, MemoryBudget(1, 0), seed=3, group=Rank(rank))
        for is_query, side in ((True, "query"), (False, "document")):
            seeds = [chunk.dropout_seed for chunk in cache._make_chunks(5, tokens, is_query)]
            assert seeds == [draw(3, "dropout", 5, side, number, *further) for number in range(2)]


def test_short_of_memory_the_graph_is_given_up_and_then_chunks_are_halved_down_to_64_tokens(modernbert: Path) -> None:
    model = load_colbert(modernbert, EncodingSettings("", "", 14, 20))
    tokens = tokenize(model, ["the quick brown fox"] * 4, False, "")
    step_tokens = 2 * int(tokens.lengths.sum())
    cache = GradCache(model, MemoryBudget(256, step_tokens))
    budgets = []
    for _ in range(3):
        cache.backward(1, tokens, tokens, contrastive_loss(1, 0.2, 20))
        cache.lower_budget()
        budgets.append(cache.budget)
    half = step_tokens // 2
    assert budgets == [MemoryBudget(256, half), MemoryBudget(128, half), MemoryBudget(64, half)]
    with pytest.raises(UserError, match="out of memory with 64 tokens at once"):
        cache.lower_budget()


@pytest.mark.parametrize(("device", "emptied"), [("cpu", 0), ("cuda", 1)])
def test_a_gpus_free_blocks_are_given_back_before_the_next_attempt(
    device: str, emptied: int, modernbert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(None))
    cache = GradCache(load_colbert(modernbert, EncodingSettings("", "", 14, 20)), MemoryBudget(256, 0))
    cache.device = torch.device(device)
    cache.lower_budget()
    assert len(calls) == emptied
