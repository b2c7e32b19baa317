"""Measuring: values by hand, and which queries a mean is over."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from colbert_zero.evaluation.measure import make, measure
from colbert_zero.evaluation.trec import write_run
from colbert_zero.graph.artifact import Artifact, Spec, run_step
from publishing import publish, publish_collection

MEASURES = ["nDCG@10", "AP@100", "R@100"]
QRELS = {"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"a": 1}, "q10": {"b": -1, "c": 1}}
RUN = {"q1": [("b", 3.0), ("c", 2.0), ("a", 1.0)], "q10": [("b", 2.0), ("c", 1.0)]}


def test_ndcg_is_the_one_computed_by_hand_with_linear_gains() -> None:
    values = measure(["nDCG@10"], QRELS, RUN)
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    assert values["q1", "nDCG@10"] == pytest.approx((1 / math.log2(2) + 2 / math.log2(4)) / ideal)


def test_average_precision_and_recall_are_those_computed_by_hand() -> None:
    values = measure(MEASURES, QRELS, RUN)
    assert values["q1", "AP@100"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert values["q1", "R@100"] == 1.0


def test_a_negative_grade_is_not_relevant() -> None:
    values = measure(MEASURES, QRELS, RUN)
    assert values["q10", "nDCG@10"] == pytest.approx(1 / math.log2(3))
    assert values["q10", "AP@100"] == 0.5


def test_a_query_without_relevant_documents_counts_as_zero() -> None:
    assert set(measure(MEASURES, {"q": {"a": 0, "b": -3}}, {"q": [("a", 1.0)]}).values()) == {0.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [("nDCG@10", 1 / math.log2(3)), ("RR@10", 1 / 2), ("R@1", 0.0), ("Judged@1", 0.0), ("Success@2", 1.0)],
)
def test_equal_scores_are_measured_in_the_order_of_the_written_run(name: str, value: float) -> None:
    values = measure([name], {"q": {"a": 1}}, {"q": [("a", 1.0), ("b", 1.0)]})
    assert values["q", name] == pytest.approx(value)


def test_two_names_of_one_measure_have_the_same_values() -> None:
    values = measure(["MRR@10", "RR@10", "MAP@100", "AP@100"], QRELS, RUN)
    assert values["q1", "MRR@10"] == values["q1", "RR@10"] == 1.0
    assert values["q10", "MAP@100"] == values["q10", "AP@100"] == 0.5


def test_a_query_that_retrieved_nothing_counts_as_zero() -> None:
    assert set(measure([*MEASURES, "Judged@5", "Bpref"], {"q": {"a": 1}}, {"q": []}).values()) == {0.0}


def test_an_unknown_measure_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_step(make, None, ["--spec", publish_run(["nDGC@10"]).text]) == 1
    assert "nDGC@10" in capsys.readouterr().err


def test_the_mean_is_over_all_judged_queries_a_missing_one_counting_as_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = publish_run(MEASURES)
    assert run_step(make, None, ["--spec", spec.text]) == 0
    facts = Artifact.open(spec.name).facts
    assert facts["means"]["AP@100"] == pytest.approx(((1 + 2 / 3) / 2 + 0 + 0.5) / 3)
    assert facts["queries"] == 3
    assert facts["queries_without_results"] == 1
    rows = pq.read_table(spec.folder / "measures.parquet").to_pylist()
    assert [(row["query_id"], row["measure"]) for row in rows] == [
        (query, name) for query in ("q1", "q10", "q2") for name in ("AP@100", "R@100", "nDCG@10")
    ]
    assert {row["value"] for row in rows if row["query_id"] == "q2"} == {0.0}


def publish_run(names: list[str]) -> Spec:
    documents, queries = dict.fromkeys("abc", "text"), dict.fromkeys(QRELS, "text")
    collection = publish_collection("toy", documents, queries, QRELS)
    run = publish(Spec("runs", "bm25.toy", {}), lambda folder: write_run(folder / "run.trec", RUN, "toy"))
    return Spec("measures", "toy", {"measures": names}, {"run": [run.name], "collection": [collection.name]})
