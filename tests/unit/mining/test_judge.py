"""A judge's scores decide as a miner's do, of what it has scored; and without p and margin, they are counted alone."""

from __future__ import annotations

import json
import pickle
import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import MonkeyPatch

from colbert_zero.graph.artifact import Artifact, Job, Spec, file_digests, run_step
from colbert_zero.mining import negatives
from colbert_zero.mining.candidates import Candidates
from colbert_zero.mining.filters import Miner
from colbert_zero.mining.judge import NO_JUDGEMENT, Judge, Judgement, judgements
from colbert_zero.mining.negatives import make
from colbert_zero.mining.sampler import NegativeSampler
from colbert_zero.teaching.scoring import choose_documents, write_scores
from mined import publish_candidates, publish_shards, publish_step, rows_in

TEXTS = [f"document {number}" for number in range(8)]
SETTINGS: dict[str, Any] = {"p": 1.0, "negatives": 1, "skip": 0, "choose": "top", "seed": 3}


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sampler_with(judge: Judge | None, **changes: Any) -> NegativeSampler:
    """A sampler of one miner that filters nothing; the row's own document is number 0."""
    return NegativeSampler(
        **SETTINGS | changes, label="mine", miners=[Miner("a", 100, filters=False)], judge=judge, texts=TEXTS
    )


def sample(judge: Judge | None, judgement: Judgement, **changes: Any) -> list[int] | None:
    """The negatives of a row whose candidates are documents 1, 2 … in this order."""
    candidates = Candidates(np.arange(8, dtype=np.int32), np.arange(8, 0, -1).astype(np.float32), np.float32(8))
    return sampler_with(judge, **changes).sample(0, [candidates], np.array([0], np.int32), judgement)


def judgement(positive_score: float, scores: dict[int, float]) -> Judgement:
    return Judgement(positive_score, {TEXTS[number]: score for number, score in ({0: positive_score} | scores).items()})


def test_a_candidate_is_kept_below_the_judges_bound_and_margin() -> None:
    said = judgement(10.0, {1: 12.0, 2: 9.6, 3: 9.4, 4: 7.0, 5: 1.0})
    assert sample(Judge(p=0.95), said) == [3]
    assert sample(Judge(margin=3.0), said) == [4]
    assert sample(Judge(p=0.5, margin=3.0), said) == [5]
    # Logits of a re-ranker are negative as often as not.
    assert sample(Judge(p=0.95), judgement(-10.0, {1: -10.4, 2: -10.6})) == [2]


def test_what_the_judge_did_not_score_is_not_kept_if_it_refuses_anything() -> None:
    said = judgement(10.0, {3: 1.0})
    assert sample(Judge(p=0.95), said) == sample(Judge(margin=1.0), said) == [3]
    assert sample(Judge(), said) == sample(None, said) == [1]
    assert sample(Judge(p=0.95), NO_JUDGEMENT) is None
    assert sample(Judge(), NO_JUDGEMENT) == [1]


@given(
    positive=st.floats(-20, 20, width=32),
    scores=st.dictionaries(st.integers(1, 7), st.floats(-20, 20, width=32)),
    p=st.none() | st.floats(0.1, 1),
    margin=st.none() | st.floats(0.1, 9),
    negatives=st.integers(1, 4),
)
def test_no_negative_exceeds_the_positive_by_a_judge_that_refuses_and_all_candidates_are_counted(
    positive: float, scores: dict[int, float], p: float | None, margin: float | None, negatives: int
) -> None:
    sampler = sampler_with(Judge(p, margin), negatives=negatives)
    candidates = Candidates(np.arange(8, dtype=np.int32), np.arange(8, 0, -1).astype(np.float32), np.float32(8))
    chosen = sampler.sample(0, [candidates], np.array([0], np.int32), judgement(positive, scores)) or []
    report = sampler.report
    assert report["candidates"] == report["kept"] + sum(report["dropped"].values()) == 8
    above = sum(scores.get(number, -np.inf) > positive for number in chosen)
    assert report["above_the_positive"] == {"a": 0, "judge": above}
    if p is not None or margin is not None:
        assert above == 0 and scores.keys() >= {*chosen}
        assert all(scores[number] <= positive - (margin or 0) for number in chosen)
    histogram = report["score_histograms"]["judge"]
    assert sum(histogram["negatives"]) == len(scores.keys() & {*chosen})
    assert sum(histogram["positives"]) == report["rows_kept"]


def teacher(shards: Artifact, candidates: Artifact, scores: Sequence[Sequence[float]], documents: int) -> Artifact:
    """Scores that a teacher gave to the row's own document and to its best candidates."""

    def score(job: Job) -> Any:
        return write_scores(job, choose_documents(job), (np.array(row, np.float32) for row in scores))

    inputs = {"shards": [shards.name], "candidates": [candidates.name]}
    return publish_step(score, Spec("scores", "neural.mine", {"documents": documents}, inputs))


def test_a_teachers_scores_judge_the_rows_that_it_scored() -> None:
    shards = publish_shards([(f"query {row}", text) for row, text in enumerate(TEXTS)])
    # Row 6 has too few candidates to be scored, and of row 7 all scores are equal: the teacher left both out.
    lists = [([row, *((row + step) % 8 for step in (1, 2, 3))], [9.0, 5.0, 4.0, 3.0], 9.0) for row in range(8)]
    lists[6] = ([6, 7], [9.0, 5.0], 9.0)
    candidates = publish_candidates(shards, lists)
    scores = teacher(shards, candidates, [[2.0, 3.0, 1.5, 0.5]] * 6 + [[1.0] * 4], documents=4)
    inputs = {"shards": [shards.name], "candidates": [candidates.name], "scores": [scores.name]}

    def mined(**judge: float) -> Artifact:
        return publish_step(make, Spec("negatives", "mine", {**SETTINGS, "judge": judge}, inputs))

    refusing = mined(p=0.9)
    assert {row["row"]: row["negatives"] for row in rows_in(refusing)} == {
        row: [TEXTS[(row + 2) % 8]] for row in range(6)
    }
    dropped = refusing.facts["dropped"]
    assert (dropped["too close to the positive by the judge"], dropped["not scored by the judge"]) == (6, 1 + 3)
    assert refusing.facts["above_the_positive"] == {"a": 0, "judge": 0}
    counting = mined()
    assert [row["row"] for row in rows_in(counting)] == list(range(8))
    assert counting.facts["above_the_positive"] == {"a": 0, "judge": 6}
    assert sum(counting.facts["score_histograms"]["judge"]["positives"]) == 6
    assert counting.facts["rows_dropped"] == 0 and refusing.facts["rows_dropped"] == 2


def test_judgements_of_any_rows_are_those_of_all() -> None:
    shards = publish_shards([(f"query {row}", text) for row, text in enumerate(TEXTS)])
    lists = [([row, (row + 1) % 8], [9.0, 5.0], 9.0) if row in (1, 2, 5) else ([row], [9.0], 9.0) for row in range(8)]
    scores = teacher(shards, publish_candidates(shards, lists), [[2.0, 3.0]] * 3, documents=2)
    known = [judgement.by_text for judgement in judgements(scores, range(8))]
    assert [bool(by_text) for by_text in known] == [row in (1, 2, 5) for row in range(8)]
    for first in range(8):
        assert [judgement.by_text for judgement in judgements(scores, range(first, 8))] == known[first:]


def test_rows_filtered_in_pieces_resume_are_shared_and_give_the_same_bytes(monkeypatch: MonkeyPatch) -> None:
    shards = publish_shards([(f"query {row}", text) for row, text in enumerate(TEXTS)], rows_per_shard=3)
    lists = [([row, *((row + step) % 8 for step in (1, 2, 3))], [9.0, 5.0, 4.0 - row, 3.0], 9.0) for row in range(8)]
    candidates = publish_candidates(shards, lists)
    scores = teacher(shards, candidates, [[2.0, 3.0, 1.5, 0.5]] * 5 + [[1.0] * 4] + [[2.0, 3.0, 1.5, 0.5]] * 2, 4)
    inputs = {"shards": [shards.name], "candidates": [candidates.name], "scores": [scores.name]}
    spec = Spec("negatives", "mine", {**SETTINGS, "judge": {}}, inputs)
    alone = publish_step(make, spec)
    files, facts = file_digests(alone.folder), alone.facts
    shutil.rmtree(alone.folder)
    monkeypatch.setattr(negatives, "ROWS_PER_PIECE", 3)
    for share, pieces in (("2", 1), ("1", 3)):
        words = ["--spec", spec.text, "--part", "rows", "--share", share, "--jobs", "2"]
        assert run_step(make, None, words, parts=negatives.PARTS) == 0
        assert len(list(spec.state.glob("rows/[0-9]*"))) == pieces
    # A process of its own gets the work as bytes, and does the same.
    part: Any = negatives.PARTS["rows"](Job(spec, Path(), Namespace(threads=2), {}, lambda **_: None))
    assert (part.count, part.processes) == (3, 2)
    (spec.state / "copy").mkdir()
    made = pickle.loads(pickle.dumps(part.write))(1, spec.state / "copy")
    assert json.loads(json.dumps(made)) == part.facts()[1]
    monkeypatch.setattr(NegativeSampler, "sample", lambda *_: pytest.fail("a row is filtered again"))
    together = publish_step(make, spec)
    assert (file_digests(together.folder), together.facts) == (files, facts)
