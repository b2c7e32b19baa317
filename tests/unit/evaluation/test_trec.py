"""Laws of BM25's runs, and of runs as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pytest import MonkeyPatch

from bm25_texts import K1, B
from colbert_zero.data.beir import Document, write_collection
from colbert_zero.evaluation.bm25 import make
from colbert_zero.evaluation.trec import read_run, write_run
from colbert_zero.graph.artifact import Artifact, Spec
from colbert_zero.graph.console import UserError
from colbert_zero.retrieval.lucene import add_heap_option
from mined import publish_step
from publishing import publish


def collection(folder: Path) -> dict[str, int]:
    documents = [
        Document("d1", "Alpha", "beta"),
        Document("d10", "", "beta"),
        Document("q1", "", "alpha"),
        Document("d9", "", "alpha"),
    ]
    queries = {"q1": "alpha", "q2": "beta", "q3": "alpha", "q4": "nothing"}
    write_collection(folder, documents, queries, {"q4": {"d1": 1}, "q1": {"d1": 1}, "q2": {"d1": 1}})
    return {}


@pytest.mark.parametrize(("drop_self", "first"), [(True, ["d9", "d1"]), (False, ["q1", "d9"])])
def test_a_run_holds_the_judged_queries_and_no_query_itself_if_drop_self(
    tmp_path: Path, monkeypatch: MonkeyPatch, drop_self: bool, first: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = publish(Spec("collections", "mine", {"split": "test"}), collection)
    settings = {"k1": K1, "b": B, "depth": 2, "drop_self": drop_self}
    spec = Spec("runs", "bm25.mine", settings, {"collection": [source.name]})
    made: Artifact = publish_step(make, spec, add_options=add_heap_option)
    run = read_run(made.file("run.trec"))
    assert {query: [document for document, _ in found] for query, found in run.items()} == {
        "q1": first,
        "q2": ["d10", "d1"],
    }
    assert made.facts == {"documents": 4, "queries": 3, "retrieved": 4, "queries_without_documents": 1}


def test_a_run_read_back_has_the_order_and_scores_it_was_measured_with(tmp_path: Path) -> None:
    third, tiny = 1 / 3, 1e-9
    write_run(tmp_path / "run", {"b": [("x", third + 1e-12), ("y", third), ("z", 5.0)], "a": [("x", tiny)]}, "tag")
    run = read_run(tmp_path / "run")
    # In single precision x and y are tied, and trec_eval puts the higher id first.
    assert {query: [document for document, _ in found] for query, found in run.items()} == {
        "b": ["z", "y", "x"],
        "a": ["x"],
    }
    assert [np.float32(score) for _, score in run["b"] + run["a"]] == list(map(np.float32, (5, third, third, tiny)))
    assert [line.split()[3] for line in (tmp_path / "run").read_text().splitlines()] == ["1", "2", "3", "1"]


@pytest.mark.parametrize("name", ["\u3000d", "d\xa0", "d\u2028e", "\x85", "d\x1ce", '"d"', "\ufeffd", "é"])
def test_an_id_with_white_space_of_other_kinds_survives_a_run(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "run", {name: [(name, 2.0), ("other", 1.0)]}, "tag")
    assert read_run(tmp_path / "run") == {name: [(name, 2.0), ("other", 1.0)]}


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0 d 1 2.5 tag\nq Q0 d 2 much tag\n")
    with pytest.raises(UserError, match="run, line 2"):
        read_run(tmp_path / "run")
