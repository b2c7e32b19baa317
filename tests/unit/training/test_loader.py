"""What a process loads of a step: its share of the rows, tokenised as queries and documents, in time and no earlier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from colbert_zero.machine.distributed import SINGLE_PROCESS, ProcessGroup
from colbert_zero.models.colbert import tokenize
from colbert_zero.training import train
from colbert_zero.training.loader import BatchLoader, slice_batch
from colbert_zero.training.stages import Batch
from colbert_zero.training.trainer import Trainer
from tiny_stages import BATCH_SIZE, job, model_spec

pytestmark = pytest.mark.usefixtures("study")


class SecondOfTwo(ProcessGroup):
    rank, size = 1, 2


@pytest.fixture
def trainer(modernbert: Path) -> Trainer:
    return train._build_trainer(job(model_spec(modernbert, "supervised"), Path("out")), "cpu")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_tokenised_as_queries_and_documents(trainer: Trainer, workers: int) -> None:
    loader = BatchLoader(trainer.plan, trainer.stage, trainer.model, SINGLE_PROCESS, workers)
    loaded = loader.load(0)
    loader.close()
    assert (len(loaded.batch.queries), len(loaded.batch.documents)) == (BATCH_SIZE, 3 * BATCH_SIZE)
    queries = tokenize(trainer.model, loaded.batch.queries, True, "search_query: ")
    documents = tokenize(trainer.model, loaded.batch.documents, False, "search_document: ")
    for found, expected in ((loaded.queries, queries), (loaded.documents, documents)):
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.lengths, expected.lengths)


def test_each_process_loads_its_own_rows(trainer: Trainer) -> None:
    whole = trainer.loader.load(0).batch
    half = BatchLoader(trainer.plan, trainer.stage, trainer.model, SecondOfTwo(), 0).load(0).batch
    assert half.queries == whole.queries[BATCH_SIZE // 2 :]
    assert half.documents == whole.documents[3 * BATCH_SIZE // 2 :]


def test_queries_keep_their_documents_and_teacher_scores() -> None:
    teacher = torch.arange(8.0).view(4, 2)
    batch = Batch(["a", "b", "c", "d"], ["a1", "a2", "b1", "b2", "c1", "c2", "d1", "d2"], teacher)
    part = slice_batch(batch, slice(1, 3))
    assert (part.queries, part.documents) == (["b", "c"], ["b1", "b2", "c1", "c2"])
    assert part.teacher is not None
    assert torch.equal(part.teacher, teacher[1:3])
    assert slice_batch(Batch(["a", "b"], ["a1", "b1"]), slice(1, 2)) == Batch(["b"], ["b1"])


def test_as_many_steps_are_prepared_ahead_as_there_are_threads_and_none_beyond_the_end(trainer: Trainer) -> None:
    loader = BatchLoader(trainer.plan, trainer.stage, trainer.model, SINGLE_PROCESS, 2)
    ahead = []
    for step in range(len(trainer.plan)):
        loader.load(step)
        ahead.append(list(loader._prefetched))
    loader.close()
    assert ahead == [[1, 2], [2, 3], [3, 4], [4, 5], [5, 6], [6, 7], [7], []]
