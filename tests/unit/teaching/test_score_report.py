"""What is told of a teacher's scores, against direct computations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy, kendalltau

from colbert_zero.data.rows import min_max
from colbert_zero.teaching.agreement import Agreement
from colbert_zero.teaching.report import BINS, ScoreReport, relative_entropy


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.25, 0.001])
def test_entropy_is_that_of_the_softmax_by_its_largest(temperature: float) -> None:
    scores = np.random.default_rng(0).uniform(0, 1, 32).astype(np.float32)
    expected = entropy(softmax(scores.astype(np.float64) / temperature)) / np.log(32)
    assert relative_entropy(scores, temperature) == pytest.approx(expected, abs=1e-12)


def test_equal_scores_are_flat_and_a_single_high_one_is_sharp() -> None:
    assert relative_entropy(np.ones(7, np.float32), 0.3) == pytest.approx(1)
    assert relative_entropy(np.array([0, 1, 0, 0], np.float32), 1e-3) == pytest.approx(0, abs=1e-9)


def test_the_paper_s_targets_are_nearly_flat_and_sharper_at_a_quarter() -> None:
    scores = min_max(np.random.default_rng(1).normal(0, 4, 32).astype(np.float32))
    flat, sharp = relative_entropy(scores, 1.0), relative_entropy(scores, 0.25)
    assert flat > 0.98 and sharp < flat - 0.05


def test_rows_are_counted() -> None:
    report, generator = ScoreReport(), np.random.default_rng(2)
    rows = generator.normal(3, 2, (50, 5)).astype(np.float32)
    rows[:7, 3] = rows[:7, 2]
    for raw in rows:
        assert report.add(raw, min_max(raw))
    assert not report.add(np.ones(5, np.float32), np.zeros(5, np.float32))
    facts = report.facts
    assert facts["positive_first"] == int((rows.argmax(axis=1) == 0).sum())
    assert facts["ties"] == 7
    assert facts["raw"]["own"]["mean"] == pytest.approx(float(rows[:, 0].mean()), abs=1e-5)
    assert facts["raw"]["others"]["sd"] == pytest.approx(float(rows[:, 1:].std()), abs=1e-5)
    for temperature, told in facts["entropy"].items():
        each = [relative_entropy(min_max(raw), float(temperature)) for raw in rows]
        assert told == pytest.approx(np.mean(each), abs=1e-6)
    counts, (own, others) = facts["histogram"], np.split(np.array(list(map(min_max, rows))), [1], axis=1)
    assert counts["own"] == np.histogram(own, BINS, (0, 1))[0].tolist() and sum(counts["own"]) == 50
    assert counts["others"] == np.histogram(others, BINS, (0, 1))[0].tolist() and sum(counts["others"]) == 50 * 4


def test_agreement_is_the_mean_of_kendalls_tau_over_rows_that_both_tell_apart() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(0, 1, (2, 20, 8)).astype(np.float32)
    second[:, 3] = second[:, 2]
    agreement = Agreement(["a", "b", "c"])
    for one, other in zip(first, second, strict=True):
        agreement.add({0: one, 1: other})
    for scores in first[:5]:
        agreement.add({0: scores, 2: -scores})
    both, opposite = agreement.facts
    each = [kendalltau(one, other).statistic for one, other in zip(first, second, strict=True)]
    assert both == {"teachers": ["a", "b"], "rows": 20, "kendall_tau": pytest.approx(np.mean(each), abs=1e-6)}
    assert opposite == {"teachers": ["a", "c"], "rows": 5, "kendall_tau": -1}
