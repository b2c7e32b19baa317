"""Searching: MaxSim scores, the order of hits, and refused input."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from colbert_zero.evaluation import search
from colbert_zero.evaluation.search import search_exact
from colbert_zero.evaluation.trec import read_run
from colbert_zero.graph.artifact import Artifact, Spec, run_step
from colbert_zero.graph.console import UserError, log
from colbert_zero.machine import disk_space
from colbert_zero.machine.devices import add_device_option
from colbert_zero.retrieval import maxsim as maxsim_scores
from colbert_zero.retrieval.maxsim import maxsim
from colbert_zero.retrieval.vectors import TokenVectors, VectorWriter
from publishing import publish, publish_collection
from token_vectors import random_vectors, split


def publish_index(ids: list[str], texts: dict[str, list[list[float]]], kind: str = "exact") -> Spec:
    """An index with one query vector [1, 0] per query id."""
    model = publish(Spec("models", "toy", {}))
    spec = Spec("indexes", "toy", {"ids": ids, "texts": texts}, {"model": [model.name]})

    def write(folder: Path) -> None:
        with VectorWriter(folder, "queries") as queries:
            queries.write(ids, [np.array([[1, 0]], np.float32) for _ in ids])
        with VectorWriter(folder, "documents") as documents:
            documents.write(texts, [np.array(matrix, np.float32) for matrix in texts.values()])

    publish(spec, write, {"kind": kind, "documents": len(texts)})
    return spec


def run_spec(index: Spec, collection: str, depth: int, drop_self: bool = False) -> Spec:
    settings = {"depth": depth, "drop_self": drop_self}
    return Spec("runs", "colbert.toy", settings, {"index": [index.name], "collection": [collection]})


def run_search(spec: Spec) -> int:
    return run_step(search.make, None, ["--spec", spec.text], add_device_option)


def test_the_ranking_of_an_exact_search_is_that_of_pylates_rerank(tmp_path: Path) -> None:
    from pylate.rank import rerank

    documents = random_vectors(tmp_path, "d", [20] * 30, seed=3)
    queries = random_vectors(tmp_path, "q", [8] * 4, seed=4)
    expected = rerank([documents.ids] * 4, split(queries), [split(documents)] * 4)
    found = dict(search_exact(documents, queries, 30))
    for query, ranking in zip(queries.ids, expected, strict=True):
        assert [document for document, _ in found[query]] == [entry["id"] for entry in ranking]


def test_queries_searched_in_batches_give_the_same_hits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, queries = random_vectors(tmp_path, "d", [4] * 9), random_vectors(tmp_path, "q", [3] * 5)
    expected = [(query, [name for name, _ in hits]) for query, hits in search_exact(documents, queries, 4)]
    monkeypatch.setattr(maxsim_scores, "SCORES_IN_MEMORY", 18)
    assert [(query, [name for name, _ in hits]) for query, hits in search_exact(documents, queries, 4)] == expected
    some = search_exact(documents, queries, 4, positions=range(1, 4))
    assert [(query, [name for name, _ in hits]) for query, hits in some] == expected[1:4]


@pytest.mark.parametrize(("in_memory", "sizes"), [(18, [2, 2, 1]), (1, [1] * 5), (10**6, [5])])
def test_the_scores_of_a_batch_of_queries_are_at_most_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int, sizes: list[int]
) -> None:
    documents, queries = random_vectors(tmp_path, "d", [4] * 9), random_vectors(tmp_path, "q", [3] * 5)
    found = []

    def recorded(documents: TokenVectors, queries: TokenVectors, batch: range, device: str) -> Any:
        found.append(len(batch))
        return maxsim(documents, queries, batch, device)

    monkeypatch.setattr(maxsim_scores, "SCORES_IN_MEMORY", in_memory)
    monkeypatch.setattr(search, "maxsim", recorded)
    list(search_exact(documents, queries, 4))
    assert found == sizes


def test_time_and_speed_are_those_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"a": [[0.5, 0.0]]}
    collection = publish_collection("toy", dict.fromkeys(texts, "text"), dict.fromkeys("pqr", "text"), {"p": {"a": 1}})
    run = run_spec(publish_index(["p"], texts), collection.name, depth=3)
    times = iter([100.0, 104.00042])
    monkeypatch.setattr(search, "time", SimpleNamespace(monotonic=lambda: next(times)))
    job: Any = SimpleNamespace(
        options=SimpleNamespace(device="cpu"), threads=1, settings=run.settings, folder=tmp_path, state=tmp_path / "s",
        input=lambda role: Artifact.open(run.inputs[role][0]),
    )  # fmt: skip
    facts = search.make(job)
    assert (facts["searching_seconds"], facts["queries_per_second"]) == (4.0, 0.2)


@pytest.mark.parametrize("drop_self", [True, False])
def test_queries_without_a_document_are_counted_and_said(
    drop_self: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", logger=log.name)
    collection = publish_collection("toy", {"q": "text"}, {"q": "text"}, {"q": {"q": 1}})
    run = run_spec(publish_index(["q"], {"q": [[1.0, 0.0]]}), collection.name, 2, drop_self)
    assert run_search(run) == 0
    assert Artifact.open(run.name).facts["queries_without_results"] == int(drop_self)
    assert ("1 queries retrieved no document" in caplog.text) == drop_self


def test_equal_scores_are_cut_and_ordered_as_trec_eval_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"a": [[0.5, 0]], "c": [[0.5, 0]], "b": [[0.5, 0]], "best": [[1, 0]], "worst": [[0, 0]]}
    collection = publish_collection("toy", dict.fromkeys(texts, "text"), {"q": "text"}, {"q": {"a": 1}})
    run = run_spec(publish_index(["q"], texts), collection.name, depth=3)
    assert run_search(run) == 0
    assert read_run(run.folder / "run.trec") == {"q": [("best", 1.0), ("c", 0.5), ("b", 0.5)]}


def test_the_query_itself_is_dropped_before_the_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"q": [[1.0, 0.0]], "a": [[0.5, 0]], "b": [[0.25, 0]]}
    collection = publish_collection("toy", dict.fromkeys(texts, "text"), {"q": "text"}, {"q": {"a": 1}})
    index = publish_index(["q"], texts)
    for drop_self, expected in ((True, ["a", "b"]), (False, ["q", "a"])):
        run = run_spec(index, collection.name, 2, drop_self)
        assert run_search(run) == 0
        assert [document for document, _ in read_run(run.folder / "run.trec")["q"]] == expected


def test_an_index_of_other_queries_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    collection = publish_collection("toy", {"a": "text"}, {"q": "text"}, {"q": {"a": 1}})
    assert run_search(run_spec(publish_index(["other"], {"a": [[1, 0]]}), collection.name, 10)) == 1
    assert "made for other queries" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scratch", "free", "message"),
    [
        ("$COLBERT_SCRATCH/none", 10**12, "none is no folder on this machine; name one under resources.search_index"),
        ("$COLBERT_SCRATCH", 1, "the merged files of PLAID take about"),
    ],
)
def test_where_plaid_writes_there_is_a_folder_with_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch: str, free: int, message: str
) -> None:
    monkeypatch.setenv("COLBERT_SCRATCH", str(tmp_path))
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    (tmp_path / "plaid").mkdir()
    files = [f"plaid/0.{name}.npy" for name in ("codes", "residuals")]
    for name in files:
        (tmp_path / name).write_bytes(bytes(1000))
    index: Any = SimpleNamespace(facts={"kind": "plaid"}, files=lambda: files, file=lambda name: tmp_path / name)
    with pytest.raises(UserError, match=message):
        search.open_search(index, random_vectors(tmp_path, "q", [2]), 3, "cpu", scratch)


def test_an_exact_search_of_a_small_collection_takes_seconds_on_one_core(tmp_path: Path) -> None:
    documents = random_vectors(tmp_path, "d", [50] * 1000, dimensions=128)
    queries = random_vectors(tmp_path, "q", [15] * 100, dimensions=128)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    assert sum(len(hits) for _, hits in search_exact(documents, queries, 100)) == 10_000
    torch.set_num_threads(threads)
    assert time.process_time() - started < 5  # 0.3 s where this was written
