"""Exact search for the documents with the greatest inner products, among vectors that are mapped from disk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from colbert_zero.models.encoders import Vectors

QUERIES_PER_BATCH = {"cpu": 256, "cuda": 4096}
"""Queries whose scores with a slice of the documents are in memory at once."""
SCORES_PER_GROUP = 32
"""Neighbouring scores that are looked at together: only groups whose best is good enough are sorted."""
HIGHEST_NUMBER = 2**31 - 1


class SlicedVectors:
    """Vectors in slices of one size, of which the last may be shorter; they are mapped from files, not read."""

    def __init__(self, slices: Sequence[Vectors]) -> None:
        """Put slices together: each float32 (vectors x dimensions)."""
        self.slices = slices
        self._size = len(slices[0])

    def __len__(self) -> int:
        """The number of vectors."""
        return self._size * (len(self.slices) - 1) + len(self.slices[-1])

    @property
    def dimensions(self) -> int:
        """The size of a vector."""
        return int(self.slices[0].shape[1])

    def take(self, numbers: npt.NDArray[np.int64]) -> Vectors:
        """The vectors with these numbers, which ascend: float32 (numbers x dimensions)."""
        found = np.empty((len(numbers), self.dimensions), np.float32)
        bounds = np.searchsorted(numbers, np.arange(len(self.slices) + 1) * self._size)
        for at in np.flatnonzero(np.diff(bounds)).tolist():
            of_slice = slice(bounds[at], bounds[at + 1])
            found[of_slice] = self.slices[at][numbers[of_slice] - at * self._size]
        return found


def nearest(queries: Vectors, documents: SlicedVectors, depth: int, device: str = "cpu") -> npt.NDArray[np.int64]:
    """Find the documents with the greatest inner products, computed in single precision.

    Of documents with equal products, those with the lower numbers are nearer. Memory holds one slice of the documents,
    and the best of each query so far.

    Args:
        queries: Vectors (queries x dimensions).
        documents: Vectors; their numbers are below 2^31.
        depth: How many to find for each query, at most as many as there are.
        device: Where to compute: `cpu` or `cuda`.

    Returns:
        The documents' numbers (queries x depth), ascending.
    """
    size = QUERIES_PER_BATCH[device]
    batches = [torch.tensor(queries[start : start + size], device=device) for start in range(0, len(queries), size)]
    best = [torch.empty((len(batch), 0), dtype=torch.int64, device=device) for batch in batches]
    first = 0
    for vectors in documents.slices:
        block = torch.tensor(vectors, device=device).T
        for at, batch in enumerate(batches):
            best[at] = keep_best(best[at], batch @ block, first, depth)
        first += len(vectors)
    return numbers_of(torch.cat(best))


def numbers_of(keys: torch.Tensor) -> npt.NDArray[np.int64]:
    """The numbers of the documents that keys stand for, ascending (queries x documents)."""
    numbers = HIGHEST_NUMBER - (keys & HIGHEST_NUMBER)
    return numbers.sort(dim=1).values.cpu().numpy()


def keep_best(best: torch.Tensor, scores: torch.Tensor, first: int, depth: int) -> torch.Tensor:
    """The keys of the best documents so far, once those with these scores are seen as well.

    Args:
        best: Keys (queries x documents), `depth` of each query, fewer if so few are seen.
        scores: Scores (queries x documents) of the documents that follow.
        first: The number of the first of them.
        depth: How many to keep.
    """
    numbers = torch.arange(first, first + scores.shape[1], device=scores.device)
    if best.shape[1] < depth:
        keys = _best_keys(scores, numbers, depth)
    else:
        padding = -scores.shape[1] % SCORES_PER_GROUP
        padded = torch.nn.functional.pad(scores, (0, padding), value=-torch.inf)
        groups = padded.view(len(best), -1, SCORES_PER_GROUP)
        starts = numbers[::SCORES_PER_GROUP]
        # A group is good enough if its first document would be, with the best score of the group.
        queries, found = (_keys(groups.amax(dim=2), starts) > best.amin(dim=1, keepdim=True)).nonzero(as_tuple=True)
        counts = torch.bincount(queries, minlength=len(best))
        places = torch.arange(len(queries), device=scores.device) - (counts.cumsum(0) - counts)[queries]
        inside = torch.arange(SCORES_PER_GROUP, device=scores.device)
        keys = best.new_full((len(best), int(counts.max()), SCORES_PER_GROUP), torch.iinfo(torch.int64).min)
        keys[queries, places] = _keys(groups[queries, found], starts[found, None] + inside)
        keys = keys.flatten(1)
    keys = torch.cat([best, keys], dim=1)
    return keys.topk(min(depth, keys.shape[1]), dim=1, sorted=False).values


def _best_keys(scores: torch.Tensor, numbers: torch.Tensor, depth: int) -> torch.Tensor:
    """The keys of the best documents of a slice: queries x `depth`, or x documents if there are fewer.

    Keys take several times as long to make as scores to compare. So the best scores are chosen, and keys only where
    more documents have the last one's score than there is room for: of those, any may have been chosen.
    """
    depth = min(depth, scores.shape[1])
    values, chosen = scores.topk(depth, dim=1, sorted=False)
    keys = _keys(values, numbers[chosen])
    tied = (scores >= values.amin(dim=1, keepdim=True)).sum(dim=1) > depth
    keys[tied] = _keys(scores[tied], numbers).topk(depth, dim=1, sorted=False).values
    return keys


def _keys(scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Make an integer of each score: a greater one for a better score, and for a lower number where scores are equal.

    Args:
        scores: In single precision, of any shape.
        numbers: The documents' numbers, int64, of the same shape or one that is spread over it.
    """
    # Adding zero makes -0.0 a 0.0, which has other bits. Those of negative numbers fall as the numbers rise.
    bits = (scores + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ HIGHEST_NUMBER, bits)
    return (ordered.to(torch.int64) << 32) | (HIGHEST_NUMBER - numbers)
