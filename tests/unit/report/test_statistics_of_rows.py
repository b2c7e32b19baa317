"""The statistics of a report: what its rows' values decide, what they do not, and what the page says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy import stats

from colbert_zero.graph.paths import WORKFLOW
from colbert_zero.report.results import Column, Replicate, Row
from colbert_zero.report.statistics.comparison import Statistics, compare
from colbert_zero.report.statistics.record import record
from colbert_zero.report.statistics.section import in_words, statistics_sections

Values = Mapping[str, Mapping[str, float]]
"""By collection, the value of each query."""
COLUMNS = [Column("one", ("one",)), Column("forums", ("x", "y"))]
SIZES = {"one": 40, "x": 30, "y": 6}


def make_row(name: str, *of_seeds: Values, kind: str = "recipe") -> Row:
    replicates = []
    for number, values in enumerate(of_seeds):
        replicate = Replicate(name if len(of_seeds) == 1 else f"{name}@{number}", [], {}, "nDCG@10")
        replicate.__dict__["values_per_query"] = values
        replicates.append(replicate)
    return Row(name, kind, replicates)


def values(seed: int, shift: float = 0.0, spread: float = 0.1) -> Values:
    """Values of one model; two of them share how hard a query is."""
    hard, own = np.random.default_rng(0), np.random.default_rng(seed)
    return {
        name: {
            f"q{number}": float(value)
            for number, value in enumerate(hard.uniform(0.2, 0.6, size) + shift + own.normal(0, spread, size))
        }
        for name, size in SIZES.items()
    }


def rows() -> list[Row]:
    return [
        make_row("bm25", values(1), kind="baseline"),
        make_row("good", values(2, 0.15)),
        make_row("same", values(3)),
        make_row("bad", values(4, -0.1)),
    ]


def statistics_of(table: Sequence[Row], columns: Sequence[Column] = COLUMNS, seed: int = 42) -> Statistics:
    reference, *compared = sorted(table, key=lambda row: (row.kind, row.name))
    return compare(table, compared, reference, columns, seed)


def text_of(statistics: Statistics) -> str:
    return record(statistics, "toy", "nDCG@10", 42)


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    return statistics_of(rows())


def test_a_comparison_is_that_of_the_values_of_queries(statistics: Statistics) -> None:
    first, second = values(2, 0.15)["one"], values(1)["one"]
    comparison = statistics.comparisons["good", "one"]
    student = stats.ttest_rel(list(first.values()), list(second.values()))
    assert comparison.spread.p == pytest.approx(student.pvalue)
    assert comparison.spread.mean == pytest.approx(np.mean(list(first.values())) - np.mean(list(second.values())))
    assert comparison.interval == pytest.approx(tuple(student.confidence_interval()), abs=0.006)
    assert comparison.signs[0] == sum(first[query] > second[query] for query in first)
    same = statistics.comparisons["same", "one"]
    ours, theirs = same.p, stats.ttest_rel(list(values(3)["one"].values()), list(second.values())).pvalue
    assert ours == pytest.approx(theirs, abs=0.01)


def test_groups_are_averaged_first_and_count_once_in_the_mean(statistics: Statistics) -> None:
    first, second = values(2, 0.15), values(1)
    means = {name: np.mean(list(first[name].values())) - np.mean(list(second[name].values())) for name in SIZES}
    forums = (means["x"] + means["y"]) / 2
    assert statistics.comparisons["good", "forums"].spread.mean == pytest.approx(forums)
    assert statistics.comparisons["good", None].spread.mean == pytest.approx((means["one"] + forums) / 2)
    assert sum(statistics.comparisons["good", "forums"].signs) == 36
    assert sum(statistics.comparisons["good", None].signs) == 2


def test_corrections_only_raise_a_p_value(statistics: Statistics) -> None:
    for comparison in statistics.comparisons.values():
        assert comparison.p <= comparison.p_max_t <= comparison.p_corrected
        assert comparison.p_holm is None or comparison.p <= comparison.p_holm


def test_the_order_of_rows_and_queries_decides_nothing(statistics: Statistics) -> None:
    turned = []
    for row in reversed(rows()):
        of_queries = {name: dict(reversed(of.items())) for name, of in row.replicates[0].values_per_query.items()}
        turned.append(make_row(row.name, of_queries, kind=row.kind))
    theirs, ours = json.loads(text_of(statistics_of(turned))), json.loads(text_of(statistics))
    assert theirs["comparisons"] == ours["comparisons"]
    pairs = [{frozenset(pair["rows"]): pair["p"] for pair in each["pairs"]} for each in (ours, theirs)]
    assert pairs[0] == pairs[1]


def test_a_constant_added_to_all_rows_changes_nothing(statistics: Statistics) -> None:
    moved = [
        make_row(
            row.name,
            {
                name: {query: value + 0.125 for query, value in of.items()}
                for name, of in row.replicates[0].values_per_query.items()
            },
            kind=row.kind,
        )
        for row in rows()
    ]
    for ours, theirs in zip(
        json.loads(text_of(statistics))["comparisons"],
        json.loads(text_of(statistics_of(moved)))["comparisons"],
        strict=True,
    ):
        for field in ("p", "p_max_t", "difference", "interval", "d_z"):
            assert ours[field] == pytest.approx(theirs[field], abs=1e-8)


def test_an_equal_row_is_no_evidence() -> None:
    statistics = statistics_of([make_row("bm25", values(1), kind="baseline"), make_row("twin", values(1))])
    for comparison in statistics.comparisons.values():
        assert (comparison.p, comparison.p_corrected, comparison.interval, comparison.verdict) == (1, 1, (0, 0), None)
    assert statistics.pairs.p.tolist() == [[1, 1], [1, 1]]


def test_a_missing_query_counts_as_0() -> None:
    some, full = values(2), values(2)
    some["one"] = {query: value for query, value in full["one"].items() if query != "q7"}  # type: ignore[index]
    full["one"]["q7"] = 0.0  # type: ignore[index]
    base = make_row("bm25", values(1), kind="baseline")
    texts = [text_of(statistics_of([base, make_row("row", each)])) for each in (some, full)]
    assert texts[0] == texts[1]


def test_seeds_are_resampled_with_the_queries() -> None:
    base = make_row("bm25", values(1), kind="baseline")
    alone = statistics_of([base, make_row("row", values(2))])
    thrice = statistics_of([base, make_row("row", values(2), values(2), values(2))])
    for place, comparison in alone.comparisons.items():
        assert thrice.comparisons[place].interval == pytest.approx(comparison.interval), "equal seeds add nothing"
        assert thrice.comparisons[place].p == comparison.p
    apart = statistics_of([base, make_row("row", values(2, -0.1), values(2), values(2, 0.1))])
    wide, narrow = (each.comparisons["row", None].interval for each in (apart, alone))
    assert apart.comparisons["row", None].spread.mean == pytest.approx(alone.comparisons["row", None].spread.mean)
    # Three seeds that are 0.1 apart: the mean of three drawn ones has the standard deviation 0.1 sqrt(2/9).
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    assert wide[1] - wide[0] == pytest.approx(2 * 1.96 * 0.1 * np.sqrt(2 / 9), rel=0.2)


def test_a_difference_within_the_spread_of_seeds_is_not_called_one() -> None:
    base = make_row("bm25", values(1, spread=0.01), kind="baseline")
    one = statistics_of([base, make_row("row", values(2, 0.06, 0.01))]).comparisons["row", None]
    several = make_row("row", *(values(2, 0.06 + shift, 0.01) for shift in (-0.1, 0, 0.1)))
    three = statistics_of([base, several]).comparisons["row", None]
    assert one.verdict == "better"
    assert three.p_corrected < 0.001
    assert three.verdict is None


def test_hash_seeds_decide_nothing(statistics: Statistics) -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]; import test_statistics_of_rows as t;"
        "sys.stdout.write(t.text_of(t.statistics_of(t.rows())))"
    )
    paths = [str(WORKFLOW), os.path.dirname(__file__)]
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    text = subprocess.run(
        [sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert text == text_of(statistics)


def test_the_page_calls_a_row_better_only_where_a_test_does(statistics: Statistics) -> None:
    (section,) = statistics_sections(statistics, "nDCG@10")
    words = in_words(statistics, "good", "tasks")
    assert words.startswith("Better than bm25 on 2 of 2 tasks (one, forums). In the mean +")
    assert words.endswith("p < 0.001: better.")
    assert in_words(statistics, "bad", "tasks").startswith("Worse than bm25 on 2 of 2 tasks (one, forums).")
    same = in_words(statistics, "same", "tasks")
    assert same.startswith("No difference shown on 2 of 2.")
    assert "better" not in same
    titles = [table.title for table in section.tables]
    assert titles == [
        "against bm25", "mean over tasks", "one (40 queries)", "forums (30 + 6 queries)",
        f"p of all pairs, mean over tasks: randomised Tukey, {statistics.pairs.draws:,} orders of rows",
    ]  # fmt: skip
    assert all(len(row.cells) == len(table.header) - 1 for table in section.tables for row in table.rows)
    assert any("of one seed. So the tests speak of these models alone" in line for line in section.text)
    assert any("How large a difference could be shown" in line for line in section.text)


def test_a_single_row_has_nothing_to_be_compared_with() -> None:
    statistics = compare([make_row("bm25", values(1))], [], make_row("bm25", values(1)), COLUMNS, 42)
    assert list(statistics_sections(statistics, "nDCG@10")) == []
    assert json.loads(text_of(statistics))["comparisons"] == []
