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
from colbert_zero.graph.draws import draw
from colbert_zero.mining.candidates import Candidates, fuse
from colbert_zero.mining.examples import Examples
from colbert_zero.mining.filters import Miner
from colbert_zero.mining.negatives import make
from colbert_zero.mining.sampler import NegativeSampler
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
    sampler = NegativeSampler(**SETTINGS | {"label": "mine", "miners": [Miner("a", 100)]} | changes)
    return sampler.sample(row, [candidates], np.array(known, np.int32))


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
    sampler = NegativeSampler(
        p=0.9, negatives=2, skip=1, choose="random", seed=1, label="mine", miners=[Miner("a", 20)]
    )
    for row, (ids, positive, known) in enumerate(rows):
        scores = np.linspace(4, -4, len(ids))
        candidates = candidates_of(ids, scores.tolist(), positive)
        negatives = sampler.sample(row, [candidates], np.array(sorted(known), np.int32))
        if negatives is not None:
            assert len(set(negatives)) == 2 and not known.intersection(negatives)
            assert max(scores[ids.index(number)] for number in negatives) < positive - abs(positive) * 0.1 + 1e-6
    report = sampler.report
    assert report["candidates"] == report["kept"] + sum(report["dropped"].values()) == sum(len(ids) for ids, *_ in rows)
    assert report["rows_read"] == report["rows_kept"] + report["rows_dropped"] == len(rows)


Q = 0.25
"""Scores that are multiples of it, and bounds of p 0.5 and 1, are exact in fp32."""


@st.composite
def worlds(draw: st.DrawFn) -> tuple[np.ndarray, list[Miner], list[int]]:
    """Each miner's scores of all documents (miners x documents), the miners, and the known positives, own one first."""
    size = draw(st.integers(3, 14))
    kinds = draw(st.lists(st.sampled_from(["bm25", "dense"]), min_size=1, max_size=3))
    lows = [0 if kind == "bm25" else -8 for kind in kinds]
    scores = [draw(st.lists(st.integers(low, 12), min_size=size, max_size=size)) for low in lows]
    margins = st.sampled_from([None, Q, 4 * Q])
    miners = [
        Miner(f"{kind}{at}", draw(st.integers(1, 9)), draw(st.booleans()), draw(margins))
        for at, kind in enumerate(kinds)
    ]
    known = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=3, unique=True))
    return np.array(scores, np.float32) * Q, miners, known


def retrieved(scores: np.ndarray, miner: Miner, positive: int) -> Candidates:
    """What a miner retrieves: the best documents, those that score 0 left out by BM25."""
    best = np.argsort(-scores, kind="stable")[: miner.depth]
    if miner.name.startswith("bm25"):
        best = best[scores[best] > 0]
    return candidates_of(best.tolist(), scores[best].tolist(), scores[positive])


@given(worlds(), st.sampled_from([0.5, 1.0]), st.integers(1, 3))
def test_a_negative_is_what_every_miner_that_filters_must_have_scored_low_enough(
    world: tuple[np.ndarray, list[Miner], list[int]], p: float, asked: int
) -> None:
    scores, miners, known = world
    lists_ = [retrieved(of_miner, miner, known[0]) for of_miner, miner in zip(scores, miners, strict=True)]
    sampler = NegativeSampler(p=p, negatives=asked, skip=0, choose="top", seed=1, label="mine", miners=miners)
    chosen = sampler.sample(0, lists_, np.array(sorted(known), np.int32))

    expected = []
    for number in fuse(lists_).documents.tolist():
        low_enough = number not in known
        for of_miner, miner, found in zip(scores, miners, lists_, strict=True):
            listed = found.documents.tolist()
            positive = min(of_miner[known[0]], *(of_miner[other] for other in known if other in listed), np.inf)
            last = of_miner[listed[-1]] if len(listed) == miner.depth else 0
            at_most = of_miner[number] if number in listed else last
            low_enough &= not miner.filters or at_most < positive - abs(positive) * (1 - p)
            low_enough &= miner.margin is None or at_most <= positive - miner.margin
        expected += [number] if low_enough else []
    assert chosen == (expected[:asked] if len(expected) >= asked else None)
    # By scores that no list has: the miner's own of every document.
    for of_miner, miner in zip(scores, miners, strict=True):
        exceed = sum(of_miner[number] > of_miner[known[0]] for number in chosen or [])
        assert sampler.above_the_positive[miner.name] <= exceed
        assert exceed == 0 or not (miner.filters or miner.margin)
    report = sampler.report
    assert report["candidates"] == report["kept"] + sum(report["dropped"].values())


def lists_that_overlap(seed: int, rows: int = 100, documents: int = 2000, depth: int = 100) -> list[Any]:
    """BM25's and a dense miner's lists, with 30 % in common; document 0 is the positive. And all cosines."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(rows):
        relevance = random.normal(0, 0.6**0.5, documents)
        relevance[0] += 1.25
        bm25, cosine = (relevance + random.normal(0, 0.4**0.5, documents) for _ in range(2))
        bm25, cosine = np.maximum(0, 10 + 5 * bm25).astype(np.float32), (0.5 + 0.1 * cosine).astype(np.float32)
        pair = [retrieved(bm25, Miner("bm25", depth), 0), retrieved(cosine, Miner("dense", depth), 0)]
        found.append((pair, cosine))
    return found


def test_fused_scores_would_let_negatives_above_the_positives_cosine_through_and_its_own_scores_let_none() -> None:
    """Min-maxed scores are no measure of how close a document is: four in ten would be closer than the positive."""
    overlap, by_fused, by_cosine, fused_above = [], [], [], 0
    miners = [Miner("bm25", 100, filters=False), Miner("dense", 100)]
    sampler = NegativeSampler(**SETTINGS | {"negatives": 10, "label": "mine", "miners": miners})
    for pair, cosine in lists_that_overlap(seed=0):
        overlap.append(len(np.intersect1d(pair[0].documents, pair[1].documents)) / 100)
        fused = fuse(pair)
        kept = fused.documents[(fused.documents != 0) & (fused.scores < 0.95 * fused.positive_score)][:10]
        by_fused += (cosine[kept] > cosine[0]).tolist() if len(kept) == 10 else []
        chosen = sampler.sample(0, pair, np.array([0], np.int32)) or []
        by_cosine += (cosine[chosen] >= 0.95 * cosine[0]).tolist()
        of = dict(zip(fused.documents.tolist(), fused.scores.tolist(), strict=True))
        fused_above += sum(of[number] > fused.positive_score for number in chosen)
    assert np.mean(overlap) == pytest.approx(0.3, abs=0.02)
    assert np.mean(by_fused) == pytest.approx(0.42, abs=0.06)
    assert len(by_cosine) >= 200 and not any(by_cosine)
    counts = sampler.above_the_positive
    assert counts["dense"] == 0 and counts["fused"] == fused_above > 0 and counts["bm25"] > 0


@given(
    st.lists(st.floats(0.0625, 1, width=32), min_size=1, max_size=30, unique=True),
    st.floats(0.0625, 1, width=32),
    st.sampled_from([0.8, 0.95, 0.98]),
)
def test_one_miner_filters_as_nv_retriever_does(scores: list[float], positive: float, p: float) -> None:
    """TopK-PercPos (arXiv 2407.15831, section 3): the best k of those below `positive * p`."""
    ranked = np.array(sorted(scores, reverse=True), np.float32)
    candidates = candidates_of(range(1, len(ranked) + 1), ranked.tolist(), positive)
    maximum = positive * p
    clear = np.abs(ranked - maximum) > 1e-6
    allowed = (np.flatnonzero(ranked < maximum) + 1).tolist()
    if clear.all():
        assert sample_negatives(candidates, p=p) == (allowed[:2] if len(allowed) >= 2 else None)


@given(
    st.lists(st.floats(0.0625, 1, width=32), min_size=1, max_size=30, unique=True),
    st.floats(0.0625, 1, width=32),
    st.sampled_from([0.03, 0.05, 0.1]),
)
def test_a_margin_filters_as_nv_retriever_does(scores: list[float], positive: float, margin: float) -> None:
    """TopK-MarginPos (arXiv 2407.15831, section 3): the best k of those not above `positive - margin`."""
    ranked = np.array(sorted(scores, reverse=True), np.float32)
    candidates = candidates_of(range(1, len(ranked) + 1), ranked.tolist(), positive)
    clear = np.abs(ranked - (positive - margin)) > 1e-6
    allowed = (np.flatnonzero(ranked <= positive - margin) + 1).tolist()
    if clear.all():
        miners = [Miner("a", 100, filters=False, margin=margin)]
        assert sample_negatives(candidates, miners=miners) == (allowed[:2] if len(allowed) >= 2 else None)


def test_a_margin_may_be_reached_and_is_that_below_the_lowest_known_positive() -> None:
    candidates = candidates_of([0, 1, 5, 2, 3, 4], [10.0, 9.5, 9.25, 9.0, 8.75, 8.5], 10.0)
    miners = [Miner("a", 100, margin=0.5)]
    assert sample_negatives(candidates, p=1.0, miners=miners) == [1, 5]
    assert sample_negatives(candidates, p=1.0, miners=miners, known=[0, 5]) == [3, 4]


def test_near_duplicates_of_any_known_positive_are_dropped() -> None:
    texts = ["one two three four", "Another answer", "one two  three fours", "ANOTHER answer!", "what is it", "not so"]
    candidates = candidates_of(range(6), [9.0, 8.0, 5.0, 4.0, 3.0, 2.0], 9.0)
    asked: dict[str, Any] = {"texts": texts, "negatives": 1}
    # The first text has 14 shingles, and the third all of them and one more; the second has 10, and the fourth 11.
    assert sample_negatives(candidates, known=[0, 1], near_duplicates=10 / 11, **asked) == [4]
    assert sample_negatives(candidates, known=[0, 1], near_duplicates=14 / 15, **asked) == [3]
    assert sample_negatives(candidates, known=[0, 1], near_duplicates=0.95, **asked) == [2]
    assert sample_negatives(candidates, known=[0, 1], **asked) == [2]


@pytest.mark.parametrize("choose", ["top", "random"])
def test_negatives_are_chosen_in_a_window_of_ranks(choose: str) -> None:
    """Ranks 4 to 8 of the documents but 0 and 2, which answer the query; rank 6 is too close by a second miner."""
    first = candidates_of(range(20), np.linspace(4, 1, 20).tolist(), 9.0)
    second = candidates_of([0, 7], [2.0, 1.95], 2.0)
    miners = [Miner("a", 100, filters=False), Miner("b", 100)]
    settings: dict[str, Any] = {"label": "mine", "miners": miners, "choose": choose, "skip": 3, "last_rank": 8}
    sampler = NegativeSampler(**SETTINGS | settings)
    chosen = [sampler.sample(row, [first, second], np.array([0, 2], np.int32)) or [] for row in range(60)]
    window = fuse([first, second]).documents.tolist()
    window = [number for number in window if number not in (0, 2)][3:8]
    allowed = [number for number in window if number != 7]
    assert {number for of_row in chosen for number in of_row} == set(allowed[:2] if choose == "top" else allowed)
    report = sampler.report
    assert report["dropped"]["skipped rank"] == 60 * 3
    assert report["dropped"]["beyond the last rank"] == 60 * (18 - 8)
    assert report["candidates"] == report["kept"] + sum(report["dropped"].values())


def test_what_the_settings_of_an_entry_drop_is_counted_and_the_counts_add_up() -> None:
    """Of the first row's candidates, each but 8 and 9 is dropped for a reason of its own."""
    texts = ["document 0", "first rank", "close", "in the margin", "of the other", "document 0!", "spare", "last"]
    source = publish_shards([(f"query {row}", text) for row, text in enumerate(texts)])
    others = ([], [], 1.0)
    one = publish_candidates(source, [([0, 1, 2, 3, 5, 6, 7], [10, 9.9, 9.8, 9, 3, 2, 1], 10.0), *[others] * 7], "a", 7)
    two = publish_candidates(source, [([0, 4, 5, 6, 7], [10.0, 4.0, 3.0, 2.0, 1.0], 10.0), *[others] * 7], "b")
    settings = {"filter": [0], "margins": [2.0, None], "near_duplicates": 0.8, "skip": 1, "last_rank": 6}
    facts = publish_step(make, spec_of(source, one, two, negatives=1, **settings)).facts
    assert facts["dropped"] == {
        "known positive": 1, "skipped rank": 1, "beyond the last rank": 1, "too close to the positive": 1,
        "within the margin of the positive": 1, "perhaps too close: not retrieved by a miner that filters": 0,
        "near-duplicate of a positive": 1, "beyond what was asked": 1, "too few for the row": 0,
    }  # fmt: skip
    assert facts["candidates"] == facts["kept"] + sum(facts["dropped"].values()) == 8


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
    text = made.file("report.json").read_text()
    report = json.loads(text)
    assert text == json.dumps(report, indent=1) + "\n"
    assert report.items() <= made.facts.items()
    assert report == {
        "source": "mine", "candidates": 46, "kept": 22, "rows_read": 12, "rows_kept": 11, "rows_dropped": 1,
        "dropped": {
            "known positive": 12, "skipped rank": 0, "beyond the last rank": 0, "too close to the positive": 0,
            "within the margin of the positive": 0, "perhaps too close: not retrieved by a miner that filters": 0,
            "near-duplicate of a positive": 0, "beyond what was asked": 11, "too few for the row": 1,
        },
        "above_the_positive": {"a": 0},
        "score_histograms": {"a": {"low": 4.0, "width": 0.125} | {
            "positives": [0] * 40 + [11], "negatives": [11] + [0] * 7 + [11] + [0] * 32,
        }},
    }  # fmt: skip
    assert made.facts["rows_by_shard"] == [5, 5, 1]
    examples = json.loads(made.file("examples.json").read_text())
    assert len(examples) == 3 and all(example in rows for example in examples)


def test_examples_are_drawn_by_seed_and_source_from_all_rows() -> None:
    rows = [{"row": number} for number in range(100)]

    def drawn(seed: int, label: str) -> list[dict[str, Any]]:
        examples = Examples(seed, label)
        assert list(examples.drawn_from(rows)) == rows
        return examples.rows

    lowest = sorted(rows, key=lambda row: draw(1, "examples", "mine", row["row"]))[:3]
    assert drawn(1, "mine") == sorted(lowest, key=lambda row: row["row"])
    found = {row["row"] for seed in range(200) for row in drawn(seed, "mine")}
    assert found == set(range(100))
    assert drawn(1, "mine") != drawn(1, "other")


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
    rows = rows_in(publish_step(make, spec_of(source, one, two, filter=[0, 1])))
    assert rows == [{"row": 0, "query": "query 0", "document": "document 0", "negatives": ["document 1", "document 2"]}]


@pytest.mark.parametrize(("fusion", "negatives"), [("normalised", [1, 2]), ("reciprocal-rank", [2, 1])])
def test_the_fusion_orders_and_what_is_too_close_is_asked_of_the_miners_scores(
    fusion: str, negatives: list[int]
) -> None:
    """Document 1 is far above 2 by the first miner's scores, and one rank; 4 is too close by them in any order."""
    lists_ = [
        candidates_of([0, 4, 1, 2, 3], [10.0, 9.9, 9.0, 1.0, 0.9], 10.0),
        candidates_of([0, 2, 3, 1], [6.0, 2.0, 1.9, 0.0], 6.0),
    ]
    miners = [Miner("a", 100), Miner("b", 100, filters=False)]
    sampler = NegativeSampler(**SETTINGS | {"label": "mine", "miners": miners, "fusion": fusion})
    assert sampler.sample(0, lists_, np.array([0], np.int32)) == negatives
    assert sampler.dropped["too close to the positive"] == 1


@pytest.mark.parametrize(
    ("filters", "negatives", "too_close", "above"),
    [
        ([0, 1], [3, 4], 2, {"bm25": 0, "dense": 0, "fused": 0}),
        ([0], [2, 3], 1, {"bm25": 0, "dense": 1, "fused": 0}),
        ([1], [1, 3], 1, {"bm25": 1, "dense": 0, "fused": 0}),
    ],
)
def test_the_miners_that_the_setting_names_filter(
    filters: list[int], negatives: list[int], too_close: int, above: dict[str, int]
) -> None:
    """Document 1 is above the positive by BM25 alone, 2 by the dense miner alone."""
    source = publish_shards(PAIRS[:6])
    others = ([], [], 1.0)
    bm25 = publish_candidates(source, [([1, 0, 3, 4, 5], [12.0, 10.0, 4.0, 3.0, 2.0], 10.0), *[others] * 5], "bm25")
    dense = publish_candidates(source, [([2, 0, 3, 1, 4], [0.9, 0.8, 0.5, 0.4, 0.3], 0.8), *[others] * 5], "dense", 5)
    made = publish_step(make, spec_of(source, bm25, dense, filter=filters))
    assert [row["negatives"] for row in rows_in(made)] == [[f"document {number}" for number in negatives]]
    assert made.facts["dropped"]["too close to the positive"] == too_close
    assert made.facts["above_the_positive"] == above


@pytest.mark.parametrize(("depth", "negatives"), [(2, None), (3, [3, 4])])
def test_a_score_that_is_not_known_is_at_most_the_last_one_of_a_full_list(
    depth: int, negatives: list[int] | None
) -> None:
    """Documents 3 and 4 may score 4, which is not below 4, unless the miner was asked for more and found no other."""
    miners = [Miner("bm25", 100), Miner("other", depth)]
    sampler = NegativeSampler(**SETTINGS | {"p": 0.5, "label": "mine", "miners": miners})
    lists_ = [candidates_of([0, 3, 4], [10.0, 4.0, 3.0], 10.0), candidates_of([0, 2], [8.0, 4.0], 8.0)]
    assert sampler.sample(0, lists_, np.array([0], np.int32)) == negatives
    assert sampler.dropped["too close to the positive"] == 1
    dropped = sampler.dropped["perhaps too close: not retrieved by a miner that filters"]
    assert dropped == (0 if negatives else 2)


def test_the_report_tells_two_miners_of_one_kind_apart() -> None:
    source = publish_shards(PAIRS[:3])
    miners = [publish_candidates(source, [([0, 1, 2], [9.0, best, 1.0], 9.0)] * 3, "dense") for best in (2.0, 3.0)]
    made = publish_step(make, spec_of(source, *miners, filter=[1]))
    keys = [miner.spec.key for miner in miners]
    assert made.facts["above_the_positive"] == {f"dense-{keys[0]}": 0, f"dense-{keys[1]}": 0, "fused": 0}


def test_no_row_left_is_one_clear_line(capfd: CaptureFixture[str]) -> None:
    source = publish_shards(PAIRS[:2])
    spec = spec_of(source, publish_candidates(source, [([0, 1], [9.0, 1.0], 9.0)] * 2))
    assert run_step(make, None, ["--spec", spec.text]) == 1
    assert "no row has 2 negatives left" in capfd.readouterr().err


def test_a_row_is_kept_whose_own_document_each_miner_that_filters_ranks_so_high() -> None:
    """Documents 0 and 9 answer the query; the one miner has two others above 0, and one beside it, the other none."""
    low = candidates_of([1, 2, 9, 0, 3], [9.0, 8.0, 7.5, 7.0, 7.0], 7.0)
    high = candidates_of([0, 1], [3.0, 2.0], 3.0)
    for consistency, filters, kept in ((3, True, True), (2, True, False), (2, False, True), (1, False, True)):
        miners = [Miner("low", 5, filters), Miner("high", 2)]
        sampler = NegativeSampler(
            p=1.0, negatives=0, skip=0, choose="random", seed=1, label="mine", miners=miners, consistency=consistency
        )
        assert sampler.sample(4, [low, high], np.array([0, 9], np.int32)) == ([] if kept else None)
        report = sampler.report
        assert report["dropped"]["of a row that is not consistent"] == (0 if kept else 5)
        assert report["candidates"] == report["kept"] + sum(report["dropped"].values()) == 5
        assert (report["rows_read"], report["rows_kept"], report["kept"]) == (1, int(kept), 0)
    assert (
        "of a row that is not consistent"
        not in NegativeSampler(**SETTINGS | {"label": "mine", "miners": miners}).report["dropped"]
    )
