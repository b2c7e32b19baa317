"""Inverted files: vectors in lists by their nearest centroids, of which a search looks into the nearest ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from colbert_zero.graph.draws import draw
from colbert_zero.models.encoders import Vectors

MAXIMUM_LISTS, VECTORS_PER_LIST, MINIMUM_VECTORS_PER_LIST = 4096, 64, 39
"""Lists of an inverted file at most; the vectors that the centroid of one is computed from, and how many faiss asks for
at least."""
PROBES, CANDIDATES_PER_HIT = 64, 4
"""Lists that are searched, and candidates whose scores are computed from their vectors for each document asked for."""


def training_numbers(documents: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw the documents that centroids are computed from: their numbers, ascending."""
    size = min(documents, list_count(documents) * VECTORS_PER_LIST)
    return np.sort(np.random.default_rng(draw(seed, "faiss vectors")).choice(documents, size, replace=False))


def build_inverted_file(training: Vectors, blocks: Iterable[Vectors], documents: int, seed: int) -> Any:
    """Put documents into lists by their nearest centroids (Sivic and Zisserman 2003), a byte for each component.

    Args:
        training: The vectors of `training_numbers` (vectors x dimensions).
        blocks: The vectors of all documents, some at once, in order (vectors x dimensions).
        documents: How many there are.
        seed: Decides from which of the training vectors the centroids start.

    Returns:
        A `faiss.IndexIVFScalarQuantizer` for inner products.
    """
    lists = list_count(documents)
    index: Any = faiss.index_factory(training.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    # No more vectors are given than it may use, so that it draws none itself.
    index.cp.max_points_per_centroid = VECTORS_PER_LIST
    index.cp.seed = draw(seed, "faiss centroids") % 2**31
    index.train(np.ascontiguousarray(training))
    for block in blocks:
        index.add(np.ascontiguousarray(block))
    return index


def open_inverted_file(path: str) -> Any:
    """Map an inverted file from disk, to be searched in `PROBES` of its lists."""
    index: Any = faiss.read_index(path, faiss.IO_FLAG_MMAP)
    index.nprobe = min(PROBES, index.nlist)
    return index


def list_count(documents: int) -> int:
    """The lists of an inverted file of so many documents: four times their root, as faiss's guidelines have it."""
    return max(1, min(4 * math.isqrt(documents), documents // MINIMUM_VECTORS_PER_LIST, MAXIMUM_LISTS))
