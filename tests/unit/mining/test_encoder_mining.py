"""What a search retrieves becomes candidates: numbers in the corpus, and all there are where it found too few."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from colbert_zero.mining import encoder_mining
from colbert_zero.mining.candidates import ROWS_PER_GROUP
from colbert_zero.mining.dense import DenseMining
from colbert_zero.mining.encoder_mining import MEASURED_QUERIES, EncoderMining
from colbert_zero.mining.late_interaction import LateInteractionMining


def mining_of(kind: type[EncoderMining[Any]], depth: int, pool: list[int] | None = None) -> Any:
    """Mining in ten documents, without a job."""
    mining: Any = object.__new__(kind)
    mining._job = SimpleNamespace(settings={"depth": depth})
    mining.corpus = range(10)
    mining._pool = None if pool is None else np.array(pool)
    return mining


def test_numbers_among_the_searched_become_those_of_the_corpus() -> None:
    found = np.array([[-1, 0, 2]])
    assert mining_of(DenseMining, 3, [3, 7, 9])._in_corpus(found).tolist() == [[-1, 3, 9]]
    assert mining_of(DenseMining, 3)._in_corpus(found).tolist() == found.tolist()


def test_where_as_many_are_found_as_are_asked_for_nothing_is_searched_again() -> None:
    mining = mining_of(DenseMining, 3)
    mining.approximate = lambda *_: np.array([[-1, 0, 4, 5], [0, 1, 2, 3]])
    mining.exact = lambda *_: pytest.fail("searched again")
    assert mining._approximate(None, [0, 1], Path()).tolist() == [[-1, 0, 4, 5], [0, 1, 2, 3]]


def test_where_fewer_are_found_the_search_is_exact() -> None:
    mining = mining_of(DenseMining, 3)
    mining.approximate = lambda *_: np.array([[1, 2, 3, 4], [-1, -1, 4, 5]])
    mining.encode_queries, mining.exact = list, lambda rows: np.array([[6, 7, 8]] * len(rows))
    assert mining._approximate(None, [10, 11], Path()).tolist() == [[1, 2, 3, 4], [6, 7, 8, -1]]


def test_plaid_may_find_fewer_than_it_is_asked_for() -> None:
    mining = mining_of(LateInteractionMining, 2)
    mining._open_plaid = lambda _: SimpleNamespace(search=lambda *_: [[(5, 0.9), (2, 0.8)], []])
    found = mining.approximate([None, None], Path())
    assert found.shape == (2, mining.size)
    assert found[0].tolist() == [-1] * (mining.size - 2) + [2, 5] and (found[1] == -1).all()


def test_slices_of_queries_are_whole_groups_of_rows() -> None:
    for kind in (DenseMining, LateInteractionMining):
        assert kind.queries_per_piece % ROWS_PER_GROUP == 0
    assert (MEASURED_QUERIES, encoder_mining.RESCORED_BEYOND_DEPTH) == (256, 16)
