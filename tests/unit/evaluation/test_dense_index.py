"""Indexes of dense models: whose vectors they hold, that a kill changes no byte, and which models are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from dense_studies import DOCUMENTS, JUDGED, MODELS, PROMPTS, index_spec, make_index, vectors_of
from sentence_transformers import SentenceTransformer

from colbert_zero.evaluation import dense_index
from colbert_zero.evaluation.dense_index import invert
from colbert_zero.evaluation.embeddings import Embeddings, Vectors, write_embeddings
from colbert_zero.graph.artifact import Spec, file_digests, run_step
from colbert_zero.graph.console import UserError
from colbert_zero.machine.devices import add_device_option
from colbert_zero.models.colbert import EncodingSettings, load_colbert, save_colbert
from colbert_zero.models.encoders import SentenceTransformerEncoder
from colbert_zero.retrieval import inverted_file
from tiny_models import dense_model


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path / "study")


@pytest.fixture(scope="session")
def prompted(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_model(tmp_path_factory.mktemp("dense") / "prompted", bert, prompts=PROMPTS)


@pytest.mark.parametrize("case", MODELS)
def test_vectors_are_those_of_sentence_transformers(case: str, bert: Path, modernbert: Path, tmp_path: Path) -> None:
    options = MODELS[case]
    base = modernbert if options.get("pooling") == "cls" else bert
    artifact = make_index(index_spec(dense_model(tmp_path / "model", base, **options)))
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    saved = options.get("prompts", {})
    cosine = options.get("similarity_fn_name") != "dot"
    for name, texts, prompt in (
        ("documents", DOCUMENTS, saved.get("document", saved.get("passage", ""))),
        ("queries", JUDGED, saved.get("query", "")),
    ):
        found = Embeddings.open(artifact, name)
        assert found.ids.to_pylist() == list(texts) and found.vectors.dtype == np.float32
        expected = model.encode(list(texts.values()), prompt=prompt, normalize_embeddings=cosine)
        np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
    facts = artifact.facts
    assert facts["similarity"] == ("cosine" if cosine else "dot")
    assert facts["pooling"] == options.get("pooling", "mean")
    assert (facts["documents"], facts["queries"]) == (len(DOCUMENTS), 3)
    assert facts["dimensions"] == options.get("dense", 32)
    assert facts["encoding"] == {
        "query_prompt": saved.get("query", ""),
        "document_prompt": saved.get("document", saved.get("passage", "")),
        "maximum_length": 256,
    }
    assert set(artifact.files()) == {"documents.npy", "documents.parquet", "queries.npy", "queries.parquet"}
    seconds, rate = facts["encoding_seconds"], facts["documents_per_second"]
    assert 0 < seconds < 600 and 0 <= facts["indexing_seconds"] < 600
    assert len(DOCUMENTS) / (seconds + 1e-3) - 0.1 <= rate <= len(DOCUMENTS) / (seconds - 6e-4) + 0.1


def test_given_prompts_and_length_are_used(bert: Path, tmp_path: Path) -> None:
    folder = dense_model(tmp_path / "model", bert)
    given = {"query_prompt": "query: ", "document_prompt": "text: ", "maximum_length": 9}
    artifact = make_index(index_spec(folder, given))
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 9
    expected = model.encode(list(DOCUMENTS.values()), prompt="text: ", normalize_embeddings=True)
    np.testing.assert_allclose(Embeddings.open(artifact, "documents").vectors, expected, atol=1e-5)
    assert artifact.facts["encoding"] == given


def test_static_embeddings_are_a_dense_model_too(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sentence_transformers.models import StaticEmbedding
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(bert)
    folder = tmp_path / "static"
    weights = np.random.default_rng(1).standard_normal((len(tokenizer), 16)).astype(np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
    model.save(str(folder), create_model_card=False)
    artifact = make_index(index_spec(folder))
    expected = model.encode(list(DOCUMENTS.values()), prompt="", normalize_embeddings=True)
    np.testing.assert_allclose(Embeddings.open(artifact, "documents").vectors, expected, atol=1e-6)
    assert (artifact.facts["pooling"], artifact.facts["encoding"]["maximum_length"]) == ("StaticEmbedding", None)
    miner = SentenceTransformerEncoder(folder, "", "", 32, "cpu")
    np.testing.assert_allclose(miner.encode_documents(list(DOCUMENTS.values())), expected, atol=1e-6)
    line = refused(index_spec(folder, {"maximum_length": 32}), capsys)
    assert "takes texts of any length, and cuts none; leave maximum_length out" in line


class Killed(BaseException):
    """The end of a process that nothing in it survives."""


@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_a_step_that_is_killed_anywhere_goes_on_to_the_same_bytes(
    kind: str, prompted: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(dense_index, "TEXTS_PER_PIECE", 20)
    spec = index_spec(prompted, kind=kind)
    whole = file_digests(make_index(spec).folder)
    encode, write = SentenceTransformerEncoder.encode_documents, write_embeddings
    for stop in (1, 3):
        shutil.rmtree(spec.folder)
        encoded: list[Sequence[str]] = []

        def counted(
            self: SentenceTransformerEncoder, texts: Sequence[str], encoded: list[Sequence[str]] = encoded
        ) -> Vectors:
            encoded.append(texts)
            return encode(self, texts)

        def stopped(
            folder: Path,
            name: str,
            ids: Sequence[str],
            vectors: Vectors,
            stop: int = stop,
            encoded: list[Sequence[str]] = encoded,
        ) -> None:
            if len(encoded) > stop:
                # Half of the next vectors are on the disk, and not counted.
                (folder / f"{name}.npy").write_bytes(vectors[:7].tobytes())
                raise Killed
            write(folder, name, ids, vectors)

        monkeypatch.setattr(SentenceTransformerEncoder, "encode_documents", counted)
        monkeypatch.setattr(dense_index, "write_embeddings", stopped)
        with pytest.raises(Killed):
            run_step(dense_index.make, None, ["--spec", spec.text], add_device_option)
        monkeypatch.setattr(dense_index, "write_embeddings", write)
        assert "going on" not in caplog.text
        again = make_index(spec)
        assert f"going on: {stop} of 5 pieces of 20 documents encoded are done" in caplog.text
        caplog.clear()
        assert file_digests(again.folder) == whole
        # No text is encoded twice, but for those of the piece that was lost.
        assert sum(map(len, encoded)) == len(DOCUMENTS) + 20
        assert len(again.manifest["attempts"]) == 2
        assert not spec.state.exists()


def test_jobs_that_share_the_documents_give_the_same_bytes(prompted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_index, "TEXTS_PER_PIECE", 20)
    spec = index_spec(prompted)
    whole = file_digests(make_index(spec).folder)
    shutil.rmtree(spec.folder)
    for share in ("2", "1"):
        arguments = ["--spec", spec.text, "--part", "documents", "--share", share, "--jobs", "2"]
        assert run_step(dense_index.make, None, arguments, add_device_option, dense_index.PARTS) == 0
    monkeypatch.delattr(SentenceTransformerEncoder, "encode_documents")
    artifact = make_index(spec)
    assert file_digests(artifact.folder) == whole
    assert len(artifact.manifest["shares"]) == 2


def test_unfinished_work_of_other_inputs_is_refused(prompted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = index_spec(prompted)
    spec.state.mkdir(parents=True)
    (spec.state / "documents.npy").touch()
    claim = {"name": spec.name, "inputs": dict.fromkeys(spec.input_names, "0" * 64)}
    (spec.state / "artifact.json").write_text(json.dumps(claim))
    assert run_step(dense_index.make, None, ["--spec", spec.text], add_device_option) == 1
    assert "holds work that began from other files" in capsys.readouterr().err


def test_chunks_change_vectors_by_no_more_than_rounding(prompted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = index_spec(prompted)
    expected = np.array(Embeddings.open(make_index(spec), "documents").vectors)
    shutil.rmtree(spec.folder)
    monkeypatch.setattr(dense_index, "TEXTS_PER_PIECE", 7)
    found = Embeddings.open(make_index(spec), "documents")
    assert found.ids.to_pylist() == list(DOCUMENTS)
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)


def test_the_same_spec_gives_the_same_bytes(prompted: Path) -> None:
    spec = index_spec(prompted, kind="faiss")
    first = make_index(spec)
    digests = file_digests(first.folder)
    assert set(digests) == {
        *("documents.npy", "documents.parquet", "documents.faiss", "queries.npy", "queries.parquet"),
    }
    assert (first.facts["kind"], first.facts["lists"]) == ("faiss", 2)
    shutil.rmtree(first.folder)
    assert file_digests(make_index(spec).folder) == digests


def test_an_inverted_file_is_decided_by_its_seed_and_not_by_how_many_rows_are_added_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = vectors_of(4000)
    first = faiss.serialize_index(invert(vectors, 1))
    faiss.omp_set_num_threads(2)
    monkeypatch.setattr(dense_index, "ROWS_AT_ONCE", 333)
    np.testing.assert_array_equal(faiss.serialize_index(invert(vectors, 1)), first)
    assert not np.array_equal(faiss.serialize_index(invert(vectors, 2)), first)


def test_centroids_are_computed_from_the_documents_that_are_drawn_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_file, "MAXIMUM_LISTS", 20)
    trained: list[Vectors] = []
    train = faiss.IndexIVFScalarQuantizer.train

    def noted(self: faiss.IndexIVFScalarQuantizer, vectors: Vectors) -> None:
        trained.append(vectors)
        train(self, vectors)

    monkeypatch.setattr(faiss.IndexIVFScalarQuantizer, "train", noted)
    vectors = vectors_of(4000)
    assert invert(vectors, 1).ntotal == 4000
    np.testing.assert_array_equal(trained[0], vectors[inverted_file.training_numbers(4000, 1)])
    assert len(np.unique(trained[0], axis=0)) == 20 * 64


# Models and settings that are refused


def refused(spec: Spec, capsys: pytest.CaptureFixture[str]) -> str:
    assert run_step(dense_index.make, None, ["--spec", spec.text], add_device_option) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("colbert-zero: ")]
    return line


def test_a_folder_of_another_kind_is_one_line(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a sentence-transformers model: no modules.json" in refused(index_spec(bert), capsys)
    encoding = EncodingSettings("", "", 24, 40)
    save_colbert(load_colbert(bert, encoding), tmp_path / "pylate", encoding)
    assert "is a ColBERT model" in refused(index_spec(tmp_path / "pylate"), capsys)
    dense_model(tmp_path / "unpooled", bert)
    modules = json.loads((tmp_path / "unpooled" / "modules.json").read_text())
    (tmp_path / "unpooled" / "modules.json").write_text(json.dumps(modules[:1]))
    assert "no modules.json says how to pool" in refused(index_spec(tmp_path / "unpooled"), capsys)
    far = dense_model(tmp_path / "far", bert, similarity_fn_name="euclidean")
    assert "names the similarity 'euclidean'; a search needs cosine or dot" in refused(index_spec(far), capsys)


def test_prompts_that_differ_from_the_saved_ones_are_one_line_unless_they_are_meant(
    prompted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"query_prompt": "", "document_prompt": "search_document: "}
    line = refused(index_spec(prompted, given), capsys)
    assert "query_prompt is '' here, 'search_query: ' there; leave them out, or say that they are meant" in line
    artifact = make_index(index_spec(prompted, given, changed=["query_prompt"]))
    assert artifact.facts["encoding"]["query_prompt"] == ""


def test_a_length_above_the_models_is_one_line_unless_it_is_meant(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = dense_model(tmp_path / "short", bert)
    config = folder / "sentence_bert_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_seq_length": 40}))
    longer = {"maximum_length": 64}
    assert "maximum_length is 64 here, 40 there" in refused(index_spec(folder, longer), capsys)
    assert make_index(index_spec(folder, longer, changed=["maximum_length"])).facts["encoding"] == {
        "query_prompt": "", "document_prompt": "", "maximum_length": 64,
    }  # fmt: skip
    beyond = index_spec(folder, {"maximum_length": 300}, changed=["maximum_length"])
    assert "takes at most 256 tokens, but maximum_length is 300" in refused(beyond, capsys)


def test_a_prompt_that_fills_the_length_is_one_line(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = dense_model(tmp_path / "model", bert)
    given = {"query_prompt": "", "document_prompt": "the lazy dog: ", "maximum_length": 8}
    make_index(index_spec(folder, given))
    line = refused(index_spec(folder, given | {"document_prompt": "the very lazy dog: "}), capsys)
    assert "which the prompt 'the very lazy dog: ' fills, so that all texts would become the same input" in line


def test_a_vector_that_is_not_finite_is_refused_with_the_text_it_is_of(tmp_path: Path) -> None:
    vectors = np.array([[1, 1], [1, np.nan]], np.float32)
    with pytest.raises(UserError, match="'broken'"):
        write_embeddings(tmp_path, "documents", ["fine", "broken"], vectors)
    assert not list(tmp_path.glob("documents.*"))


def test_ids_of_all_documents_are_there_whatever_was_encoded_before(
    prompted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_index, "TEXTS_PER_PIECE", 40)
    artifact = make_index(index_spec(prompted))
    assert pq.read_table(artifact.file("documents.parquet"))["id"].to_pylist() == list(DOCUMENTS)
