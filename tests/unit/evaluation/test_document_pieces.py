"""Documents are encoded once for all indexes that have them, and an index has the same bytes whoever encoded them."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import CaptureFixture, MonkeyPatch

from colbert_zero.evaluation import dense_index, document_pieces, index
from colbert_zero.evaluation.document_pieces import CUT_FROM, GIVEN_FOLDER, DocumentPieces, add_index_options, cut
from colbert_zero.graph.artifact import Artifact, Spec, file_digests, run_step
from colbert_zero.graph.limits import PLAID_MIN_DOCUMENTS
from colbert_zero.models.colbert import EncodingSettings, load_colbert, save_colbert
from colbert_zero.retrieval import encode
from mined import publish_model
from publishing import publish, publish_collection
from tiny_models import dense_model

ENCODING = asdict(EncodingSettings("search_query: ", "search_document: ", query_length=24, document_length=40))
WORDS = ["query", "document", "similarity", "model", "sums", "brown", "fox", "lazy", "dog", "prompts", "over", "quick"]
DOCUMENTS = {
    f"d{number}": " ".join(WORDS[number * step % 12] for step in range(1, number % 5 + 2)) + f" {number}"
    for number in range(120)
}
MORE = {"new1": "a fox", **dict(list(DOCUMENTS.items())[:50]), "new2": "lazy", **dict(list(DOCUMENTS.items())[50:])}
QRELS = {"q1": {"d1": 1}}


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(document_pieces, "CUT_FROM", 100)
    monkeypatch.setattr(encode, "TEXTS_PER_CHUNK", 8)
    monkeypatch.setattr(dense_index, "TEXTS_PER_PIECE", 8)
    yield


@pytest.fixture
def model(modernbert: Path) -> Artifact:
    encoding = EncodingSettings(**ENCODING)
    return publish(
        Spec("models", "toy", {}), lambda folder: save_colbert(load_colbert(modernbert, encoding), folder, encoding)
    )


def index_of(model: Artifact, label: str, documents: dict[str, str], kind: str = "exact", **encoding: Any) -> Spec:
    collection = publish_collection(label, documents, {"q1": f"the quick {label}"}, QRELS)
    settings = {"encoding": ENCODING | encoding, "index": {"kind": kind, "seed": 1}}
    if encoding:
        settings["changed"] = sorted(encoding)
    return Spec("indexes", label, settings, {"model": [model.name], "collection": [collection.name]})


def run(spec: Spec, *beside: Spec, threads: int = 1, module: Any = index) -> Artifact:
    arguments = ["--spec", spec.text, "--threads", str(threads), "--beside", *(other.name for other in beside)]
    assert run_step(module.make, None, arguments, add_index_options, module.PARTS) == 0
    return Artifact.open(spec.name)


def killed_after(pieces: int, monkeypatch: MonkeyPatch, spec: Spec, *beside: Spec) -> None:
    """Make an index, and end the process once it has encoded so many pieces."""
    encode_texts, left = encode.Encoder.encode, [pieces]

    def killed(self: Any, tokens: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise SystemExit
        return encode_texts(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(encode.Encoder, "encode", killed)
        with pytest.raises(SystemExit):
            run(spec, *beside)


def given_to(spec: Spec) -> list[Path]:
    return sorted((spec.state / GIVEN_FOLDER).glob("[!.]*"))


def test_a_collection_that_has_a_plaid_index_by_default_is_cut_where_its_texts_say() -> None:
    assert CUT_FROM == PLAID_MIN_DOCUMENTS


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 40))
def test_runs_hold_all_documents_and_half_of_their_size_at_least(seed: int, documents: int, size: int) -> None:
    digests = np.random.default_rng(seed).integers(0, 2**63, (documents, 2)).astype(np.uint64)
    stops = cut(digests, size)
    sizes = np.diff(stops, prepend=0)
    assert stops[-1] == documents and sizes.max() <= size
    assert (sizes[:-1] >= max(1, size // 2)).all() and sizes[-1] > 0


@given(st.integers(0, 2**32 - 1))
def test_a_corpus_with_some_documents_more_has_nearly_all_runs_of_the_other(seed: int) -> None:
    random = np.random.default_rng(seed)
    digests = random.integers(0, 2**63, (20_000, 2)).astype(np.uint64)
    more = np.insert(digests, random.integers(0, 20_000, 5), random.integers(0, 2**63, (5, 2)), axis=0)
    runs, others = ({run.tobytes() for run in np.split(all_, cut(all_, 40)[:-1])} for all_ in (digests, more))
    assert len(runs & others) > 0.9 * len(runs)


@pytest.mark.parametrize("kind", ["exact", "plaid"])
def test_what_one_index_has_encoded_another_takes_to_the_same_bytes(
    model: Artifact, monkeypatch: MonkeyPatch, kind: str
) -> None:
    first, second = index_of(model, "fever", DOCUMENTS, kind), index_of(model, "climate", MORE, kind)
    alone = {spec.name: file_digests(run(spec).folder) for spec in (first, second)}
    assert all("given_documents" not in Artifact.open(name).facts for name in alone)
    for spec in (first, second):
        shutil.rmtree(spec.folder)
    assert "given_documents" not in run(first, second).facts
    encoded: list[int] = []
    encode_texts = encode.Encoder.encode
    monkeypatch.setattr(
        encode.Encoder, "encode", lambda self, tokens: encoded.append(len(tokens)) or encode_texts(self, tokens)
    )
    taken = run(second, first)
    assert sum(encoded) == len(MORE) - taken.facts["given_documents"] + 1, "the query"
    assert 60 < taken.facts["given_documents"] < len(DOCUMENTS)
    assert taken.facts["documents"] == len(MORE) and taken.facts["documents_per_second"] > 0
    assert alone == {spec.name: file_digests(spec.folder) for spec in (first, second)}
    assert not first.state.exists() and not second.state.exists()


def test_a_killed_index_has_given_what_it_encoded_and_takes_what_the_other_has(
    model: Artifact, monkeypatch: MonkeyPatch
) -> None:
    first, second = index_of(model, "a", DOCUMENTS), index_of(model, "b", DOCUMENTS)
    killed_after(5, monkeypatch, first, second)
    assert len(given_to(second)) == 5
    taken = run(second, first)
    assert 20 <= taken.facts["given_documents"] <= 40
    # The other began in the middle, and has given the rest to this one.
    assert run(first, second).facts["given_documents"] == len(DOCUMENTS) - taken.facts["given_documents"]
    digests = [file_digests(spec.folder)["documents.safetensors"] for spec in (first, second)]
    assert digests[0] == digests[1]


def test_what_other_threads_encoded_after_a_kill_is_not_taken_for_the_same(
    model: Artifact, monkeypatch: MonkeyPatch
) -> None:
    first, second = index_of(model, "a", DOCUMENTS), index_of(model, "b", DOCUMENTS)
    killed_after(5, monkeypatch, first, second)
    given = sum(len(pq.read_table(piece / "documents.parquet")) for piece in given_to(second))
    run(first, second, threads=2)
    assert len(given_to(second)) > 10
    assert run(second, first).facts["given_documents"] == given


def test_of_two_that_are_made_at_once_one_begins_in_the_middle(model: Artifact, monkeypatch: MonkeyPatch) -> None:
    read: list[int] = []
    documents = index.TextReader.read
    monkeypatch.setattr(
        index.TextReader, "read", lambda self, start, stop: read.append(start) or documents(self, start, stop)
    )
    first, second = index_of(model, "a", DOCUMENTS), index_of(model, "b", MORE)
    run(first, second)
    assert read == sorted(read) and read[0] == 0
    shutil.rmtree(second.state)
    read.clear()
    run(second, first)
    assert 50 < read[0] < 80 and sorted(read)[0] == 0
    alone = index_of(model, "c", DOCUMENTS)
    read.clear()
    run(alone)
    assert read[0] == 0


def test_nothing_is_given_to_a_published_index_or_to_none(model: Artifact) -> None:
    first, second = index_of(model, "a", DOCUMENTS), index_of(model, "b", DOCUMENTS)
    run(first)
    assert not given_to(second)
    run(second, first)
    assert not given_to(first)


@pytest.mark.parametrize(
    ("other", "taken"),
    [({"document_length": 39}, False), ({"document_prompt": "d: "}, False), ({"query_length": 20}, True)],
)
def test_only_what_was_encoded_alike_is_taken(model: Artifact, other: dict[str, Any], taken: bool) -> None:
    """A plan names no index beside another that encodes documents otherwise; nor would it be believed."""
    first, second = index_of(model, "a", DOCUMENTS), index_of(model, "b", DOCUMENTS, **other)
    run(first, second)
    assert len(given_to(second)) > 10
    assert run(second, first).facts.get("given_documents", 0) == (len(DOCUMENTS) if taken else 0)


def test_another_number_of_threads_takes_nothing(model: Artifact) -> None:
    first, second = index_of(model, "a", DOCUMENTS), index_of(model, "b", DOCUMENTS)
    run(first, second)
    assert "given_documents" not in run(second, first, threads=2).facts


def test_a_model_that_was_made_again_takes_nothing(model: Artifact, modernbert: Path) -> None:
    first, second = index_of(model, "a", DOCUMENTS), index_of(model, "b", DOCUMENTS)
    run(first, second)
    shutil.rmtree(model.folder)
    encoding = EncodingSettings(**ENCODING)
    publish(model.spec, lambda folder: save_colbert(load_colbert(modernbert, encoding, seed=9), folder, encoding))
    assert "given_documents" not in run(second, first).facts


def test_a_dense_index_takes_what_another_has_encoded(bert: Path, tmp_path: Path) -> None:
    model = publish_model(dense_model(tmp_path / "dense", bert))

    def spec(label: str, documents: dict[str, str]) -> Spec:
        collection = publish_collection(label, documents, {"q1": "the quick"}, QRELS)
        settings = {"encoding": {}, "index": {"kind": "exact"}}
        return Spec("indexes", f"dense.{label}", settings, {"model": [model.name], "collection": [collection.name]})

    first, second = spec("fever", DOCUMENTS), spec("climate", MORE)
    alone = file_digests(run(second, module=dense_index).folder)
    shutil.rmtree(second.folder)
    run(first, second, module=dense_index)
    taken = run(second, first, module=dense_index)
    assert 60 < taken.facts["given_documents"] < len(DOCUMENTS)
    assert file_digests(taken.folder) == alone


@pytest.mark.parametrize(("documents", "stops"), [(20, [8, 16, 20]), (16, [8, 16]), (8, [8]), (1, [1])])
def test_a_small_collection_is_cut_into_pieces_of_one_size(tmp_path: Path, documents: int, stops: list[int]) -> None:
    job: Any = SimpleNamespace(
        options=SimpleNamespace(), input=lambda _: SimpleNamespace(facts={"documents": documents}), state=tmp_path
    )
    pieces = DocumentPieces(job, Any, 8, "cpu")
    bounds = [pieces.bounds(number) for number in range(pieces.count)]
    assert bounds == list(zip([0, *stops[:-1]], stops, strict=True)) and not pieces.is_given(0)


@pytest.mark.parametrize(("least", "given"), [(len(DOCUMENTS), True), (len(DOCUMENTS) + 1, False)])
def test_only_a_large_collection_gives_what_it_encodes(
    model: Artifact, monkeypatch: MonkeyPatch, least: int, given: bool
) -> None:
    monkeypatch.setattr(document_pieces, "CUT_FROM", least)
    first, second = index_of(model, "a", DOCUMENTS), index_of(model, "b", DOCUMENTS)
    run(first, second)
    assert bool(given_to(second)) == given


def test_what_is_given_is_as_private_as_what_it_is_made_of(model: Artifact) -> None:
    first, second = index_of(model, "a", DOCUMENTS), index_of(model, "b", DOCUMENTS)
    collection = Artifact.open(first.inputs["collection"][0]).folder
    collection.chmod(0o700)
    run(first, second)
    assert stat.S_IMODE((second.state / GIVEN_FOLDER).stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO) == 0


def test_without_links_files_are_copied(model: Artifact, monkeypatch: MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "links are not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first, second = index_of(model, "a", DOCUMENTS), index_of(model, "b", DOCUMENTS)
    run(first, second)
    assert run(second, first).facts["given_documents"] == len(DOCUMENTS)


@pytest.mark.parametrize("name", ["../../elsewhere", "indexes/../models/x-0", "models/x-0123456789ab", "indexes/"])
def test_only_indexes_are_given_something(model: Artifact, name: str, capsys: CaptureFixture[str]) -> None:
    spec = index_of(model, "a", DOCUMENTS)
    assert run_step(index.make, None, ["--spec", spec.text, "--beside", name], add_index_options) == 1
    assert f"--beside {name}: give names of indexes" in capsys.readouterr().err
