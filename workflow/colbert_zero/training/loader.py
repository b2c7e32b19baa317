"""Read and tokenise the batches of a stage: when a step needs them, or ahead of time in other threads."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

from pylate import models

from colbert_zero.data.batches import BatchPlan
from colbert_zero.machine.distributed import ProcessGroup
from colbert_zero.models.colbert import TokenizedTexts, tokenize
from colbert_zero.training.stages import Batch, Stage


@dataclass(frozen=True)
class LocalBatch:
    """One process's part of a batch.

    Attributes:
        batch: The texts.
        queries: The tokenised queries.
        documents: The tokenised documents.
    """

    batch: Batch
    queries: TokenizedTexts
    documents: TokenizedTexts


class BatchLoader:
    """Loads one process's part of each batch."""

    def __init__(self, plan: BatchPlan, stage: Stage, model: models.ColBERT, group: ProcessGroup, workers: int) -> None:
        """Prepare batches ahead of time with `workers` threads, or without any when `load` is called."""
        self._plan, self._stage, self._model, self._group = plan, stage, model, group
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers) if workers else None
        # Two threads cannot use one tokenizer at the same time.
        self._tokenizers: SimpleQueue[Any] = SimpleQueue()
        for _ in range(workers):
            self._tokenizers.put(deepcopy(model.tokenizer))
        if not workers:
            self._tokenizers.put(model.tokenizer)
        self._prefetched: dict[int, Future[LocalBatch]] = {}

    def load(self, step: int) -> LocalBatch:
        """This process's part of the batch of a step; the caller loads steps one after the other.

        Raises:
            UserError: The rows of the step lack something that the stage needs.
        """
        if self._pool is None:
            return self._prepare(step)
        for next_step in range(step, min(step + 1 + self._workers, len(self._plan))):
            if next_step not in self._prefetched:
                self._prefetched[next_step] = self._pool.submit(self._prepare, next_step)
        return self._prefetched.pop(step).result()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _prepare(self, step: int) -> LocalBatch:
        # Read the rows of all processes: where the plan does not say how many negatives a row gets, the one with the
        # fewest decides.
        batch = self._stage.make_batch(
            self._plan.read(step), self._plan.describe_step(step), self._plan.negatives(step)
        )
        batch = slice_batch(batch, self._group.local_slice(len(batch.queries)))
        tokenizer = self._tokenizers.get()
        try:
            return LocalBatch(
                batch,
                tokenize(self._model, batch.queries, True, self._stage.query_prompt, tokenizer),
                tokenize(self._model, batch.documents, False, self._stage.document_prompt, tokenizer),
            )
        finally:
            self._tokenizers.put(tokenizer)


def slice_batch(batch: Batch, rows: slice) -> Batch:
    """Some of the queries of a batch, with their documents."""
    per_query = len(batch.documents) // len(batch.queries)
    return replace(
        batch,
        queries=batch.queries[rows],
        documents=batch.documents[rows.start * per_query : rows.stop * per_query],
        teacher=None if batch.teacher is None else batch.teacher[rows],
    )
