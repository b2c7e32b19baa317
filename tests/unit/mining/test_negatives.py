"""Laws of negatives: none is a known positive or too close to one, and every candidate is counted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import CaptureFixture, MonkeyPatch

from colbert_zero.graph.artifact import Artifact, Spec, run_step
from colbert_zero.mining.candidates import Candidates, fuse
from colbert_zero.mining.negatives import NegativeSampler, make
from mined import publish_candidates, publish_shards, publish_step, rows_in

PAIRS = [(f"query {row}", f"document {row}") for row in range(12)]
SETTINGS: dict[str, Any] = {"p": 0.95, "negatives": 2, "skip": 0, "choose": "top", "seed": 3}


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def candidates_of(ids: Sequence[int], scores: Sequence[float], positive: float) -> Candidates:
    return Candidates(np.array(ids, np.int32), np.array(scores, np.float32), np.float32(positive))


def spec_of(source: Artifact, *miners: Artifact, **changes: Any) -> Spec:
    names = {"shards": [source.name], "candidates": [miner.name for miner in miners]}
    return Spec("negatives", "mine", SETTINGS | changes, names)


def sample_negatives(
    candidates: Candidates, known: Sequence[int] = (0,), row: int = 0, **changes: Any
) -> list[int] | None:
    return NegativeSampler(**SETTINGS | {"label": "mine"} | changes).sample(row, candidates, np.array(known, np.int32))


def test_a_candidate_is_kept_below_the_filters_bound() -> None:
    candidates = candidates_of([1, 0, 2, 3, 4], [12.0, 10.0, 9.6, 9.4, 1.0], 10.0)
    assert sample_negatives(candidates) == [3, 4]
    assert sample_negatives(candidates, p=0.97, negatives=3) == [2, 3, 4]
    assert sample_negatives(candidates, p=0.05, negatives=1) is None


def test_the_filter_holds_for_negative_scores() -> None:
    # 95 % of -10 is above -10, but the bound must lie below: -10.5.
    candidates = candidates_of([0, 1, 2, 3], [-10.0, -10.4, -10.6, -12.0], -10.0)
    assert sample_negatives(candidates) == [2, 3]


def test_the_lowest_score_of_several_known_positives_sets_the_bound() -> None:
    candidates = candidates_of([0, 1, 5, 2, 3], [10.0, 9.0, 8.0, 7.9, 7.0], 10.0)
    assert sample_negatives(candidates, known=[0]) == [1, 5]
    assert sample_negatives(candidates, known=[0, 5], negatives=1) == [3]


def test_skipped_ranks_do_not_count_known_positives() -> None:
    candidates = candidates_of([1, 0, 2, 3, 4], [9.0, 8.5, 5.0, 4.0, 3.0], 20.0)
    assert sample_negatives(candidates, skip=2) == [3, 4]


def test_a_random_choice_depends_on_seed_source_and_row_alone() -> None:
    candidates = candidates_of(list(range(1, 41)), list(range(40, 0, -1)), 100.0)
    draw = sample_negatives(candidates, choose="random")
    assert draw is not None and draw == sorted(draw) and draw == sample_negatives(candidates, choose="random")
    others = [
        sample_negatives(candidates, choose="random", **change)
        for change in ({"seed": 4}, {"label": "other"}, {"row": 1})
    ]
    assert draw not in others
    drawn = {number for row in range(200) for number in sample_negatives(candidates, row=row, choose="random") or []}
    assert drawn == set(range(1, 41))


lists = st.lists(st.integers(0, 30), unique=True, max_size=20)


@given(st.lists(st.tuples(lists, st.floats(-5, 5, width=32), st.sets(st.integers(0, 30), max_size=4)), max_size=8))
def test_every_candidate_is_kept_or_dropped_for_one_reason(rows: list[tuple[list[int], float, set[int]]]) -> None:
    sampler = NegativeSampler(p=0.9, negatives=2, skip=1, choose="random", seed=1, label="mine")
    for row, (ids, positive, known) in enumerate(rows):
        scores = np.linspace(4, -4, len(ids))
        negatives = sampler.sample(
            row, candidates_of(ids, scores.tolist(), positive), np.array(sorted(known), np.int32)
        )
        if negatives is not None:
            assert len(set(negatives)) == 2 and not known.intersection(negatives)
            assert max(scores[ids.index(number)] for number in negatives) < positive - abs(positive) * 0.1 + 1e-6
    report = sampler.report
    assert report["candidates"] == report["kept"] + sum(report["dropped"].values()) == sum(len(ids) for ids, *_ in rows)
    assert report["rows_read"] == report["rows_kept"] + report["rows_dropped"] == len(rows)


def test_one_miners_scores_are_used_as_they_are_and_several_are_normalised_and_averaged() -> None:
    fused = fuse([candidates_of([4, 7, 2], [10.0, 6.0, 5.0], 2.0), candidates_of([7, 9], [0.9, 0.5], 0.7)])
    # First miner: (s - 2) / 8; second: (s - 0.5) / 0.4; a document that a miner lacks scores 0 there.
    expected = {4: 0.5, 7: (0.5 + 1) / 2, 2: 0.375 / 2, 9: 0.0}
    assert fused.documents.tolist() == [7, 4, 2, 9]
    np.testing.assert_allclose(fused.scores, [expected[number] for number in (7, 4, 2, 9)], rtol=1e-6)
    assert fused.positive_score == pytest.approx((0 + 0.5) / 2)


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


def test_rows_keep_their_order_number_and_texts_and_short_ones_are_dropped() -> None:
    source = publish_shards(PAIRS, rows_per_shard=5)
    lists_ = [([row, (row + 1) % 12, (row + 2) % 12, (row + 3) % 12], [9.0, 5.0, 4.0, 3.0], 9.0) for row in range(12)]
    lists_[4] = ([4, 5], [9.0, 8.0], 9.0)
    made = publish_step(make, spec_of(source, publish_candidates(source, lists_)))
    rows = rows_in(made)
    assert [row["row"] for row in rows] == [row for row in range(12) if row != 4]
    for row in rows:
        number = row["row"]
        assert (row["query"], row["document"]) == PAIRS[number]
        assert row["negatives"] == [f"document {(number + shift) % 12}" for shift in (1, 2)]
    report = json.loads(made.file("report.json").read_text())
    assert report == made.facts["mining"]
    assert report == {
        "source": "mine", "candidates": 46, "kept": 22, "rows_read": 12, "rows_kept": 11, "rows_dropped": 1,
        "dropped": {
            "known positive": 12, "skipped rank": 0, "too close to the positive": 0, "beyond what was asked": 11,
            "too few for the row": 1,
        },
    }  # fmt: skip
    assert made.facts["rows_by_shard"] == [5, 5, 1]


def test_a_positive_of_the_same_query_is_no_negative_however_it_is_written() -> None:
    source = publish_shards(
        [("What is it?", "this"), ("what  is it?", "That"), ("other", "third"), ("more", "THAT "), ("4", "5th")]
    )
    # Documents: this 0, That 1 (also row 3's), third 2, 5th 3.
    lists_ = [([1, 0, 2, 3], [9.0, 8.0, 4.0, 3.0], 8.0), ([0, 1, 2, 3], [9.0, 8.0, 4.0, 3.0], 8.0)]
    lists_ += [([2, 0, 1, 3], [9.0, 8.0, 4.0, 3.0], 9.0)] * 3
    rows = rows_in(publish_step(make, spec_of(source, publish_candidates(source, lists_))))
    assert [row["negatives"] for row in rows[:2]] == [["third", "5th"], ["third", "5th"]]
    assert rows[2]["negatives"] == ["this", "That"]


def test_several_miners_are_fused_before_the_choice() -> None:
    source = publish_shards(PAIRS[:3])
    one = publish_candidates(source, [([0, 1], [9.0, 1.0], 9.0)] * 3, "a")
    two = publish_candidates(source, [([0, 2], [9.0, 1.0], 9.0)] * 3, "b")
    rows = rows_in(publish_step(make, spec_of(source, one, two)))
    assert rows == [{"row": 0, "query": "query 0", "document": "document 0", "negatives": ["document 1", "document 2"]}]


def test_no_row_left_is_one_clear_line(capfd: CaptureFixture[str]) -> None:
    source = publish_shards(PAIRS[:2])
    spec = spec_of(source, publish_candidates(source, [([0, 1], [9.0, 1.0], 9.0)] * 2))
    assert run_step(make, None, ["--spec", spec.text]) == 1
    assert "no row has 2 negatives left" in capfd.readouterr().err
