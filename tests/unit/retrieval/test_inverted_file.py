"""Inverted files: how many lists there are, what their centroids are computed from, and how many are searched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from colbert_zero.graph.draws import draw
from colbert_zero.models.encoders import Vectors
from colbert_zero.retrieval import inverted_file
from colbert_zero.retrieval.inverted_file import (
    build_inverted_file,
    list_count,
    open_inverted_file,
    training_numbers,
)


def vectors_of(documents: int) -> Vectors:
    return np.random.default_rng(6).standard_normal((documents, 16), np.float32)


def build(vectors: Vectors, seed: int = 1) -> Any:
    return build_inverted_file(
        vectors[training_numbers(len(vectors), seed)], np.array_split(vectors, 3), len(vectors), seed
    )


@pytest.mark.parametrize(
    ("documents", "lists"),
    [(1, 1), (77, 1), (78, 2), (10_000, 256), (100_000, 1264), (1024**2, 4096), (1025**2, 4096), (8_841_823, 4096)],
)
def test_lists_grow_with_the_root_of_the_documents(documents: int, lists: int) -> None:
    assert list_count(documents) == lists


def test_centroids_are_computed_from_64_documents_each_or_from_all() -> None:
    assert training_numbers(4000, 1).tolist() == list(range(4000))
    numbers = training_numbers(100_000, 1)
    assert len(numbers) == 1264 * 64
    assert (np.diff(numbers) > 0).all() and numbers[0] >= 0 and numbers[-1] < 100_000
    assert not np.array_equal(training_numbers(100_000, 2), numbers)


def test_faiss_computes_centroids_from_all_that_it_is_given_and_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_file, "MAXIMUM_LISTS", 20)
    index = build(vectors_of(4000))
    assert (index.nlist, index.ntotal, index.metric_type) == (20, 4000, faiss.METRIC_INNER_PRODUCT)
    assert (index.cp.max_points_per_centroid, index.cp.seed) == (64, draw(1, "faiss centroids") % 2**31)


@pytest.mark.parametrize(("documents", "searched"), [(78, 2), (39 * 64, 64), (39 * 65, 64)])
def test_so_many_of_the_lists_are_searched(documents: int, searched: int, tmp_path: Path) -> None:
    path = str(tmp_path / "index")
    faiss.write_index(build(vectors_of(documents)), path)
    index = open_inverted_file(path)
    assert (index.nlist, index.nprobe) == (documents // 39, searched)
