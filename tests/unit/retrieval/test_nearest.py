"""Exact search for inner products: the best of all, of equal ones the first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.retrieval import nearest as exact_search
from colbert_zero.retrieval.nearest import SlicedVectors, keep_best, nearest, numbers_of


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


@pytest.mark.parametrize(("vectors", "size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_slices_are_as_one(vectors: int, size: int) -> None:
    whole = np.random.default_rng(1).standard_normal((vectors, 3), np.float32)
    sliced = SlicedVectors([whole[start : start + size] for start in range(0, vectors, size)])
    assert (len(sliced), sliced.dimensions) == whole.shape
    assert sliced.take(np.arange(vectors)).tolist() == whole.tolist()
    assert sliced.take(np.array([vectors - 1])).tolist() == whole[-1:].tolist()


def test_how_many_queries_are_searched_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    vectors, queries = (random.standard_normal((rows, 8), np.float32) for rows in (300, 7))
    expected = nearest(queries, SlicedVectors([vectors]), 40)
    monkeypatch.setitem(exact_search.QUERIES_PER_BATCH, "cpu", 3)
    for size in (300, 100, 33):
        sliced = SlicedVectors([vectors[start : start + size] for start in range(0, 300, size)])
        assert nearest(queries, sliced, 40).tolist() == expected.tolist()


def test_the_smallest_difference_decides() -> None:
    best = keep_best(torch.empty((1, 0), dtype=torch.int64), torch.tensor([[1e-30, 2e-30, -1.0]]), 0, 1)
    assert numbers_of(best).tolist() == [[1]]


def test_a_negative_zero_is_zero() -> None:
    best = keep_best(torch.empty((1, 0), dtype=torch.int64), torch.tensor([[-1.0, -0.0, 0.0]]), 7, 1)
    assert numbers_of(best).tolist() == [[8]]
