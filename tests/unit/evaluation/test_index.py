"""Indexing: what is encoded, how it is kept, and that the same spec gives the same bytes."""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation import index, search
from colbert_zero.evaluation.index import index_kind
from colbert_zero.evaluation.texts import TextReader
from colbert_zero.evaluation.trec import read_run
from colbert_zero.graph.artifact import Artifact, Spec, file_digests, run_step
from colbert_zero.machine import disk_space
from colbert_zero.machine.devices import add_device_option
from colbert_zero.models.colbert import EncodingSettings, load_colbert, save_colbert
from colbert_zero.retrieval import encode
from colbert_zero.retrieval import maxsim as maxsim_scores
from colbert_zero.retrieval.plaid_index import build_plaid
from colbert_zero.retrieval.vectors import TokenVectors, VectorWriter
from publishing import publish, publish_collection

ENCODING = {
    "query_prompt": "search_query: ",
    "document_prompt": "search_document: ",
    "query_length": 24,
    "document_length": 40,
    "query_expansion": False,
}
WORDS = ["query", "document", "similarity", "model", "sums", "brown", "fox", "lazy", "dog", "prompts", "over", "quick"]
DOCUMENTS = {f"d{number}": " ".join(WORDS[number % 11 : number % 11 + number % 5 + 1]) for number in range(60)}
DOCUMENTS["empty"] = ""
QUERIES = {"q1": "the quick fox", "unjudged": "nothing", "q2": "query similarity of a model"}
QRELS = {"q1": {"d1": 1}, "q2": {"d2": 1}}


def run(make: object, spec: Spec) -> Artifact:
    assert run_step(make, None, ["--spec", spec.text], add_device_option) == 0  # type: ignore[arg-type]
    return Artifact.open(spec.name)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modernbert: Path) -> tuple[str, str]:
    """A trained model and a collection, published in a study of their own."""
    monkeypatch.chdir(tmp_path)
    encoding = EncodingSettings(**ENCODING)
    model = publish(
        Spec("models", "toy", {}), lambda folder: save_colbert(load_colbert(modernbert, encoding), folder, encoding)
    )
    return model.name, publish_collection("toy", DOCUMENTS, QUERIES, QRELS).name


def index_spec(study: tuple[str, str], kind: str, **changes: object) -> Spec:
    settings = {"encoding": ENCODING | changes, "index": {"kind": kind, "seed": 1}}
    return Spec("indexes", "toy", settings, {"model": [study[0]], "collection": [study[1]]})


def test_documents_and_judged_queries_are_encoded_in_their_order_and_no_others(study: tuple[str, str]) -> None:
    artifact = run(index.make, index_spec(study, "exact"))
    assert pq.read_table(artifact.file("documents.parquet"))["id"].to_pylist() == list(DOCUMENTS)
    assert pq.read_table(artifact.file("queries.parquet"))["id"].to_pylist() == ["q1", "q2"]
    assert artifact.facts["documents"] == len(DOCUMENTS)
    assert artifact.facts["queries"] == 2


def test_the_times_of_an_index_are_parts_of_the_time_that_it_took(study: tuple[str, str]) -> None:
    started = time.monotonic()
    facts = run(index.make, index_spec(study, "exact")).facts
    assert 0 < facts["encoding_seconds"] + facts["indexing_seconds"] <= time.monotonic() - started
    rates = [len(DOCUMENTS) / (facts["encoding_seconds"] + rounded) for rounded in (0.0005, -0.0005)]
    assert rates[0] - 0.1 < facts["documents_per_second"] < rates[1] + 0.1


def test_vectors_are_those_of_the_model_with_its_prompts(study: tuple[str, str]) -> None:
    artifact = run(index.make, index_spec(study, "exact"))
    model = load_colbert(Artifact.open(study[0]).folder, EncodingSettings(**ENCODING))
    for name, texts, is_query in (("documents", DOCUMENTS, False), ("queries", QUERIES, True)):
        vectors = TokenVectors.open(artifact.file(f"{name}.safetensors"), artifact.file(f"{name}.parquet"))
        parts = torch.split(vectors.vectors, vectors.lengths.tolist())
        for text_id, part in zip(vectors.ids, parts, strict=True):
            prompt = ENCODING["query_prompt" if is_query else "document_prompt"]
            (expected,) = model.encode([f"{prompt}{texts[text_id]}"], is_query=is_query, show_progress_bar=False)
            np.testing.assert_allclose(part.float().numpy(), expected, atol=1e-3)


def test_pieces_are_put_together_in_the_corpus_order(study: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(index.make, index_spec(study, "exact"))
    expected = TokenVectors.open(whole.file("documents.safetensors"), whole.file("documents.parquet"))
    tokens = expected.vectors.clone()
    shutil.rmtree(whole.folder)
    monkeypatch.setattr(encode, "TEXTS_PER_CHUNK", 7)
    chunked = run(index.make, index_spec(study, "exact"))
    found = TokenVectors.open(chunked.file("documents.safetensors"), chunked.file("documents.parquet"))
    assert found.ids == expected.ids
    torch.testing.assert_close(found.vectors, tokens, atol=1e-3, rtol=0)


def do_share(spec: Spec, share: int, jobs: int) -> int:
    arguments = ["--spec", spec.text, "--part", "documents", "--share", str(share), "--jobs", str(jobs)]
    return run_step(index.make, None, arguments, add_device_option, index.PARTS)


@pytest.mark.parametrize("kind", ["exact", "plaid"])
def test_several_jobs_make_the_same_index(study: tuple[str, str], monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(encode, "TEXTS_PER_CHUNK", 8)
    spec = index_spec(study, kind)
    alone = run(index.make, spec)
    expected, facts = file_digests(alone.folder), alone.facts
    shutil.rmtree(alone.folder)
    for share in (3, 1, 2):
        assert do_share(spec, share, 3) == 0
    monkeypatch.setattr(index.TextReader, "read", None)
    shared = run(index.make, spec)
    assert file_digests(shared.folder) == expected
    of_time = {"encoding_seconds", "documents_per_second", "indexing_seconds"}
    assert {name: fact for name, fact in shared.facts.items() if name not in of_time} == {
        name: fact for name, fact in facts.items() if name not in of_time
    }
    assert not spec.state.exists()


def test_a_killed_index_goes_on_after_its_last_piece_to_the_same_bytes(
    study: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "TEXTS_PER_CHUNK", 8)
    spec = index_spec(study, "exact")
    alone = run(index.make, spec)
    expected = file_digests(alone.folder)
    shutil.rmtree(alone.folder)
    encoded, write = [], VectorWriter.write

    def killed(writer: VectorWriter, ids: list[str], matrices: list[Any]) -> None:
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(ids)
        write(writer, ids, matrices)

    monkeypatch.setattr(VectorWriter, "write", killed)
    assert run_step(index.make, None, ["--spec", spec.text], add_device_option) != 0
    monkeypatch.setattr(VectorWriter, "write", lambda *arguments: (encoded.append(arguments[1]), write(*arguments))[1])
    assert file_digests(run(index.make, spec).folder) == expected
    documents = [name for ids in encoded for name in ids if name in DOCUMENTS]
    assert documents == list(DOCUMENTS), "each is encoded once"


def test_a_disk_without_room_is_told_before_the_first_document_is_encoded(
    study: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encode, "TEXTS_PER_CHUNK", 8)
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda folder: full)
    monkeypatch.setattr(encode.Encoder, "encode", None)
    assert run_step(index.make, None, ["--spec", index_spec(study, "plaid").text], add_device_option) == 1
    assert "the vectors of 61 documents and their index take about 0.0 GB in" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["exact", "plaid"])
def test_the_room_that_is_asked_for_is_what_is_written(
    study: tuple[str, str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(index, "check_space", lambda folder, needed, what, remedy: asked.append(needed))
    # Documents of the same length, of whose tokens one does not count, in eight pieces.
    documents = {f"d{number}": f"the lazy {('fox', 'dog')[number % 2]}!" for number in range(64)}
    spec = index_spec((study[0], publish_collection("even", documents, QUERIES, QRELS).name), kind)
    exact = run(index.make, index_spec((study[0], spec.inputs["collection"][0]), "exact"))
    vectors = TokenVectors.open(exact.file("documents.safetensors"), exact.file("documents.parquet")).vectors
    shutil.rmtree(exact.folder)
    assert asked == [], "a single piece is small"
    monkeypatch.setattr(encode, "TEXTS_PER_CHUNK", 8)
    assert do_share(spec, 2, 4) == 0
    made = run(index.make, spec)
    arrays = [np.load(file) for name in ("codes", "residuals") for file in made.folder.glob(f"plaid/*.{name}.npy")]
    written = sum(array.nbytes for array in arrays) if kind == "plaid" else vectors.nbytes
    assert written > 0 and (kind == "exact") == (not arrays)
    # One of four jobs has encoded two of the eight pieces; the other six are missing.
    assert asked[-2:] == [vectors.nbytes + written, vectors.nbytes * 6 / 8 + written]


def test_a_plaid_index_is_built_of_the_vectors_of_an_exact_one_and_its_seed(
    study: tuple[str, str], tmp_path: Path
) -> None:
    exact, made = (run(index.make, index_spec(study, kind)) for kind in ("exact", "plaid"))
    expected = tmp_path / "expected"
    expected.mkdir()
    build_plaid([exact.folder], "documents", expected, 1, "cpu")
    assert file_digests(made.folder / "plaid") == file_digests(expected / "plaid")
    assert made.file("documents.parquet").read_bytes() == exact.file("documents.parquet").read_bytes()


def test_the_precision_of_an_index_is_in_its_settings(study: tuple[str, str]) -> None:
    spec = index_spec(study, "exact")
    rounded = Spec("indexes", "toy", {**spec.settings, "precision": "bf16"}, spec.inputs)
    contents = [
        {name: run(index.make, each).file(f"{name}.safetensors").read_bytes() for name in ("queries", "documents")}
        for each in (spec, rounded)
    ]
    assert all(contents[0][name] != contents[1][name] for name in contents[0])


@pytest.mark.parametrize("kind", ["exact", "plaid"])
def test_the_same_spec_gives_the_same_bytes(study: tuple[str, str], kind: str) -> None:
    first = run(index.make, index_spec(study, kind))
    bytes_of_first = file_digests(first.folder)
    shutil.rmtree(first.folder)
    torch.manual_seed(99)
    assert file_digests(run(index.make, index_spec(study, kind)).folder) == bytes_of_first


def test_a_plaid_index_holds_no_pickle_and_finds_what_an_exact_search_finds(study: tuple[str, str]) -> None:
    best = {}
    for kind in ("exact", "plaid"):
        artifact = run(index.make, index_spec(study, kind))
        assert artifact.facts["kind"] == kind
        before = file_digests(artifact.folder)
        settings = {"depth": 10, "drop_self": False}
        found = run(
            search.make, Spec("runs", "colbert.toy", settings, {"index": [artifact.name], "collection": [study[1]]})
        )
        best[kind] = {query: {name for name, _ in hits} for query, hits in read_run(found.file("run.trec")).items()}
        assert file_digests(artifact.folder) == before, "searching writes nothing into a published index"
    assert not [name for name in before if name.endswith((".pkl", "embeddings.npy"))]
    for query, documents in best["exact"].items():
        assert len(documents & best["plaid"][query]) >= 7


@pytest.mark.parametrize("kind", ["exact", "plaid"])
def test_a_search_in_pieces_resumes_is_shared_and_writes_the_same_bytes(
    kind: str, study: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PLAID_QUERIES_PER_BATCH", 1 if kind == "plaid" else 9)
    monkeypatch.setattr(maxsim_scores, "SCORES_IN_MEMORY", len(DOCUMENTS) * (1 if kind == "exact" else 9))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    built = run(index.make, index_spec(study, kind)).spec
    spec = Spec("runs", "toy", {"depth": 3, "drop_self": False}, {"index": [built.name], "collection": [study[1]]})
    alone = run(search.make, spec).file("run.trec").read_bytes()
    shutil.rmtree(spec.folder)
    share = ["--spec", spec.text, "--part", "queries", "--jobs", "2", "--share"]
    for number in ("2", "1"):
        assert run_step(search.make, None, [*share, number], add_device_option, search.PARTS) == 0
        assert len(list(spec.state.glob("queries/[0-9]*"))) == 3 - int(number)
    monkeypatch.setattr(search, "open_search", lambda *_: pytest.fail("a query is searched for again"))
    assert run(search.make, spec).file("run.trec").read_bytes() == alone
    assert {"queries": 2, "retrieved": 6}.items() <= Artifact.open(spec.name).facts.items()
    gc.collect()
    assert not list((tmp_path / "scratch").iterdir()), "PLAID's merged files are deleted"


def test_a_trained_model_is_not_used_with_another_encoding(
    study: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = index_spec(study, "exact", query_prompt="")
    assert run_step(index.make, None, ["--spec", spec.text], add_device_option) == 1
    assert "query_prompt" in capsys.readouterr().err


def test_lengths_that_are_meant_to_differ_from_training_are_used(study: tuple[str, str]) -> None:
    trained = run(index.make, index_spec(study, "exact"))
    for changed in ("query_length", "document_length"):
        spec = index_spec(study, "exact", **{changed: 10})
        settings = {**spec.settings, "changed": [changed]}
        shorter = run(index.make, Spec("indexes", "toy", settings, spec.inputs))
        assert shorter.facts["encoding"] == ENCODING | {changed: 10}
        for name in ("query", "document"):
            fewer = shorter.facts[f"{name}_tokens"] < trained.facts[f"{name}_tokens"]
            assert fewer == (changed == f"{name}_length")


def test_what_the_settings_leave_out_is_what_the_model_was_saved_with(study: tuple[str, str]) -> None:
    spec = index_spec(study, "exact")
    for encoding, least, used in (
        ({}, {}, ENCODING),
        ({"document_length": 40}, {"query_length": 30}, ENCODING | {"query_length": 30}),
        ({}, {"query_length": 20}, ENCODING),
    ):
        settings = {**spec.settings, "encoding": encoding, "minimum_lengths": least}
        artifact = run(index.make, Spec("indexes", "toy", settings, spec.inputs))
        assert artifact.facts["encoding"] == used


def test_settings_that_neither_the_study_nor_the_model_has_are_named(
    study: tuple[str, str], modernbert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = Spec("bases", "folder.toy", {})
    base = publish(spec, lambda folder: shutil.copytree(modernbert, folder, dirs_exist_ok=True))
    trained = index_spec((base.name, study[1]), "exact")
    encoding = {"query_prompt": "", "document_prompt": "", "query_length": 20}
    spec = Spec("indexes", "toy", {**trained.settings, "encoding": encoding}, trained.inputs)
    assert run_step(index.make, None, ["--spec", spec.text], add_device_option) == 1
    assert "was not saved with document_length; set" in capsys.readouterr().err
    # Expansion is nothing that must be said: without it a query's tokens are those of its text.
    encoding["document_length"] = 20
    artifact = run(index.make, Spec("indexes", "toy", {**trained.settings, "encoding": encoding}, trained.inputs))
    assert artifact.facts["encoding"] == encoding | {"query_expansion": False}


def test_the_seed_decides_the_projection_of_an_untrained_base(study: tuple[str, str], modernbert: Path) -> None:
    spec = Spec("bases", "folder.toy", {})
    base = publish(spec, lambda folder: shutil.copytree(modernbert, folder, dirs_exist_ok=True))
    contents = []
    for seed in (1, 2, 1):
        trained = index_spec((base.name, study[1]), "exact")
        projection = {"projection": {"dimensions": 8, "seed": seed}}
        artifact = run(index.make, Spec("indexes", "toy", {**trained.settings, **projection}, trained.inputs))
        contents.append(artifact.file("documents.safetensors").read_bytes())
        shutil.rmtree(artifact.folder)
    assert contents[0] == contents[2]
    assert contents[0] != contents[1]


def test_an_index_is_exact_below_a_hundred_thousand_documents_and_either_on_request() -> None:
    assert [index_kind("auto", documents) for documents in (1, 99_999, 100_000)] == ["exact", "exact", "plaid"]
    assert index_kind("plaid", 10) == "plaid"
    assert index_kind("exact", 10**7) == "exact"


def test_parts_of_a_corpus_are_read_in_any_order(study: tuple[str, str]) -> None:
    reader = TextReader(Collection.open(Artifact.open(study[1])))
    names = list(DOCUMENTS)
    for start, stop in ((0, 7), (7, 20), (30, 35), (10, 12), (0, 3), (55, 99)):
        assert [name for name, _ in reader.read(start, stop)] == names[start:stop]
