"""What decides a stage besides its data, and what it makes of rows: texts, and a loss on their embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from colbert_zero.graph.console import UserError
from colbert_zero.models.colbert import Encoding
from colbert_zero.training.gradcache import Loss, contrastive_loss, distillation_loss
from colbert_zero.training.losses import Scorer, maxsim


@dataclass(frozen=True)
class Batch:
    """The texts of one step.

    Attributes:
        queries: One per row.
        documents: The same number per query, those of a query side by side, its positive first.
        teacher: Scores, queries x documents per query, in distillation.
    """

    queries: list[str]
    documents: list[str]
    teacher: Tensor | None = None


@dataclass(frozen=True)
class Stage:
    """What decides a stage, besides its data; the fields are the spec's settings.

    Attributes:
        stage: `unsupervised`, `supervised` or `distillation`.
        query_prompt: Put before each query.
        document_prompt: Put before each document.
        query_length: Most tokens of a query.
        document_length: Most tokens of a document.
        query_expansion: Whether queries are filled up with mask tokens.
        dimensions: Size of the embeddings, where the start has no projection.
        learning_rate: At the peak.
        warmup_ratio: Share of the steps during which it rises.
        weight_decay: Of matrices; vectors (norms, biases) have none.
        gradient_clip: Largest norm of a gradient; null for no limit.
        precision: `fp32` or `bf16`.
        seed: Decides the projection, if there is none yet, and dropout.
        temperature: Divides the scores in the contrastive stages.
        learnable_temperature: Whether it is a parameter that begins there (contrastive stages). As in the reference it
            is neither clipped nor decays.
        gradient: `exact`, or `reference` (unsupervised): multiplied by the batch size before it is clipped, as PyLate's
            CachedContrastive has it, which back-propagates a sum. With `gradient_clip` the step's size is then all but
            independent of the gradient's.
        negatives: Negatives per query, the first ones of each row's list (supervised); fewer in a step in which a row
            has fewer, since sources bring lists of different lengths.
        documents: Documents per query, the first ones of each row's list (distillation).
    """

    stage: str
    query_prompt: str
    document_prompt: str
    query_length: int
    document_length: int
    query_expansion: bool
    dimensions: int
    learning_rate: float
    warmup_ratio: float
    weight_decay: float
    gradient_clip: float | None
    precision: str
    seed: int
    temperature: float = 1.0
    learnable_temperature: bool = False
    gradient: str = "exact"
    negatives: int = 0
    documents: int = 0

    @property
    def encoding(self) -> Encoding:
        """How its texts become input."""
        return Encoding(**{name.name: getattr(self, name.name) for name in fields(Encoding)})

    def batch(self, table: pa.Table, where: str) -> Batch:
        """The texts of a table of rows.

        Args:
            table: The rows of one step.
            where: Which ones, for a message.

        Raises:
            UserError: They lack what the stage needs.
        """
        queries = _texts(table, "query", where)
        if self.stage == "unsupervised":
            return Batch(queries, _texts(table, "document", where))
        if self.stage == "supervised":
            positives = _texts(table, "document", where)
            count = max(1, min(self.negatives, _shortest(table, "negatives", where)))
            negatives = _lists(table, "negatives", count, where).to_pylist()
            documents = [
                text
                for row, positive in enumerate(positives)
                for text in (positive, *negatives[row * count : (row + 1) * count])
            ]
            return Batch(queries, documents)
        documents = _lists(table, "documents", self.documents, where).to_pylist()
        scores = _lists(table, "scores", self.documents, where).to_numpy(zero_copy_only=False).astype(np.float32)
        if not np.isfinite(scores).all():
            raise UserError(f"{where}: a teacher score is not finite; make the scores again")
        return Batch(queries, documents, torch.from_numpy(scores).view(len(queries), -1))

    def loss(
        self, batch: Batch, rows: int, temperature: Tensor | None, device: torch.device, scorer: Scorer = maxsim
    ) -> Loss:
        """What to make of the embeddings of a batch.

        Args:
            batch: A process's share of a step.
            rows: Of the whole step.
            temperature: The parameter, where there is one.
            device: Where to compute.
            scorer: What scores queries with the documents of all of them.
        """
        if batch.teacher is not None:
            return distillation_loss(batch.teacher.to(device), self.document_length)
        per_query = len(batch.documents) // len(batch.queries)
        scale = float(rows) if self.gradient == "reference" else 1.0
        return contrastive_loss(
            per_query, self.temperature if temperature is None else temperature, self.document_length, scale, scorer
        )

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step (from 0): up from 0 during warm-up, then down to 0, in straight lines."""
        warmup = math.ceil(steps * self.warmup_ratio)
        if step < warmup:
            return self.learning_rate * step / warmup
        return self.learning_rate * (steps - step) / max(1, steps - warmup)


def _column(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        there = ", ".join(table.column_names)
        raise UserError(f"{where}: no column {name!r}, which this stage needs; there is {there}")
    column = table[name]
    if column.null_count:
        raise UserError(f"{where}: {column.null_count} rows have no {name!r}")
    return column


def _texts(table: pa.Table, name: str, where: str) -> list[str]:
    texts: list[str] = _column(table, name, where).to_pylist()
    return texts


def _shortest(table: pa.Table, name: str, where: str) -> int:
    """The length of the shortest list."""
    shortest: int = pc.min(pc.list_value_length(_column(table, name, where))).as_py()
    return shortest


def _lists(table: pa.Table, name: str, count: int, where: str) -> pa.Array:
    """The first `count` of each row's list, flat."""
    shortest = _shortest(table, name, where)
    if shortest < count:
        raise UserError(f"{where}: a row has {shortest} {name}, the stage uses {count} of each; lower it or mine more")
    column = _column(table, name, where).combine_chunks()
    flat = pc.list_flatten(pc.list_slice(column, 0, count))
    if flat.null_count:
        raise UserError(f"{where}: {flat.null_count} null values in {name!r}")
    return flat
