"""Which token met which: the sum of the matches is PyLate's score, and the tokens are those that the model saw."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dense_studies import DOCUMENTS, QRELS, QUERIES, index_spec, make_index, run_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from pylate.scores import colbert_scores

from colbert_zero.data.beir import Collection
from colbert_zero.data.text import document_text
from colbert_zero.evaluation import index
from colbert_zero.evaluation.adhoc import Answer, search_words
from colbert_zero.evaluation.token_matches import UNREADABLE, ReadText, _spans, match_tokens, read_text
from colbert_zero.evaluation.trec import read_run
from colbert_zero.graph.artifact import Artifact, Spec, run_step
from colbert_zero.graph.config import read_config
from colbert_zero.graph.console import UserError
from colbert_zero.graph.study import Study
from colbert_zero.machine.devices import add_device_option
from colbert_zero.models import random_base
from colbert_zero.models.colbert import EncodingSettings, load_colbert
from publishing import publish_collection
from tiny_models import SENTENCES, dense_model

ENCODING = EncodingSettings("search_query: ", "search_document: ", 14, 20)
DEPTH = 5


@pytest.fixture
def study(copied_study: Path) -> Study:
    """The finished study's copy, planned."""
    return Study(read_config(copied_study / "config.yaml"), copied_study)


def specs(study: Study, row: str) -> tuple[Spec, Spec | None]:
    """The run and the index of a row."""
    (measures,) = (of.measures["dev"] for of in study.rows if of.name == row)
    (run,) = (spec for spec in study.inputs_of(measures) if spec.kind == "runs")
    return run, next((spec for spec in study.inputs_of(run) if spec.kind == "indexes"), None)


def scores(answer: Answer) -> dict[str, float]:
    return {found.document.id: found.score for found in answer.found}


@pytest.mark.parametrize("row", ["all", "untrained", "bm25"])
def test_the_words_of_a_judged_query_find_what_its_run_has(study: Study, row: str) -> None:
    run, indexed = specs(study, row)
    ranked = read_run(Artifact.open(run.name).file("run.trec"))
    queries = Collection.open(Artifact.open(run.inputs["collection"][0])).judged_queries
    for query in ("q0", "q7"):
        answer = search_words(queries[query], DEPTH, run, indexed)
        assert list(scores(answer)) == [document for document, _ in ranked[query][:DEPTH]]
        # The vectors of a query that is encoded alone are rounded otherwise than in a batch.
        assert list(scores(answer).values()) == pytest.approx([score for _, score in ranked[query][:DEPTH]], abs=5e-3)
        assert answer.documents == 20


def test_the_sum_of_the_matches_is_the_score_and_that_of_pylate(study: Study) -> None:
    run, indexed = specs(study, "all")
    assert indexed is not None
    answer = search_words("ykvrhpw aqa, and more: ykvrhpw", DEPTH, run, indexed)
    made = Artifact.open(indexed.name)
    model = load_colbert(
        Artifact.open(indexed.inputs["model"][0]).folder, EncodingSettings(**made.facts["encoding"]), strict=False
    )
    query = torch.tensor(model.encode(["ykvrhpw aqa, and more: ykvrhpw"], prompt_name="query", is_query=True)[0])
    for found in answer.found:
        assert found.matches is not None
        assert found.matches.score == pytest.approx(found.score, abs=1e-4)
        assert found.matches.contributions.sum() == pytest.approx(found.matches.score)
        text = document_text(found.document.title, found.document.text)
        document = torch.tensor(model.encode([text], prompt_name="document", is_query=False)[0])
        # An index has half the precision.
        assert found.matches.score == pytest.approx(colbert_scores(query[None], document[None]).item(), abs=2e-2)
        similarities = query @ document.T
        assert [position for _, position in zip(query, found.matches.best, strict=True)] == [
            place if row[place] > row.max() - 2e-3 else -1
            for row, place in zip(similarities, found.matches.best, strict=True)
        ], "the document's token that is nearest to each"


def test_a_small_collection_is_searched_without_its_index_and_finds_the_same(study: Study) -> None:
    run, indexed = specs(study, "all")
    assert indexed is not None
    with_index = search_words("mabsz gnyplho", DEPTH, run, indexed)
    shutil.rmtree(indexed.folder)
    without = search_words("mabsz gnyplho", DEPTH, run, indexed)
    assert list(scores(without)) == list(scores(with_index))
    assert scores(without) == pytest.approx(scores(with_index), abs=1e-2)
    assert without.kind == with_index.kind == "exact"


def test_plaids_scores_are_near_the_sum_of_the_matches(study: Study) -> None:
    run, indexed = specs(study, "all")
    assert indexed is not None
    spec = Spec(
        indexed.kind, indexed.label, {**indexed.settings, "index": {"kind": "plaid", "seed": 7}}, indexed.inputs
    )
    assert run_step(index.make, None, ["--spec", spec.text, "--device", "cpu"], add_device_option) == 0
    answer = search_words("mabsz gnyplho", DEPTH, run, spec)
    assert answer.kind == "plaid"
    for found in answer.found:
        assert found.matches is not None
        assert found.matches.score == pytest.approx(found.score, rel=0.1)


@pytest.mark.parametrize("kind", ["exact", "faiss", None])
def test_a_dense_models_words_find_what_its_vectors_say(
    kind: str | None, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path / "study")
    spec = index_spec(dense_model(tmp_path / "model", bert), kind=kind or "exact")
    if kind is not None:
        make_index(spec)
    answer = search_words("lazy lazy dog", DEPTH, run_spec(spec, DEPTH), spec)
    assert (answer.kind, answer.documents) == ("dense", len(DOCUMENTS))
    # Three documents have this very text.
    assert list(scores(answer))[:3] == ["twin-c", "twin-b", "twin-a"]
    assert len(answer.found) == DEPTH
    assert all(found.matches is None for found in answer.found)


def test_of_equal_documents_bm25_finds_those_that_its_run_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lucene prefers those that it indexed first, trec_eval the greater ids."""
    monkeypatch.chdir(tmp_path)
    collection = publish_collection("toy", DOCUMENTS, QUERIES, QRELS)
    settings = {"k1": 0.9, "b": 0.4, "depth": 10, "drop_self": False}
    run = Spec("runs", "bm25.toy", settings, {"collection": [collection.name]})
    assert list(scores(search_words("lazy lazy dog", 2, run, None))) == ["twin-c", "twin-b"]


@cache
def loaded(folder: Path, expansion: bool) -> Any:
    encoding = EncodingSettings(
        ENCODING.query_prompt, ENCODING.document_prompt, ENCODING.query_length, ENCODING.document_length, expansion
    )
    return load_colbert(folder, encoding, seed=3)


@pytest.fixture(scope="module")
def bytelevel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base whose tokens are bytes, as ModernBERT's are."""
    folder = tmp_path_factory.mktemp("bytelevel")
    tokenizer = random_base.train_tokenizer(SENTENCES, 400)
    settings = {"layers": 1, "hidden": 32, "heads": 2, "intermediate": 32, "seed": 1}
    for part in (tokenizer, random_base.random_model(tokenizer, settings)):
        part.save_pretrained(folder)
    yield folder


def names(read: ReadText) -> list[str]:
    return [token.name for token in read.tokens]


def test_the_tokens_are_those_that_the_model_saw(modernbert: Path, bytelevel: Path) -> None:
    model = loaded(modernbert, False)
    query = read_text(model, "Fox, dogs", is_query=True)
    assert names(query) == [
        *("[CLS]", "[Q] ", "search", "_", "query", ":", "fox", ",", "dog", "##s", "[SEP]"),
    ]  # fmt: skip
    assert all(token.counts for token in query.tokens), "of a query, all count"
    document = read_text(model, "Fox, dogs", is_query=False)
    assert [token.name for token in document.tokens if not token.counts] == ["_", ":", ","]
    assert [(token.name, document.text[token.start : token.end]) for token in document.tokens] == [
        *(("[CLS]", ""), ("[D] ", ""), ("search", "search"), ("_", "_"), ("document", "document"), (":", ":")),
        *(("fox", "Fox"), (",", ","), ("dog", "dog"), ("##s", "s"), ("[SEP]", "")),
    ]
    assert all(token.start <= token.end for token in (*query.tokens, *document.tokens))
    assert names(read_text(loaded(bytelevel, False), "lazy dog", is_query=False))[-3:-1] == ["▁lazy", "▁dog"]
    bytes_of_letters = names(read_text(loaded(bytelevel, False), "日本", is_query=False))
    assert len(bytes_of_letters) > 6 and not any(UNREADABLE in name for name in bytes_of_letters)


def test_a_tokenizer_in_plain_python_does_not_tell_where_its_tokens_are() -> None:
    assert _spans(SimpleNamespace(is_fast=False), "fox and dog", 3) == [(0, 0)] * 3


def test_the_masks_of_an_expanded_query_count(modernbert: Path) -> None:
    read = read_text(loaded(modernbert, True), "fox", is_query=True)
    assert len(read.counted) == ENCODING.query_length
    assert set(names(read)[8:]) == {"[MASK]"}
    assert {(token.start, token.end) for token in read.tokens[8:]} == {(0, 0)}
    assert read.end == len(read.text), "a mask stands nowhere in the text"


def test_what_is_cut_off_is_not_read(modernbert: Path) -> None:
    read = read_text(loaded(modernbert, False), "fox " * 40, is_query=False)
    assert len(read.tokens) == ENCODING.document_length
    assert read.text[: read.end].count("fox") == 13 and read.text.count("fox") == 40


@settings(max_examples=15)
@given(st.text(max_size=40), st.booleans(), st.booleans(), st.booleans())
def test_any_text_has_a_vector_for_each_token_that_counts(
    modernbert: Path, bytelevel: Path, text: str, is_query: bool, expansion: bool, of_bytes: bool
) -> None:
    model = loaded(bytelevel if of_bytes else modernbert, expansion)
    read = read_text(model, text, is_query=is_query)
    prompt_name = "query" if is_query else "document"
    (vectors,) = model.encode([text], prompt_name=prompt_name, is_query=is_query, show_progress_bar=False)
    assert len(read.counted) == len(vectors)
    assert match_tokens(read, vectors, read, vectors).score == pytest.approx(len(vectors), rel=1e-3)
    places = [(token.start, token.end) for token in read.tokens if token.end > token.start]
    assert places == sorted(places) and read.end <= len(read.text)


def test_vectors_of_another_text_are_refused(modernbert: Path) -> None:
    read = read_text(loaded(modernbert, False), "fox", is_query=True)
    vectors = np.zeros((len(read.tokens) + 1, 4), np.float32)
    with pytest.raises(UserError, match=r"the query has 8 tokens but 9 vectors"):
        match_tokens(read, vectors, read, vectors)
