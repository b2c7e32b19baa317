"""What each process of a training does: who sends, saves and ends, when, within what memory, and what is published."""

from __future__ import annotations

import signal
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from colbert_zero.graph.console import UserError
from colbert_zero.machine.distributed import PeerLostError, ProcessGroup
from colbert_zero.training import train
from colbert_zero.training.checkpoints import Checkpoint, Checkpoints
from colbert_zero.training.gradcache import MemoryBudget
from colbert_zero.training.monitor import TrainingMonitor
from tiny_stages import BATCH_SIZE, job, model_spec

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

pytestmark = pytest.mark.usefixtures("study")


class FakeGroup(ProcessGroup):
    """One rank's side of a group, without the others."""

    def __init__(self, rank: int, size: int = 2, received: tuple[object, ...] = ()) -> None:
        self.rank, self.size = rank, size
        self.sent: list[object] = []
        self.ends: list[bool] = []
        self._received = list(received)

    def broadcast(self, value: object) -> None:
        self.sent.append(value)

    def receive_broadcast(self) -> Any:
        return self._received.pop(0)

    def all_gather_object(self, value: Any) -> list[Any]:
        """What rank 0 says is 2."""
        return [2, value]

    def close(self, finished: bool) -> None:
        assert not self._received
        self.ends.append(finished)


@pytest.fixture
def handlers() -> Iterator[list[Any]]:
    """The handlers of signals, which are set again after the test."""
    before = list(map(signal.getsignal, SIGNALS))
    yield before
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


# One rank and the others


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 2), (1, 2)])
def test_rank_0_sends_its_job_and_a_second_signal_ends_no_rank_of_several(
    rank: int, size: int, monkeypatch: pytest.MonkeyPatch, handlers: list[Any]
) -> None:
    group = FakeGroup(rank, size)
    monkeypatch.setattr(train, "train", lambda _job, _should_stop, _group: {"sent": list(group.sent)})
    stage_job: Any = "the job"
    assert train.make(stage_job, group) == {"sent": ["the job"] if rank == 0 else []}
    assert (list(map(signal.getsignal, SIGNALS)) == handlers) == (size == 1)


@pytest.mark.usefixtures("handlers")
def test_another_rank_trains_what_rank_0_sends_until_there_is_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    monkeypatch.setattr(train, "make", lambda stage_job, group: trained.append((stage_job, group.rank)))
    assert train._run_other_rank(FakeGroup(1, received=("first", "second", None))) == 0
    assert trained == [("first", 1), ("second", 1)]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("error", "received"), [(UserError("no rows"), ("first", None)), (PeerLostError("gone"), ("first",))]
)
def test_another_rank_that_fails_waits_until_rank_0_has_said_why(
    error: Exception, received: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(_job: object, _group: ProcessGroup) -> None:
        raise error

    monkeypatch.setattr(train, "make", make)
    group = FakeGroup(1, received=received)
    assert train._run_other_rank(group) == 1
    group.close(finished=False)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_process_ends_with_its_status_and_leaves_the_group_as_finished_only_after_all_its_work(
    rank: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = FakeGroup(rank)
    statuses = {0: pytest.fail, 1: pytest.fail} | {rank: lambda *_arguments, **_options: status}
    monkeypatch.setattr(train, "init_process_group", lambda: group)
    monkeypatch.setattr(train, "run_step", statuses[0])
    monkeypatch.setattr(train, "_run_other_rank", statuses[1])
    assert train.main() == status
    assert group.ends == [status == 0]


def test_another_rank_reads_the_checkpoint_that_rank_0_has_chosen() -> None:
    checkpoints = Checkpoints(Path("checkpoints"), "models/a-0", {})
    for step in (2, 3):
        checkpoints.save(Checkpoint(step, {"w": torch.zeros(1)}, {}))
    found = train._last_checkpoint(checkpoints, FakeGroup(1))
    assert found is not None
    assert found.step == 2


def test_a_batch_has_a_row_for_each_process(modernbert: Path) -> None:
    stage_job = job(model_spec(modernbert, "unsupervised"), Path("out"))
    train._build_trainer(stage_job, "cpu", FakeGroup(0, BATCH_SIZE))
    with pytest.raises(UserError, match="batches of 4 rows are too small for 5 processes"):
        train._build_trainer(stage_job, "cpu", FakeGroup(0, BATCH_SIZE + 1))


# Time, energy and memory


def test_a_checkpoint_every_ten_minutes_holds_the_energy_used_until_then(
    modernbert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(TrainingMonitor, "joules_since_last_call", lambda _monitor: 25.0)
    saved: list[Checkpoint] = []
    monkeypatch.setattr(Checkpoints, "save", lambda _checkpoints, checkpoint: saved.append(checkpoint))

    def step_of_100_seconds(_step: int) -> bool:
        clock.now += 100
        return False

    train.train(job(model_spec(modernbert, "unsupervised"), Path("out")), step_of_100_seconds)
    assert [(checkpoint.step, checkpoint.notes["counts"]["joules"]) for checkpoint in saved] == [(0, 0), (6, 150)]


@pytest.mark.parametrize(
    ("settings", "flags", "asked", "expected"),
    [
        ((14, 20, "fp32"), (), [(1234, 20, False)], MemoryBudget(256, 512)),
        ((30, 20, "bf16"), ("--memory-mb", "4000"), [(4000, 30, True)], MemoryBudget(256, 512)),
        ((14, 20, "fp32"), ("--tokens-per-chunk", "100"), [(1234, 20, False)], MemoryBudget(100, 512)),
        ((14, 20, "fp32"), ("--tokens-in-memory", "70"), [(1234, 20, False)], MemoryBudget(256, 70)),
        ((14, 20, "fp32"), ("--tokens-per-chunk", "100", "--tokens-in-memory", "0"), [], MemoryBudget(100, 0)),
    ],
)
def test_the_budget_is_counted_for_the_longest_text_unless_flags_give_it(
    settings: tuple[int, int, str],
    flags: tuple[str, ...],
    asked: list[tuple[int, int, bool]],
    expected: MemoryBudget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []

    def cpu_budget(_model: object, *arguments: Any) -> MemoryBudget:
        found.append(arguments)
        return MemoryBudget(256, 512)

    monkeypatch.setattr(train, "cpu_budget", cpu_budget)
    monkeypatch.setattr(train, "available_memory_mb", lambda: 1234)
    train.add_options(parser := ArgumentParser())
    stage_job: Any = SimpleNamespace(options=parser.parse_args(flags))
    stage: Any = SimpleNamespace(query_length=settings[0], document_length=settings[1], precision=settings[2])
    model: Any = None
    assert train._memory_budget(stage_job, model, "cpu", stage) == expected
    assert found == asked


@pytest.mark.parametrize(("size", "where"), [(1, ""), (2, " in each of 2 processes")])
def test_pytorch_computes_deterministically_and_the_log_says_what_that_depends_on(
    size: int, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    stage_job: Any = SimpleNamespace(threads=1, options=SimpleNamespace(device="cpu"))
    assert train._deterministic_device(stage_job, FakeGroup(0, size)) == "cpu"
    assert torch.are_deterministic_algorithms_enabled()
    # Some operations of GPUs have no deterministic kernel.
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert caplog.messages == [f"training on the CPU: another run with 1 threads{where} gives the same bytes"]


def test_the_facts_of_a_gpu_are_its_peak_memory_and_watt_hours(
    modernbert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20 + 5)
    stage_job = job(model_spec(modernbert, "unsupervised"), Path("out"))
    trainer = train._build_trainer(stage_job, "cpu")
    trainer.train_step()
    trainer.totals.joules = 7200.0
    facts = train._facts(stage_job, trainer, "cuda")
    assert (facts["device"], facts["gpu_peak_memory_mb"], facts["gpu_watt_hours"]) == ("H200", 3, 2.0)
    assert "gpu_watt_hours" not in train._facts(stage_job, trainer, "cpu")
