"""Read the batches of a stage, and tokenise them: when they are needed, or ahead of time by other threads."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

from pylate import models

from colbert_zero.data.batches import Plan
from colbert_zero.machine.distributed import ProcessGroup
from colbert_zero.models.colbert import Tokens, tokenize
from colbert_zero.training.stages import Batch, Stage


@dataclass(frozen=True)
class Share:
    """What a process does of a step.

    Attributes:
        batch: Its texts.
        queries: The queries' tokens.
        documents: The documents'.
    """

    batch: Batch
    queries: Tokens
    documents: Tokens


class BatchLoader:
    """Hands out a process's shares of the steps."""

    def __init__(self, plan: Plan, stage: Stage, model: models.ColBERT, group: ProcessGroup, workers: int) -> None:
        """Prepare each share when it is asked for, or with `workers` threads ahead of that."""
        self._plan, self._stage, self._model, self._group = plan, stage, model, group
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers) if workers else None
        # A tokenizer cannot be used by two threads at once.
        self._tokenizers: SimpleQueue[Any] = SimpleQueue()
        for _ in range(workers):
            self._tokenizers.put(deepcopy(model.tokenizer))
        if not workers:
            self._tokenizers.put(model.tokenizer)
        self._ahead: dict[int, Future[Share]] = {}

    def get(self, step: int) -> Share:
        """The share of a step; steps are asked for one after the other.

        Raises:
            UserError: Its rows lack what the stage needs.
        """
        if self._pool is None:
            return self._prepare(step)
        for coming in range(step, min(step + 1 + self._workers, len(self._plan))):
            if coming not in self._ahead:
                self._ahead[coming] = self._pool.submit(self._prepare, coming)
        return self._ahead.pop(step).result()

    def close(self) -> None:
        """Prepare no more."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _prepare(self, step: int) -> Share:
        # All rows are read, since the poorest of them decides how many negatives each has.
        batch = self._stage.batch(self._plan.table(step), self._plan.where(step))
        batch = slice_batch(batch, self._group.local_slice(len(batch.queries)))
        tokenizer = self._tokenizers.get()
        try:
            return Share(
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
