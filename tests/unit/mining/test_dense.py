"""Laws of dense mining: an exact search, in which neither threads nor pieces change a score."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from pytest import CaptureFixture, MonkeyPatch
from sentence_transformers import SentenceTransformer

from colbert_zero.graph.artifact import Artifact, Spec, content_digest, run_step
from colbert_zero.graph.console import UserError
from colbert_zero.machine.devices import add_device_option
from colbert_zero.mining import candidates as mining_candidates
from colbert_zero.mining import dense as mining_dense
from colbert_zero.mining import encoder_mining
from colbert_zero.mining.candidates import read_candidates
from colbert_zero.mining.dense import PARTS, DenseMining, find
from colbert_zero.models.batches import TOKENS_PER_BATCH
from colbert_zero.models.encoders import LsaEncoder, SentenceTransformerEncoder
from colbert_zero.retrieval import inverted_file
from colbert_zero.retrieval import nearest as exact_search
from colbert_zero.retrieval.nearest import SlicedVectors, nearest
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
    names = shards_of_pairs() | inputs
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


@pytest.fixture
def small_pieces(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(mining_candidates, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr(mining_dense.DenseMining, "documents_per_piece", 13)
    monkeypatch.setattr(mining_dense.DenseMining, "queries_per_piece", 8)


def test_neither_threads_nor_pieces_change_a_byte(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(mining_candidates, "ROWS_PER_GROUP", 4)
    whole = mine(LSA, 9)
    monkeypatch.setattr(mining_dense.DenseMining, "documents_per_piece", 13)
    monkeypatch.setattr(mining_dense.DenseMining, "queries_per_piece", 8)
    monkeypatch.setitem(exact_search.QUERIES_PER_BATCH, "cpu", 3)
    pieces = mine(LSA, 9, "--threads", "2")
    assert content_digest(whole.manifest["outputs"]) == content_digest(pieces.manifest["outputs"])
    assert whole.facts == pieces.facts


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_several_jobs_find_the_same_candidates(monkeypatch: MonkeyPatch, jobs: int) -> None:
    expected = mine(LSA, 9)
    settings = {"encoder": LSA, "depth": 9, "jobs": jobs}
    spec = Spec("candidates", "dense.mine", settings, {"shards": [publish_shards(PAIRS).name]})
    for part in PARTS:
        for share in reversed(range(1, jobs + 1)):
            shared = ["--spec", spec.text, "--part", part, "--share", str(share), "--jobs", str(jobs)]
            assert run_step(mining_dense.make, None, shared, add_options=add_device_option, parts=PARTS) == 0
    assert not spec.folder.exists()
    monkeypatch.setattr(mining_dense, "load_encoder", lambda *_: pytest.fail("encoded again"))
    found = publish_step(mining_dense.make, spec, add_options=add_device_option)
    assert found.manifest["outputs"] == expected.manifest["outputs"]
    assert found.facts == expected.facts


@pytest.mark.usefixtures("small_pieces")
def test_a_killed_search_goes_on_after_the_last_slice(monkeypatch: MonkeyPatch) -> None:
    expected = mine(LSA, 9)
    spec = Spec("candidates", "dense.mine", {"encoder": LSA, "depth": 9, "killed": True}, expected.spec.inputs)
    searched: list[int] = []

    def find_or_exit(*arguments: Any) -> Any:
        searched.append(len(arguments[1]))
        if len(searched) == 3:
            raise SystemExit
        return find(*arguments)

    monkeypatch.setattr(mining_dense, "find", find_or_exit)
    with pytest.raises(SystemExit):
        publish_step(mining_dense.make, spec)
    monkeypatch.setattr(DenseMining, "prepare", lambda *_: pytest.fail("encoded again"))
    assert publish_step(mining_dense.make, spec).manifest["outputs"] == expected.manifest["outputs"]
    assert searched == [8] * 8 + [4]


def mine_approximately(recall: float, jobs: int = 1, documents: int = 600, depth: int = 5) -> Spec:
    texts = [f"{TOPICS[number % 4]} option{number % 97} value{number % 13}" for number in range(documents)]
    source = publish_shards([(f"how to use option{number % 97}", text) for number, text in enumerate(texts)])
    settings = {"encoder": LSA, "depth": depth, "approximate": {"recall": recall, "seed": 3}, "jobs": jobs}
    return Spec("candidates", "dense.mine", settings, {"shards": [source.name]})


def test_an_approximate_search_finds_what_the_inverted_file_does_and_says_its_recall(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_file, "PROBES", 1)
    made = publish_step(mining_dense.make, mine_approximately(0.01))
    exact = Spec("candidates", "dense.mine", {"encoder": LSA, "depth": 5}, made.spec.inputs)
    pairs = list(zip(read_candidates(made), read_candidates(publish_step(mining_dense.make, exact)), strict=True))
    measured = made.facts["approximate"]
    assert (measured["lists"], measured["measured_queries"]) == (15, 256)
    shares = [np.isin(expected.documents, found.documents).mean() for found, expected in pairs]
    assert 0 < measured["recall"] < 1 and measured["recall"] == pytest.approx(np.mean(shares), abs=0.1)
    for found, expected in pairs:
        scores = dict(zip(expected.documents.tolist(), expected.scores.tolist(), strict=True))
        assert found.positive_score == expected.positive_score
        for number, score in zip(found.documents.tolist(), found.scores.tolist(), strict=True):
            assert score == scores.get(number, score) <= expected.scores[0]


def test_where_lists_hold_fewer_documents_than_are_asked_for_the_search_is_exact(monkeypatch: MonkeyPatch) -> None:
    """So a list that is shorter than the depth has all documents, as `highest_unknown_score` takes it."""
    monkeypatch.setattr(inverted_file, "PROBES", 1)
    made = publish_step(mining_dense.make, mine_approximately(1.0, depth=400))
    assert made.facts["approximate"]["recall"] == 1
    assert {len(row.documents) for row in read_candidates(made)} == {400}


@pytest.mark.usefixtures("small_pieces")
def test_an_approximate_search_in_all_lists_is_the_exact_one_whatever_the_number_of_jobs() -> None:
    outputs = []
    for jobs in (1, 3):
        spec = mine_approximately(1.0, jobs, documents=100)
        for part in PARTS:
            for share in reversed(range(1, jobs + 1)):
                shared = ["--spec", spec.text, "--part", part, "--share", str(share), "--jobs", str(jobs)]
                assert run_step(mining_dense.make, None, shared, add_options=add_device_option, parts=PARTS) == 0
        made = publish_step(mining_dense.make, spec, add_options=add_device_option)
        assert made.facts["approximate"] == {"lists": 2, "recall": 1.0, "measured_queries": 100}
        outputs.append(made.manifest["outputs"])
    exact = Spec("candidates", "dense.mine", {"encoder": LSA, "depth": 5}, spec.inputs)
    assert outputs == [publish_step(mining_dense.make, exact).manifest["outputs"]] * 2


@pytest.mark.parametrize(("depth", "candidates"), [(5, 21), (10, 40), (400, 600)])
def test_four_candidates_of_the_inverted_file_are_scored_for_each_or_as_many_as_exactly(
    depth: int, candidates: int, monkeypatch: MonkeyPatch
) -> None:
    asked: set[int] = set()
    search = faiss.IndexIVFScalarQuantizer.search

    def noted(self: faiss.IndexIVFScalarQuantizer, queries: Any, size: int) -> Any:
        asked.add(size)
        return search(self, queries, size)

    monkeypatch.setattr(faiss.IndexIVFScalarQuantizer, "search", noted)
    publish_step(mining_dense.make, mine_approximately(0.01, depth=depth))
    assert asked == {candidates}


def test_a_recall_below_the_floor_is_one_line_before_the_search(
    monkeypatch: MonkeyPatch, capfd: CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inverted_file, "PROBES", 1)
    monkeypatch.setattr(encoder_mining, "write_candidates", lambda *_: pytest.fail("searched"))
    assert run_step(mining_dense.make, None, ["--spec", mine_approximately(1.0).text]) == 1
    (line,) = capfd.readouterr().err.strip().splitlines()[-1:]
    assert "of what the exact one does, less than recall: 1; ask for less, or search exactly" in line


def mine_in_pool(documents: int, seed: int = 3, **settings: Any) -> Artifact:
    pool = {"pool": {"documents": documents, "seed": seed}}
    spec = Spec("candidates", "dense.mine", {"encoder": LSA, "depth": 6, **pool, **settings}, shards_of_pairs())
    return publish_step(mining_dense.make, spec)


def shards_of_pairs() -> dict[str, list[str]]:
    return {"shards": [publish_shards(PAIRS).name]}


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("settings", [{}, {"approximate": {"recall": 1.0, "seed": 3}}])
def test_a_pool_is_searched_alone_and_own_documents_are_scored_in_any_case(
    settings: dict[str, Any], monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_mining, "RESCORED_BEYOND_DEPTH", 2)
    whole = list(read_candidates(mine(LSA, len(TEXTS))))
    found = list(read_candidates(mine_in_pool(25, **settings)))
    pool = {number for row in found for number in row.documents.tolist()}
    assert len(pool) <= 25 and len(pool) > 15 and not all(row in pool for row in range(len(PAIRS)))
    all_of_it = {number for row in read_candidates(mine_in_pool(25, depth=25)) for number in row.documents.tolist()}
    assert pool <= all_of_it and len(all_of_it) == 25
    for one, other in zip(found, whole, strict=True):
        inside = np.isin(other.documents, list(all_of_it))
        assert one.documents.tolist() == other.documents[inside][:6].tolist()
        assert one.scores.tolist() == other.scores[inside][:6].tolist()
        assert one.positive_score == other.positive_score


def test_a_pool_is_drawn_by_the_seed_and_one_of_all_documents_is_no_pool() -> None:
    one, other = (mine_in_pool(25, seed).manifest["outputs"] for seed in (3, 4))
    assert one != other
    expected = mine(LSA, 6).manifest["outputs"]
    assert mine_in_pool(len(TEXTS)).manifest["outputs"] == mine_in_pool(10**6).manifest["outputs"] == expected
    assert mine_in_pool(len(TEXTS) - 1).manifest["outputs"] != expected


def unit_vectors(random: np.random.Generator, rows: int, dimensions: int) -> Any:
    vectors = random.standard_normal((rows, dimensions), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_candidates_are_bit_by_bit_those_of_faiss() -> None:
    """Its flat index, whose hits were rescored in the same way until the search came to run on GPUs."""
    random = np.random.default_rng(3)
    documents, queries = unit_vectors(random, 3000, 24), unit_vectors(random, 70, 24)
    positives = random.integers(0, 3000, 70).astype(np.int32)
    index: Any = faiss.IndexFlatIP(24)
    index.add(documents)
    _, retrieved = index.search(queries, 50 + encoder_mining.RESCORED_BEYOND_DEPTH)
    sliced = SlicedVectors([documents[start : start + 700] for start in range(0, 3000, 700)])
    found = list(find(sliced, queries, positives, 50, nearest(queries, sliced, retrieved.shape[1])))
    for query, numbers, positive, candidates in zip(queries, np.sort(retrieved), positives, found, strict=True):
        scores = np.einsum("ij,j->i", documents[numbers].astype(np.float64), query.astype(np.float64))
        best = np.argsort(-scores.astype(np.float32), kind="stable")[:50]
        assert candidates.documents.tolist() == numbers[best].tolist()
        assert candidates.scores.tolist() == scores[best].astype(np.float32).tolist()
        assert candidates.positive_score == np.float32(documents[positive].astype(np.float64) @ query)


def test_a_vector_that_is_no_number_is_one_clear_line(capsys: CaptureFixture[str], monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(LsaEncoder, "encode_queries", lambda _, texts: np.full((len(texts), 12), np.nan, np.float32))
    with pytest.raises(AssertionError):
        mine(LSA, 9)
    assert "the encoder's vector of query 0 is not finite" in capsys.readouterr().err


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


def test_texts_of_like_length_are_encoded_together_and_stay_in_their_order(
    dense: Path, monkeypatch: MonkeyPatch
) -> None:
    encoder = SentenceTransformerEncoder(dense, "", "a document: ", 32, "cpu")
    texts = [" ".join(["lazy dog model"] * (number * 7 % 11)) for number in range(40)]
    together = encoder.encode_documents(texts)
    monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", 64)
    model, sizes = encoder._model, []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda some, **how: sizes.append(len(some)) or encode(some, **how))
    np.testing.assert_allclose(encoder.encode_documents(texts), together, atol=1e-6)
    assert sum(sizes) == 40 and max(sizes) > min(sizes) == 64 // 32, "of the longest texts, two have 64 tokens"


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
