"""Laws of the training corpus: each text once, numbered by first occurrence, every known positive found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import MonkeyPatch, TempPathFactory

from colbert_zero.data import rows as data_rows
from colbert_zero.data.rows import PAIR_SCHEMA, TRIPLE_SCHEMA, RowWriter
from colbert_zero.data.text import normalise
from colbert_zero.graph.artifact import Artifact, Spec, file_digests
from colbert_zero.mining import corpus as mining_corpus
from colbert_zero.mining.corpus import TrainingCorpus
from publishing import publish_collection


def write_shards(folder: Path, rows: list[dict[str, Any]], rows_per_shard: int = 3) -> Artifact:
    with RowWriter(folder, TRIPLE_SCHEMA if "negatives" in rows[0] else PAIR_SCHEMA, rows_per_shard) as writer:
        writer.write(rows)
    return Artifact(Spec("shards", "mine", {}), {"outputs": file_digests(folder), "facts": writer.facts}, folder)


def corpus_of(folder: Path, rows: list[dict[str, Any]], rows_per_shard: int = 3) -> TrainingCorpus:
    (folder / "shards").mkdir()
    return TrainingCorpus.open(write_shards(folder / "shards", rows, rows_per_shard), [], folder / "state")


def test_a_text_is_numbered_once_by_first_occurrence(tmp_path: Path) -> None:
    rows = [
        {"query": "a", "document": "One  text", "negatives": ["other"]},
        {"query": "b", "document": "ONE text", "negatives": ["third", "OTHER"]},
        {"query": "A ", "document": "third", "negatives": []},
    ]
    corpus = corpus_of(tmp_path, rows, rows_per_shard=2)
    assert list(corpus.texts) == ["One  text", "other", "third"]
    assert len(corpus) == 3
    assert list(corpus.queries) == ["a", "b", "A "]
    assert corpus.positives.tolist() == [0, 0, 2]
    assert corpus.positives.dtype == np.int32
    assert [corpus.known_positives(row).tolist() for row in range(3)] == [[0, 2], [0], [0, 2]]


def test_shards_without_negatives_are_a_corpus_of_their_documents(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [{"query": "q", "document": text} for text in "abac"])
    assert list(corpus.texts) == ["a", "b", "c"]
    assert corpus.positives.tolist() == [0, 1, 0, 2]
    assert corpus.known_positives(2).tolist() == [0, 1, 2]


def test_texts_are_found_by_number_in_whichever_batch_they_are(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(data_rows, "ROWS_PER_GROUP", 4)
    rows = [{"query": f"query {row % 7}", "document": f"text {row % 11}"} for row in range(30)]
    corpus = corpus_of(tmp_path, rows, rows_per_shard=9)
    assert list(corpus.texts) == [f"text {number}" for number in range(11)]
    assert corpus.texts[2:9] == [f"text {number}" for number in range(2, 9)]
    assert [corpus.queries[row] for row in range(30)] == [row["query"] for row in rows]
    with pytest.raises(IndexError, match="text 11 of 11"):
        corpus.texts[11]


def test_the_corpus_is_read_from_the_shards_once(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [{"query": "q", "document": text} for text in "abac"])
    first = TrainingCorpus.open(shards, [], tmp_path / "state")
    for name in shards.files():
        (tmp_path / name).unlink()
    again = TrainingCorpus.open(shards, [], tmp_path / "state")
    assert list(again.texts) == list(first.texts) == ["a", "b", "c"]
    assert again.known_positives(0).tolist() == [0, 1, 2]


def test_a_collections_documents_come_after_the_rows_own_and_each_text_once(
    tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mining_corpus, "ROWS_PER_GROUP", 2)
    rows = [
        {"query": "a", "document": "one", "negatives": ["of the row"]},
        {"query": "b", "document": "two", "negatives": ["of the row"]},
    ]
    documents = {"d1": "three", "d2": "TWO", "d3": "", "d4": "three ", "d5": "four"}
    collection = publish_collection("toy", documents, {"q": "x"}, {"q": {"d1": 1}})
    shards = write_shards(tmp_path, rows)
    corpus = TrainingCorpus.open(shards, [collection], tmp_path / "state")
    assert list(corpus.texts) == ["one", "two", "three", "four"]
    assert (list(corpus.queries), corpus.positives.tolist()) == (["a", "b"], [0, 1])
    assert corpus.known_positives(1).tolist() == [1]


texts = st.sampled_from(["a", "A", " a", "b", "B b", "b  b", "ﬁ", "fi", "c"])
rows_of = st.fixed_dictionaries({"query": texts, "document": texts, "negatives": st.lists(texts, max_size=3)})


@settings(max_examples=60)
@given(rows=st.lists(rows_of, min_size=1, max_size=12))
def test_known_positives_are_those_of_all_rows_with_the_same_query(
    tmp_path_factory: TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    corpus = corpus_of(tmp_path_factory.mktemp("shards"), rows)
    assert len({normalise(text) for text in corpus.texts}) == len(corpus.texts)
    for number, row in enumerate(rows):
        assert normalise(corpus.texts[corpus.positives[number]]) == normalise(row["document"])
        expected = {
            normalise(other["document"]) for other in rows if normalise(other["query"]) == normalise(row["query"])
        }
        known = corpus.known_positives(number).tolist()
        assert known == sorted(known)
        assert [normalise(corpus.texts[document]) for document in known] == list(
            dict.fromkeys(normalise(corpus.texts[document]) for document in known)
        )
        assert {normalise(corpus.texts[document]) for document in known} == expected
