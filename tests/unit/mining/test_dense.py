"""Laws of dense mining: an exact search, in which neither threads nor batches change a score."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest import MonkeyPatch
from sentence_transformers import SentenceTransformer

from colbert_zero.graph.artifact import Artifact, Spec, content_digest
from colbert_zero.graph.console import UserError
from colbert_zero.machine.devices import add_device_option
from colbert_zero.mining import dense as mining_dense
from colbert_zero.mining.candidates import read_candidates
from colbert_zero.models.encoders import LsaEncoder, SentenceTransformerEncoder
from mined import publish_model, publish_shards, publish_step
from tiny_models import tiny_dense

TOPICS = ["sparse matrix solver", "window plot axes", "neural network layer", "string parsing"]
TEXTS = [f"{TOPICS[number % 4]} with option{number} and value{number % 13}" for number in range(60)]
PAIRS = [(f"how to use option{number}", text) for number, text in enumerate(TEXTS)]
LSA = {"kind": "lsa", "dimensions": 12, "seed": 5}


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def dense(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dense(tmp_path_factory.mktemp("dense"), bert)


def mine(encoder: dict[str, Any], depth: int, *flags: str, **inputs: list[str]) -> Artifact:
    names = {"shards": [publish_shards(PAIRS).name], **inputs}
    spec = Spec("candidates", "dense.mine", {"encoder": encoder, "depth": depth, "flags": flags}, names)
    return publish_step(mining_dense.make, spec, *flags, add_options=add_device_option)


def test_candidates_are_the_nearest_documents_of_all() -> None:
    encoder = LsaEncoder(TEXTS, 12, 5)
    similarity = encoder.encode_queries([query for query, _ in PAIRS]) @ encoder.encode_documents(TEXTS).T
    rows = list(read_candidates(mine(LSA, 7)))
    assert len(rows) == len(PAIRS)
    for row, candidates in enumerate(rows):
        np.testing.assert_allclose(candidates.scores, np.sort(similarity[row])[::-1][:7], atol=1e-6)
        np.testing.assert_allclose(candidates.scores, similarity[row, candidates.documents], atol=1e-6)
        assert candidates.positive_score == pytest.approx(similarity[row, row], abs=1e-6)


def test_ties_go_to_the_lower_number() -> None:
    for row in read_candidates(mine(LSA, 60)):
        assert np.lexsort((row.documents, -row.scores)).tolist() == list(range(60))
    # A query without any known word has the same score, 0, with all documents.
    source = publish_shards([("???", text) for text in TEXTS])
    spec = Spec("candidates", "dense.mine", {"encoder": LSA, "depth": 4}, {"shards": [source.name]})
    for row in read_candidates(publish_step(mining_dense.make, spec)):
        assert row.documents.tolist() == [0, 1, 2, 3] and row.scores.tolist() == [0, 0, 0, 0]


def test_the_number_of_threads_and_queries_per_batch_changes_no_byte(monkeypatch: MonkeyPatch) -> None:
    one = mine(LSA, 9)
    monkeypatch.setattr(mining_dense, "QUERIES_PER_BATCH", 7)
    other = mine(LSA, 9, "--threads", "2")
    assert content_digest(one.manifest["outputs"]) == content_digest(other.manifest["outputs"])


def test_lsa_retrieves_documents_that_share_no_word_with_the_query() -> None:
    texts = ["car engine", "engine automobile", "automobile wheel", "banana fruit", "fruit apple", "apple tree"]
    encoder = LsaEncoder(texts, 2, 0)
    (query,) = encoder.encode_queries(["car"])
    similarity = encoder.encode_documents(texts) @ query
    assert similarity[2] > 0.9 > 0.1 > similarity[3:].max()
    np.testing.assert_allclose(np.linalg.norm(encoder.encode_documents(texts), axis=1), 1, rtol=1e-6)


def test_a_corpus_without_words_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="no words"):
        LsaEncoder(["?", "!"], 2, 0)


def test_a_small_corpus_gives_fewer_dimensions() -> None:
    assert LsaEncoder(["one word", "two words"], 50, 0).encode_documents(["one two"]).shape == (1, 2)


def test_a_sentence_transformer_encodes_with_prompts_and_unit_length(dense: Path) -> None:
    encoder = SentenceTransformerEncoder(dense, "query: ", "", 32, "cpu")
    plain = SentenceTransformer(str(dense), local_files_only=True)
    texts = ["the lazy dog", "a retrieval model scores every document " * 20]
    plain.max_seq_length = 32
    expected = plain.encode(["query: " + text for text in texts], normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_queries(texts), expected, atol=1e-6)
    np.testing.assert_allclose(
        encoder.encode_documents(texts), plain.encode(texts, normalize_embeddings=True), atol=1e-6
    )
    assert abs(encoder.encode_queries(texts) - encoder.encode_documents(texts)).max() > 1e-3


def test_a_sentence_transformer_mines(dense: Path) -> None:
    settings = {"kind": "sentence-transformers", "query_prompt": "", "document_prompt": "", "maximum_length": 32}
    artifact = mine(settings, 5, model=[publish_model(dense).name])
    similarity = np.array(SentenceTransformer(str(dense)).encode([q for q, _ in PAIRS], normalize_embeddings=True))
    similarity = similarity @ SentenceTransformer(str(dense)).encode(TEXTS, normalize_embeddings=True).T
    for row, candidates in enumerate(read_candidates(artifact)):
        np.testing.assert_allclose(candidates.scores, np.sort(similarity[row])[::-1][:5], atol=1e-5)


def test_a_folder_that_is_no_model_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="not a sentence-transformers model"):
        SentenceTransformerEncoder(tmp_path / "model", "", "", 32, "cpu")
