"""Exact search for inner products: the best of all, of equal ones the first."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.retrieval.nearest import SlicedVectors, nearest


@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 40), st.integers(1, 12), st.integers(1, 3))
def test_the_nearest_are_the_best_of_all_and_of_equal_ones_the_first(
    seed: int, documents: int, size: int, depth: int, largest: int
) -> None:
    """Small whole numbers: products are exact, and many are equal."""
    random = np.random.default_rng(seed)
    vectors, queries = (random.integers(-largest, largest + 1, (rows, 3)).astype(np.float32) for rows in (documents, 5))
    sliced = SlicedVectors([vectors[start : start + size] for start in range(0, documents, size)])
    depth = min(depth, documents)
    expected = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :depth]
    assert nearest(queries, sliced, depth).tolist() == np.sort(expected).tolist()
    assert sliced.take(np.arange(documents)[::3]).tolist() == vectors[::3].tolist()
