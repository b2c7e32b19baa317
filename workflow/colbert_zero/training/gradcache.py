"""The gradient of a step, however many texts it has (GradCache, Gao et al. 2021), without needless padding.

The texts are encoded in chunks of similar length. The loss is computed on the embeddings, and its gradient goes back
into the model chunk by chunk: through the graph of the first pass where memory allows to keep it, else through a
second pass. The result is the same but for rounding.

Where a model drops out, each chunk's masks are drawn anew from the seed, the step and the chunk's number. So both
passes draw the same, and so does a resumed run; but another size of chunks draws other masks, as another seed would,
and so does another number of processes.

Several processes share a step's queries. Each encodes its own and their documents. Where a query is scored with the
documents of all queries, their embeddings are exchanged, and the gradients of these go back to where they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
from colbert_zero.models.colbert import Tokens, embed, scored
from colbert_zero.training.losses import Scorer, contrastive, distillation, maxsim, maxsim_pairs

T = TypeVar("T")

PAIRS = 2**24
"""How many (query token, document) pairs are held between a loss and its gradient (128 MiB)."""
MINIMUM_TOKENS_PER_CHUNK = 64
"""Padded tokens at once below which it makes no sense to go on halving."""


@dataclass(frozen=True)
class MemoryBudget:
    """How much is computed at once. They decide time and memory.

    Attributes:
        tokens_per_chunk: Padded tokens that the model encodes at once.
        tokens_in_memory: Padded tokens of a step up to which the first pass keeps its graph, so that no second one is needed.
    """

    tokens_per_chunk: int
    tokens_in_memory: int


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of some of a step's texts.

    Attributes:
        rows: Which texts, by their number in the step; on the device.
        vectors: Texts x tokens x dimensions; has a gradient of its own.
        mask: Which tokens count; boolean.
    """

    rows: Tensor
    vectors: Tensor
    mask: Tensor

    @classmethod
    def into(cls, gradient: Tensor, rows: Tensor, vectors: Tensor, mask: Tensor) -> Embeddings:
        """Embeddings, cut off from what they come from, whose gradient is added up in `gradient`."""
        leaf = vectors.detach().requires_grad_()
        # Autograd adds to a gradient that is there, in place.
        leaf.grad = gradient
        return cls(rows, leaf, mask)

    def part(self, some: slice) -> Embeddings:
        """Some of the texts, whose gradient is added to its place in this one's.

        As a slice that autograd knew of, each of them would bring a gradient of all texts, zeros but for its own.
        """
        gradient = self.vectors.grad
        assert gradient is not None
        return Embeddings.into(gradient[some], self.rows[some], self.vectors[some], self.mask[some])


@dataclass(frozen=True)
class Loss:
    """The loss of some queries.

    Attributes:
        parts: Of queries in their order and documents in chunks: parts of the loss, which is their sum.
        over_all: Whether a query is scored with the documents of all queries of a step, not only with its own.
        scale: What the gradient, and it alone, is multiplied by.
    """

    parts: Callable[[Embeddings, list[Embeddings]], Iterable[Tensor]]
    over_all: bool
    scale: float = 1.0


def contrastive_loss(
    per_query: int, temperature: float | Tensor, padded_to: int, scale: float = 1.0, scorer: Scorer = maxsim
) -> Loss:
    """InfoNCE over all documents of a step; the first of each query's `per_query` documents is its positive.

    A `temperature` that is a parameter gets a gradient, too. `scorer` scores queries with documents.
    """
    parts = partial(_contrastive, per_query=per_query, temperature=temperature, padded_to=padded_to, scorer=scorer)
    return Loss(parts, over_all=True, scale=scale)


def distillation_loss(teacher: Tensor, padded_to: int) -> Loss:
    """KL divergence from the teacher's scores (queries x documents) of each query's own documents."""
    return Loss(partial(_distillation, teacher=teacher, padded_to=padded_to), over_all=False)


def _contrastive(
    queries: Embeddings,
    documents: list[Embeddings],
    per_query: int,
    temperature: float | Tensor,
    padded_to: int,
    scorer: Scorer,
) -> Iterator[Tensor]:
    column = torch.cat([chunk.rows for chunk in documents]).argsort()
    count = len(queries.rows)
    # A query's loss needs only its own scores: a block of queries after the other, none of them held any longer.
    step = max(1, PAIRS // (queries.mask.shape[1] * len(column)))
    for first in range(0, count, step):
        block = queries.part(slice(first, first + step))
        scores = torch.cat(
            [scorer(block.vectors, block.mask, chunk.vectors, chunk.mask, padded_to) for chunk in documents], dim=1
        )
        yield contrastive(scores, column[block.rows * per_query], temperature) * (len(scores) / count)


def _distillation(
    queries: Embeddings, documents: list[Embeddings], teacher: Tensor, padded_to: int
) -> Iterator[Tensor]:
    scores = []
    for chunk in documents:
        owners = chunk.rows // teacher.shape[1]
        scores.append(maxsim_pairs(queries.vectors[owners], queries.mask[owners], chunk.vectors, chunk.mask, padded_to))
    column = torch.cat([chunk.rows for chunk in documents]).argsort()
    yield distillation(torch.cat(scores)[column].view_as(teacher), teacher)


def chunks(tokens: Tokens, size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Split texts into groups of similar length, of at most `size` padded tokens each or of one text."""
    order = np.argsort(-tokens.lengths, kind="stable")
    first = 0
    while first < len(order):
        width = max(int(tokens.lengths[order[first]]), tokens.width)
        count = max(1, size // width)
        yield order[first : first + count]
        first += count


@dataclass(frozen=True)
class _Chunk:
    rows: npt.NDArray[np.int64]
    features: dict[str, Tensor]
    mask: Tensor
    seed: int


class _GatheredDocuments:
    """The documents of all processes: their embeddings in one buffer, and the gradients of these in another.

    Attributes:
        documents: All of them, in chunks, numbered throughout; what a loss asks of them is added up in the buffer.
    """

    def __init__(self, group: ProcessGroup, own: list[Embeddings], first: int) -> None:
        """Hand out this process's documents, whose numbers begin at `first`, and take in the others'."""
        self._group, self._shapes = group, [chunk.mask.shape for chunk in own]
        chunks = group.all_gather_object([(first + chunk.rows.cpu().numpy(), chunk.mask.shape) for chunk in own])
        self._sizes = [sum(shape.numel() for _, shape in part) for part in chunks]
        template = own[0].vectors
        vectors = template.new_empty(sum(self._sizes), template.shape[2])
        mask = own[0].mask.new_empty(sum(self._sizes))
        for chunk, vector_view, mask_view in zip(own, self._mine(vectors), self._mine(mask), strict=True):
            vector_view.copy_(chunk.vectors.detach())
            mask_view.copy_(chunk.mask)
        for buffer in (vectors, mask):
            group.all_gather(buffer.split_with_sizes(self._sizes))
        self._gradient = torch.zeros_like(vectors)
        self.documents = []
        start = 0
        for rows, shape in (chunk for part in chunks for chunk in part):
            tokens = slice(start, start + shape.numel())
            start = tokens.stop
            gradient, embedded = (buffer[tokens].view(*shape, -1) for buffer in (self._gradient, vectors))
            numbers = torch.from_numpy(rows).to(mask.device)
            self.documents.append(Embeddings.into(gradient, numbers, embedded, mask[tokens].view(shape)))

    def gradients(self) -> list[Tensor]:
        """What the losses of all processes ask of this process's documents, by chunk."""
        self._group.reduce_scatter(self._gradient.split_with_sizes(self._sizes))
        return self._mine(self._gradient)

    def _mine(self, buffer: Tensor) -> list[Tensor]:
        """The part of this process of a buffer, as its chunks are shaped."""
        parts = buffer.split_with_sizes(self._sizes)[self._group.rank].split_with_sizes(
            [shape.numel() for shape in self._shapes]
        )
        return [part.view(*shape, *part.shape[1:]) for part, shape in zip(parts, self._shapes, strict=True)]


class GradCache:
    """Computes losses and gradients of a model's steps.

    Attributes:
        budget: How much is computed at once; less after `reduce_memory`.
    """

    def __init__(
        self,
        model: models.ColBERT,
        budget: MemoryBudget,
        precision: str = "fp32",
        seed: int = 0,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        """Compute for `model` within `budget`, in `fp32` or `bf16` (autocast); `seed` decides dropout."""
        self.model, self.budget, self.seed, self.bf16, self.group = model, budget, seed, precision == "bf16", group
        self.device = torch.device(model.device)
        self._tokens, self._keeps = 0, False

    def backward(self, step: int, queries: Tokens, documents: Tokens, loss: Loss, count: int | None = None) -> float:
        """Add this process's part of the gradient of one step to the parameters'; the sum of all parts is the gradient.

        Args:
            step: Its number; decides dropout.
            queries: This process's share of the step's queries.
            documents: Their documents, the same number for each.
            loss: What to make of their embeddings; a mean over queries.
            count: How many queries the step has; by default these.

        Returns:
            This process's part of the loss.

        Raises:
            torch.OutOfMemoryError: In this process or another; gradients are then as good as none.
        """
        asking = self._chunks(step, queries, is_query=True)
        answering = self._chunks(step, documents, is_query=False)
        everything = [*asking, *answering]
        self._tokens = sum(chunk.mask.numel() for chunk in everything)
        keep = self._keeps = self._tokens <= self.budget.tokens_in_memory
        with torch.set_grad_enabled(keep):
            vectors = self._fail_together(lambda: [self._embed(chunk) for chunk in everything])
        # The loss sees copies with gradients of their own; what it asks of them is handed on below.
        leaves = [
            Embeddings(self._rows(chunk), vector.detach().requires_grad_(), chunk.mask)
            for chunk, vector in zip(answering, vectors[len(asking) :], strict=True)
        ]
        share, exchange = slice(0, len(queries)), None
        if loss.over_all and self.group.size > 1:
            share = self.group.local_slice(count or len(queries))
            exchange = _GatheredDocuments(self.group, leaves, share.start * (len(documents) // len(queries)))
            leaves = exchange.documents
        joined = self._join(share, asking, vectors[: len(asking)])
        if not keep:
            vectors.clear()
        total = self._fail_together(lambda: self._losses(loss, joined, leaves, len(queries) / (count or len(queries))))
        assert joined.vectors.grad is not None
        gradients = [joined.vectors.grad[self._rows(chunk), : chunk.mask.shape[1]] for chunk in asking]
        if exchange is None:
            gradients += [leaf.vectors.grad for leaf in leaves if leaf.vectors.grad is not None]
        else:
            gradients += exchange.gradients()
        self._fail_together(lambda: self._back(everything, vectors, gradients))
        return total

    def reduce_memory(self) -> None:
        """Compute less at once from now on, after `backward` has run out of memory.

        Raises:
            UserError: It is little already.
        """
        if self._keeps:
            self.budget = replace(self.budget, tokens_in_memory=self._tokens // 2)
        elif self.budget.tokens_per_chunk // 2 >= MINIMUM_TOKENS_PER_CHUNK:
            self.budget = replace(self.budget, tokens_per_chunk=self.budget.tokens_per_chunk // 2)
        else:
            raise UserError(
                f"out of memory with {self.budget.tokens_per_chunk} tokens at once: take a GPU with more memory, or more of them, "
                "or lower batch_size or document_length"
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.info(
            "out of memory: from now on %d padded tokens at once, and a second forward pass beyond %d",
            self.budget.tokens_per_chunk,
            self.budget.tokens_in_memory,
        )

    def _fail_together(self, work: Callable[[], T]) -> T:
        """Do `work`, which meets no other process: where it runs out of memory in one, it does in all."""
        result: list[T] = []
        # What it held is let go of only once this is left.
        with suppress(torch.OutOfMemoryError):
            result.append(work())
        if self.group.any_rank(not result)[0]:
            raise torch.OutOfMemoryError
        return result[0]

    def _losses(self, loss: Loss, queries: Embeddings, documents: list[Embeddings], weight: float) -> float:
        """This process's part of the loss; its gradient goes to the embeddings."""
        total = 0.0
        parts = iter(loss.parts(queries, documents))
        while (part := self._next(parts)) is not None:
            torch.autograd.backward(part, part.new_tensor(weight * loss.scale))
            total += part.item() * weight
        return total

    def _back(self, everything: list[_Chunk], vectors: list[Tensor], gradients: list[Tensor]) -> None:
        """The gradient of the embeddings goes to the parameters, through the graphs that were kept or new ones."""
        if vectors:
            torch.autograd.backward(vectors, gradients)
            return
        for chunk, gradient in zip(everything, gradients, strict=True):
            torch.autograd.backward(self._embed(chunk), gradient)

    def _chunks(self, step: int, tokens: Tokens, is_query: bool) -> list[_Chunk]:
        found = []
        for number, rows in enumerate(chunks(tokens, self.budget.tokens_per_chunk)):
            features = {name: tensor.to(self.device) for name, tensor in tokens.padded(rows).items()}
            process = [self.group.rank] if self.group.rank else []
            seed = draw(self.seed, "dropout", step, "query" if is_query else "document", number, *process)
            found.append(_Chunk(rows, features, scored(self.model, features, is_query), seed))
        return found

    def _embed(self, chunk: _Chunk) -> Tensor:
        torch.manual_seed(chunk.seed)
        with self._autocast():
            # Gradients of many scores are added up in what this is: not in half precision.
            return embed(self.model, chunk.features).float()

    def _next(self, parts: Iterator[Tensor]) -> Tensor | None:
        """The next part of a loss; the way back is taken outside, as autocast wants it."""
        with self._autocast():
            return next(parts, None)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def _rows(self, chunk: _Chunk) -> Tensor:
        return torch.from_numpy(chunk.rows).to(self.device)

    def _join(self, share: slice, parts: list[_Chunk], vectors: list[Tensor]) -> Embeddings:
        """The queries of all chunks in their order: they are short, so padding them together costs little."""
        count, width = share.stop - share.start, max(chunk.mask.shape[1] for chunk in parts)
        joined = vectors[0].new_zeros(count, width, vectors[0].shape[2])
        mask = torch.zeros(count, width, dtype=torch.bool, device=self.device)
        for chunk, vector in zip(parts, vectors, strict=True):
            rows = self._rows(chunk)
            joined[rows, : vector.shape[1]] = vector.detach()
            mask[rows, : vector.shape[1]] = chunk.mask
        numbers = torch.arange(share.start, share.stop, device=self.device)
        return Embeddings.into(torch.zeros_like(joined), numbers, joined, mask)
