"""Training in several processes: the model of one, one end for all, and no process left waiting."""

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
from safetensors.numpy import load_file

from colbert_zero.graph.artifact import Artifact, Spec
from colbert_zero.graph.console import RetryableError, UserError
from colbert_zero.machine import distributed as processes
from colbert_zero.machine.distributed import SINGLE_PROCESS, PeerLostError, ProcessGroup
from colbert_zero.training import gradcache
from colbert_zero.training import train as training
from colbert_zero.training.trainer import Trainer
from tiny_stages import BATCH, STAGES, contents, job, model_spec, never, table

# Forked off a process that has imported what takes long, and has no threads yet that would be lost.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "transformers", "sentence_transformers", "pylate.models", "pyarrow.parquet"])
TOLERANCE = 1e-6
"""How far a weight may be from that of one process: some roundings in fp32, after 20 steps of up to 1e-4 each."""


pytestmark = pytest.mark.usefixtures("study")


def in_processes(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work` returns in each of `size` processes that torchrun's variables make a group; None where one died."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(size):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_process, args=(sender, rank, size, port, Path.cwd(), work, arguments))
        process.start()
        sender.close()
        running.append((process, receiver))
    found = []
    for process, receiver in running:
        try:
            found.append(receiver.recv())
        except EOFError:
            found.append(None)
        process.join()
    return found


def _process(
    sender: Any, rank: int, size: int, port: int, folder: Path, work: Callable[..., Any], arguments: Any
) -> None:
    os.chdir(folder)
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}
    sender.send(work(*arguments))


@contextlib.contextmanager
def joined() -> Iterator[ProcessGroup]:
    group = processes.init_process_group()
    yield group
    group.close(done=False)


# The model


def all_steps(specs: list[Spec], flags: list[str]) -> list[tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]]:
    """Parameters, history and counts of the whole of each stage."""
    found = []
    with joined() as group:
        for spec in specs:
            training._device(asked := job(spec, Path("out"), *flags), group)
            trainer = training._trainer(asked, "cpu", group)
            trainer.model.train()
            while trainer.step < len(trainer.plan):
                trainer.train_step()
            parameters = {name: parameter.detach().numpy() for name, parameter in trainer.model.named_parameters()}
            found.append((parameters, list(map(json.loads, trainer.history)), asdict(trainer.counts)))
    return found


def test_any_number_of_processes_makes_the_model_of_one(modernbert: Path) -> None:
    rows = {stage: table(stage, 18 * BATCH) for stage in STAGES}
    # In one process's share, this row decides how many negatives all have.
    rows["supervised"][5]["negatives"] = rows["supervised"][5]["negatives"][:1]
    specs = [model_spec(modernbert, stage, content, learning_rate=1e-4) for stage, content in rows.items()]
    one = all_steps(specs, [])
    for size, flags in ((2, []), (3, ["--tokens-per-chunk", "50", "--tokens-in-memory", "0"])):
        found = in_processes(size, all_steps, specs, flags)
        for (parameters, history, counts), *others in zip(one, *found, strict=True):
            for others_parameters, others_history, others_counts in others:
                for name, parameter in parameters.items():
                    np.testing.assert_array_equal(others_parameters[name], others[0][0][name])
                    np.testing.assert_allclose(others_parameters[name], parameter, rtol=0, atol=TOLERANCE)
                assert others_history == others[0][1] and len(history) == 20
                for line, others_line in zip(history, others_history, strict=True):
                    assert others_line["source"] == line["source"]
                    assert others_line["loss"] == pytest.approx(line["loss"], abs=1e-5)
                    assert others_line["gradient_norm"] == pytest.approx(line["gradient_norm"], rel=1e-4)
                assert others_counts | {"seconds": 0} == counts | {"seconds": 0}


def short_of_memory(spec: Spec) -> tuple[list[float], int]:
    """Losses of a training whose second process has too little memory, and what all compute at once in the end."""
    embed, gradcache.MINIMUM_TOKENS_PER_CHUNK = gradcache.embed, 8
    with joined() as group:

        def limited(model: Any, features: dict[str, torch.Tensor]) -> torch.Tensor:
            if group.rank == 1 and features["input_ids"].numel() > 30:
                raise torch.OutOfMemoryError
            return embed(model, features)

        gradcache.embed = limited
        trainer = training._trainer(job(spec, Path("out")), "cpu", group)
        trainer.model.train()
        losses = [trainer.train_step()["loss"] for _ in range(3)]
        return losses, trainer.engine.budget.tokens_per_chunk


def test_where_one_process_runs_out_of_memory_all_compute_less_at_once(modernbert: Path) -> None:
    for stage in STAGES:
        spec = model_spec(modernbert, stage)
        (losses, chunk), other = in_processes(2, short_of_memory, spec)
        assert other == (losses, chunk) and chunk <= 32
        [(_, history, _)] = all_steps([spec], [])
        assert losses == pytest.approx([line["loss"] for line in history[:3]], abs=1e-4)


def stopped_and_resumed(spec: Spec) -> tuple[str, int]:
    """Train twice, the second time stopped by one process only."""
    with joined() as group:
        training.train(job(spec, Path("whole")), never, group)
        if group.rank == 0:
            shutil.rmtree(spec.state)
        message = _stopped(spec, lambda step: group.rank == 1 and step == 3, group)
        facts = training.train(job(spec, Path("halves")), never, group)
    return message, facts["processes"]


def _stopped(spec: Spec, stopped: Callable[[int], bool], group: ProcessGroup) -> str:
    with pytest.raises(RetryableError) as caught:
        training.train(job(spec, Path("halves")), stopped, group)
    return str(caught.value)


@pytest.mark.parametrize("base", ["modernbert", "bert"])
def test_one_process_stops_all_after_the_same_step_and_they_end_with_the_same_bytes(
    base: str, request: pytest.FixtureRequest
) -> None:
    spec = model_spec(request.getfixturevalue(base), "unsupervised")
    expected = ("stopped at step 3 of 8; the same command goes on from there", 2)
    assert in_processes(2, stopped_and_resumed, spec) == [expected] * 2
    assert contents(Path("halves")) == contents(Path("whole"))


def finished_and_begun(to_finish: Spec, to_begin: Spec) -> str:
    with joined() as group:
        training.train(job(to_finish, Path("begun-by-one")), never, group)
        return _stopped(to_begin, lambda step: step == 4, group)


def test_what_one_process_began_two_finish_and_the_other_way_round(modernbert: Path) -> None:
    first, second = (model_spec(modernbert, "supervised", learning_rate=1e-4, seed=seed) for seed in (7, 8))
    for spec, folder in ((first, "first"), (second, "second")):
        training.train(job(spec, Path(folder)), never)
        shutil.rmtree(spec.state)
    _stopped(first, lambda step: step == 4, SINGLE_PROCESS)
    messages = in_processes(2, finished_and_begun, first, second)
    assert messages == ["stopped at step 4 of 8; the same command goes on from there"] * 2
    training.train(job(second, Path("begun-by-two")), never)
    for folder, whole in (("begun-by-one", "first"), ("begun-by-two", "second")):
        found, expected = (load_file(Path(name, "model.safetensors")) for name in (folder, whole))
        for name, weights in expected.items():
            np.testing.assert_allclose(found[name], weights, rtol=0, atol=TOLERANCE)


# One end for all


def command_line(spec: Spec, signalled: int | None = None) -> tuple[int, str]:
    """Exit status and stderr of the command, whose process of rank `signalled` has a SIGTERM during each step."""
    train_step = Trainer.train_step

    def interrupted(trainer: Trainer) -> Any:
        if trainer.group.rank == signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(trainer)

    Trainer.train_step = interrupted  # type: ignore[method-assign]
    sys.argv = ["training", "--spec", spec.text, "--device", "cpu", "--threads", "2"]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = training.main()
    return status, said.getvalue()


def test_processes_stop_publish_and_find_it_published_together(modernbert: Path) -> None:
    spec = model_spec(modernbert, "distillation")
    (status, said), *others = in_processes(3, command_line, spec, 2)
    assert status == 1 and others == [(1, "")] * 2
    assert said.splitlines()[-1] == "colbert-zero: stopped at step 1 of 8; the same command goes on from there"
    assert not spec.folder.exists()
    for expected in ("published", "is already there, and intact"):
        (status, said), *others = in_processes(2, command_line, spec)
        assert status == 0 and expected in said.splitlines()[-1] and others == [(0, "")]
    manifest = Artifact.open(spec.name).manifest
    assert (manifest["facts"]["processes"], manifest["facts"]["nodes"]) == (2, 1)
    assert [(attempt["start_step"], attempt["end_step"]) for attempt in manifest["attempts"]] == [(0, 1), (1, 8)]


def test_a_mistake_is_said_once_and_ends_all(modernbert: Path) -> None:
    content = table("unsupervised")
    content[5]["query"] = None
    (status, said), other = in_processes(2, command_line, model_spec(modernbert, "unsupervised", content))
    assert status == 1 and other == (1, "")
    assert said.count("colbert-zero: ") == 1 and "1 rows have no 'query'" in said


def failing_alone(error: Exception) -> str:
    def work() -> None:
        if group.rank == 1:
            raise error

    with joined() as group, pytest.raises(Exception) as caught:
        group.run_on_all(work)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize("error", [UserError("no disk here"), ValueError("no disk here")])
def test_what_fails_in_one_process_fails_in_all(error: Exception) -> None:
    first, second = in_processes(2, failing_alone, error)
    assert first == f"RetryableError: on {socket.gethostname()}, rank 1: no disk here"
    assert second == f"{type(error).__name__}: no disk here"


def dying(spec: Spec) -> str:
    with joined() as group, pytest.raises(PeerLostError) as caught:
        training.train(job(spec, Path("out")), lambda _step: os._exit(9) if group.rank == 1 else False, group)
    return str(caught.value)


def test_a_process_that_dies_leaves_no_other_waiting(modernbert: Path) -> None:
    said, dead = in_processes(2, dying, model_spec(modernbert, "unsupervised"))
    assert dead is None
    assert said.startswith("one of the 2 processes ended, or does not answer") and "\n" not in said


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
    group.size = BATCH + 1
    with pytest.raises(UserError, match=r"its batches of 4 rows are too small for 5 processes; start fewer"):
        training._trainer(job(model_spec(modernbert, "unsupervised"), Path("out")), "cpu", group)


def test_tensors_are_summed_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "BUCKET", 10)
    tensors = [torch.zeros(size) for size in (4, 6, 1, 20, 3, 3)]
    buckets = list(processes._buckets(tensors))
    assert [[len(tensor) for tensor in bucket] for bucket in buckets] == [[4, 6], [1], [20], [3, 3]]
