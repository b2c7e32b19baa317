"""Tests, corrections, intervals and power: published numbers, other implementations' answers, and laws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from statsmodels.stats import multitest, power

from colbert_zero.graph.config import read_yaml
from colbert_zero.graph.registry import REGISTRY
from colbert_zero.report.statistics import resampling, significance
from colbert_zero.report.statistics.comparison import SignTest, sign_tests
from colbert_zero.report.statistics.resampling import Array, Sample, mean_of, whole
from colbert_zero.report.statistics.significance import detectable, holm, max_t, range_test, spreads, step_down

MAIZE = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)
"""Darwin's cross-fertilised minus self-fertilised maize plants, in eighths of an inch (Fisher 1935)."""
THREE = np.array([[0.7, 0.3, 0.2, 0.6, 0.4], [0.5, 0.1, 0, 0.2, 0.4], [0, 0, 0.2, 0.1, 0.3]]).T
"""Five queries of three rows."""
PAPER = {name: model["values"] for name, model in read_yaml(REGISTRY / "paper.yaml")["models"].items()}
"""The paper's models (arXiv 2602.16609): nDCG@10 x 100 on its 15 tasks."""
DIFFERENCES = st.integers(1, 8).flatmap(
    lambda queries: arrays(np.float64, (queries, 3), elements=st.integers(-20, 20).map(lambda value: value / 20))
)
"""Differences of three rows on a few queries, with ties."""


def sample(differences: Array | Sequence[float], name: str = "dev", weight: float = 1.0) -> Sample:
    values = np.asarray(differences, dtype=np.float64)
    return Sample(name, whole(values if values.ndim == 2 else values[:, None]), weight)


def sign_test(differences: Array | Sequence[float], seed: int = 42) -> SignTest:
    return sign_tests([[sample(differences)]], seed)[0]


# --- Check values ---


def test_darwins_maize_has_fishers_p_value() -> None:
    drawn = resampling.all_flipped_means([sample(MAIZE)])
    assert drawn is not None
    assert drawn.shape == (1, 2**15)
    assert np.count_nonzero(drawn >= mean_of([sample(MAIZE)]) - significance.TIE) == 863, "one-sided, Fisher 1935"
    assert sign_test(MAIZE).p == pytest.approx([1726 / 32768])
    assert sign_test(MAIZE).every_sign


def test_darwins_maize_has_students_t_test() -> None:
    (spread,) = spreads([sample(MAIZE)])
    assert (spread.t, spread.p) == (pytest.approx(2.14799, abs=5e-6), pytest.approx(0.049703, abs=5e-7))
    assert spread.interval == pytest.approx([0.0312, 41.8355], abs=5e-5)
    assert spread.effect == pytest.approx(0.554608, abs=5e-7)
    assert spread.degrees == pytest.approx(14)


def test_randomised_tukey_and_max_t_over_all_orders_of_three_rows() -> None:
    samples = [sample(THREE)]
    drawn, every = resampling.reordered_means(samples, 42)
    assert (drawn.shape, every) == ((3, 6**5), True)
    p = range_test(mean_of(samples), drawn, every=every)
    assert (p[0, 1], p[0, 2], p[1, 2]) == pytest.approx((3384 / 7776, 264 / 7776, 5640 / 7776))
    means = mean_of(samples)
    against = max_t(means[1:] - means[0], drawn[1:] - drawn[0], np.ones(2), every=True)
    assert against == pytest.approx([2600 / 7776, 176 / 7776])


def tukey_of_blocks(values: Array) -> Array:
    """Tukey's range test of an additive model of (queries, rows), which has queries as blocks."""
    queries, rows = values.shape
    residuals = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    degrees = (queries - 1) * (rows - 1)
    error = math.sqrt((residuals**2).sum() / degrees / queries)
    means = values.mean(axis=0)
    p: Array = stats.studentized_range.sf(np.abs(means[:, None] - means) / error, rows, degrees)
    return p


def test_tukey_of_blocks_is_what_randomised_tukey_comes_to_with_many_queries() -> None:
    p = tukey_of_blocks(THREE)
    assert (p[0, 1], p[0, 2], p[1, 2]) == pytest.approx((0.1969, 0.0371, 0.5140), abs=5e-5)
    many = np.random.default_rng(1).normal((0, 0.02, 0.03, 0.05), 0.25, (700, 4))
    drawn, every = resampling.reordered_means([sample(many)], 42)
    assert not every
    assert range_test(many.mean(axis=0), drawn, every=every) == pytest.approx(tukey_of_blocks(many), abs=0.02)


def test_holm_is_that_of_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert step_down(np.array([[0.01, 0.04, 0.03, 0.005]])) == pytest.approx(np.array([[0.03, 0.06, 0.06, 0.02]]))


def test_so_many_queries_show_one_point_and_two() -> None:
    for queries, points in ((4906, 0.01), (1226, 0.02)):
        assert detectable(0.25 / math.sqrt(queries)) == pytest.approx(points, rel=2e-4)
        needed = power.NormalIndPower(ddof=0).solve_power(points / 0.25, power=0.8, alpha=0.05, ratio=0)
        assert needed == pytest.approx(queries, abs=1)
    assert detectable(0.25 / math.sqrt(300)) > 0.04, "one point on the 300 queries of SciFact is no evidence"


@pytest.mark.parametrize(
    ("first", "second", "gap", "p"),
    [
        ("c-distilled", "b-distilled", 0.31, 0.31),
        ("c-distilled", "a-distilled", 1.34, 0.04),
        ("b-distilled", "a-distilled", 1.04, 0.19),
        ("c-distilled", "gte-modernbert-base", 0.10, 0.97),
        ("c-distilled", "dense-supervised", 2.53, 0.04),
    ],
)
def test_the_papers_gaps_over_its_fifteen_tasks(first: str, second: str, gap: float, p: float) -> None:
    differences = np.subtract(PAPER[first], PAPER[second]) / 100
    assert 100 * differences.mean() == pytest.approx(gap, abs=0.006)
    exact = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_test(differences).p == pytest.approx([exact])
    assert exact == pytest.approx(p, abs=0.006)


# --- Other implementations ---


@pytest.mark.parametrize("seed", range(3))
def test_signs_give_scipys_p_value_and_t_test(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.1, 0.3, 12)
    other = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_test(values).p == pytest.approx([other.pvalue])
    (spread,) = spreads([sample(values)])
    student = stats.ttest_1samp(values, 0)
    assert (spread.t, spread.p) == (pytest.approx(student.statistic), pytest.approx(student.pvalue))
    assert spread.interval == pytest.approx(student.confidence_interval())


def test_resampled_queries_give_scipys_percentile_interval() -> None:
    values = np.random.default_rng(0).beta(1, 2, 400)
    other = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    ours = np.quantile(resampling.resampled_means([sample(values)], 42)[0], [0.025, 0.975])
    assert ours == pytest.approx(other.confidence_interval, abs=0.002)
    assert ours[1] - ours[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.03)


def test_the_correction_for_both_is_holms_where_one_row_is_compared() -> None:
    for number in (1, 2, 15):
        p = np.random.default_rng(number).beta(0.3, 2, number)
        assert step_down(p[None]) == pytest.approx(np.array([multitest.multipletests(p, method="holm")[1]]))


# --- Laws ---


@given(DIFFERENCES)
@settings(max_examples=30)
def test_a_sign_test_does_not_care_who_is_first(differences: Array) -> None:
    there, back = sign_test(differences), sign_test(-differences)
    assert there.p == pytest.approx(back.p)
    assert there.p_max_t == pytest.approx(back.p_max_t)


@given(DIFFERENCES)
@settings(max_examples=30)
def test_max_t_is_never_below_the_single_test_and_is_it_for_one_row(differences: Array) -> None:
    test = sign_test(differences)
    assert (test.p_max_t >= test.p).all()
    for row, p in enumerate(test.p):
        alone = sign_test(differences[:, row])
        assert alone.p == alone.p_max_t == p


@given(arrays(np.float64, (3, 4), elements=st.floats(0, 1)))
def test_corrected_p_values_keep_their_order_and_are_never_smaller(p: Array) -> None:
    corrected = step_down(p)
    assert (corrected >= p).all()
    assert (corrected <= 1).all()
    order = np.argsort(p, axis=None, kind="stable")
    assert (np.diff(corrected.ravel()[order]) >= 0).all()
    assert step_down(p[:, :1]) == pytest.approx(p[:, :1]), "within one column nothing is left to correct"


def test_corrected_p_values_claim_too_much_no_more_often_than_they_say() -> None:
    """Without any difference, of four rows on three columns, a claim is made in about one of twenty studies."""
    generator = np.random.default_rng(7)
    claims = 0
    for _ in range(400):
        columns = [generator.normal(size=(9, 4)) + generator.normal(size=(9, 1)) for _ in range(3)]
        tests = [SignTest.of([sample(one)], _all([sample(one)]), every=True) for one in columns]
        claims += bool((step_down(np.stack([test.p_max_t for test in tests], axis=1)) <= 0.05).any())
    assert claims <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)


def _all(samples: list[Sample]) -> Array:
    drawn = resampling.all_flipped_means(samples)
    assert drawn is not None
    return drawn


def test_without_any_difference_p_is_one() -> None:
    for queries in (7, 40):
        test = sign_test(np.zeros((queries, 2)))
        assert test.p.tolist() == test.p_max_t.tolist() == [1, 1]
    (spread,) = spreads([sample(np.zeros(7))])
    assert (spread.t, spread.p, spread.interval, spread.effect, spread.detectable) == (None, None, None, None, 0)


def test_random_signs_come_near_to_all_signs() -> None:
    differences = np.random.default_rng(3).normal(0.05, 0.2, (15, 3))
    samples = [sample(differences)]
    exact = sign_test(differences)
    drawn = SignTest.of(samples, resampling.flipped_means(samples, 42), every=False)
    error = 4 * 0.5 / math.sqrt(resampling.FLIPS)
    assert drawn.p == pytest.approx(exact.p, abs=error)
    assert drawn.p_max_t == pytest.approx(exact.p_max_t, abs=error)


def test_random_orders_come_near_to_all_orders() -> None:
    means = mean_of([sample(THREE)])
    exact, _ = resampling.reordered_means([sample(THREE)], 42)
    drawn = resampling._reordered(sample(THREE), resampling.MOST_ORDERS, 42)
    ours, theirs = range_test(means, drawn, every=False), range_test(means, exact, every=True)
    assert ours == pytest.approx(theirs, abs=4 * 0.5 / math.sqrt(resampling.MOST_ORDERS))


def test_the_mean_over_columns_has_groups_averaged_first() -> None:
    generator = np.random.default_rng(5)
    one, two, three = (generator.normal(0.1, 0.3, (queries, 2)) for queries in (4, 3, 5))
    *_, of_mean = sign_tests([[sample(one)], [sample(two, "two", 0.5), sample(three, "three", 0.5)]], 42)
    signs = 1 - 2.0 * (np.arange(2**12)[:, None] >> np.arange(12) & 1)
    weights = np.repeat([1 / 2 / 4, 1 / 4 / 3, 1 / 4 / 5], [4, 3, 5])
    weighted = np.concatenate([one, two, three]) * weights[:, None]
    expected = (np.abs(signs @ weighted) >= np.abs(weighted.sum(axis=0)) - 1e-9).mean(axis=0)
    assert of_mean.every_sign
    assert of_mean.p == pytest.approx(expected)


def test_a_draw_is_decided_by_seed_and_collection_alone() -> None:
    values = np.random.default_rng(1).normal(size=(30, 2))
    for draw in (resampling.flipped_means, resampling.resampled_means):
        first = draw([sample(values)], 42)
        assert (draw([sample(values[:, ::-1])], 42)[::-1] == first).all(), "each row has the same draws"
        assert (draw([sample(values)], 43) != first).any()
        assert (draw([sample(values, "other")], 42) != first).any()


def test_draws_are_what_they_were() -> None:
    """A stored report is rendered again years later, with other versions of NumPy."""
    values = np.arange(40.0)[:, None] / 64
    signs = resampling.flipped_means([sample(values)], 42)[0, :3]
    queries = resampling.resampled_means([sample(values)], 42)[0, :3]
    orders = resampling._reordered(sample(np.hstack([values, -values])), 3, 42)[0]
    sums = [[round(float(mean) * 40 * 64) for mean in means] for means in (signs, queries, orders)]
    assert sums == [[20, -166, -20], [748, 724, 843], [-92, -140, 30]]
    assert (3 * resampling.resampled_seeds(3, "row", 42)[:, :4]).round().tolist() == [
        [0, 1, 3, 1],
        [1, 0, 0, 0],
        [2, 2, 0, 2],
    ]


def test_few_queries_have_all_draws_and_many_values_fewer_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resampling.all_flipped_means([sample(np.zeros(16))]) is None
    monkeypatch.setattr(resampling, "ORDERED_VALUES", 120 * 2000)
    for queries, draws in ((4, resampling.MOST_ORDERS), (40, 2000), (400, resampling.FEWEST_ORDERS)):
        drawn, every = resampling.reordered_means([sample(np.zeros((queries, 3)))], 42)
        assert (drawn.shape[1], every) == ((6**4, True) if queries == 4 else (draws, False))


def test_a_row_of_smaller_differences_is_judged_by_its_own_scale() -> None:
    generator = np.random.default_rng(2)
    small = np.abs(generator.normal(0.001, 0.0005, (12, 1)))
    test = sign_test(np.hstack([small, generator.normal(0, 0.4, (12, 1))]))
    assert test.p[0] == 2 / 2**12
    assert test.p_max_t[0] < 0.01, "divided by nothing, the other row's means would hide it"
