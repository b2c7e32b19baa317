"""MaxSim and the losses of the three stages, numerically PyLate's own, without its padding.

PyLate pads every document of a batch to the full document length and multiplies the similarities of padded and
skiplisted positions by 0. So a document shorter than that length, or one with a skiplisted token, always offers a
query token a similarity of 0, and its best match never counts less; a document that fills the length without such a
token offers none. The same is computed here from documents that are padded less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**24
"""How many similarities are held at once (64 MiB in fp32)."""
EPSILON = 1e-8
"""Keeps the min-max of equal scores finite; PyLate's value."""

Scorer = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""`maxsim`, or what computes the same otherwise."""


class _Maxima(torch.autograd.Function):
    """The largest similarity of each token with each document, with a gradient as sparse as it is.

    Each maximum comes from one document token. So the backward pass adds up those tokens alone, which a matrix product
    over all similarities would take many times longer for.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, documents: Tensor) -> Tensor:
        """Maxima (tokens x documents) of `tokens` (tokens x dimensions) over `documents` (documents x length x …)."""
        count, length, _ = documents.shape
        step = max(1, BLOCK // max(1, len(tokens) * length))
        values, places = [], []
        for first in range(0, count, step):
            block = documents[first : first + step]
            value, place = (tokens @ block.flatten(0, 1).T).view(len(tokens), -1, length).max(dim=-1)
            values.append(value)
            places.append(place)
        ctx.save_for_backward(tokens, documents, torch.cat(places, dim=1))
        return torch.cat(values, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of tokens and documents."""
        tokens, documents, places = ctx.saved_tensors
        count, length, _ = documents.shape
        wide = torch.promote_types(tokens.dtype, torch.float32)
        weights = gradients[0].to(wide)
        # The winners, as rows of the table of all document tokens.
        winners = places + torch.arange(count, device=places.device) * length
        table = documents.flatten(0, 1).to(wide)
        of_tokens = F.embedding_bag(winners, table, per_sample_weights=weights, mode="sum")
        # The same sums the other way round, each document token's winning query tokens side by side: the order of the
        # additions is then fixed, as with atomic additions it would not be.
        order = winners.flatten().argsort(stable=True)
        counts = torch.bincount(winners.flatten(), minlength=len(table))
        of_documents = F.embedding_bag(
            order // count,
            tokens.to(wide),
            counts.cumsum(0) - counts,
            per_sample_weights=weights.flatten()[order],
            mode="sum",
        )
        return of_tokens.to(tokens.dtype), of_documents.view_as(documents).to(documents.dtype)


def _offers_zero(mask: Tensor, padded_to: int | None) -> Tensor:
    """Which documents have a position that is multiplied by 0, once padded to `padded_to`."""
    if padded_to is not None and mask.shape[1] < padded_to:
        return torch.ones(len(mask), dtype=torch.bool, device=mask.device)
    return ~mask.all(dim=1)


def maxsim(
    queries: Tensor, queries_mask: Tensor, documents: Tensor, documents_mask: Tensor, padded_to: int | None = None
) -> Tensor:
    """Score every query with every document: the sum over query tokens of the best similarity (Khattab and Zaharia).

    Args:
        queries: Embeddings, queries x query tokens x dimensions.
        queries_mask: Which query tokens count; boolean.
        documents: Embeddings, documents x document tokens x dimensions.
        documents_mask: Which document tokens count; boolean, False at padding and at skiplisted tokens.
        padded_to: The length that the reference would pad the documents to, by default their own.

    Returns:
        Scores in fp32, queries x documents.
    """
    tokens, owners = queries[queries_mask], queries_mask.nonzero()[:, 0]
    # A token of length 0 has a similarity of 0 with all: the same as multiplying similarities, and much less work.
    best: Tensor = _Maxima.apply(tokens, documents * documents_mask[:, :, None])  # type: ignore[no-untyped-call]
    best = torch.where(_offers_zero(documents_mask, padded_to), best.clamp(min=0), best)
    best = best.to(torch.promote_types(best.dtype, torch.float32))
    return best.new_zeros(len(queries), len(documents)).index_add(0, owners, best)


def maxsim_pairs(
    queries: Tensor, queries_mask: Tensor, documents: Tensor, documents_mask: Tensor, padded_to: int | None = None
) -> Tensor:
    """Score each document with the query of its own row; the arguments are `maxsim`'s, with as many queries.

    Returns:
        Scores in fp32, one per document.
    """
    documents = documents * documents_mask[:, :, None]
    best = torch.bmm(queries, documents.transpose(1, 2)).max(dim=-1).values
    best = torch.where(_offers_zero(documents_mask, padded_to)[:, None], best.clamp(min=0), best)
    best = best.to(torch.promote_types(best.dtype, torch.float32))
    return (best * queries_mask).sum(dim=-1)


def contrastive(scores: Tensor, targets: Tensor, temperature: float | Tensor) -> Tensor:
    """InfoNCE: mean cross-entropy of each query's scores, divided by the temperature, with its positive.

    Args:
        scores: Queries x documents.
        targets: The column of each query's positive.
        temperature: Above 0.

    Returns:
        A scalar.
    """
    return F.cross_entropy(scores / temperature, targets)


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of the student's distribution over a query's documents from the teacher's, mean over queries.

    The student's scores are min-max normalised per query; the teacher's are taken as they are given.

    Args:
        student: Scores, queries x documents.
        teacher: Scores of the same documents.

    Returns:
        A scalar.
    """
    low, high = student.min(dim=1, keepdim=True).values, student.max(dim=1, keepdim=True).values
    normalised = (student - low) / (high - low + EPSILON)
    return F.kl_div(normalised.log_softmax(dim=-1), teacher.log_softmax(dim=-1), reduction="batchmean", log_target=True)
