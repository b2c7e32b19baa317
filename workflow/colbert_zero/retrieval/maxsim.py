"""Exact search by MaxSim: the sum, over a query's token vectors, of the largest inner product with a document's.

(Khattab and Zaharia 2020, equation 3.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from colbert_zero.retrieval.vectors import TokenVectors

TOKENS_PER_BLOCK = {"cpu": (2048, 512), "cuda": (65536, 4096)}
"""Token vectors of documents and of queries that are multiplied at once: they fit a CPU's cache, or fill a GPU."""
SCORES_IN_MEMORY = 2**26
"""Scores (queries x documents) in memory at once, of 4 bytes each."""


def queries_per_batch(documents: int) -> int:
    """How many queries are scored at once with all of so many documents."""
    return max(1, SCORES_IN_MEMORY // documents)


def maxsim(
    documents: TokenVectors, queries: TokenVectors, batch: range, device: str = "cpu"
) -> npt.NDArray[np.float32]:
    """Compute the MaxSim of a batch of queries with all documents, in single precision.

    Blocks hold texts of similar length, so that padding to the longest text of a block costs little. A document is
    padded with its own last vector, which does not change a maximum; a query is padded with zeros, which do not change
    a sum. A document without vectors scores 0.

    Args:
        documents: Any number.
        queries: Any number, of the same dimensions.
        batch: The positions in `queries` to score.
        device: Where to compute.

    Returns:
        Scores (queries of the batch x documents).
    """
    document_tokens, query_tokens = TOKENS_PER_BLOCK[device]
    scores = torch.zeros(len(batch), len(documents), device=device)
    query_blocks = [
        (torch.from_numpy(block - batch.start).to(device), _pad(queries, block, device, repeat_last=False))
        for block in _blocks(queries.lengths, np.arange(batch.start, batch.stop), query_tokens)
    ]
    for block in _blocks(documents.lengths, np.arange(len(documents)), document_tokens):
        document_block = _pad(documents, block, device, repeat_last=True)
        texts, tokens, dimensions = document_block.shape
        transposed = document_block.reshape(-1, dimensions).T.contiguous()
        columns = torch.from_numpy(block).to(device)
        for rows, query_block in query_blocks:
            best = (query_block.reshape(-1, dimensions) @ transposed).view(-1, texts, tokens).amax(dim=2)
            scores[rows[:, None], columns] = best.view(*query_block.shape[:2], texts).sum(dim=1)
    result: npt.NDArray[np.float32] = scores.cpu().numpy()
    return result


def _blocks(
    lengths: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], tokens_per_block: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Sort the positions of texts, longest text first, and split them into blocks; texts without vectors are left out.

    A block has at most `tokens_per_block` vectors once padded, or one text.
    """
    ordered = positions[np.argsort(-lengths[positions], kind="stable")]
    ordered = ordered[lengths[ordered] > 0]
    start = 0
    while start < len(ordered):
        size = max(1, tokens_per_block // int(lengths[ordered[start]]))
        yield ordered[start : start + size]
        start += size


def _pad(texts: TokenVectors, block: npt.NDArray[np.int64], device: str, *, repeat_last: bool) -> torch.Tensor:
    """Pad a block's texts with their last vector or with zeros: texts x tokens of the longest text x dimensions."""
    lengths = texts.lengths[block][:, None]
    columns = np.arange(lengths.max())[None, :]
    indices = texts.offsets[block][:, None] + np.minimum(columns, lengths - 1)
    padded = texts.vectors[torch.from_numpy(indices)].to(device=device, dtype=torch.float32)
    if not repeat_last:
        padded *= torch.from_numpy(columns < lengths).to(device)[:, :, None]
    return padded


def rescore(query: torch.Tensor, documents: TokenVectors, device: str = "cpu") -> npt.NDArray[np.float32]:
    """Compute the MaxSim of one query with some documents, in double precision, rounded to single precision.

    So a score does not depend on the documents beside its own. A document without vectors scores 0.

    Args:
        query: Its vectors (tokens x dimensions).
        documents: Any number, of the same dimensions.
        device: Where to compute.

    Returns:
        Scores (documents).
    """
    products = documents.vectors.to(device, torch.float64) @ query.to(device, torch.float64).T
    lengths = torch.from_numpy(documents.lengths).to(device)
    best = torch.segment_reduce(products, "max", lengths=lengths, axis=0)
    scores = torch.where(lengths > 0, best.sum(dim=1), 0.0)
    result: npt.NDArray[np.float32] = scores.float().cpu().numpy()
    return result
