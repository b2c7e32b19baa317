"""Laws of the training corpus: each text once, numbered by first occurrence, every known positive found."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import TempPathFactory

from colbert_zero.data.rows import PAIR_SCHEMA, TRIPLE_SCHEMA, RowWriter
from colbert_zero.data.text import normalise
from colbert_zero.graph.artifact import Artifact, Spec, file_digests
from colbert_zero.mining.corpus import TrainingCorpus


def write_shards(folder: Path, rows: list[dict[str, Any]], rows_per_shard: int = 3) -> Artifact:
    with RowWriter(folder, TRIPLE_SCHEMA if "negatives" in rows[0] else PAIR_SCHEMA, rows_per_shard) as writer:
        writer.write(rows)
    return Artifact(Spec("shards", "mine", {}), {"outputs": file_digests(folder), "facts": writer.facts}, folder)


def test_a_text_is_numbered_once_by_first_occurrence(tmp_path: Path) -> None:
    rows = [
        {"query": "a", "document": "One  text", "negatives": ["other"]},
        {"query": "b", "document": "ONE text", "negatives": ["third", "OTHER"]},
        {"query": "A ", "document": "third", "negatives": []},
    ]
    corpus = TrainingCorpus.from_shards(write_shards(tmp_path, rows, rows_per_shard=2))
    assert corpus.texts == ["One  text", "other", "third"]
    assert len(corpus) == 3
    assert corpus.queries == ["a", "b", "A "]
    assert corpus.positives.tolist() == [0, 0, 2]
    assert corpus.positives.dtype == np.int32
    assert [corpus.known_positives(row).tolist() for row in range(3)] == [[0, 2], [0], [0, 2]]


def test_shards_without_negatives_are_a_corpus_of_their_documents(tmp_path: Path) -> None:
    corpus = TrainingCorpus.from_shards(write_shards(tmp_path, [{"query": "q", "document": text} for text in "abac"]))
    assert corpus.texts == ["a", "b", "c"]
    assert corpus.positives.tolist() == [0, 1, 0, 2]
    assert corpus.known_positives(2).tolist() == [0, 1, 2]


texts = st.sampled_from(["a", "A", " a", "b", "B b", "b  b", "ﬁ", "fi", "c"])
rows_of = st.fixed_dictionaries({"query": texts, "document": texts, "negatives": st.lists(texts, max_size=3)})


@settings(max_examples=60)
@given(rows=st.lists(rows_of, min_size=1, max_size=12))
def test_known_positives_are_those_of_all_rows_with_the_same_query(
    tmp_path_factory: TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    corpus = TrainingCorpus.from_shards(write_shards(tmp_path_factory.mktemp("shards"), rows))
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
