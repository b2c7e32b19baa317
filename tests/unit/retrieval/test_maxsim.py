"""MaxSim: the scores are PyLate's, whatever is multiplied at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.retrieval import maxsim as maxsim_scores
from colbert_zero.retrieval.maxsim import maxsim
from token_vectors import random_vectors, split


def test_maxsim_is_that_of_pylate_on_texts_of_any_lengths(tmp_path: Path) -> None:
    from pylate.scores import colbert_scores

    documents = random_vectors(tmp_path, "d", [3, 1, 40, 7, 7, 12], seed=1)
    queries = random_vectors(tmp_path, "q", [5, 1, 9], seed=2)
    expected = [
        [colbert_scores(query[None], document[None]).item() for document in split(documents)]
        for query in split(queries)
    ]
    np.testing.assert_allclose(maxsim(documents, queries, range(3)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [(1, 1), (7, 3), (10**6, 10**6)])
def test_scores_do_not_depend_on_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: tuple[int, int]
) -> None:
    documents = random_vectors(tmp_path, "d", [2, 9, 5, 5, 30, 1], seed=5)
    queries = random_vectors(tmp_path, "q", [4, 4, 2, 11], seed=6)
    expected = maxsim(documents, queries, range(1, 4))
    monkeypatch.setitem(maxsim_scores.TOKENS_PER_BLOCK, "cpu", block)
    np.testing.assert_allclose(maxsim(documents, queries, range(1, 4)), expected, rtol=1e-5)


@given(lengths=st.lists(st.integers(0, 40), max_size=30), most=st.integers(1, 100))
def test_blocks_have_every_text_with_vectors_once_and_at_most_so_many_tokens(lengths: list[int], most: int) -> None:
    blocks = list(maxsim_scores._blocks(np.array(lengths, np.int64), np.arange(len(lengths)), most))
    assert sorted(position for block in blocks for position in block) == [
        n for n, length in enumerate(lengths) if length
    ]
    for block in blocks:
        assert len(block) == 1 or len(block) * max(lengths[position] for position in block) <= most


def test_a_document_without_vectors_scores_zero(tmp_path: Path) -> None:
    documents, queries = random_vectors(tmp_path, "d", [3, 0, 2]), random_vectors(tmp_path, "q", [2])
    assert maxsim(documents, queries, range(1))[0, 1] == 0
    assert maxsim_scores.rescore(queries.vectors, documents)[1] == 0


def test_scores_of_one_query_are_maxsim_and_know_no_other_document(tmp_path: Path) -> None:
    documents, queries = random_vectors(tmp_path, "d", [3, 1, 40, 7, 7, 12], seed=1), random_vectors(tmp_path, "q", [5])
    scores = maxsim_scores.rescore(queries.vectors, documents)
    np.testing.assert_allclose(scores, maxsim(documents, queries, range(1))[0], rtol=1e-5)
    some = documents.take(np.array([4, 1, 2]))
    assert some.ids == ["d4", "d1", "d2"] and some.lengths.tolist() == [7, 1, 40]
    assert maxsim_scores.rescore(queries.vectors, some).tolist() == scores[[4, 1, 2]].tolist()


@pytest.mark.parametrize(("in_memory", "queries"), [(18, 2), (17, 1), (9, 1), (8, 1), (90, 10)])
def test_as_many_queries_at_once_as_have_so_many_scores_and_one_at_least(
    monkeypatch: pytest.MonkeyPatch, in_memory: int, queries: int
) -> None:
    monkeypatch.setattr(maxsim_scores, "SCORES_IN_MEMORY", in_memory)
    assert maxsim_scores.queries_per_batch(9) == queries
