"""Training in several processes: the model is that of one process, all end together, and none is left waiting."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pylate import losses
from safetensors.numpy import load_file

from colbert_zero.graph.artifact import Artifact, Spec
from colbert_zero.graph.console import RetryableError, UserError
from colbert_zero.machine import distributed
from colbert_zero.machine.distributed import SINGLE_PROCESS, PeerLostError, ProcessGroup
from colbert_zero.training import gradcache, train
from colbert_zero.training.trainer import Trainer
from pylate_batch import collate
from tiny_stages import BATCH_SIZE, STAGES, contents, job, model_spec, never, random_rows

# Fork from a server that has imported the slow packages, and has no threads yet: a fork would lose them.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "transformers", "sentence_transformers", "pylate.models", "pyarrow.parquet"])
TOLERANCE = 1e-6
"""How far a weight may differ from that of one process: fp32 rounding over 20 steps of up to 1e-4 each."""


pytestmark = pytest.mark.usefixtures("study")


def in_processes(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work` returns on each of `size` ranks, which torchrun's variables connect; None for a rank that died."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(size):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_run_rank, args=(sender, rank, size, port, Path.cwd(), work, arguments))
        process.start()
        sender.close()
        running.append((process, receiver))
    results = []
    for process, receiver in running:
        try:
            results.append(receiver.recv())
        except EOFError:
            results.append(None)
        process.join()
    return results


def _run_rank(
    sender: Any, rank: int, size: int, port: int, folder: Path, work: Callable[..., Any], arguments: Any
) -> None:
    os.chdir(folder)
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}
    sender.send(work(*arguments))


@contextlib.contextmanager
def joined() -> Iterator[ProcessGroup]:
    group = distributed.init_process_group()
    yield group
    group.close(finished=False)


# The model


def all_steps(
    specs: list[Spec], flags: list[str], tokens_scored: int = 1
) -> list[tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]]:
    """Train each stage to its end; return its parameters, history and totals."""
    gradcache.TOKENS_SCORED["cpu"] = tokens_scored
    trained = []
    with joined() as group:
        for spec in specs:
            train._deterministic_device(stage_job := job(spec, Path("out"), *flags), group)
            trainer = train._build_trainer(stage_job, "cpu", group)
            trainer.model.train()
            while trainer.step < len(trainer.plan):
                trainer.train_step()
            parameters = {name: parameter.detach().numpy() for name, parameter in trainer.model.named_parameters()}
            trained.append((parameters, list(map(json.loads, trainer.history)), asdict(trainer.totals)))
    return trained


def test_any_number_of_processes_trains_the_same_model(modernbert: Path) -> None:
    rows = {stage: random_rows(stage, 18 * BATCH_SIZE) for stage in STAGES}
    # This row, in the share of one process only, limits the number of negatives of all.
    rows["supervised"][5]["negatives"] = rows["supervised"][5]["negatives"][:1]
    specs = [model_spec(modernbert, stage, content, learning_rate=1e-4) for stage, content in rows.items()]
    one = all_steps(specs, [])
    # In three, also several chunks are scored together.
    for size, flags, tokens_scored in ((2, [], 1), (3, ["--tokens-per-chunk", "50", "--tokens-in-memory", "0"], 120)):
        by_rank = in_processes(size, all_steps, specs, flags, tokens_scored)
        for (parameters, history, totals), *others in zip(one, *by_rank, strict=True):
            for others_parameters, others_history, others_totals in others:
                for name, parameter in parameters.items():
                    np.testing.assert_array_equal(others_parameters[name], others[0][0][name])
                    np.testing.assert_allclose(others_parameters[name], parameter, rtol=0, atol=TOLERANCE)
                assert others_history == others[0][1] and len(history) == 20
                for line, others_line in zip(history, others_history, strict=True):
                    assert others_line["source"] == line["source"]
                    assert others_line["loss"] == pytest.approx(line["loss"], abs=1e-5)
                    # Where a query's scores are close together, distillation stretches them, and their rounding too.
                    assert others_line["gradient_norm"] == pytest.approx(line["gradient_norm"], rel=1e-3)
                assert others_totals | {"seconds": 0} == totals | {"seconds": 0}


def gradients_of_first_step(spec: Spec) -> tuple[dict[str, Any], dict[str, Any]]:
    """The gradients of a supervised stage's first step: ours, and those of PyLate's loss over gathered documents."""
    with joined() as group:
        stage_job = job(spec, Path("out"))
        trainer = train._build_trainer(stage_job, "cpu", group)
        model, local = trainer.model, trainer.loader.load(0)
        trainer._backward(local)
        ours = {name: parameter.grad for name, parameter in model.named_parameters()}
        group.all_reduce(list(ours.values()))
        model.zero_grad()
        per_query = len(local.batch.documents) // len(local.batch.queries)
        rows = [
            {"query": query}
            | {f"document{place}": local.batch.documents[number * per_query + place] for place in range(per_query)}
            for number, query in enumerate(local.batch.queries)
        ]
        oracle = losses.Contrastive(model, temperature=trainer.stage.temperature, gather_across_devices=True)
        oracle(*collate(model, rows, trainer.stage.encoding)).backward()
        theirs = {name: parameter.grad for name, parameter in model.named_parameters()}
        # DistributedDataParallel takes the mean over processes.
        group.all_reduce(list(theirs.values()))
        return (
            {name: gradient.numpy() for name, gradient in ours.items()},
            {name: gradient.numpy() / group.size for name, gradient in theirs.items()},
        )


def test_the_supervised_gradient_has_the_scale_of_the_references_gpus(modernbert: Path) -> None:
    specs = [model_spec(modernbert, "supervised", gradient_scale=scale) for scale in (2, 1)]
    (two, theirs), (two_on_rank_1, _) = in_processes(2, gradients_of_first_step, specs[0])
    [(one, _)] = in_processes(1, gradients_of_first_step, specs[1])
    for name, gradient in theirs.items():
        # Sums of another order: a factor is another matter. Processors differ in how far rounding goes.
        np.testing.assert_allclose(two[name], gradient, rtol=1e-3, atol=1e-4)
        # In one process, too, the factor is that of the setting.
        np.testing.assert_allclose(two[name], 2 * one[name], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(two[name], two_on_rank_1[name])
    assert max(np.abs(gradient).max() for gradient in one.values()) > 0.01


def losses_short_of_memory(spec: Spec) -> tuple[list[float], int]:
    """Losses of a training whose rank 1 is short of memory, and the tokens per chunk that it ends with."""
    embed, gradcache.MINIMUM_TOKENS_PER_CHUNK = gradcache.embed, 8
    with joined() as group:

        def limited(model: Any, features: dict[str, torch.Tensor], *precision: bool) -> torch.Tensor:
            if group.rank == 1 and features["input_ids"].numel() > 30:
                raise torch.OutOfMemoryError
            return embed(model, features, *precision)

        gradcache.embed = limited
        trainer = train._build_trainer(job(spec, Path("out")), "cpu", group)
        trainer.model.train()
        losses = [trainer.train_step()["loss"] for _ in range(3)]
        return losses, trainer.grad_cache.budget.tokens_per_chunk


def test_if_one_process_runs_out_of_memory_all_use_smaller_chunks(modernbert: Path) -> None:
    for stage in STAGES:
        spec = model_spec(modernbert, stage)
        (losses, tokens_per_chunk), other = in_processes(2, losses_short_of_memory, spec)
        assert other == (losses, tokens_per_chunk) and tokens_per_chunk <= 32
        [(_, history, _)] = all_steps([spec], [])
        assert losses == pytest.approx([line["loss"] for line in history[:3]], abs=1e-4)


def stopped_and_resumed(spec: Spec) -> tuple[str, int]:
    """Train twice; the second time, rank 1 alone stops the training, which then resumes."""
    with joined() as group:
        train.train(job(spec, Path("whole")), never, group)
        if group.rank == 0:
            shutil.rmtree(spec.state)
        message = _stop_message(spec, lambda step: group.rank == 1 and step == 3, group)
        facts = train.train(job(spec, Path("halves")), never, group)
    return message, facts["processes"]


def _stop_message(spec: Spec, should_stop: Callable[[int], bool], group: ProcessGroup) -> str:
    with pytest.raises(RetryableError) as caught:
        train.train(job(spec, Path("halves")), should_stop, group)
    return str(caught.value)


@pytest.mark.parametrize("base", ["modernbert", "bert"])
def test_one_process_stops_all_at_the_same_step_and_the_resumed_model_has_the_same_bytes(
    base: str, request: pytest.FixtureRequest
) -> None:
    spec = model_spec(request.getfixturevalue(base), "unsupervised")
    expected = ("stopped at step 3 of 8; the same command resumes from there", 2)
    assert in_processes(2, stopped_and_resumed, spec) == [expected] * 2
    assert contents(Path("halves")) == contents(Path("whole"))


def finish_one_and_begin_another(to_finish: Spec, to_begin: Spec) -> str:
    with joined() as group:
        train.train(job(to_finish, Path("begun-by-one")), never, group)
        return _stop_message(to_begin, lambda step: step == 4, group)


def test_two_processes_resume_a_training_of_one_and_the_other_way_round(modernbert: Path) -> None:
    first, second = (model_spec(modernbert, "supervised", learning_rate=1e-4, seed=seed) for seed in (7, 8))
    for spec, folder in ((first, "first"), (second, "second")):
        train.train(job(spec, Path(folder)), never)
        shutil.rmtree(spec.state)
    _stop_message(first, lambda step: step == 4, SINGLE_PROCESS)
    messages = in_processes(2, finish_one_and_begin_another, first, second)
    assert messages == ["stopped at step 4 of 8; the same command resumes from there"] * 2
    train.train(job(second, Path("begun-by-two")), never)
    for folder, whole in (("begun-by-one", "first"), ("begun-by-two", "second")):
        weights, expected = (load_file(Path(name, "model.safetensors")) for name in (folder, whole))
        for name, expected_weights in expected.items():
            np.testing.assert_allclose(weights[name], expected_weights, rtol=0, atol=TOLERANCE)


# All ranks end together


def command_line(spec: Spec, signalled_rank: int | None = None) -> tuple[int, str]:
    """Exit status and stderr of the command; `signalled_rank` gets a SIGTERM during each step."""
    train_step = Trainer.train_step

    def interrupted(trainer: Trainer) -> Any:
        if trainer.group.rank == signalled_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(trainer)

    Trainer.train_step = interrupted  # type: ignore[method-assign]
    sys.argv = ["train", "--spec", spec.text, "--device", "cpu", "--threads", "2"]
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        status = train.main()
    return status, stderr.getvalue()


def test_all_processes_stop_publish_and_skip_a_published_model_together(modernbert: Path) -> None:
    spec = model_spec(modernbert, "distillation")
    (status, stderr), *others = in_processes(3, command_line, spec, 2)
    assert status == 1 and others == [(1, "")] * 2
    assert stderr.splitlines()[-1] == "colbert-zero: stopped at step 1 of 8; the same command resumes from there"
    assert not spec.folder.exists()
    for expected in ("published", "is already there, and intact"):
        (status, stderr), *others = in_processes(2, command_line, spec)
        assert status == 0 and expected in stderr.splitlines()[-1] and others == [(0, "")]
    manifest = Artifact.open(spec.name).manifest
    assert (manifest["facts"]["processes"], manifest["facts"]["nodes"]) == (2, 1)
    assert [(attempt["start_step"], attempt["end_step"]) for attempt in manifest["attempts"]] == [(0, 1), (1, 8)]


def test_a_users_error_is_printed_once_and_ends_all(modernbert: Path) -> None:
    content = random_rows("unsupervised")
    content[5]["query"] = None
    (status, stderr), other = in_processes(2, command_line, model_spec(modernbert, "unsupervised", content))
    assert status == 1 and other == (1, "")
    assert stderr.count("colbert-zero: ") == 1 and "1 rows have no 'query'" in stderr


def error_if_rank_1_fails(error: Exception) -> str:
    def work() -> None:
        if group.rank == 1:
            raise error

    with joined() as group, pytest.raises(Exception) as caught:
        group.run_on_all(work)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize("error", [UserError("no disk here"), ValueError("no disk here")])
def test_work_that_fails_on_one_rank_fails_on_all(error: Exception) -> None:
    first, second = in_processes(2, error_if_rank_1_fails, error)
    assert first == f"RetryableError: on {socket.gethostname()}, rank 1: no disk here"
    assert second == f"{type(error).__name__}: no disk here"


def error_if_rank_1_dies(spec: Spec) -> str:
    with joined() as group, pytest.raises(PeerLostError) as caught:
        train.train(job(spec, Path("out")), lambda _step: os._exit(9) if group.rank == 1 else False, group)
    return str(caught.value)


def test_a_process_that_dies_leaves_no_other_process_waiting(modernbert: Path) -> None:
    message, dead = in_processes(2, error_if_rank_1_dies, model_spec(modernbert, "unsupervised"))
    assert dead is None
    assert message.startswith("one of the 2 processes ended, or does not answer") and "\n" not in message


# Shares


def test_shares_are_contiguous_and_nearly_equal() -> None:
    group = ProcessGroup()
    for size in (1, 3, 4):
        for count in (4, 7, 64):
            shares = []
            for group.rank, group.size in ((rank, size) for rank in range(size)):
                shares.append(range(count)[group.local_slice(count)])
            assert [number for share in shares for number in share] == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_too_small_for_the_processes_is_refused(modernbert: Path) -> None:
    group = ProcessGroup()
    group.size = BATCH_SIZE + 1
    with pytest.raises(UserError, match=r"its batches of 4 rows are too small for 5 processes; start fewer"):
        train._build_trainer(job(model_spec(modernbert, "unsupervised"), Path("out")), "cpu", group)


def test_tensors_are_summed_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "BUCKET_NUMEL", 10)
    tensors = [torch.zeros(size) for size in (4, 6, 1, 20, 3, 3)]
    buckets = list(distributed._buckets(tensors))
    assert [[len(tensor) for tensor in bucket] for bucket in buckets] == [[4, 6], [1], [20], [3, 3]]
