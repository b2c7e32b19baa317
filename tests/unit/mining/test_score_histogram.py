"""Laws of histograms of scores: every known score is in its bin, whatever the range and the order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.mining.score_histogram import MOST_BINS, ScoreHistogram

scores = st.floats(-1e4, 1e4, width=32)


@given(st.lists(st.tuples(scores, st.lists(scores, max_size=4)), min_size=1, max_size=20), st.randoms())
def test_counts_are_numpys_of_the_same_bins_in_any_order(rows, shuffled):
    one, other = ScoreHistogram(), ScoreHistogram()
    for histogram, some in ((one, rows), (other, shuffled.sample(rows, len(rows)))):
        for positive, negatives in some:
            histogram.add(np.float32(positive), np.array([*negatives, np.nan], np.float32))
    facts = one.facts
    assert facts == other.facts
    together = ScoreHistogram()
    for some in (rows[::2], rows[1::2], []):
        part = ScoreHistogram()
        for positive, negatives in some:
            part.add(np.float32(positive), np.array(negatives, np.float32))
        together.include(part.facts)
    assert together.facts == facts
    bins = len(facts["positives"])
    edges = facts["low"] + facts["width"] * np.arange(bins + 1)
    of_rows = {
        "positives": [positive for positive, _ in rows],
        "negatives": [score for _, some in rows for score in some],
    }
    for name, values in of_rows.items():
        # Of numpy's bins, the last one has its upper edge as well, on which no score lies here.
        assert np.histogram(values, edges)[0].tolist() == facts[name]
        assert sum(facts[name]) == len(values)
    assert bins <= MOST_BINS
    assert bins > MOST_BINS // 2 or facts["width"] == 2.0**-12


def test_without_rows_there_are_no_bins():
    assert ScoreHistogram().facts == {"low": 0.0, "width": 2.0**-12, "positives": [], "negatives": []}


@pytest.mark.parametrize("score", [0.0, -0.5, 17.25])
def test_one_score_is_one_bin(score):
    histogram = ScoreHistogram()
    histogram.add(np.float32(score), np.array([np.nan], np.float32))
    assert histogram.facts == {"low": score, "width": 2.0**-12, "positives": [1], "negatives": [0]}


def test_beyond_64_bins_each_is_twice_as_wide():
    histogram, none = ScoreHistogram(), np.empty(0, np.float32)
    for number in range(64):
        histogram.add(number * 2.0**-12, none)
    assert (len(histogram.facts["positives"]), histogram.facts["width"]) == (64, 2.0**-12)
    histogram.add(64 * 2.0**-12, none)
    assert (len(histogram.facts["positives"]), histogram.facts["width"]) == (33, 2.0**-11)
