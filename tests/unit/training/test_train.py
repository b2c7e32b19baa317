"""Training: exact gradients, one resumable loop for three stages, and failures in one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pylate import models
from safetensors import SafetensorError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainingArguments

from colbert_zero.graph.artifact import Artifact, Spec, input_records, run_step
from colbert_zero.graph.console import RetryableError, UserError, run_reporting_errors
from colbert_zero.graph.digests import canonical_json, digest
from colbert_zero.machine.slurm import DEADLINE_MARGIN_SECONDS, DEADLINE_VARIABLE
from colbert_zero.models.colbert import EncodingSettings, load_colbert, tokenize
from colbert_zero.training import gradcache, train
from colbert_zero.training.checkpoints import NOTES_FILE, TENSORS_FILE, Checkpoint, Checkpoints
from colbert_zero.training.gradcache import Embeddings, GradCache, MemoryBudget, contrastive_loss, split_by_length
from colbert_zero.training.trainer import Trainer, adamw
from tiny_stages import BATCH_SIZE, STAGES, contents, job, model_spec, never, random_rows

pytestmark = pytest.mark.usefixtures("study")


# Gradients


def gradients(base: Path, budget: MemoryBudget) -> tuple[float, dict[str, torch.Tensor]]:
    model = load_colbert(base, EncodingSettings("q: ", "d: ", 14, 20), seed=1)
    model.train()
    texts = random_rows("unsupervised", 16)
    queries = tokenize(model, [row["query"] for row in texts], True, "q: ")
    documents = tokenize(model, [row["document"] for row in texts], False, "d: ")
    value = GradCache(model, budget, seed=3).backward(5, queries, documents, contrastive_loss(1, 0.2, 20))
    return value, {name: part.grad for name, part in model.named_parameters() if part.grad is not None}


@pytest.mark.parametrize("base", ["modernbert", "bert"])
@pytest.mark.parametrize("pairs", [1, 2**24])
def test_the_cached_gradient_is_the_plain_one(
    base: str, pairs: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # BERT has dropout: both forward passes of a chunk must draw the same masks.
    folder = request.getfixturevalue(base)
    plain = gradients(folder, MemoryBudget(64, 10**6))
    monkeypatch.setitem(gradcache.PAIRS_PER_BLOCK, "cpu", pairs)
    cached = gradients(folder, MemoryBudget(64, 0))
    assert cached[0] == pytest.approx(plain[0], abs=1e-6)
    assert plain[1].keys() == cached[1].keys()
    for name, gradient in plain[1].items():
        torch.testing.assert_close(cached[1][name], gradient, atol=1e-6, rtol=1e-6)


class TensorSizes(TorchDispatchMode):
    """Records the sizes of the tensors that PyTorch creates."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        self.sizes += [part.numel() for part in tree_leaves(result) if isinstance(part, torch.Tensor)]
        return result


def test_no_block_of_queries_allocates_a_gradient_of_all_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    # With 16,384 queries in 600 blocks, filling such gradients with zeros took most of a step.
    count, width, size = 64, 2, 4
    monkeypatch.setitem(gradcache.PAIRS_PER_BLOCK, "cpu", 4 * width * count)
    mask = torch.ones(count, width, dtype=torch.bool)
    queries, *documents = (
        Embeddings.with_gradient(
            torch.zeros(len(rows), width, size), rows, torch.randn(len(rows), width, size), mask[: len(rows)]
        )
        for rows in (torch.arange(count), *torch.arange(count).split(8))
    )
    with TensorSizes() as created:
        terms = list(contrastive_loss(1, 0.2, width).partial_losses(queries, documents))
        for term in terms:
            term.backward()
    assert len(terms) == count // 4
    assert queries.vectors.grad is not None
    assert queries.vectors.grad.any(dim=2).all()
    assert max(created.sizes) < queries.vectors.numel()


def test_the_size_of_chunks_does_not_decide_the_gradient(modernbert: Path) -> None:
    expected = gradients(modernbert, MemoryBudget(10**6, 10**6))
    for size in (1, 30, 200):
        found = gradients(modernbert, MemoryBudget(size, 0))
        assert found[0] == pytest.approx(expected[0], abs=1e-5)
        for name, gradient in expected[1].items():
            torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_dropout_is_drawn_anew_for_each_step_and_chunk(bert: Path) -> None:
    model = load_colbert(bert, EncodingSettings("", "", 14, 20))
    model.train()
    tokens = tokenize(model, ["the quick brown fox"] * 4, False, "")
    losses = [
        GradCache(model, MemoryBudget(chunk, 10**6), seed=3).backward(
            step, tokens, tokens, contrastive_loss(1, 1.0, 20)
        )
        for step, chunk in ((0, 1000), (0, 1000), (1, 1000), (0, 1))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_chunks_hold_every_text_once_in_groups_of_similar_length(modernbert: Path) -> None:
    model = load_colbert(modernbert, EncodingSettings("", "", 14, 20))
    tokens = tokenize(model, [row["document"] for row in random_rows("unsupervised", 50)], False, "")
    groups = list(split_by_length(tokens, 60))
    assert sorted(np.concatenate(groups)) == list(range(50))
    assert max(tokens.lengths[group].max() * len(group) for group in groups) <= 60
    assert np.all(np.diff(np.concatenate([tokens.lengths[group] for group in groups])) <= 0)


# The loop


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_learns_and_its_model_is_pylates(modernbert: Path, stage: str) -> None:
    spec = model_spec(modernbert, stage, learning_rate=3e-3)
    assert run_step(train.make, None, ["--spec", spec.text, "--device", "cpu"], train.add_options) == 0
    artifact = Artifact.open(spec.name)
    model = models.ColBERT(str(artifact.verified_folder()), device="cpu")
    assert model.prompts == {"query": "search_query: ", "document": "search_document: "}
    assert (model.query_length, model.document_length, model.do_query_expansion) == (14, 20, False)
    lines = [json.loads(line) for line in artifact.file("losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert sorted({line["source"] for line in lines}) == ["first", "second"]
    assert lines[0]["learning_rate"] == 0 and lines[-1]["learning_rate"] > 0
    facts = artifact.facts
    assert (facts["steps"], facts["samples"], facts["final_loss"]) == (8, 8 * BATCH_SIZE, lines[-1]["loss"])
    per_query = {"unsupervised": 1, "supervised": 3, "distillation": 3}[stage]
    assert 4 * 8 * BATCH_SIZE * per_query <= facts["document_tokens"] <= 20 * 8 * BATCH_SIZE * per_query
    assert 4 * 8 * BATCH_SIZE <= facts["query_tokens"] <= 14 * 8 * BATCH_SIZE
    assert facts["parameters"] == sum(part.numel() for part in model.parameters())
    assert facts["samples_per_second"] == pytest.approx(facts["samples"] / facts["seconds"], rel=0.02)
    start = load_colbert(modernbert, EncodingSettings("", "", 14, 20), dimensions=16, seed=7)
    assert any(not torch.equal(*pair) for pair in zip(model.parameters(), start.parameters(), strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls_on_rows_seen_again_and_again(modernbert: Path, stage: str) -> None:
    content = random_rows(stage, BATCH_SIZE) * 12
    spec = model_spec(modernbert, stage, content, learning_rate=3e-3, warmup_ratio=0.0)
    train.train(made := job(spec, Path("out")), never)
    lines = [json.loads(line) for line in (made.folder / "losses.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["source"] == "first"]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("stage", "base"), [*((stage, "modernbert") for stage in STAGES), ("unsupervised", "bert")])
def test_a_stopped_and_resumed_run_ends_with_the_same_bytes(
    stage: str, base: str, request: pytest.FixtureRequest
) -> None:
    spec = model_spec(request.getfixturevalue(base), stage)
    facts = train.train(job(spec, Path("whole")), never)
    shutil.rmtree(spec.state)
    first, second = sorted(np.random.default_rng(STAGES.index(stage)).choice(np.arange(1, 8), 2, replace=False))
    for stop in (first, second):
        with pytest.raises(UserError, match=f"stopped at step {stop} of 8; the same command resumes"):
            train.train(job(spec, Path("halves")), lambda step, stop=stop: step == stop)
        assert not any(Path("halves").iterdir())
    resumed = train.train(job(spec, Path("halves")), never)
    assert contents(Path("halves")) == contents(Path("whole"))
    timed = {"seconds", "samples_per_second"}
    assert {name: resumed[name] for name in resumed.keys() - timed} == {
        name: facts[name] for name in facts.keys() - timed
    }


def test_a_run_killed_between_checkpoints_ends_with_the_same_bytes(modernbert: Path) -> None:
    spec = model_spec(modernbert, "unsupervised")
    train.train(job(spec, Path("whole")), never)
    shutil.rmtree(spec.state)

    def kill(step: int) -> bool:
        if step == 5:
            raise SystemExit
        return False

    with pytest.raises(SystemExit):
        train.train(job(spec, Path("killed"), "--checkpoint-seconds", "0"), kill)
    # The last two checkpoints are kept; a damaged one is skipped.
    folders = sorted((spec.state / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-000000003", "step-000000004"]
    with (folders[-1] / TENSORS_FILE).open("r+b") as file:
        file.truncate(100)
    train.train(job(spec, Path("killed")), never)
    assert contents(Path("killed")) == contents(Path("whole"))


def test_the_end_of_a_jobs_time_stops_after_the_step(modernbert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = model_spec(modernbert, "unsupervised")
    train.train(job(spec, Path("whole")), never)
    shutil.rmtree(spec.state)
    monkeypatch.setenv(DEADLINE_VARIABLE, str(time.time() + DEADLINE_MARGIN_SECONDS - 1))
    for step in (1, 2):
        with pytest.raises(RetryableError, match=f"stopped at step {step} of 8"):
            train.train(job(spec, Path("halves")), never)
    monkeypatch.delenv(DEADLINE_VARIABLE)
    train.train(job(spec, Path("halves")), never)
    assert contents(Path("halves")) == contents(Path("whole"))


def test_a_signal_stops_after_the_step_with_one_line(
    modernbert: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = model_spec(modernbert, "unsupervised")
    train_step = Trainer.train_step
    handler = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):

        def interrupted(trainer: Trainer, number: int = number) -> Any:
            os.kill(os.getpid(), number)
            return train_step(trainer)

        monkeypatch.setattr(Trainer, "train_step", interrupted)
        assert run_step(train.make, None, ["--spec", spec.text, "--device", "cpu"], train.add_options) == 1
        assert signal.getsignal(signal.SIGTERM) is handler
    assert "colbert-zero: stopped at step 3 of 8; the same command resumes from there\n" in capsys.readouterr().err
    assert not spec.folder.exists()
    monkeypatch.setattr(Trainer, "train_step", train_step)
    assert run_step(train.make, None, ["--spec", spec.text, "--device", "cpu"], train.add_options) == 0
    attempts = Artifact.open(spec.name).manifest["attempts"]
    assert [(attempt["start_step"], attempt["end_step"]) for attempt in attempts] == [(0, 1), (1, 2), (2, 3), (3, 8)]
    assert not spec.state.exists()


def test_flags_do_not_decide_the_losses(modernbert: Path) -> None:
    spec = model_spec(modernbert, "supervised")
    losses = []
    for flags in ((), ("--tokens-per-chunk", "50", "--tokens-in-memory", "0")):
        train.train(made := job(spec, Path("out"), *flags), never)
        shutil.rmtree(spec.state)
        losses.append([json.loads(line)["loss"] for line in (made.folder / "losses.jsonl").read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_bf16_is_close_to_fp32_and_saved_in_fp32(modernbert: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        spec = model_spec(modernbert, "unsupervised", precision=precision)
        train.train(made := job(spec, Path("out")), never)
        losses.append(json.loads((made.folder / "losses.jsonl").read_text().splitlines()[-1])["loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    saved = load_colbert(Path("out"), EncodingSettings("search_query: ", "search_document: ", 14, 20))
    assert next(saved.parameters()).dtype == torch.float32


def test_a_second_stage_may_encode_otherwise_than_the_first(modernbert: Path) -> None:
    first = model_spec(modernbert, "unsupervised")
    assert run_step(train.make, None, ["--spec", first.text], train.add_options) == 0
    spec = model_spec(modernbert, "supervised", query_prompt="", document_length=12)
    spec = Spec(spec.kind, spec.label, spec.settings, {**spec.inputs, "start": [first.name]})
    train.train(made := job(spec, Path("out")), never)
    model = load_colbert(made.folder, EncodingSettings("", "search_document: ", 14, 12))
    assert model.prompts["query"] == ""


@pytest.mark.parametrize(("clip", "limited"), [(0.01, True), (1e6, False), (None, False)])
def test_a_gradient_is_clipped_and_its_norm_recorded_as_it_was(
    modernbert: Path, clip: float | None, limited: bool
) -> None:
    trainer = train._build_trainer(job(model_spec(modernbert, "unsupervised", gradient_clip=clip), Path("out")), "cpu")
    trainer.train_step()
    recorded = json.loads(trainer.history[0])["gradient_norm"]
    assert recorded > 0.02
    norm = torch.stack([part.grad.norm() for part in trainer.model.parameters() if part.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.01 if limited else recorded, rel=1e-3)


def test_adamw_is_the_reference_trainers() -> None:
    theirs = {field.name: field.default for field in fields(TrainingArguments)}
    [group] = adamw({"matrix": torch.nn.Parameter(torch.zeros(2, 2))}, 0.1).param_groups
    assert group["betas"] == (theirs["adam_beta1"], theirs["adam_beta2"])
    assert group["eps"] == theirs["adam_epsilon"]


def test_only_matrices_decay(modernbert: Path) -> None:
    model = load_colbert(modernbert, EncodingSettings("", "", 14, 20))
    for group in adamw(dict(model.named_parameters()), 0.1).param_groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] == 0.1}


# Failures


def test_a_learning_rate_that_breaks_the_loss_is_named_and_nothing_is_published(
    modernbert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = model_spec(modernbert, "unsupervised", learning_rate=1e38, warmup_ratio=0.0)
    arguments = ["--spec", spec.text, "--device", "cpu"]
    for _ in range(2):
        assert run_step(train.make, None, arguments, train.add_options) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("colbert-zero: unsupervised: loss nan") or "gradient norm nan" in line
        assert (
            "at step 2 of 8 (shards/" in line and f", {BATCH_SIZE} rows from row " in line and "rate 8.75e+37" in line
        )
        assert f"the checkpoint of step 0 is kept in {spec.state}/checkpoints" in line
    assert not spec.folder.exists()
    kept = Checkpoints(spec.state / "checkpoints", spec.name, input_records(spec)).load_last()
    assert kept is not None and all(tensor.isfinite().all() for tensor in kept.tensors.values())


def test_rows_that_lack_what_the_stage_needs_are_named(modernbert: Path) -> None:
    content = random_rows("unsupervised")
    content[5]["document"] = None
    spec = model_spec(modernbert, "unsupervised", content)
    with pytest.raises(UserError, match=r"/first-.*: 1 rows have no 'document'"):
        train.train(job(spec, Path("out")), never)


# Checkpoints

INPUTS = {"models/start-0": {"spec": "a", "files": "b", "manifest": "c"}}


@pytest.fixture
def checkpoints() -> Checkpoints:
    checkpoints = Checkpoints(Path("checkpoints"), "models/a-0", INPUTS)
    for step in (1, 2, 3):
        checkpoints.save(Checkpoint(step, {"w": torch.full((2, 2), float(step))}, {"lines": [step]}))
    return checkpoints


def test_the_last_two_checkpoints_are_kept_and_the_last_is_read(checkpoints: Checkpoints) -> None:
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-000000002", "step-000000003"]
    last = checkpoints.load_last()
    assert last is not None and (last.step, last.notes) == (3, {"lines": [3]})
    assert torch.equal(last.tensors["w"], torch.full((2, 2), 3.0))


def _flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [_flip, lambda path: _flip(path, 60), Path.unlink, lambda path: path.write_bytes(b"")]
)
@pytest.mark.parametrize("name", [TENSORS_FILE, NOTES_FILE])
def test_a_damaged_checkpoint_is_logged_and_skipped(
    checkpoints: Checkpoints, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    damage(checkpoints.folder / "step-000000003" / name)
    last = checkpoints.load_last()
    assert last is not None and last.step == 2
    assert "step-000000003 is damaged" in caplog.text
    damage(checkpoints.folder / "step-000000002" / name)
    assert checkpoints.load_last() is None
    checkpoints.save(Checkpoint(0, {"w": torch.zeros(1)}, {}))
    assert checkpoints.load_last() is not None


def test_a_checkpoint_of_another_artifact_is_refused_and_stays(checkpoints: Checkpoints) -> None:
    other = Checkpoints(checkpoints.folder, "models/b-1", INPUTS)
    with pytest.raises(UserError, match="step-000000003 is a checkpoint of models/a-0, not of models/b-1"):
        other.load_last()
    with pytest.raises(UserError, match="not of models/b-1"):
        other.load(2)
    assert len(list(checkpoints.folder.iterdir())) == 2


def test_a_checkpoint_from_other_files_of_an_input_is_refused_and_one_from_the_same_is_said(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    changed = {"models/start-0": INPUTS["models/start-0"] | {"files": "d"}}
    with pytest.raises(UserError, match="trained from other files of models/start-0"):
        Checkpoints(checkpoints.folder, "models/a-0", changed).load_last()
    again = {"models/start-0": INPUTS["models/start-0"] | {"manifest": "d"}}
    assert Checkpoints(checkpoints.folder, "models/a-0", again).load_last() is not None
    assert "models/start-0 was made again since" in caplog.text


def test_a_checkpoint_without_a_name_is_one_of_an_older_version(checkpoints: Checkpoints) -> None:
    path = checkpoints.folder / "step-000000003" / NOTES_FILE
    content = {name: value for name, value in json.loads(path.read_text())["content"].items() if name != "artifact"}
    path.write_text(canonical_json({"content": content, "sha256": digest(canonical_json(content))}))
    last = checkpoints.load_last()
    assert last is not None and last.step == 3


def _full(error: Exception) -> Callable[..., None]:
    def write(_tensors: Any, path: Path) -> None:
        path.write_bytes(b"some")
        raise error

    return write


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a folder"),
    ],
)
def test_a_full_disk_is_reported_and_leaves_the_earlier_checkpoints(
    checkpoints: Checkpoints, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save() -> int:
        checkpoints.save(Checkpoint(3, {"w": torch.zeros(1)}, {}))
        return 0

    monkeypatch.setattr("colbert_zero.training.checkpoints.save_file", _full(error))
    assert run_reporting_errors(save) == 1
    assert "colbert-zero: no space left while writing " in capsys.readouterr().err
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-000000002", "step-000000003"]
    last = checkpoints.load_last()
    assert last is not None and torch.equal(last.tensors["w"], torch.full((2, 2), 3.0))


def test_what_ended_a_write_is_told_even_if_its_files_are_gone(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_tensors: Any, path: Path) -> None:
        shutil.rmtree(path.parent)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("colbert_zero.training.checkpoints.save_file", write)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(Checkpoint(4, {"w": torch.zeros(1)}, {}))


def test_an_error_of_safetensors_without_a_system_error_stays_a_safetensors_error(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_zero.training.checkpoints.save_file", _full(SafetensorError("invalid header")))
    with pytest.raises(SafetensorError):
        checkpoints.save(Checkpoint(4, {"w": torch.zeros(1)}, {}))


def test_a_checkpoint_that_a_killed_process_was_writing_is_ignored_and_removed(checkpoints: Checkpoints) -> None:
    (checkpoints.folder / ".step-000000004.partial").mkdir()
    last = checkpoints.load_last()
    assert last is not None and last.step == 3
    checkpoints.save(Checkpoint(5, {"w": torch.zeros(1)}, {}))
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-000000003", "step-000000005"]


def test_a_checkpoint_is_read_by_its_step(checkpoints: Checkpoints) -> None:
    assert checkpoints.load(2).notes == {"lines": [2]}
    with pytest.raises(RetryableError, match="step-000000001 cannot be read on this node"):
        checkpoints.load(1)
