"""Read the batches of a stage, and tokenise them: when they are needed, or ahead of time by other threads."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pylate import models

from colbert_zero.artifact import Artifact, Job
from colbert_zero.colbert import Tokens, tokenize
from colbert_zero.processes import Group
from colbert_zero.rows import RowReader
from colbert_zero.stages import Batch, Stage


class Plan:
    """The batches of a stage, read from `batches` and `rows`; by several threads, if need be."""

    def __init__(self, job: Job) -> None:
        """Open the job's plan and rows."""
        batches = job.input("batches")
        self.readers = [RowReader(artifact) for artifact in job.inputs("rows")]
        self.size: int = batches.spec.settings["batch_size"]
        self.epochs: int = batches.spec.settings["epochs"]
        table = pq.read_table(batches.file("plan.parquet"), columns=["rows", "start"])
        self._rows, self._start = table["rows"].to_numpy(), table["start"].to_numpy()
        self._reading = Lock()

    def __len__(self) -> int:
        """The number of steps."""
        return len(self._rows)

    def source(self, step: int) -> Artifact:
        """Where the rows of a step come from."""
        return self.readers[int(self._rows[step])].artifact

    def where(self, step: int) -> str:
        """Which rows a step has, for a message."""
        return f"{self.source(step).name}, {self.size} rows from row {self._start[step]}"

    def table(self, step: int) -> pa.Table:
        """The rows of a step."""
        start = int(self._start[step])
        with self._reading:
            return self.readers[int(self._rows[step])].read(start, start + self.size)


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


class Loader:
    """Hands out a process's shares of the steps."""

    def __init__(self, plan: Plan, stage: Stage, model: models.ColBERT, group: Group, workers: int) -> None:
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

    def take(self, step: int) -> Share:
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
        batch = part_of(batch, self._group.share(len(batch.queries)))
        tokenizer = self._tokenizers.get()
        try:
            return Share(
                batch,
                tokenize(self._model, batch.queries, True, self._stage.query_prompt, tokenizer),
                tokenize(self._model, batch.documents, False, self._stage.document_prompt, tokenizer),
            )
        finally:
            self._tokenizers.put(tokenizer)


def part_of(batch: Batch, rows: slice) -> Batch:
    """Some of the queries of a batch, with their documents."""
    per_query = len(batch.documents) // len(batch.queries)
    return replace(
        batch,
        queries=batch.queries[rows],
        documents=batch.documents[rows.start * per_query : rows.stop * per_query],
        teacher=None if batch.teacher is None else batch.teacher[rows],
    )
