"""Laws of mining with a late-interaction model: PyLate's scores of all documents, whatever the pieces, or PLAID's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pylate import models
from pylate.scores import colbert_scores
from pytest import CaptureFixture, MonkeyPatch

from colbert_zero.graph.artifact import Artifact, Spec, run_step
from colbert_zero.machine.devices import add_device_option
from colbert_zero.mining import candidates as mining_candidates
from colbert_zero.mining import dense, late_interaction
from colbert_zero.mining.candidates import read_candidates
from colbert_zero.mining.dense import PARTS
from colbert_zero.mining.late_interaction import LateInteractionMining
from colbert_zero.models.colbert import EncodingSettings, load_colbert, save_colbert
from mined import publish_model, publish_shards, publish_step

SENTENCE = "the quick brown fox jumps over a lazy dog while retrieval model scores every document sums similarity"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[(number * step) % 17] for step in range(1, 3 + number % 9)) for number in range(60)]
TEXTS = [f"{text} {WORDS[number % 16]} {WORDS[number % 13]}" for number, text in enumerate(TEXTS)]
PAIRS = [(" ".join(text.split()[1:4]), text) for text in dict.fromkeys(TEXTS)]


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model(modernbert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoding = EncodingSettings("search_query: ", "search_document: ", 16, 40)
    folder = tmp_path_factory.mktemp("colbert")
    save_colbert(load_colbert(modernbert, encoding, dimensions=16, seed=5), folder, encoding)
    return folder


def spec_of(model: Path, depth: int = 7, **settings: Any) -> Spec:
    encoder = {"kind": "late-interaction", "precision": "fp32"}
    inputs = {"shards": [publish_shards(PAIRS).name], "model": [publish_model(model).name]}
    return Spec("candidates", "dense.mine", {"encoder": encoder, "depth": depth, **settings}, inputs)


def mine(spec: Spec) -> Artifact:
    return publish_step(dense.make, spec, add_options=add_device_option)


def scores_of(model: Path) -> Any:
    """PyLate's scores of all queries with all documents, of vectors in half precision, with its own prompts."""
    loaded = models.ColBERT(str(model), device="cpu", local_files_only=True)
    encode = {"convert_to_tensor": True, "show_progress_bar": False}
    queries = loaded.encode([query for query, _ in PAIRS], is_query=True, prompt_name="query", **encode)
    documents = loaded.encode([text for _, text in PAIRS], is_query=False, prompt_name="document", **encode)
    return np.array(
        [
            [colbert_scores(one[None].half().float(), other[None].half().float()).item() for other in documents]
            for one in queries
        ]
    )


def test_candidates_are_those_with_the_highest_scores_of_pylate(model: Path) -> None:
    expected = scores_of(model)
    rows = list(read_candidates(mine(spec_of(model))))
    assert len(rows) == len(PAIRS) > 40
    for row, candidates in enumerate(rows):
        np.testing.assert_allclose(candidates.scores, np.sort(expected[row])[::-1][:7], atol=1e-3)
        np.testing.assert_allclose(candidates.scores, expected[row, candidates.documents], atol=1e-3)
        assert candidates.positive_score == pytest.approx(expected[row, row], abs=1e-3)
        if row in candidates.documents:
            assert candidates.positive_score == candidates.scores[candidates.documents.tolist().index(row)]


@pytest.fixture
def small_pieces(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(mining_candidates, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr(late_interaction, "texts_per_chunk", lambda _: 13)
    monkeypatch.setattr(late_interaction, "QUERIES_PER_RESCORING", 3)
    monkeypatch.setattr(LateInteractionMining, "queries_per_piece", 8)


def test_pieces_change_no_candidate(model: Path, monkeypatch: MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """But for documents whose scores differ by the rounding of a vector, which knows the texts beside its own."""
    whole = list(read_candidates(mine(spec_of(model))))
    request.getfixturevalue("small_pieces")
    pieces = list(read_candidates(mine(spec_of(model, pieces=True))))
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=5e-3)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("settings", [{}, {"approximate": {"recall": 0.2, "seed": 3}}])
def test_several_jobs_find_the_same_candidates(model: Path, monkeypatch: MonkeyPatch, settings: dict[str, Any]) -> None:
    expected = mine(spec_of(model, **settings))
    spec = spec_of(model, jobs=3, **settings)
    for part in PARTS:
        for share in (3, 1, 2):
            shared = ["--spec", spec.text, "--part", part, "--share", str(share), "--jobs", "3"]
            assert run_step(dense.make, None, shared, add_options=add_device_option, parts=PARTS) == 0
    assert not spec.folder.exists()
    monkeypatch.setattr(LateInteractionMining, "_encode", lambda *_, **__: pytest.fail("encoded again"))
    found = mine(spec)
    assert found.manifest["outputs"] == expected.manifest["outputs"]
    assert found.facts == expected.facts


def test_of_what_plaid_finds_scores_are_those_of_the_vectors(model: Path) -> None:
    exact = mine(spec_of(model, depth=20))
    found = mine(spec_of(model, depth=20, approximate={"recall": 0.3, "seed": 3}))
    approximate = found.facts["approximate"]
    assert approximate["kind"] == "plaid" and approximate["measured_queries"] == len(PAIRS)
    shares = []
    for one, other in zip(read_candidates(found), read_candidates(exact), strict=True):
        scores = dict(zip(other.documents.tolist(), other.scores.tolist(), strict=True))
        assert one.positive_score == other.positive_score and len(one.documents) == 20
        pairs = zip(one.documents.tolist(), one.scores.tolist(), strict=True)
        assert all(score == scores.get(number, score) for number, score in pairs)
        shares.append(np.isin(other.documents, one.documents).mean())
    assert approximate["recall"] == pytest.approx(np.mean(shares), abs=1e-6) and approximate["recall"] > 0.3


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("settings", [{}, {"approximate": {"recall": 0.3, "seed": 3}}])
def test_a_pool_is_searched_alone_and_own_documents_are_scored_in_any_case(
    model: Path, settings: dict[str, Any]
) -> None:
    whole = list(read_candidates(mine(spec_of(model, depth=len(PAIRS)))))
    found = list(read_candidates(mine(spec_of(model, depth=5, pool={"documents": 30, "seed": 3}, **settings))))
    pool = {number for row in found for number in row.documents.tolist()}
    assert 15 < len(pool) <= 30
    assert all(sorted(row.documents.tolist()) == list(range(len(PAIRS))) for row in whole), "all, the first too"
    for one, other in zip(found, whole, strict=True):
        scores = dict(zip(other.documents.tolist(), other.scores.tolist(), strict=True))
        assert [scores[number] for number in one.documents.tolist()] == one.scores.tolist()
        assert one.positive_score == other.positive_score and len(one.documents) == 5
        if not settings:
            inside = [number for number in other.documents.tolist() if number in pool]
            assert one.documents.tolist() == inside[:5]


def test_a_recall_below_the_floor_is_one_line(
    model: Path, monkeypatch: MonkeyPatch, capfd: CaptureFixture[str]
) -> None:
    worst = LateInteractionMining.exact

    def the_worst(self: LateInteractionMining, queries: Any, folder: Path) -> Any:
        found = worst(self, queries)
        return np.sort((found + 1) % len(self.corpus))[:, : self.depth]

    monkeypatch.setattr(LateInteractionMining, "approximate", the_worst)
    spec = spec_of(model, approximate={"recall": 1.0, "seed": 3})
    assert run_step(dense.make, None, ["--spec", spec.text], add_options=add_device_option) == 1
    (line,) = capfd.readouterr().err.strip().splitlines()[-1:]
    assert "of what the exact one does, less than recall: 1; ask for less, or search exactly" in line


@pytest.mark.parametrize("is_query", [True, False])
def test_a_vector_that_is_no_number_is_one_line(
    model: Path, monkeypatch: MonkeyPatch, capfd: CaptureFixture[str], is_query: bool
) -> None:
    encode = LateInteractionMining._encode

    def broken(self: LateInteractionMining, texts: Any, *, is_query: bool) -> Any:
        matrices = encode(self, texts, is_query=is_query)
        if is_query is broken_side:
            matrices[3][0] = np.nan
        return matrices

    broken_side = is_query
    monkeypatch.setattr(LateInteractionMining, "_encode", broken)
    assert run_step(dense.make, None, ["--spec", spec_of(model).text], add_options=add_device_option) == 1
    (line,) = capfd.readouterr().err.strip().splitlines()[-1:]
    assert f"the model's vectors of '{'query' if is_query else 'document'} 3' are not finite" in line


def test_a_folder_that_does_not_say_its_lengths_is_one_line(modernbert: Path, capfd: CaptureFixture[str]) -> None:
    assert run_step(dense.make, None, ["--spec", spec_of(modernbert).text], add_options=add_device_option) == 1
    (line,) = capfd.readouterr().err.strip().splitlines()[-1:]
    assert "its folder does not say its query_prompt" in line
