"""MaxSim and the losses of the three stages: the same numbers as PyLate's, with less padding.

PyLate pads every document of a batch to the full document length, and multiplies the similarities at padded and
skiplisted positions by 0. A document that is shorter than that length, or has a skiplisted token, therefore always
offers each query token a similarity of 0, and the best match never counts less. A document that fills the length
without a skiplisted token offers no such 0. This module computes the same from documents with less padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES_PER_BLOCK = {"cpu": 2**24, "cuda": 2**28}
"""By device, how many similarities are in memory at once (in fp32 64 MiB, 1 GiB)."""
EPSILON = 1e-8
"""Keeps the min-max normalisation of equal scores finite; PyLate's value."""

Scorer = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""`maxsim`, or another function with the same arguments and scores."""


class _MaxSimilarity(torch.autograd.Function):
    """The largest similarity of each query token with each document, with a sparse gradient.

    Each maximum comes from one document token. The backward pass adds up those tokens alone; a matrix product over all
    similarities would take many times longer.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, documents: Tensor) -> Tensor:
        """Maxima (tokens x documents) of `tokens` (tokens x dimensions) over `documents` (documents x length x …)."""
        count, length, _ = documents.shape
        similarities = SIMILARITIES_PER_BLOCK[tokens.device.type]
        documents_per_block = max(1, similarities // max(1, len(tokens) * length))
        maxima, positions = [], []
        for first in range(0, count, documents_per_block):
            block = documents[first : first + documents_per_block]
            values, indices = (tokens @ block.flatten(0, 1).T).view(len(tokens), -1, length).max(dim=-1)
            maxima.append(values)
            # Half of what PyTorch's int64 takes until the backward pass, and faster to sort there.
            positions.append(indices.to(torch.int32))
        ctx.save_for_backward(tokens, documents, torch.cat(positions, dim=1))
        return torch.cat(maxima, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of tokens and documents."""
        tokens, documents, positions = ctx.saved_tensors
        count, length, _ = documents.shape
        sum_dtype = torch.promote_types(tokens.dtype, torch.float32)
        weights = gradients[0].to(sum_dtype)
        document_tokens = documents.flatten(0, 1).to(sum_dtype)
        # For each query token and document, the row of `document_tokens` that had the maximum.
        best_rows = positions + torch.arange(count, dtype=torch.int32, device=positions.device) * length
        tokens_gradient = F.embedding_bag(best_rows, document_tokens, per_sample_weights=weights, mode="sum")
        # The documents' gradient has the same terms, grouped by document token. Sorting them fixes the order of the
        # additions; the order of atomic additions would differ from run to run.
        order = best_rows.flatten().argsort(stable=True)
        counts = torch.bincount(best_rows.flatten(), minlength=len(document_tokens))
        documents_gradient = F.embedding_bag(
            order // count,
            tokens.to(sum_dtype),
            counts.cumsum(0) - counts,
            per_sample_weights=weights.flatten()[order],
            mode="sum",
        )
        return tokens_gradient.to(tokens.dtype), documents_gradient.view_as(documents).to(documents.dtype)


def _has_zeroed_position(mask: Tensor, padded_to: int | None) -> Tensor:
    """Which documents have a position that the reference multiplies by 0, once padded to `padded_to`; boolean."""
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
        padded_to: The length to which the reference would pad the documents; by default the length they have.

    Returns:
        Scores in fp32, queries x documents.
    """
    tokens, query_rows = queries[queries_mask], queries_mask.nonzero()[:, 0]
    # A token vector of zeros has a similarity of 0 with every token. Masking the tokens thus gives the same result as
    # masking the similarities, and is much less work.
    best: Tensor = _MaxSimilarity.apply(tokens, documents * documents_mask[:, :, None])  # type: ignore[no-untyped-call]
    best = torch.where(_has_zeroed_position(documents_mask, padded_to), best.clamp(min=0), best)
    best = best.to(torch.promote_types(best.dtype, torch.float32))
    return best.new_zeros(len(queries), len(documents)).index_add(0, query_rows, best)


def maxsim_pairs(
    queries: Tensor, queries_mask: Tensor, documents: Tensor, documents_mask: Tensor, padded_to: int | None = None
) -> Tensor:
    """Score each document with the query of the same row.

    The arguments are those of `maxsim`, with as many queries as documents.

    Returns:
        Scores in fp32, one per document.
    """
    documents = documents * documents_mask[:, :, None]
    best = torch.bmm(queries, documents.transpose(1, 2)).max(dim=-1).values
    best = torch.where(_has_zeroed_position(documents_mask, padded_to)[:, None], best.clamp(min=0), best)
    best = best.to(torch.promote_types(best.dtype, torch.float32))
    return (best * queries_mask).sum(dim=-1)


def contrastive(scores: Tensor, targets: Tensor, temperature: float | Tensor) -> Tensor:
    """InfoNCE: the cross-entropy of each query's scores, divided by the temperature, with its positive; mean.

    Args:
        scores: Queries x documents.
        targets: The column of each query's positive.
        temperature: Above 0.

    Returns:
        A scalar.
    """
    return F.cross_entropy(scores / temperature, targets)


def distillation(
    student: Tensor, teacher: Tensor, student_temperature: float = 1.0, teacher_temperature: float = 1.0
) -> Tensor:
    """KL divergence of the student's distribution over a query's documents from the teacher's, mean over queries.

    The student's scores are min-max normalised per query; the teacher's scores are taken as they are. Each side's are
    divided by its temperature before the softmax: with scores from 0 to 1, a temperature of 1 leaves the targets flat.
    The loss is multiplied by the square of the student's temperature, which keeps the size of its gradient (Hinton et
    al., 2015, section 2), as in sentence-transformers' MultiVectorDistillKLDivLoss.

    Args:
        student: Scores, queries x documents.
        teacher: Scores of the same documents.
        student_temperature: Above 0; the reference has 1.
        teacher_temperature: Above 0; the reference has 1.

    Returns:
        A scalar.
    """
    low, high = student.min(dim=1, keepdim=True).values, student.max(dim=1, keepdim=True).values
    scaled = (student - low) / (high - low + EPSILON) / student_temperature
    targets = (teacher / teacher_temperature).log_softmax(dim=-1)
    divergence = F.kl_div(scaled.log_softmax(dim=-1), targets, reduction="batchmean", log_target=True)
    return divergence * student_temperature**2
