"""The texts and the loss of a step, for each stage: from the rows, with the settings, and in one line if rows lack."""

from __future__ import annotations

import math
import re
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from transformers import get_linear_schedule_with_warmup

from colbert_zero.graph.console import UserError
from colbert_zero.models.colbert import EncodingSettings
from colbert_zero.training.gradcache import Embeddings
from colbert_zero.training.stages import Batch, Stage

CPU = torch.device("cpu")


def stage(kind: str, **changes: Any) -> Stage:
    settings: dict[str, Any] = {
        "query_prompt": "q: ",
        "document_prompt": "d: ",
        "query_length": 14,
        "document_length": 20,
        "query_expansion": False,
        "dimensions": 16,
        "learning_rate": 3.0,
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "gradient_clip": None,
        "precision": "fp32",
        "seed": 7,
    }
    return Stage(kind, **settings | changes)


SUPERVISED = stage("supervised", negatives=2, temperature=0.25)


def test_texts_are_encoded_with_the_settings_of_the_stage() -> None:
    assert SUPERVISED.encoding == EncodingSettings("q: ", "d: ", 14, 20, query_expansion=False)


# Only the last ratio has a single step after its warm-up.
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.25, 1.0, 0.9])
def test_the_learning_rate_is_the_reference_trainers(warmup_ratio: float) -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3.0)
    schedule = get_linear_schedule_with_warmup(optimiser, math.ceil(10 * warmup_ratio), 10)
    for step in range(10):
        found = stage("unsupervised", warmup_ratio=warmup_ratio).learning_rate_at(step, 10)
        assert found == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize(
    ("kind", "changes", "factor"),
    [
        ("unsupervised", {}, 1),
        ("unsupervised", {"gradient": "exact"}, 1),
        ("unsupervised", {"gradient": "reference"}, 4),
        ("supervised", {}, 1),
        ("supervised", {"gradient_scale": 0.5}, 0.5),
    ],
)
def test_the_gradient_is_that_of_the_mean_unless_the_settings_say_otherwise(
    kind: str, changes: dict[str, Any], factor: float
) -> None:
    assert stage(kind, **changes).gradient_factor(4) == factor


def test_only_a_stage_that_says_so_learns_its_temperature() -> None:
    assert not stage("distillation", documents=2).learnable_temperature


# Texts


def test_a_pair_is_a_query_and_its_document() -> None:
    rows = pa.table({"query": ["a", "b"], "document": ["c", "d"]})
    assert stage("unsupervised").make_batch(rows, "here") == Batch(["a", "b"], ["c", "d"])


def test_a_step_takes_as_many_negatives_as_its_poorest_row_has() -> None:
    rows = pa.table({"query": ["a", "b"], "document": ["c", "d"], "negatives": [["e", "f", "g"], ["h"]]})
    assert SUPERVISED.make_batch(rows, "here").documents == ["c", "e", "d", "h"]
    rich = pa.table({"query": ["a", "b"], "document": ["c", "d"], "negatives": [["e", "f", "g"], ["h", "i"]]})
    assert SUPERVISED.make_batch(rich, "here").documents == ["c", "e", "f", "d", "h", "i"]
    # A plan that says how many negatives a source gives has left out the rows with fewer.
    assert SUPERVISED.make_batch(rich, "here", 1).documents == ["c", "e", "d", "h"]
    with pytest.raises(UserError, match="here: a row has 1 negatives, the stage uses 2 per row"):
        SUPERVISED.make_batch(rows, "here", 2)


def test_distillation_takes_the_first_documents_and_their_scores() -> None:
    rows = pa.table(
        {
            "query": ["a", "b"],
            "documents": [["c", "d", "e"], ["f", "g", "h"]],
            "scores": pa.array([[0.5, 0.25, 9.0], [1.0, 0.75, 9.0]], pa.list_(pa.float32())),
        }
    )
    batch = stage("distillation", documents=2).make_batch(rows, "here")
    assert (batch.queries, batch.documents) == (["a", "b"], ["c", "d", "f", "g"])
    assert batch.teacher is not None
    torch.testing.assert_close(batch.teacher, torch.tensor([[0.5, 0.25], [1.0, 0.75]]))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("unsupervised", {"document": ["c", None]}, "1 rows have no 'document'"),
        ("unsupervised", {"query": [None, "b"]}, "1 rows have no 'query'"),
        ("supervised", {"negatives": None}, "no column 'negatives', which this stage needs; the columns are query, "),
        ("supervised", {"negatives": [["e"], []]}, "a row has 0 negatives, the stage uses 1"),
        ("supervised", {"negatives": [["e"], None]}, "1 rows have no 'negatives'"),
        ("supervised", {"negatives": [["e", "f"], ["g", None]]}, "1 null values in 'negatives'"),
        ("distillation", {"documents": None}, "no column 'documents'"),
        ("distillation", {"scores": None}, "no column 'scores'"),
        ("distillation", {"documents": [["c", "d"], ["e"]]}, "a row has 1 documents, the stage uses 2"),
        ("distillation", {"scores": [[1.0, float("nan")], [0.0, 1.0]]}, "a teacher score is not finite"),
    ],
)
def test_rows_that_lack_what_the_stage_needs_are_named(kind: str, changes: dict[str, Any], message: str) -> None:
    columns: dict[str, Any] = {
        "query": ["a", "b"],
        "document": ["c", "d"],
        "negatives": [["e", "f"], ["g", "h"]],
        "documents": [["c", "d"], ["e", "f"]],
        "scores": [[1.0, 0.0], [0.0, 1.0]],
    }
    rows = pa.table({name: value for name, value in (columns | changes).items() if value is not None})
    with pytest.raises(UserError, match=re.escape(f"here: {message}")):
        stage(kind, negatives=2, documents=2).make_batch(rows, "here")


# Losses


def embeddings(*values: tuple[float, float]) -> Embeddings:
    """Texts of one token each."""
    vectors = torch.tensor(values).view(len(values), 1, 2)
    rows = torch.arange(len(values))
    return Embeddings.with_gradient(torch.zeros_like(vectors), rows, vectors, torch.ones(len(values), 1).bool())


QUERIES = ((1.0, 0.0), (0.6, 0.8))
DOCUMENTS = ((0.8, 0.6), (0.0, 1.0), (0.6, 0.8), (1.0, 0.0))


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_a_contrastive_loss_tells_each_querys_first_document_from_those_of_all(temperature: float | None) -> None:
    batch = Batch(["a", "b"], ["c", "d", "e", "f"])
    given = None if temperature is None else torch.tensor(temperature)
    loss = stage("supervised", temperature=0.25, gradient_scale=3.0).make_loss(batch, 2, given, CPU)
    terms = loss.partial_losses(embeddings(*QUERIES), [embeddings(*DOCUMENTS)])
    scores = torch.tensor(QUERIES) @ torch.tensor(DOCUMENTS).T
    expected = F.cross_entropy(scores / (temperature or 0.25), torch.tensor([0, 2]))
    torch.testing.assert_close(sum(terms), expected)
    assert (loss.over_all_documents, loss.scale) == (True, 3.0)


def test_a_distillation_compares_the_scores_of_each_querys_own_documents() -> None:
    teacher = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    batch = Batch(["a", "b"], ["c", "d", "e", "f"], teacher)
    loss = stage("distillation", documents=2).make_loss(batch, 2, None, CPU)
    (found,) = loss.partial_losses(embeddings(*QUERIES), [embeddings(*DOCUMENTS)])
    # The scores are 0.8 and 0, 1 and 0.6: both rows are stretched to 1 and 0.
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    expected = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")
    torch.testing.assert_close(found, expected)
    assert (loss.over_all_documents, loss.scale) == (False, 1.0)
