"""Losses and gradients against PyLate's own, with PyLate's collator and its full padding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from pylate import losses
from pylate.scores import colbert_kd_scores, colbert_scores

from colbert_zero.models.colbert import EncodingSettings, load_colbert, tokenize
from colbert_zero.training import gradcache
from colbert_zero.training.gradcache import GradCache, Loss, MemoryBudget, contrastive_loss, distillation_loss
from colbert_zero.training.losses import SIMILARITIES_PER_BLOCK, contrastive, distillation, maxsim, maxsim_pairs
from pylate_batch import collate

ENCODING = EncodingSettings("search_query: ", "search_document: ", 14, 20)
QUERIES = ["the lazy dog", "", "retrieval of the best document by a model, again and again and again", "?!"]
DOCUMENTS = [
    # A truncated document; the full length without a skiplisted token; empty; only punctuation; a repeated text.
    ["quick fox " * 30, "the model sums", "", "(a) dog, the fox: jumps!"],
    ["?! ... ;;", "fox dog fox dog fox dog fox dog", "lazy", "every query"],
    ["the quick brown fox", "every similarity", "scores", "dog. " * 40],
    ["the quick brown fox", "a", "b c d", "similarities of the best models are scored"],
]
BUDGETS = [
    MemoryBudget(tokens_per_chunk=10**6, tokens_in_memory=10**6),
    MemoryBudget(tokens_per_chunk=48, tokens_in_memory=10**6),
    MemoryBudget(tokens_per_chunk=48, tokens_in_memory=0),
]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """The gradients of all parameters that have one; BERT's pooler has none."""
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def reference(model: Any, loss: torch.nn.Module, rows: list[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    """PyLate's loss and gradients of a batch."""
    model.zero_grad()
    value = loss(*collate(model, rows, ENCODING))
    value.backward()
    return value.item(), gradients(model)


def ours(
    model: Any, loss: Loss, queries: list[str], documents: list[str], budget: MemoryBudget, precision: str = "fp32"
) -> Any:
    """The loss and gradients of `GradCache`."""
    model.zero_grad()
    value = GradCache(model, budget, precision).backward(
        0,
        tokenize(model, queries, True, ENCODING.query_prompt),
        tokenize(model, documents, False, ENCODING.document_prompt),
        loss,
    )
    return value, gradients(model)


def assert_same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    assert found[0] == pytest.approx(expected[0], abs=tolerance)
    assert max(gradient.abs().max() for gradient in expected[1].values()) > 1e-3
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        atol = tolerance * max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[1][name], gradient, atol=atol, rtol=tolerance, msg=name)


@pytest.fixture(scope="module", params=["modernbert", "bert", "expanding modernbert"])
def model(request: pytest.FixtureRequest) -> Any:
    folder: Path = request.getfixturevalue(request.param.split()[-1])
    expanding = EncodingSettings(**{**vars(ENCODING), "query_expansion": request.param.startswith("expanding")})
    return load_colbert(folder, expanding)


@pytest.mark.parametrize("budget", BUDGETS, ids=["whole", "chunks", "cached"])
@pytest.mark.parametrize("kind", ["contrastive", "negatives", "cached", "one row twice"])
def test_contrastive_stages_equal_pylate(model: Any, kind: str, budget: MemoryBudget) -> None:
    per_query = 3 if kind == "negatives" else 1
    rows = [
        {"query": query, **{f"document{place}": text for place, text in enumerate(texts[:per_query])}}
        for query, texts in zip(QUERIES, DOCUMENTS, strict=True)
    ]
    rows += rows[:1] * (kind == "one row twice")
    oracle: torch.nn.Module = losses.Contrastive(model, temperature=0.2)
    if kind == "cached":
        # Its gradient is larger by the batch size: PyLate back-propagates the sum, and divides only the returned value.
        oracle = losses.CachedContrastive(model, mini_batch_size=2, temperature=0.2)
    documents = [text for row in rows for name, text in row.items() if name != "query"]
    scale = float(len(rows)) if kind == "cached" else 1.0
    loss = contrastive_loss(per_query, 0.2, ENCODING.document_length, scale)
    found = ours(model, loss, [row["query"] for row in rows], documents, budget)
    assert_same(found, reference(model, oracle, rows))


@pytest.mark.parametrize("budget", BUDGETS, ids=["whole", "chunks", "cached"])
def test_distillation_equals_pylate(model: Any, budget: MemoryBudget) -> None:
    teacher = [[1.0, 0.5, 0.0, 0.2], [0.3, 1.0, 0.9, 0.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 1.0, 0.1]]
    rows = [
        {"query": query, "documents": texts, "scores": scores}
        for query, texts, scores in zip(QUERIES, DOCUMENTS, teacher, strict=True)
    ]
    expected = reference(model, losses.Distillation(model), rows)
    loss = distillation_loss(torch.tensor(teacher), ENCODING.document_length)
    documents = [text for texts in DOCUMENTS for text in texts]
    assert_same(ours(model, loss, QUERIES, documents, budget), expected)


@pytest.mark.parametrize("budget", BUDGETS, ids=["whole", "chunks", "cached"])
def test_distillation_of_equal_scores_equals_pylate(model: Any, budget: MemoryBudget) -> None:
    documents = [["the same text"] * 3, ["fox", "dog", "fox"], ["", "", ""], ["a b", "b a", "a b"]]
    teacher = [[1.0, 0.5, 0.0]] * 4
    rows = [
        {"query": query, "documents": texts, "scores": scores}
        for query, texts, scores in zip(QUERIES, documents, teacher, strict=True)
    ]
    oracle = reference(model, losses.Distillation(model), rows)
    loss = distillation_loss(torch.tensor(teacher), ENCODING.document_length)
    found = ours(model, loss, QUERIES, [text for texts in documents for text in texts], budget)
    # The gradient of a min-max of equal scores is rounding error times 1e8, here and in PyLate: compare only the loss.
    assert found[0] == pytest.approx(oracle[0], abs=0.05)
    assert all(gradient.isfinite().all() for gradient in found[1].values())


# bf16


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """What wraps the model in the reference's trainer."""
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def keep_outputs(model: Any) -> list[torch.Tensor]:
    """Have the model keep its outputs in fp32, with the gradients that they get, in the list returned."""
    kept: list[torch.Tensor] = []

    def keep(_model: Any, _inputs: Any, outputs: dict[str, torch.Tensor]) -> None:
        outputs["token_embeddings"] = vectors = outputs["token_embeddings"].float()
        if vectors.requires_grad:
            vectors.retain_grad()
            kept.append(vectors)

    model.register_forward_hook(keep)
    return kept


def relative_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("kept_tokens", [0, 10**6])
@pytest.mark.parametrize("stage", ["unsupervised", "supervised", "distillation"])
@pytest.mark.parametrize("base", ["modernbert", "bert"])
def test_bf16_equals_pylate_as_accelerate_wraps_it(
    base: str,
    stage: str,
    kept_tokens: int,
    accelerator: Accelerator,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count, per_query = 4, {"unsupervised": 1, "supervised": 3, "distillation": 4}[stage]
    # In bf16 other shapes round otherwise. All texts are cut, so no side pads, and both encode the same chunks: PyLate
    # encodes the first documents of all queries, then the second ones.
    words, generator = [word for text in DOCUMENTS for word in text[0].split()], np.random.default_rng(0)
    texts = [" ".join(generator.choice(words, 40)) for _ in range(count * (1 + per_query))]
    queries, documents = texts[:count], texts[count:]
    by_query = [documents[row * per_query : (row + 1) * per_query] for row in range(count)]
    teacher = generator.random((count, per_query))
    model = load_colbert(request.getfixturevalue(base), ENCODING)
    if stage == "distillation":
        rows = [
            {"query": query, "documents": own, "scores": list(scores)}
            for query, own, scores in zip(queries, by_query, teacher, strict=True)
        ]
        oracle: torch.nn.Module = losses.Distillation(model)
        loss = distillation_loss(torch.from_numpy(teacher).float(), ENCODING.document_length)
    else:
        rows = [
            {"query": query, **{f"document{place}": text for place, text in enumerate(own)}}
            for query, own in zip(queries, by_query, strict=True)
        ]
        oracle = losses.Contrastive(model, temperature=0.2)
        if stage == "unsupervised":
            oracle = losses.CachedContrastive(model, mini_batch_size=count, temperature=0.2)
        scale = float(count) if stage == "unsupervised" else 1.0
        loss = contrastive_loss(per_query, 0.2, ENCODING.document_length, scale)
        by_place = np.arange(len(documents)).reshape(count, per_query).T.copy()
        monkeypatch.setattr(
            gradcache, "split_by_length", lambda tokens, _: by_place if len(tokens) > count else [np.arange(count)]
        )
    budget, outputs = MemoryBudget(10**6, kept_tokens), keep_outputs(model)
    value, _ = reference(accelerator.prepare_model(model), oracle, rows)
    expected = list(outputs)
    outputs.clear()
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    found, _ = ours(model, loss, queries, documents, budget, "bf16")
    assert found == pytest.approx(value, rel=1e-5)
    assert all(map(torch.equal, outputs, expected)) and len(outputs) == len(expected)
    # What is outside of autocast differs by the rounding of fp32: 5e-8 to 3e-6 (inside of autocast: 0.01 to 0.4). From
    # here on both sides are the same code, in which numbers this close may be rounded to neighbours in bf16.
    gradients = (torch.cat([output.grad.flatten() for output in side]) for side in (outputs, expected))  # type: ignore[union-attr]
    assert relative_distance(*gradients) < 1e-5


def random_embeddings(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).requires_grad_()


@pytest.fixture
def embeddings() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(3)
    queries, documents = random_embeddings(5, 4, 3), random_embeddings(6, 7, 3)
    return queries, torch.rand(5, 4) > 0.3, documents, torch.rand(6, 7) > 0.5


def test_maxsim_equals_pylate(embeddings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, queries_mask, documents, documents_mask = embeddings
    expected = colbert_scores(queries, documents, queries_mask, documents_mask)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    gradients = torch.autograd.grad((expected * weights).sum(), (queries, documents))
    for block in (1, 60, 2**24):
        monkeypatch.setitem(SIMILARITIES_PER_BLOCK, "cpu", block)
        scores = maxsim(*embeddings)
        torch.testing.assert_close(scores, expected)
        found = torch.autograd.grad((scores * weights).sum(), (queries, documents))
        torch.testing.assert_close(found, gradients)


def test_maxsim_of_pairs_equals_pylate(embeddings: Any) -> None:
    queries, queries_mask, documents, documents_mask = (part[:5] for part in embeddings)
    expected = colbert_kd_scores(queries, documents[:, None], queries_mask, documents_mask[:, None])[:, 0]
    scores = maxsim_pairs(queries, queries_mask, documents, documents_mask)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(
        torch.autograd.grad(scores.sum(), (queries, documents)),
        torch.autograd.grad(expected.sum(), (queries, documents)),
    )


@pytest.mark.parametrize("score", [maxsim, maxsim_pairs])
def test_a_document_shorter_than_the_length_never_counts_less_than_zero(score: Any) -> None:
    query, away, whole = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-1.0, 0.0]]]), torch.ones(1, 1).bool()
    assert score(query, whole, away, whole).item() == -1
    assert score(query, whole, away, whole, 1).item() == -1
    assert score(query, whole, away, whole, 2).item() == 0


def test_a_temperature_divides_scores() -> None:
    scores, targets = torch.tensor([[0.2, 0.1], [0.3, 0.5]]), torch.tensor([0, 1])
    assert contrastive(scores, targets, 0.1).item() == pytest.approx(contrastive(scores * 10, targets, 1.0).item())
    # -log(e^2 / (e^2 + e^1)) and -log(e^5 / (e^5 + e^3))
    assert contrastive(scores, targets, 0.1).item() == pytest.approx((0.313262 + 0.126928) / 2, abs=1e-5)


def test_distillation_does_not_depend_on_the_scale_of_the_student() -> None:
    student, teacher = torch.tensor([[3.0, 5.0, 9.0]]), torch.tensor([[0.0, 1.0, 0.5]])
    value = distillation(student, teacher).item()
    assert value == pytest.approx(distillation(student * 7 + 2, teacher).item(), abs=1e-6)
    assert value > 0.01
    assert distillation(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_epsilon_widens_the_span_of_scores_that_are_nearly_equal() -> None:
    # (1e-8 - 0) / (1e-8 + 1e-8) = 0.5, as the teacher says.
    student, teacher = torch.tensor([[0.0, 1e-8]], dtype=torch.float64), torch.tensor([[0.0, 0.5]], dtype=torch.float64)
    assert distillation(student, teacher).item() == pytest.approx(0, abs=1e-9)
