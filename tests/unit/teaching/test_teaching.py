"""Laws of teaching: as many documents in each row, its own first, and the scores that each pair alone would get."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest import CaptureFixture, MonkeyPatch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from colbert_zero.data.rows import min_max
from colbert_zero.graph.artifact import Artifact, Job, Spec, run_step
from colbert_zero.machine.devices import add_device_option
from colbert_zero.retrieval.lucene import LuceneIndex, add_heap_option
from colbert_zero.teaching import bm25 as teaching_bm25
from colbert_zero.teaching import neural as teaching_neural
from colbert_zero.teaching.late_interaction import LateInteractionTeacher
from colbert_zero.teaching.rerankers import INSTRUCTION, CausalLMTeacher, CrossEncoderTeacher
from colbert_zero.teaching.scoring import choose_documents, write_scores
from mined import publish_candidates, publish_model, publish_shards, publish_step, rows_in
from tiny_models import late_interaction_model, tiny_causal_lm, tiny_cross_encoder, tiny_modernbert

PAIRS = [
    ("red apple", "an apple is red"),
    ("blue sky", "the sky is blue"),
    ("red sky", "evening sky in red"),
    ("Red  apple", "ripe apples"),
    ("green grass", "grass is green and long " * 9),
]
LISTS = [
    ([1, 0, 3, 2, 4], [9.0, 8.0, 7.0, 6.0, 5.0], 8.0),
    ([1, 2], [9.0, 8.0], 9.0),
    ([0, 1, 4], [9.0, 8.0, 7.0], 1.0),
    ([0, 2, 1, 3], [9.0, 8.0, 7.0, 6.0], 6.0),
    ([3, 2, 1, 0], [9.0, 8.0, 7.0, 6.0], 0.0),
]
"""With three documents per row: rows 0 and 3 share a query, so 0 and 3 are positives of both; row 1 has too few."""
EXPECTED = {0: [0, 1, 2], 2: [2, 0, 1], 3: [3, 2, 1], 4: [4, 3, 2]}
SAMPLES = [(query, document) for query, _ in PAIRS for _, document in PAIRS] * 4
SAMPLES += [("a query longer than the document " * 9, "the sky is blue")] * 3


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def spec_of(kind: str, settings: dict[str, Any], **inputs: list[str]) -> Spec:
    source = publish_shards(PAIRS)
    names = {"shards": [source.name], "candidates": [publish_candidates(source, LISTS).name], **inputs}
    return Spec("scores", f"{kind}.mine", {"documents": 3, **settings}, names)


def publish_scores(spec: Spec, scores: Sequence[Sequence[float]]) -> Artifact:
    def make(job: Job) -> Any:
        return write_scores(job, choose_documents(job), (np.array(row, np.float32) for row in scores))

    return publish_step(make, spec)


SCORES = [[3.0, 1.0, 2.0], [0.0, 0.0, 0.0], [-1.0, 4.0, 9.0], [5.0, 5.0, 6.0]]


def test_a_rows_own_document_comes_first_and_no_other_positive_follows() -> None:
    made = publish_scores(spec_of("x", {}), [[3.0, 2.0, 1.0]] * 4)
    assert {row["row"]: row["documents"] for row in rows_in(made)} == {
        row: [PAIRS[number][1] for number in numbers] for row, numbers in EXPECTED.items()
    }
    assert all(row["query"] == PAIRS[row["row"]][0] for row in rows_in(made))


def test_scores_are_kept_raw_and_normalised_and_constant_rows_dropped() -> None:
    made = publish_scores(spec_of("x", {}), SCORES)
    rows = rows_in(made)
    assert [row["row"] for row in rows] == [0, 3, 4]
    assert [row["raw"] for row in rows] == [SCORES[0], SCORES[2], SCORES[3]]
    for row in rows:
        assert row["scores"] == min_max(np.array(row["raw"], np.float32)).tolist()
        assert min(row["scores"]) == 0 and max(row["scores"]) == pytest.approx(1)
    assert made.facts["dropped"] == {"too few candidates": 1, "all scores equal": 1}
    assert made.facts["positive_first"] == 1 and made.facts["rows"] == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_stops_the_step_and_names_the_row(bad: float, capfd: CaptureFixture[str]) -> None:
    spec = spec_of("x", {})
    with pytest.raises(AssertionError):
        publish_scores(spec, [*SCORES[:2], [1.0, bad, 2.0], SCORES[3]])
    assert "a score of row 3 is not finite" in capfd.readouterr().err
    assert not spec.folder.exists()


@pytest.mark.parametrize(("documents", "message"), [(9, "no row has 9 documents"), (3, "one score, on every row")])
def test_no_row_left_is_one_clear_line(documents: int, message: str, capfd: CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError):
        publish_scores(spec_of("x", {"documents": documents}), [[1.0, 1.0, 1.0]] * 4)
    assert message in capfd.readouterr().err


def test_bm25_teaches_with_lucenes_scores() -> None:
    spec = spec_of("bm25", {"k1": 0.9, "b": 0.4})
    rows = rows_in(publish_step(teaching_bm25.make, spec, "--threads", "2", add_options=add_heap_option))
    with LuceneIndex([document for _, document in PAIRS], 0.9, 0.4) as index:
        expected = index.score([PAIRS[row][0] for row in EXPECTED], list(EXPECTED.values()))
        assert [row["raw"] for row in rows] == [scores.tolist() for scores in expected]
    assert [row["row"] for row in rows] == list(EXPECTED)


@pytest.fixture(scope="module")
def cross_encoder(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cross_encoder(tmp_path_factory.mktemp("cross"), bert)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(
        tmp_path_factory.mktemp("causal"), [INSTRUCTION, "Yes No", *(text for pair in PAIRS for text in pair)]
    )


def test_a_cross_encoder_scores_as_it_would_one_pair(cross_encoder: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(cross_encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
    with torch.no_grad():
        expected = [
            plain(**tokenizer(*pair, truncation=True, max_length=40, return_tensors="pt")).logits.item()
            for pair in SAMPLES
        ]
    scores = CrossEncoderTeacher(cross_encoder, 40, torch.float32, "cpu").score(SAMPLES)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(scores) > 1e-3


def one_by_one(folder: Path, maximum_length: int, instruction: str, answer: str) -> Iterator[float]:
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    plain.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokens(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    for query, document in SAMPLES:
        question = tokens(f"A: {query}")[: maximum_length * 3 // 4]
        texts = [2, *question, *tokens("\n"), *tokens(f"B: {document}")][:maximum_length]
        ids = [*texts, *tokens("\n"), *tokens(instruction)]
        with torch.no_grad():
            yield plain(torch.tensor([ids])).logits[0, -1, tokens(answer)[0]].item()


@pytest.mark.parametrize(("instruction", "answer"), [(INSTRUCTION, "Yes"), ("Is B about A?", "No")])
def test_a_language_model_scores_by_its_answers_logit_as_it_would_one_pair(
    causal: Path, instruction: str, answer: str
) -> None:
    teacher = CausalLMTeacher(causal, 60, torch.float32, "cpu", instruction, answer)
    scores = teacher.score(SAMPLES)
    np.testing.assert_allclose(scores, list(one_by_one(causal, 60, instruction, answer)), atol=1e-5)
    assert np.ptp(scores) > 1e-3


def test_the_order_of_pairs_changes_no_score(causal: Path, cross_encoder: Path) -> None:
    order = np.random.default_rng(0).permutation(len(SAMPLES))
    shuffled = [SAMPLES[position] for position in order]
    for teacher in (
        CausalLMTeacher(causal, 60, torch.float32, "cpu", INSTRUCTION, "Yes"),
        CrossEncoderTeacher(cross_encoder, 40, torch.float32, "cpu"),
    ):
        np.testing.assert_allclose(teacher.score(shuffled), teacher.score(SAMPLES)[order], atol=1e-5)


def test_half_precision_still_answers_in_single_precision(causal: Path) -> None:
    scores = CausalLMTeacher(causal, 60, torch.bfloat16, "cpu", INSTRUCTION, "Yes").score(SAMPLES[:25])
    np.testing.assert_allclose(scores, list(one_by_one(causal, 60, INSTRUCTION, "Yes"))[:25], atol=0.3)
    assert (torch.tensor(scores).bfloat16().float().numpy() != scores).any()


CROSS = {"kind": "cross-encoder", "maximum_length": 40, "precision": "fp32"}
CAUSAL = {"kind": "causal-lm", "maximum_length": 60, "precision": "fp32", "instruction": None, "answer": "Yes"}


LATE = {"kind": "late-interaction", "precision": "fp32"}


@pytest.mark.parametrize("kind", ["cross-encoder", "causal-lm", "late-interaction"])
def test_a_neural_teacher_scores_the_documents_of_each_row(
    kind: str, causal: Path, cross_encoder: Path, tmp_path: Path
) -> None:
    base = tiny_modernbert(tmp_path / "base", [text for pair in PAIRS for text in pair], positions=520)
    late = late_interaction_model(tmp_path / "late", base, has_prompts=True)
    folder, settings, teacher = {
        "cross-encoder": (cross_encoder, CROSS, CrossEncoderTeacher(cross_encoder, 40, torch.float32, "cpu")),
        "causal-lm": (causal, CAUSAL, CausalLMTeacher(causal, 60, torch.float32, "cpu", INSTRUCTION, "Yes")),
        "late-interaction": (late, LATE, LateInteractionTeacher(late, "fp32", "cpu")),
    }[kind]
    spec = spec_of("neural", {"teacher": settings}, model=[publish_model(folder).name])
    rows = rows_in(publish_step(teaching_neural.make, spec, add_options=add_device_option))
    assert [row["row"] for row in rows] == list(EXPECTED)
    for row in rows:
        expected = teacher.score([(row["query"], document) for document in row["documents"]])
        np.testing.assert_allclose(row["raw"], expected, atol=1e-5)


def test_a_folder_without_such_a_model_is_one_clear_line(tmp_path: Path, capfd: CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "readme").write_text("nothing")
    for settings in (CROSS, CAUSAL, LATE):
        spec = spec_of("neural", {"teacher": settings}, model=[publish_model(empty).name])
        assert run_step(teaching_neural.make, None, ["--spec", spec.text], add_device_option) == 1
        error = capfd.readouterr().err
        assert f"as a {settings['kind']}" in error and "Traceback" not in error
