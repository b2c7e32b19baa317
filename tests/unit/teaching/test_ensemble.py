"""An ensemble's scores are the mean of its members', whatever scale each of these has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest import CaptureFixture, MonkeyPatch
from scipy.stats import zscore

from colbert_zero.data.rows import min_max
from colbert_zero.graph.artifact import Artifact, Job, Spec
from colbert_zero.teaching import ensemble
from colbert_zero.teaching.ensemble import standardise
from colbert_zero.teaching.scoring import choose_documents, write_scores
from mined import publish_candidates, publish_shards, publish_step, rows_in

PAIRS = [(f"query {row}", f"document {row}") for row in range(4)]
LISTS = [([(row + 1) % 4, (row + 2) % 4], [9.0, 8.0], 9.0) for row in range(3)] + [([0], [9.0], 9.0)]
"""With three documents per row, the last row has too few."""
FIRST = [[3.0, 1.0, 2.0], [5.0, 5.0, 5.0], [0.0, -1.0, 7.0]]
SECOND = [[0.0, 10.0, 20.0], [1.0, 3.0, 2.0], [0.5, 0.25, 0.0]]
HALF = 1.5**0.5 / 2
"""Three scores at equal distances are -√1.5, 0 and √1.5 of their standard deviations from their mean."""


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def teacher(name: str, scores: Sequence[Sequence[float]], documents: int = 3) -> Artifact:
    shards = publish_shards(PAIRS)
    inputs = {"shards": [shards.name], "candidates": [publish_candidates(shards, LISTS).name]}

    def make(job: Job) -> Any:
        return write_scores(job, choose_documents(job), (np.array(row, np.float32) for row in scores))

    return publish_step(make, Spec("scores", f"x.{name}", {"documents": documents, "scores": scores}, inputs))


def average(*members: Artifact, **settings: Any) -> Artifact:
    inputs = {"shards": members[0].spec.inputs["shards"], "members": [member.name for member in members]}
    return publish_step(ensemble.make, Spec("scores", "ensemble.mine", {"documents": 3, **settings}, inputs))


def raw(artifact: Artifact) -> dict[int, list[float]]:
    return {row["row"]: row["raw"] for row in rows_in(artifact)}


def test_the_score_is_the_mean_of_standard_scores() -> None:
    made = average(teacher("a", FIRST), teacher("b", SECOND))
    scores = raw(made)
    assert scores[0] == pytest.approx([0, -HALF, HALF], abs=1e-6)
    assert scores[2] == pytest.approx((zscore(FIRST[2]) + zscore(SECOND[2])) / 2, abs=1e-6)
    for row in rows_in(made):
        number = row["row"]
        assert row["query"] == PAIRS[number][0]
        assert row["documents"] == [PAIRS[(number + step) % 4][1] for step in range(3)]
        assert row["scores"] == min_max(np.array(row["raw"], np.float32)).tolist()


def test_a_member_that_cannot_tell_a_querys_documents_apart_leaves_the_row_to_the_others() -> None:
    made = average(teacher("a", FIRST), teacher("b", SECOND))
    assert raw(made)[1] == pytest.approx([-HALF, HALF, 0], abs=1e-6)
    both_constant = average(teacher("a", FIRST), teacher("c", [SECOND[0], [2.0, 2.0, 2.0], SECOND[2]]))
    assert sorted(raw(both_constant)) == [0, 2]
    assert both_constant.facts["dropped"] == {"too few candidates": 1, "all scores equal": 1}


def test_the_facts_say_how_far_members_agree() -> None:
    first, second = teacher("a", FIRST), teacher("b", SECOND)
    (pair,) = average(first, second).facts["agreement"]
    # Of rows 0 and 2, which both tell apart: one of three pairs of documents is in the same order, and one of three.
    assert pair == {"teachers": [first.name, second.name], "rows": 2, "kendall_tau": pytest.approx(-1 / 3, abs=1e-6)}


def test_what_members_contradict_each_other_in_is_no_lesson() -> None:
    opposite = [[-score for score in FIRST[0]], *SECOND[1:]]
    made = average(teacher("a", FIRST), teacher("b", opposite))
    assert sorted(raw(made)) == [1, 2] and made.facts["dropped"]["all scores equal"] == 1


def test_another_scale_of_a_member_changes_nothing() -> None:
    plain = raw(average(teacher("a", FIRST), teacher("b", SECOND)))
    scaled = raw(average(teacher("a", [[0.3 * score - 40 for score in row] for row in FIRST]), teacher("b", SECOND)))
    assert plain.keys() == scaled.keys()
    for row, scores in plain.items():
        assert scaled[row] == pytest.approx(scores, abs=1e-5)


def test_weights_say_what_a_member_counts() -> None:
    made = average(teacher("a", FIRST), teacher("b", SECOND), weights=[3, 1])
    expected = (3 * zscore(FIRST[0]) + zscore(SECOND[0])) / 4
    assert raw(made)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e8, 0.1])
def test_equal_scores_are_zeros(value: float) -> None:
    assert not standardise(np.full(32, value, np.float32)).any()


def test_standard_scores_are_scipys() -> None:
    scores = np.random.default_rng(0).normal(-3, 7, 32).astype(np.float32)
    np.testing.assert_allclose(standardise(scores), zscore(scores.astype(np.float64)), atol=1e-12)


def test_members_with_other_documents_are_refused(capfd: CaptureFixture[str]) -> None:
    fewer = teacher("b", [row[:2] for row in SECOND] + [[1.0, 2.0]], documents=2)
    with pytest.raises(AssertionError):
        average(teacher("a", FIRST), fewer)
    assert "different documents in row 0" in capfd.readouterr().err
