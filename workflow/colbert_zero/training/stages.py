"""The settings of a stage, and how the stage makes a batch of rows and a loss of the batch's embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from colbert_zero.graph.console import UserError
from colbert_zero.models.colbert import EncodingSettings
from colbert_zero.training.gradcache import Loss, contrastive_loss, distillation_loss
from colbert_zero.training.losses import Scorer, maxsim


@dataclass(frozen=True)
class Batch:
    """The texts of one step.

    Attributes:
        queries: One per row.
        documents: The same number per query; the documents of a query stand side by side, its positive first.
        teacher: The teacher scores in distillation, queries x documents per query; else None.
    """

    queries: list[str]
    documents: list[str]
    teacher: Tensor | None = None


@dataclass(frozen=True)
class Stage:
    """The settings of a stage; the fields are the settings of the spec.

    Attributes:
        stage: `unsupervised`, `supervised` or `distillation`.
        query_prompt: Put before each query.
        document_prompt: Put before each document.
        query_length: Maximum number of tokens of a query.
        document_length: Maximum number of tokens of a document.
        query_expansion: Whether queries are filled up with mask tokens.
        dimensions: Size of the embeddings, if the start model has no projection.
        learning_rate: The peak of the learning rate.
        warmup_ratio: Share of the steps during which the learning rate rises.
        weight_decay: Weight decay of matrices; vectors (norms, biases) do not decay.
        gradient_clip: Maximum norm of the gradient; null for no limit.
        precision: `fp32` or `bf16`.
        seed: Decides the projection, if the start model has none, and dropout.
        temperature: Divides the scores in the contrastive stages.
        learnable_temperature: Whether the temperature is a parameter with `temperature` as its initial value
            (contrastive stages). As in the reference, its gradient is not clipped. Unlike in the reference, its
            gradient begins at 0 in each step (there it is the sum of all steps so far, since only the model's gradients
            are zeroed), is that of the whole step (there each process follows that of its own queries), does not decay
            (there it does, with `weight_decay`), and resumes where it was (there, at `temperature`).
        gradient: `exact`, or `reference` (unsupervised): the gradient is multiplied by the batch size before it is
            clipped, as in PyLate's CachedContrastive, which back-propagates a sum. With `gradient_clip` the size of an
            update then hardly depends on the size of the gradient.
        gradient_scale: Factor of the gradient, before it is clipped (supervised). The reference's Contrastive on W GPUs
            that gather their documents has W times the gradient of the mean: it multiplies each loss by W, and again
            each GPU's document gets the gradients of all losses. It does not depend on how many processes train here.
        negatives: Negatives per query, the first ones of each row's list (supervised). The plan of the batches says how
            many a source gives, at most this number; without it, the row of a step with the fewest decides.
        documents: Documents per query, the first ones of each row's list (distillation).
        student_temperature: Divides the student's scores, once they are normalised (distillation).
        teacher_temperature: Divides the teacher's scores (distillation).
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
    gradient_scale: float = 1.0
    negatives: int = 0
    documents: int = 0
    student_temperature: float = 1.0
    teacher_temperature: float = 1.0

    @property
    def encoding(self) -> EncodingSettings:
        """The settings that decide how texts become the model's input."""
        return EncodingSettings(**{name.name: getattr(self, name.name) for name in fields(EncodingSettings)})

    def make_batch(self, table: pa.Table, where: str, planned_negatives: int | None = None) -> Batch:
        """Make a batch of a table of rows.

        Args:
            table: The rows of one step.
            where: Names the rows in error messages.
            planned_negatives: How many negatives the plan of the batches gives to each row, if it says so.

        Raises:
            UserError: The rows lack something that the stage needs.
        """
        queries = _text_column(table, "query", where)
        if self.stage == "unsupervised":
            return Batch(queries, _text_column(table, "document", where))
        if self.stage == "supervised":
            positives = _text_column(table, "document", where)
            count = planned_negatives or max(1, min(self.negatives, _shortest_list(table, "negatives", where)))
            negatives = _first_items(table, "negatives", count, where).to_pylist()
            documents = [
                text
                for row, positive in enumerate(positives)
                for text in (positive, *negatives[row * count : (row + 1) * count])
            ]
            return Batch(queries, documents)
        documents = _first_items(table, "documents", self.documents, where).to_pylist()
        scores = _first_items(table, "scores", self.documents, where).to_numpy().astype(np.float32)
        if not np.isfinite(scores).all():
            raise UserError(f"{where}: a teacher score is not finite; make the scores again")
        return Batch(queries, documents, torch.from_numpy(scores).view(len(queries), -1))

    def make_loss(
        self, batch: Batch, batch_size: int, temperature: Tensor | None, device: torch.device, scorer: Scorer = maxsim
    ) -> Loss:
        """Make the loss that is computed from the embeddings of a batch.

        Args:
            batch: One process's part of the batch of a step.
            batch_size: The number of rows of the whole step.
            temperature: The learnable temperature, or None to use the setting.
            device: The device of the embeddings.
            scorer: Scores each query with the documents of all queries.
        """
        if batch.teacher is not None:
            return distillation_loss(
                batch.teacher.to(device), self.document_length, self.student_temperature, self.teacher_temperature
            )
        per_query = len(batch.documents) // len(batch.queries)
        return contrastive_loss(
            per_query,
            self.temperature if temperature is None else temperature,
            self.document_length,
            self.gradient_factor(batch_size),
            scorer,
        )

    def gradient_factor(self, batch_size: int) -> float:
        """By what the gradient of the mean loss of `batch_size` rows is multiplied before it is clipped."""
        return float(batch_size if self.gradient == "reference" else self.gradient_scale)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step (from 0): rises linearly from 0 during warm-up, then falls linearly to 0."""
        warmup_steps = math.ceil(steps * self.warmup_ratio)
        if step < warmup_steps:
            return self.learning_rate * step / warmup_steps
        return self.learning_rate * (steps - step) / (steps - warmup_steps)


def _column(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        names = ", ".join(table.column_names)
        raise UserError(f"{where}: no column {name!r}, which this stage needs; the columns are {names}")
    column = table[name]
    if column.null_count:
        raise UserError(f"{where}: {column.null_count} rows have no {name!r}")
    return column


def _text_column(table: pa.Table, name: str, where: str) -> list[str]:
    texts: list[str] = _column(table, name, where).to_pylist()
    return texts


def _shortest_list(table: pa.Table, name: str, where: str) -> int:
    """The length of the shortest list of a column."""
    shortest: int = pc.min(pc.list_value_length(_column(table, name, where))).as_py()
    return shortest


def _first_items(table: pa.Table, name: str, count: int, where: str) -> pa.Array:
    """The first `count` items of each row's list, in one flat array."""
    shortest = _shortest_list(table, name, where)
    if shortest < count:
        raise UserError(
            f"{where}: a row has {shortest} {name}, the stage uses {count} per row; lower that setting or mine more"
        )
    column = _column(table, name, where).combine_chunks()
    flat = pc.list_flatten(pc.list_slice(column, 0, count))
    if flat.null_count:
        raise UserError(f"{where}: {flat.null_count} null values in {name!r}")
    return flat
