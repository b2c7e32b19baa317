"""A study beside the paper: verdicts, means, gaps and what the report says of them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from math import comb
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paper_study
from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.code import COMMIT_VARIABLE
from colbert_zero.graph.published import paper
from colbert_zero.report.page import Report
from colbert_zero.report.paper import AgainstThePaper, Compared, Comparison, Verdict, gap, sign_flip_p
from colbert_zero.report.paper_figures import grid_figure, pipeline_points
from colbert_zero.report.paper_section import comparison_csv, comparison_markdown
from paper_study import publish_study

PAPER = paper()
VALUES = {name: row.numbers.values for name, row in PAPER.rows.items()}


def alone(name: str, row: str = "mine", *, trained: bool = True, shift: float = 0.0, columns=None) -> Comparison:
    published = PAPER.rows[name]
    values = {
        column: value + shift for column, value in published.numbers.values.items() if not columns or column in columns
    }
    return Comparison(row, trained, published, values)


ALL = AgainstThePaper([alone(name, f"mine-{name}", trained=bool(row.stages)) for name, row in PAPER.rows.items()])


# Verdicts


def test_compared_with_itself_everything_published_is_within_tolerance():
    for each in ALL.comparisons:
        assert {cell.verdict for cell in each.cells.values()} == {Verdict.WITHIN}
        assert each.mean.verdict is Verdict.WITHIN
        assert each.mean.difference == pytest.approx(0, abs=0.01)
    assert ALL.verdict == (
        "32 of 32 rows within tolerance on the mean. 479 of 479 measured cells within tolerance; 0 not measured."
    )


@given(st.floats(0, 100), st.floats(-3, 3), st.floats(0.01, 2))
def test_a_verdict_is_that_of_the_difference_as_printed(published, difference, tolerance):
    compared = Compared(published, published + difference, tolerance)
    printed = float(f"{compared.difference:+.2f}")
    assert (compared.verdict is Verdict.WITHIN) == (abs(printed) <= tolerance)
    assert (compared.verdict is Verdict.ABOVE) == (printed > tolerance)
    mirrored = Compared(published + difference, published, tolerance)
    opposite = {Verdict.ABOVE: Verdict.BELOW, Verdict.BELOW: Verdict.ABOVE}
    assert mirrored.verdict is opposite.get(compared.verdict, compared.verdict)


def test_the_tolerance_of_the_mean_is_tighter_than_that_of_a_collection():
    shifted = AgainstThePaper([alone("c-distilled", shift=0.2), alone("a-distilled", "low", shift=-1.2)])
    assert [each.mean.verdict for each in shifted.comparisons] == [Verdict.BELOW, Verdict.ABOVE]
    assert shifted.verdict == (
        "0 of 2 rows within tolerance on the mean, 1 above and 1 below. "
        "15 of 30 measured cells within tolerance, 15 below; 0 not measured."
    )


def test_without_all_collections_no_mean_has_a_verdict_and_both_sides_are_of_the_same_columns():
    columns = ("scifact", "fiqa", "fever")
    each = alone("c-distilled", columns=columns, shift=5.0)
    assert not each.complete
    assert each.mean.published == pytest.approx(fmean(VALUES["c-distilled"][column] for column in columns))
    assert each.mean.difference == 5.0
    assert each.mean.verdict is Verdict.UNKNOWN
    assert each.cells["nq"].verdict is Verdict.UNKNOWN
    verdict = AgainstThePaper([each]).verdict
    assert verdict.startswith("The mean of 1 row has no verdict: not all published collections are measured. 0 of 3 ")


def test_a_study_of_other_collections_is_not_compared_at_all():
    against = AgainstThePaper([Comparison("mine", True, PAPER.rows["c-distilled"], {"own": 50.0})])
    assert against.verdict.endswith("No collection of the published tables is measured here, so nothing is compared.")
    assert grid_figure(against) == []
    assert pipeline_points(against, ["own"]) == []


def test_in_domain_and_out_of_domain_are_all_columns():
    each = alone("c-distilled")
    inside = [column for column in each.common if column in PAPER.in_domain]
    outside = [column for column in each.common if column not in PAPER.in_domain]
    assert (len(inside), len(outside)) == (5, 10)
    halves = [each.mean_over(columns).published or 0 for columns in (inside, outside)]
    assert (5 * halves[0] + 10 * halves[1]) / 15 == pytest.approx(55.43, abs=0.005)


# Gaps: the p values are those of notes on the paper, computed elsewhere.

GAPS = {
    ("c-distilled", "b-distilled"): (0.31, 8, 0.31),
    ("c-distilled", "a-distilled"): (1.34, 12, 0.04),
    ("b-distilled", "a-distilled"): (1.04, 9, 0.19),
    ("c-distilled", "gte-moderncolbert"): (0.76, 9, 0.32),
    ("c-distilled", "gte-modernbert-base"): (0.10, 6, 0.97),
    ("c-distilled", "dense-supervised"): (2.53, 11, 0.04),
    ("c-supervised", "c-unsupervised"): (0.37, 7, 0.81),
}


@pytest.mark.parametrize("names", GAPS)
def test_gaps_wins_and_p_values_are_those_computed_elsewhere(names):
    mean, wins, p = GAPS[names]
    found = gap(*(VALUES[name] for name in names))
    assert (found.wins, found.columns) == (wins, 15)
    assert found.mean == pytest.approx(mean, abs=0.0075)
    assert found.p == pytest.approx(p, abs=0.0075)


@pytest.mark.parametrize(
    ("first", "second", "mean"),
    [("b-distilled", "a-distilled", -0.14), ("c-distilled", "a-distilled", 0.35), ("c-distilled", "d-distilled", 0.19)],
)
def test_without_three_collections_of_wikipedia_gaps_are_small(first, second, mean):
    (tested,) = (each for each in ALL.claims if (each.claim.first, each.claim.second) == (first, second))
    assert tested.without.columns == 12
    assert tested.without.mean == pytest.approx(mean, abs=0.005)


@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_equal_differences_are_a_sign_test(n):
    assert sign_flip_p([0.3] * n) == pytest.approx(2 / 2**n)
    # One of n against the others: as extreme are all sums of n - 2 or more.
    if n > 2:
        assert sign_flip_p([0.3] * (n - 1) + [-0.3]) == pytest.approx(2 * (comb(n, 0) + comb(n, 1)) / 2**n)


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=8))
def test_a_p_value_does_not_depend_on_order_or_direction(differences):
    p = sign_flip_p(differences)
    assert 0 < p <= 1
    assert sign_flip_p(differences[::-1]) == pytest.approx(p)
    assert sign_flip_p([-difference for difference in differences]) == pytest.approx(p)


def test_our_gap_is_that_of_the_trained_rows_where_there_are_some():
    rows = [alone("c-distilled"), alone("c-distilled", "released", trained=False, shift=3), alone("a-distilled", "a")]
    tested = {(each.claim.first, each.claim.second): each for each in AgainstThePaper(rows).claims}
    assert tested["c-distilled", "a-distilled"].ours.mean == pytest.approx(1.34, abs=0.005)
    assert tested["c-distilled", "b-distilled"].ours is None
    assert len(tested) == 10


# Figures


def test_the_papers_pipelines_are_drawn_by_their_gpu_hours_beside_comparable_means_only():
    against = AgainstThePaper([alone("b-distilled")])
    points = pipeline_points(against, PAPER.columns)
    assert [(point.training_seconds / 3600, point.value) for point in points] == [(8, 54.09), (40, 55.12), (408, 55.43)]
    assert pipeline_points(against, [*PAPER.columns, "own"]) == []
    assert pipeline_points(AgainstThePaper([alone("dense-supervised", trained=False)]), PAPER.columns) == []


def test_prompts_and_lengths_have_all_numbers_of_table_4():
    (figure,) = grid_figure(ALL)
    numbers = re.findall(r">([\d.]+)</text>", figure.svg)
    averages = [f"{PAPER.rows[row.model].numbers.average:.2f}" for row in PAPER.tables["table4"].rows]
    ours = [f"{fmean(VALUES[row.model].values()):.2f}" for row in PAPER.tables["table4"].rows]
    assert sorted(numbers) == sorted(averages + ours)
    assert "neither" not in figure.svg


# In a report

ROWS = {"mine": "c-distilled", "released": "c-distilled", "bm25": "pyserini-bm25"}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spec]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("paper"))
        patch.setenv(COMMIT_VARIABLE, "0" * 40)  # Which git need not be asked for.
        yield publish_study(ROWS, lambda row, column: 1.5 if (row, column) == ("mine", "nq") else 0.0)


@pytest.fixture(scope="module")
def files(spec: Spec) -> dict[str, str]:
    return dict(Report.open(spec).files())


PAPER_FILES = {f"paper/table{number}.{form}" for number in (2, 3, 4) for form in ("md", "tex")} | {
    "paper/comparison.md",
    "paper/comparison.csv",
}


def test_a_report_has_the_comparison_the_papers_tables_and_the_section(files):
    assert {name for name in files if name.startswith("paper/")} == PAPER_FILES
    assert '<a href="#against-the-paper">' in files["report.html"]
    # A shift by 1.5 on one of 15 collections moves the mean by 0.1.
    verdict = "3 of 3 rows within tolerance on the mean. 43 of 44 measured cells within tolerance, 1 above; 0 not"
    assert verdict in files["report.html"]


def test_a_report_whose_rows_name_nothing_published_has_none_of_it(spec):
    settings = {name: value for name, value in spec.settings.items() if name != "published"}
    report = Report.open(Spec(spec.kind, spec.label, settings, spec.inputs))
    assert report.against is None
    assert "Against the paper" not in {section.title for section in report._sections()}


def test_the_csv_has_every_cell_and_mean_with_its_verdict(files):
    lines = list(csv.DictReader(io.StringIO(files["paper/comparison.csv"])))
    assert len(lines) == 2 * 16 + 15
    verdicts = {(line["row"], line["column"]): line["verdict"] for line in lines}
    assert verdicts["mine", "nq"] == "above"
    assert {verdict for cell, verdict in verdicts.items() if cell != ("mine", "nq")} == {"within"}
    again = {line["row"]: line["again"] for line in lines if line["column"] == "mean"}
    assert again == {"mine": "55.39", "released": "55.39", "bm25": ""}


def test_trained_rows_stand_first_in_the_order_of_the_registry(files):
    lines = csv.DictReader(io.StringIO(files["paper/comparison.csv"]))
    assert list(dict.fromkeys(line["row"] for line in lines)) == ["mine", "released", "bm25"]


def test_markdown_says_the_verdict_first_and_every_cell_outside(files):
    text = files["paper/comparison.md"]
    title, verdict, *_ = text.split("\n\n")
    assert title == "# Against the paper"
    assert verdict.startswith("3 of 3 rows")
    outside = text.partition("## cells outside tolerance")[2]
    assert re.search(r"\| mine \| c-distilled +\| nq +\| +61\.66 \| 63\.16 \| +\+1\.50 \| +1\.00 \| above", outside)
    assert len([line for line in outside.splitlines() if line.startswith(("| mine", "| released", "| bm25"))]) == 1


def test_collections_that_are_not_the_registrys_and_a_share_of_the_rows_are_said(files, spec):
    assert "Of another collection than the registry pins" in files["paper/comparison.md"]
    assert "cqadupstack-android, cqadupstack-gaming, dbpedia" in files["report.html"]


def test_training_time_is_times_gpus_beside_the_papers_gpu_hours(files):
    page = files["report.html"]
    figure = page.partition('id="cost"')[2].partition("</figure>")[0]
    assert "training time × GPUs of all stages, hours" in figure
    assert [name in figure for name in ("paper: a-distilled", "paper: b-distilled", "paper: c-distilled")] == [True] * 3
    assert "GH200-hours" in figure


def test_comparing_needs_no_more_than_the_rows_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    spec = publish_study({"mine": "c-distilled"}, columns=("scifact",))
    report = Report.open(spec)
    assert report.against is not None
    assert "1 of 15" in comparison_markdown(report.against, [])
    assert comparison_csv(report.against).count("not measured") == 14 + 1
    assert dict(report.files())["paper/table2.md"].count("/ –") == 10 * 16 - 1
    assert report._gpu_seconds(report.rows[0]) == paper_study.PROCESSES * 3 * paper_study.SECONDS
