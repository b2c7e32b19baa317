"""Laws of candidates: read as they were written, counted, and fused by normalised scores or by ranks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import MonkeyPatch

from colbert_zero.graph.artifact import Spec
from colbert_zero.machine.pieces import Part
from colbert_zero.mining import candidates as mining_candidates
from colbert_zero.mining.candidates import (
    FUSIONS,
    Candidates,
    fuse,
    highest_unknown_score,
    join_candidates,
    raw_scores,
    read_candidates,
    read_lists,
    write_candidates,
)
from publishing import publish


def candidates_of(ids: Sequence[int], scores: Sequence[float], positive: float) -> Candidates:
    return Candidates(np.array(ids, np.int32), np.array(scores, np.float32), np.float32(positive))


ROWS = [candidates_of([4, 0], [2.5, 1.0], 1.0), candidates_of([], [], 0.0), candidates_of([3, 2, 9], [3, 3, -1], 7)]
ROWS += [candidates_of([row, 7], [0.5, 0.25], 0.5) for row in range(4)]


@pytest.mark.parametrize("rows_per_group", [1, 3, 1024])
def test_candidates_are_read_as_they_were_written_and_counted(
    tmp_path: Path, monkeypatch: MonkeyPatch, rows_per_group: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mining_candidates, "ROWS_PER_GROUP", rows_per_group)
    positives = np.array([0, 1, 5, 0, 7, 3, 3], np.int32)
    made = publish(Spec("candidates", "a", {}), lambda folder: write_candidates(folder, ROWS, positives))
    assert made.facts == {"rows": 7, "candidates": 13, "rows_without_candidates": 1, "positives_found": 4}
    found = list(read_candidates(made))
    assert len(found) == len(ROWS)
    for row, (both, expected) in enumerate(zip(read_lists([made, made]), ROWS, strict=True)):
        for candidates in (found[row], *both):
            assert candidates.documents.tolist() == expected.documents.tolist()
            assert candidates.scores.tolist() == expected.scores.tolist()
            assert candidates.positive_score == expected.positive_score
    for rows in (range(2, 6), range(3, 4), range(7), range(6, 7)):
        some = [candidates.documents.tolist() for candidates in read_candidates(made, rows)]
        assert some == [ROWS[row].documents.tolist() for row in rows]
    # Nobody filters by them, and they would be a part of the bytes.
    group = pq.read_metadata(made.file("candidates.parquet")).row_group(0)
    assert not any(group.column(column).is_stats_set for column in range(group.num_columns))


def test_pieces_put_together_have_the_bytes_and_counts_of_all_rows_written_at_once(
    tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr(mining_candidates, "ROWS_PER_GROUP", 2)
    positives = np.array([0, 1, 5, 0, 7, 3, 3], np.int32)

    def write(number: int, folder: Path) -> Mapping[str, int]:
        first = 4 * number
        return write_candidates(folder, ROWS[first : first + 4], positives, first)

    part = Part(tmp_path / "part", 2, "slices", write)
    part.make()
    assert join_candidates(tmp_path, part) == write_candidates(tmp_path / "part", ROWS, positives)
    name = mining_candidates.CANDIDATES_FILE
    assert (tmp_path / name).read_bytes() == (tmp_path / "part" / name).read_bytes()


def test_a_single_miners_candidates_stay_as_they_are() -> None:
    single = candidates_of([4, 7], [10.0, -6.0], 2.0)
    assert fuse([single]) is single


def test_a_document_that_a_miner_lacks_has_no_score_of_it() -> None:
    found = raw_scores(candidates_of([4, 7, 2], [10.0, 6.0, 5.0], 2.0), np.array([9, 7, 2, 0, 4], np.int32))
    np.testing.assert_array_equal(found, [np.nan, 6.0, 5.0, np.nan, 10.0])


@pytest.mark.parametrize(("depth", "highest"), [(3, -3.0), (4, 0.0), (2, -3.0)])
def test_an_unknown_score_is_at_most_the_last_one_of_a_full_list(depth: int, highest: float) -> None:
    assert highest_unknown_score(candidates_of([4, 7, 1], [9.0, 5.0, -3.0], 2.0), depth) == highest


def test_one_miners_scores_are_used_as_they_are_and_several_are_normalised_and_averaged() -> None:
    fused = fuse([candidates_of([4, 7, 2], [10.0, 6.0, 5.0], 2.0), candidates_of([7, 9], [0.9, 0.5], 0.7)])
    # First miner: (s - 2) / 8; second: (s - 0.5) / 0.4; a document that a miner lacks scores 0 there.
    expected = {4: 0.5, 7: (0.5 + 1) / 2, 2: 0.375 / 2, 9: 0.0}
    assert fused.documents.tolist() == [7, 4, 2, 9]
    np.testing.assert_allclose(fused.scores, [expected[number] for number in (7, 4, 2, 9)], rtol=1e-6)
    assert fused.positive_score == pytest.approx((0 + 0.5) / 2)


def test_reciprocal_rank_fusion_is_that_of_its_authors() -> None:
    """Cormack et al. (SIGIR 2009): the sum over rankings of 1 / (60 + rank); here their mean, of two rankings."""
    lists = [candidates_of([4, 7, 2], [10.0, 6.0, 5.0], 6.0), candidates_of([7, 9], [0.9, 0.5], 0.1)]
    fused = fuse(lists, "reciprocal-rank")
    sums = {7: 1 / 62 + 1 / 61, 4: 1 / 61, 9: 1 / 62, 2: 1 / 63}
    assert fused.documents.tolist() == list(sums)
    np.testing.assert_allclose(2 * fused.scores, list(sums.values()), rtol=1e-6)
    # The positive's score is the second of the first miner; the other one did not retrieve it.
    assert 2 * fused.positive_score == pytest.approx(1 / 62)


numbers = st.lists(st.integers(0, 40), unique=True, max_size=12)


@pytest.mark.parametrize("fusion", FUSIONS)
@given(lists=st.lists(numbers, min_size=2, max_size=5), shuffled=st.randoms(use_true_random=False))
def test_the_order_of_the_miners_decides_nothing(fusion: str, lists: list[list[int]], shuffled: Random) -> None:
    found = [candidates_of(ids, np.linspace(0.7, 0.1, len(ids)).tolist(), 1 / (3 + len(ids))) for ids in lists]
    one, other = fuse(found, fusion), fuse(shuffled.sample(found, len(found)), fusion)
    assert (one.documents.tolist(), one.scores.tolist()) == (other.documents.tolist(), other.scores.tolist())
    assert one.positive_score == other.positive_score


@given(lists=st.lists(st.permutations(range(12)), min_size=2, max_size=4), factors=st.lists(st.integers(1, 9)))
def test_ranks_are_fused_whatever_the_scores_are(lists: list[list[int]], factors: list[int]) -> None:
    """Any scores that fall give the same fusion by ranks; a positive that all retrieved has its document's score."""
    fused = []
    for factor in (1, *factors):
        scores = [float(factor * (20 - rank**2)) for rank in range(12)]
        fused.append(fuse([candidates_of(ids, scores, scores[ids.index(5)]) for ids in lists], "reciprocal-rank"))
    for other in fused:
        assert other.documents.tolist() == fused[0].documents.tolist()
        assert other.scores[other.documents.tolist().index(5)] == other.positive_score


def test_a_miner_with_all_scores_equal_adds_nothing() -> None:
    fused = fuse(
        [candidates_of([3, 1], [2.0, 2.0], 2.0), candidates_of([1, 3], [4.0, 2.0], 3.0), candidates_of([], [], 0.0)]
    )
    assert fused.documents.tolist() == [1, 3]
    np.testing.assert_allclose([*fused.scores, fused.positive_score], [1 / 3, 0, 0.5 / 3], rtol=1e-6)


def test_fused_ties_go_to_the_lower_number() -> None:
    assert fuse(
        [candidates_of([5, 2], [1.0, 0.0], 0.0), candidates_of([2, 5], [1.0, 0.0], 0.0)]
    ).documents.tolist() == [2, 5]
