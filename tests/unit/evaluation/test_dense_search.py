"""Searches of dense models: the run is what a plain argsort makes of the model's vectors, however it is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from dense_studies import DOCUMENTS, JUDGED, MODELS, QUERIES, index_spec, make_index, make_run, run_spec, vectors_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sentence_transformers import SentenceTransformer

from colbert_zero.evaluation import dense_search
from colbert_zero.evaluation.dense_index import invert
from colbert_zero.evaluation.dense_search import IdOrder, search_exact, search_inverted_file
from colbert_zero.evaluation.embeddings import INVERTED_FILE, Vectors
from colbert_zero.evaluation.trec import Hits, read_run
from colbert_zero.graph.artifact import Artifact, Spec, run_step
from colbert_zero.machine.devices import add_device_option
from colbert_zero.retrieval import inverted_file
from publishing import publish, publish_collection
from tiny_models import dense_model


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path / "study")


def argsort(documents: Vectors, queries: Vectors, ids: Sequence[str], depth: int) -> list[Hits]:
    """The best documents of each query, by all scores; of equal ones, the greater id first."""
    by_descending_id = sorted(range(len(ids)), key=lambda position: ids[position], reverse=True)
    best = []
    for query in queries.astype(np.float64):
        scores = (documents.astype(np.float64) @ query).astype(np.float32)[by_descending_id]
        order = np.argsort(-scores, kind="stable")[:depth]
        best.append([(ids[by_descending_id[place]], float(scores[place])) for place in order])
    return best


def order_of(ids: Sequence[str]) -> IdOrder:
    return IdOrder(pa.chunked_array([pa.array(ids[:3], pa.string()), pa.array(ids[3:], pa.string())]))


@pytest.mark.parametrize("case", MODELS)
def test_a_run_is_what_argsort_makes_of_sentence_transformers(
    case: str, bert: Path, modernbert: Path, tmp_path: Path
) -> None:
    options = MODELS[case]
    base = modernbert if options.get("pooling") == "cls" else bert
    index = make_index(index_spec(dense_model(tmp_path / "model", base, **options)))
    found = read_run(make_run(run_spec(index.spec, 20)).file("run.trec"))
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    saved, cosine = options.get("prompts", {}), options.get("similarity_fn_name") != "dot"
    document_prompt = saved.get("document", saved.get("passage", ""))
    documents, queries = (
        np.asarray(model.encode(list(texts.values()), prompt=prompt, normalize_embeddings=cosine))
        for texts, prompt in ((DOCUMENTS, document_prompt), (JUDGED, saved.get("query", "")))
    )
    assert list(found) == list(JUDGED)
    for query, expected in zip(JUDGED, argsort(documents, queries, list(DOCUMENTS), 20), strict=True):
        np.testing.assert_allclose(
            [score for _, score in found[query]], [score for _, score in expected], rtol=1e-4, atol=1e-5
        )
        # Another batch rounds otherwise, which may swap neighbours.
        scores = dict(expected)
        for (document, score), (other, _) in zip(found[query], expected, strict=True):
            assert document == other or abs(scores.get(document, expected[-1][1]) - score) < 1e-4


def test_equal_texts_go_by_descending_id_and_the_query_itself_is_dropped(bert: Path, tmp_path: Path) -> None:
    index = make_index(index_spec(dense_model(tmp_path / "model", bert)))
    runs = [read_run(make_run(run_spec(index.spec, 95, drop)).file("run.trec")) for drop in (False, True)]
    for run in runs:
        for hits in run.values():
            places = [document for document, _ in hits if document.startswith("twin")]
            assert places == ["twin-c", "twin-b", "twin-a"]
    kept, dropped = runs
    assert "q2" in dict(kept["q2"])
    assert dropped["q2"] == [hit for hit in kept["q2"] if hit[0] != "q2"]
    assert dropped["q1"] == kept["q1"] and len(kept["q1"]) == len(DOCUMENTS)
    shallow = read_run(make_run(run_spec(index.spec, 5, True)).file("run.trec"))
    assert shallow == {query: hits[:5] for query, hits in dropped.items()}


VALUES = st.sampled_from([-1.0, -0.5, -0.0, 0.0, 0.25, 0.5, 1.0])
"""Few values, so that many scores are equal."""


@settings(max_examples=60)
@given(
    documents=arrays.arrays(np.float32, st.tuples(st.integers(3, 40), st.just(3)), elements=VALUES),
    queries=arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(3)), elements=VALUES),
    depth=st.integers(1, 40),
    block=st.integers(1, 50),
    scores=st.integers(1, 200),
    data=st.data(),
)
def test_blocks_of_any_size_give_the_same_hits(
    documents: Vectors, queries: Vectors, depth: int, block: int, scores: int, data: st.DataObject
) -> None:
    ids = data.draw(
        st.lists(st.text("aZ1é\U0001f600", max_size=4), min_size=len(documents), max_size=len(documents), unique=True)
    )
    depth = min(depth, len(documents))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dense_search.DOCUMENTS_PER_BLOCK, "cpu", block)
        patch.setitem(dense_search.SCORES_PER_BLOCK, "cpu", scores)
        order = order_of(ids)
        found = [order.hits(keys) for keys in search_exact(documents, queries, order, depth)]
    assert found == argsort(documents, queries, ids, depth)


def test_a_score_that_is_rounded_to_minus_zero_equals_zero() -> None:
    tiny = np.float32(2.0**-100)
    documents, queries = np.array([[-tiny], [tiny], [-tiny], [0.0]]), np.array([[tiny]])
    order = order_of(["a", "b", "c", "d"])
    (keys,) = search_exact(documents, queries, order, 4)
    assert order.hits(keys) == [("d", 0.0), ("c", 0.0), ("b", 0.0), ("a", 0.0)]


def test_negative_scores_rank_below_positive_ones_and_keep_their_value() -> None:
    documents = np.array([[-3.5], [1e-30], [-1e-30], [2.25], [0.0], [-0.0]], np.float32)
    ids = ["a", "b", "c", "d", "e", "f"]
    order = order_of(ids)
    (keys,) = search_exact(documents, np.ones((1, 1), np.float32), order, 6)
    found = order.hits(keys)
    assert [document for document, _ in found] == ["d", "b", "f", "e", "c", "a"]
    np.testing.assert_array_equal([score for _, score in found], np.float32([2.25, 1e-30, 0, 0, -1e-30, -3.5]))


def publish_inverted_file(vectors: Vectors, seed: int = 1) -> Artifact:
    def write(folder: Path) -> None:
        faiss.write_index(invert(vectors, seed), str(folder / INVERTED_FILE))

    return publish(Spec("indexes", "dense.lists", {"seed": seed, "documents": len(vectors)}), write)


def recall(found: Sequence[Hits], expected: Sequence[Hits]) -> float:
    common = sum(len(dict(one).keys() & dict(other).keys()) for one, other in zip(found, expected, strict=True))
    return common / sum(map(len, expected))


def test_faiss_finds_nearly_what_an_exact_search_finds_with_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    documents, queries = vectors_of(6000), vectors_of(50, seed=2)
    ids = [f"d{number}" for number in range(6000)]
    order, index = order_of(ids), publish_inverted_file(documents)
    exact = [order.hits(keys) for keys in search_exact(documents, queries, order, 10)]
    recalls = []
    for probes in (1, 8, 64, 10_000):
        monkeypatch.setattr(inverted_file, "PROBES", probes)
        found = [order.hits(keys) for keys in search_inverted_file(index, documents, queries, order, 10, 1)]
        for one, other in zip(found, exact, strict=True):
            scores = dict(other)
            assert all(scores.get(document, score) == score for document, score in one)
        recalls.append(recall(found, exact))
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.8 and recalls[2] > 0.95 and recalls[3] == 1


def test_faiss_scores_four_documents_of_64_lists_for_each_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    search = faiss.IndexIVFScalarQuantizer.search

    def noted(self: faiss.IndexIVFScalarQuantizer, queries: Vectors, candidates: int) -> Any:
        asked.append((self.nprobe, candidates))
        return search(self, queries, candidates)

    monkeypatch.setattr(faiss.IndexIVFScalarQuantizer, "search", noted)
    documents = vectors_of(3000)
    order, index = order_of([f"d{number}" for number in range(3000)]), publish_inverted_file(documents)
    (keys,) = search_inverted_file(index, documents, documents[:1], order, 10, 1)
    assert order.hits(keys)[0][0] == "d0", "the first document too can be found"
    list(search_inverted_file(index, documents, documents[:1], order, 1000, 1))
    assert asked == [(64, 40), (64, 3000)]


def test_faiss_gives_the_same_hits_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    documents, queries = vectors_of(3000), vectors_of(30, seed=2)
    order, index = order_of([f"d{number}" for number in range(3000)]), publish_inverted_file(documents)
    expected = [order.hits(keys) for keys in search_inverted_file(index, documents, queries, order, 10, 1)]
    monkeypatch.setattr(dense_search, "QUERIES_PER_BATCH", 7)
    assert [order.hits(keys) for keys in search_inverted_file(index, documents, queries, order, 10, 1)] == expected


def test_a_faiss_run_of_few_documents_is_the_exact_one(bert: Path, tmp_path: Path) -> None:
    folder = dense_model(tmp_path / "model", bert)
    texts = []
    for kind in ("exact", "faiss"):
        index = make_index(index_spec(folder, kind=kind))
        run = make_run(run_spec(index.spec, 10, True))
        assert run.facts["retrieved"] == 30 and run.facts["queries_without_results"] == 0
        texts.append(run.file("run.trec").read_text())
        assert {line.split()[-1] for line in texts[-1].splitlines()} == set(index.spec.inputs["model"])
    assert texts[0] == texts[1]


def test_a_search_is_asked_for_no_more_documents_than_the_run_has(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def noted(documents: Vectors, queries: Vectors, order: IdOrder, depth: int, device: str) -> Any:
        asked.append(depth)
        return search_exact(documents, queries, order, depth, device)

    monkeypatch.setattr(dense_search, "search_exact", noted)
    index = make_index(index_spec(dense_model(tmp_path / "model", bert)))
    for depth, drop_self in ((5, False), (5, True), (1000, True)):
        facts = make_run(run_spec(index.spec, depth, drop_self)).facts
        assert 0 <= facts["searching_seconds"] < 600
        assert facts["queries_per_second"] >= len(JUDGED) / (facts["searching_seconds"] + 1e-3) - 0.1
    assert asked == [5, 6, len(DOCUMENTS)]


def test_threads_change_no_byte_of_a_run(bert: Path, tmp_path: Path) -> None:
    for kind in ("exact", "faiss"):
        index = make_index(index_spec(dense_model(tmp_path / "model", bert), kind=kind))
        one = make_run(run_spec(index.spec, 30))
        text = one.file("run.trec").read_bytes()
        one.folder.rename(tmp_path / f"one-{kind}")
        assert make_run(run_spec(index.spec, 30), "--threads", "2").file("run.trec").read_bytes() == text


def test_an_index_of_other_queries_is_refused(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = make_index(index_spec(dense_model(tmp_path / "model", bert)))
    other = publish_collection("other", DOCUMENTS, QUERIES, {"q1": {"d1": 1}})
    inputs: Mapping[str, Any] = {"index": [index.name], "collection": [other.name]}
    spec = Spec("runs", "dense.other", {"depth": 5, "drop_self": False}, inputs)
    assert run_step(dense_search.make, None, ["--spec", spec.text], add_device_option) == 1
    assert "made for other queries" in capsys.readouterr().err


def test_memory_of_a_search_does_not_grow_with_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is read from the file, and none is kept: the largest array has the size of a block."""
    sizes: list[int] = []
    tensor = dense_search.torch.tensor

    def noted(values: npt.NDArray[np.float32], **options: Any) -> Any:
        sizes.append(values.size)
        return tensor(values, **options)

    monkeypatch.setattr(dense_search.torch, "tensor", noted)
    monkeypatch.setitem(dense_search.DOCUMENTS_PER_BLOCK, "cpu", 100)
    np.save(tmp_path / "documents.npy", vectors_of(3050))
    documents = np.load(tmp_path / "documents.npy", mmap_mode="r")
    order = order_of([f"d{number}" for number in range(3050)])
    assert search_exact(documents, vectors_of(5), order, 10).shape == (5, 10)
    assert max(sizes) == 100 * 24 and len(sizes) == 1 + 31
