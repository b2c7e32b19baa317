"""The gradient of one training step of any batch size (GradCache, Gao et al. 2021), with little padding.

`GradCache` encodes the texts in chunks of similar length, computes the loss on the embeddings, and propagates the
gradient of the embeddings through the model chunk by chunk: through the graph of the first forward pass if memory
allows to keep that graph, else through the graph of a second forward pass. Both give the same gradient up to rounding.

For models with dropout, each chunk's masks are drawn from the seed, the step and the chunk's number. Both forward
passes therefore draw the same masks, and so does a resumed run. Another chunk size or another number of processes draws
other masks, as another seed would.

Several processes share a step's queries. Each process encodes its own queries and their documents. Where a loss scores
a query with the documents of all queries, the processes exchange the document embeddings, and the gradients of the
embeddings return to the process that encoded the documents.

How many texts are scored at once does not follow from how many are encoded at once: on a GPU, a loss that scored small
blocks would wait for the start of its many kernels longer than they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pylate import models
from torch import Tensor

from colbert_zero.graph.console import UserError, log
from colbert_zero.graph.draws import draw
from colbert_zero.machine.distributed import SINGLE_PROCESS, ProcessGroup
from colbert_zero.models.colbert import TokenizedTexts, embed, scoring_mask, split_by_length
from colbert_zero.training.losses import Scorer, contrastive, distillation, maxsim, maxsim_pairs

T = TypeVar("T")

PAIRS_PER_BLOCK = {"cpu": 2**24, "cuda": 2**28}
"""By device, how many (query token, document) pairs are in memory between a loss and its gradient: of each the largest
similarity and its place, 8 bytes (128 MiB, 2 GiB)."""
TOKENS_SCORED = {"cpu": 1, "cuda": 2**17}
"""By device, padded tokens of documents that are scored at once, in whole chunks, and at least one."""
MINIMUM_TOKENS_PER_CHUNK = 64
"""Do not halve `tokens_per_chunk` below this number of padded tokens."""


@dataclass(frozen=True)
class MemoryBudget:
    """How much is computed at once: less takes more time and less memory.

    Attributes:
        tokens_per_chunk: Padded tokens that the model encodes at once.
        tokens_in_memory: The graph of the first forward pass is kept if the step has at most this many padded tokens;
            a second forward pass is then not needed.
    """

    tokens_per_chunk: int
    tokens_in_memory: int


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of some texts of a step.

    Attributes:
        rows: The number of each text in the step; on the device.
        vectors: Texts x tokens x dimensions; a leaf of the graph, with its own gradient.
        mask: Which tokens count; boolean.
    """

    rows: Tensor
    vectors: Tensor
    mask: Tensor

    @classmethod
    def with_gradient(cls, gradient: Tensor, rows: Tensor, vectors: Tensor, mask: Tensor) -> Embeddings:
        """Detach embeddings from their graph, and have autograd add their gradient to the buffer `gradient`."""
        leaf = vectors.detach().requires_grad_()
        # Autograd adds to an existing gradient in place.
        leaf.grad = gradient
        return cls(rows, leaf, mask)

    def slice_rows(self, rows: slice) -> Embeddings:
        """Some of the texts; their gradient is added to the same rows of this object's gradient.

        If autograd recorded the slice, the backward pass of each slice would allocate a gradient of all texts, with
        zeros everywhere else.
        """
        gradient = self.vectors.grad
        assert gradient is not None
        return Embeddings.with_gradient(gradient[rows], self.rows[rows], self.vectors[rows], self.mask[rows])


@dataclass(frozen=True)
class Loss:
    """The loss of some queries.

    Attributes:
        partial_losses: Given the queries in their order and the documents in chunks, yields terms whose sum is the
            loss.
        over_all_documents: Whether each query is scored with the documents of all queries of a step (in-batch
            negatives), not only with its own.
        scale: Factor of the gradient; the value of the loss is not scaled.
    """

    partial_losses: Callable[[Embeddings, list[Embeddings]], Iterable[Tensor]]
    over_all_documents: bool
    scale: float = 1.0


def contrastive_loss(
    per_query: int, temperature: float | Tensor, padded_to: int, scale: float = 1.0, scorer: Scorer = maxsim
) -> Loss:
    """InfoNCE over all documents of a step; the first of each query's `per_query` documents is its positive.

    If `temperature` is a parameter, it gets a gradient, too. `scorer` scores queries with documents.
    """
    partial_losses = partial(
        _contrastive_terms, per_query=per_query, temperature=temperature, padded_to=padded_to, scorer=scorer
    )
    return Loss(partial_losses, over_all_documents=True, scale=scale)


def distillation_loss(
    teacher: Tensor, padded_to: int, student_temperature: float = 1.0, teacher_temperature: float = 1.0
) -> Loss:
    """KL divergence from the teacher's scores (queries x documents) of each query's own documents."""
    partial_losses = partial(
        _distillation_terms,
        teacher=teacher,
        padded_to=padded_to,
        temperatures=(student_temperature, teacher_temperature),
    )
    return Loss(partial_losses, over_all_documents=False)


def _contrastive_terms(
    queries: Embeddings,
    documents: list[Embeddings],
    per_query: int,
    temperature: float | Tensor,
    padded_to: int,
    scorer: Scorer,
) -> Iterator[Tensor]:
    # The column of each document in the scores.
    columns = torch.cat([chunk.rows for chunk in documents]).argsort()
    count = len(queries.rows)
    # A query's loss needs only this query's scores: compute one block of queries after the other, and keep no scores.
    pairs = PAIRS_PER_BLOCK[columns.device.type]
    block_size = max(1, pairs // (queries.mask.shape[1] * len(columns)))
    for first in range(0, count, block_size):
        block = queries.slice_rows(slice(first, first + block_size))
        scores = torch.cat(
            [scorer(block.vectors, block.mask, chunk.vectors, chunk.mask, padded_to) for chunk in documents], dim=1
        )
        yield contrastive(scores, columns[block.rows * per_query], temperature) * (len(scores) / count)


def _distillation_terms(
    queries: Embeddings,
    documents: list[Embeddings],
    teacher: Tensor,
    padded_to: int,
    temperatures: tuple[float, float],
) -> Iterator[Tensor]:
    scores = []
    for chunk in documents:
        query_rows = chunk.rows // teacher.shape[1]
        scores.append(
            maxsim_pairs(queries.vectors[query_rows], queries.mask[query_rows], chunk.vectors, chunk.mask, padded_to)
        )
    columns = torch.cat([chunk.rows for chunk in documents]).argsort()
    yield distillation(torch.cat(scores)[columns].view_as(teacher), teacher, *temperatures)


@dataclass(frozen=True)
class _Chunk:
    """Texts that are encoded at once: their rows, the model's input, the tokens that count, the seed of dropout."""

    rows: npt.NDArray[np.int64]
    features: dict[str, Tensor]
    mask: Tensor
    dropout_seed: int


def _scored_together(chunks: Sequence[_Chunk], tokens: int) -> Iterator[list[_Chunk]]:
    """Join neighbouring chunks, the widest first, while their texts have at most `tokens` tokens at one width."""
    together: list[_Chunk] = []
    texts = 0
    for chunk in chunks:
        if together and (texts + len(chunk.rows)) * together[0].mask.shape[1] > tokens:
            yield together
            together, texts = [], 0
        together.append(chunk)
        texts += len(chunk.rows)
    yield together


class _StepDocuments:
    """The documents that a process scores, its own or those of all processes, in the chunks that it scores at once.

    One buffer holds the embeddings, another the gradients that a loss adds to. Chunks that were encoded one by one and
    are scored together stand below each other, each padded to the widest of them.
    """

    def __init__(
        self, group: ProcessGroup, chunks: Sequence[_Chunk], vectors: Sequence[Tensor], first_row: int, tokens: int
    ) -> None:
        """Copy the embeddings of this process's chunks, and exchange them with those of the other processes.

        Args:
            group: The processes whose documents are scored.
            chunks: This process's documents, the longest first.
            vectors: Their embeddings.
            first_row: The number in the step of this process's first document.
            tokens: How many padded tokens are scored at once, see `TOKENS_SCORED`.
        """
        self._group = group
        self._local_shapes = [[chunk.mask.shape for chunk in found] for found in _scored_together(chunks, tokens)]
        rows = np.concatenate([chunk.rows for chunk in chunks])
        ends = np.cumsum([sum(count for count, _ in shapes) for shapes in self._local_shapes])
        self._rows_by_rank = group.all_gather_object(
            [
                (first_row + own, shapes[0][1])
                for own, shapes in zip(np.split(rows, ends[:-1]), self._local_shapes, strict=True)
            ]
        )
        self._tokens_by_rank = [sum(len(own) * width for own, width in parts) for parts in self._rows_by_rank]
        total = sum(self._tokens_by_rank)
        self._vectors = vectors[0].new_zeros(total, vectors[0].shape[2])
        self._mask = chunks[0].mask.new_zeros(total)
        views = zip(chunks, vectors, self._local_views(self._vectors), self._local_views(self._mask), strict=True)
        for chunk, vector, vector_view, mask_view in views:
            vector_view.copy_(vector.detach())
            mask_view.copy_(chunk.mask)
        for buffer in (self._vectors, self._mask):
            group.all_gather(buffer.split_with_sizes(self._tokens_by_rank))

    def with_gradient(self) -> list[Embeddings]:
        """The chunks that are scored at once, numbered throughout the step; a loss adds their gradients to a buffer."""
        self._gradient = torch.zeros_like(self._vectors)
        documents = []
        start = 0
        for rows, width in (part for parts in self._rows_by_rank for part in parts):
            tokens = slice(start, start + len(rows) * width)
            start = tokens.stop
            gradient, vectors = (
                buffer[tokens].view(len(rows), width, -1) for buffer in (self._gradient, self._vectors)
            )
            step_rows = torch.from_numpy(rows).to(self._mask.device)
            documents.append(Embeddings.with_gradient(gradient, step_rows, vectors, self._mask[tokens].view(-1, width)))
        return documents

    def local_gradients(self) -> list[Tensor]:
        """The gradients of this process's documents, summed over the losses of all processes, by chunk."""
        self._group.reduce_scatter(self._gradient.split_with_sizes(self._tokens_by_rank))
        return self._local_views(self._gradient)

    def _local_views(self, buffer: Tensor) -> list[Tensor]:
        """This process's part of a buffer, as one view per encoded chunk with the chunk's shape."""
        views = []
        own = buffer.split_with_sizes(self._tokens_by_rank)[self._group.rank]
        for (rows, width), shapes in zip(self._rows_by_rank[self._group.rank], self._local_shapes, strict=True):
            scored, own = own.split_with_sizes([len(rows) * width, len(own) - len(rows) * width])
            texts = scored.view(len(rows), width, *scored.shape[1:]).split_with_sizes([count for count, _ in shapes])
            views += [view[:, :own_width] for view, (_, own_width) in zip(texts, shapes, strict=True)]
        return views


class GradCache:
    """Computes the loss and the gradient of each training step of a model.

    Attributes:
        budget: How much is computed at once; `lower_budget` lowers it.
    """

    def __init__(
        self,
        model: models.ColBERT,
        budget: MemoryBudget,
        precision: str = "fp32",
        seed: int = 0,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        """Compute for `model` within `budget`; `seed` decides dropout.

        With the precision `bf16`, the model computes under autocast; embeddings are normalised, scored and their loss
        is computed in fp32, as in the reference.
        """
        self.model, self.budget, self.seed, self.bf16, self.group = model, budget, seed, precision == "bf16", group
        self.device = torch.device(model.device)
        self._step_tokens, self._graph_kept = 0, False

    def backward(
        self,
        step: int,
        queries: TokenizedTexts,
        documents: TokenizedTexts,
        loss: Loss,
        query_count: int | None = None,
    ) -> float:
        """Add this process's part of a step's gradient to the parameters' gradients; the parts of all ranks add up.

        Args:
            step: The number of the step; decides dropout.
            queries: This process's share of the step's queries.
            documents: Their documents, the same number for each query.
            loss: Computes the loss from the embeddings; a mean over queries.
            query_count: How many queries the whole step has; by default `len(queries)`.

        Returns:
            This process's part of the loss.

        Raises:
            torch.OutOfMemoryError: In this process or another; the gradients are then undefined.
        """
        query_chunks = self._make_chunks(step, queries, is_query=True)
        document_chunks = self._make_chunks(step, documents, is_query=False)
        chunks = [*query_chunks, *document_chunks]
        self._step_tokens = sum(chunk.mask.numel() for chunk in chunks)
        keep_graph = self._graph_kept = self._step_tokens <= self.budget.tokens_in_memory
        with torch.set_grad_enabled(keep_graph):
            vectors = self._run_on_all(lambda: [self._embed(chunk) for chunk in chunks])
        local_rows, first_document, group = slice(0, len(queries)), 0, SINGLE_PROCESS
        if loss.over_all_documents:
            group = self.group
            local_rows = group.local_slice(query_count or len(queries))
            first_document = local_rows.start * (len(documents) // len(queries))
        # The loss works on detached copies; their gradients are propagated through the model below.
        query_embeddings = self._join_queries(local_rows, query_chunks, vectors[: len(query_chunks)])
        step_documents = _StepDocuments(
            group, document_chunks, vectors[len(query_chunks) :], first_document, TOKENS_SCORED[self.device.type]
        )
        if not keep_graph:
            vectors.clear()
        weight = len(queries) / (query_count or len(queries))
        total = self._run_on_all(
            lambda: self._backward_through_loss(loss, query_embeddings, step_documents.with_gradient(), weight)
        )
        query_gradient = query_embeddings.vectors.grad
        assert query_gradient is not None
        gradients = [query_gradient[self._device_rows(chunk), : chunk.mask.shape[1]] for chunk in query_chunks]
        gradients += step_documents.local_gradients()
        self._run_on_all(lambda: self._backward_through_model(chunks, vectors, gradients))
        return total

    def lower_budget(self) -> None:
        """Compute less at once from now on, after `backward` has run out of memory.

        Raises:
            UserError: The budget cannot be lowered any further.
        """
        if self._graph_kept:
            self.budget = replace(self.budget, tokens_in_memory=self._step_tokens // 2)
        elif self.budget.tokens_per_chunk // 2 >= MINIMUM_TOKENS_PER_CHUNK:
            self.budget = replace(self.budget, tokens_per_chunk=self.budget.tokens_per_chunk // 2)
        else:
            raise UserError(
                f"out of memory with {self.budget.tokens_per_chunk} tokens at once: take a GPU with more memory, or "
                "more GPUs, or lower batch_size or document_length"
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.info(
            "out of memory: from now on %d padded tokens at once, and a second forward pass beyond %d",
            self.budget.tokens_per_chunk,
            self.budget.tokens_in_memory,
        )

    def _run_on_all(self, work: Callable[[], T]) -> T:
        """Do `work`, which calls no collective; if one process runs out of memory, all of them raise.

        `ProcessGroup.run_on_all` would raise a RetryableError in the other processes, not `torch.OutOfMemoryError`.
        """
        result: list[T] = []
        # Raise a new error below: the traceback of the first one keeps the tensors of `work` in memory.
        with suppress(torch.OutOfMemoryError):
            result.append(work())
        if self.group.any_rank(not result)[0]:
            raise torch.OutOfMemoryError
        return result[0]

    def _backward_through_loss(
        self, loss: Loss, queries: Embeddings, documents: list[Embeddings], weight: float
    ) -> float:
        """Propagate this process's part of the loss back to the embeddings, and return that part's value."""
        total = 0.0
        for term in loss.partial_losses(queries, documents):
            torch.autograd.backward(term, term.new_tensor(weight * loss.scale))
            total += term.item() * weight
        return total

    def _backward_through_model(self, chunks: list[_Chunk], vectors: list[Tensor], gradients: list[Tensor]) -> None:
        """Propagate the embeddings' gradients to the parameters, through `vectors` if kept, else encoding again."""
        if vectors:
            torch.autograd.backward(vectors, gradients)
            return
        for chunk, gradient in zip(chunks, gradients, strict=True):
            torch.autograd.backward(self._embed(chunk), gradient)

    def _make_chunks(self, step: int, tokens: TokenizedTexts, is_query: bool) -> list[_Chunk]:
        chunks = []
        for number, rows in enumerate(split_by_length(tokens, self.budget.tokens_per_chunk)):
            features = {name: tensor.to(self.device) for name, tensor in tokens.pad(rows).items()}
            rank = [self.group.rank] if self.group.rank else []
            dropout_seed = draw(self.seed, "dropout", step, "query" if is_query else "document", number, *rank)
            chunks.append(_Chunk(rows, features, scoring_mask(self.model, features, is_query), dropout_seed))
        return chunks

    def _embed(self, chunk: _Chunk) -> Tensor:
        torch.manual_seed(chunk.dropout_seed)
        return embed(self.model, chunk.features, self.bf16)

    def _device_rows(self, chunk: _Chunk) -> Tensor:
        return torch.from_numpy(chunk.rows).to(self.device)

    def _join_queries(self, local_rows: slice, chunks: list[_Chunk], vectors: list[Tensor]) -> Embeddings:
        """Join the queries of all chunks in their order; queries are short, so padding them together costs little."""
        count, width = local_rows.stop - local_rows.start, max(chunk.mask.shape[1] for chunk in chunks)
        joined = vectors[0].new_zeros(count, width, vectors[0].shape[2])
        mask = torch.zeros(count, width, dtype=torch.bool, device=self.device)
        for chunk, vector in zip(chunks, vectors, strict=True):
            rows = self._device_rows(chunk)
            joined[rows, : vector.shape[1]] = vector.detach()
            mask[rows, : vector.shape[1]] = chunk.mask
        step_rows = torch.arange(local_rows.start, local_rows.stop, device=self.device)
        return Embeddings.with_gradient(torch.zeros_like(joined), step_rows, joined, mask)
