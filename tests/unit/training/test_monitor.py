"""What is reported of a running training: energy and readings of each process's GPU; the rest by rank 0 alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from colbert_zero.training import evaluator, monitor
from colbert_zero.training.monitor import TrainingMonitor
from colbert_zero.training.progress_file import read_progress

RECORD = {"step": 1, "source": "first", "loss": 0.5}
TENSORBOARD = Path("logs/tensorboard/supervised-0")

pytestmark = pytest.mark.usefixtures("study")


class Plan(list[int]):
    batch_size = 4


class FakeGpu:
    """The first GPU, which has used 100 J, and uses 25 J more until each reading."""

    def __init__(self) -> None:
        self._joules = 75.0

    def energy_joules(self) -> float:
        self._joules += 25
        return self._joules

    def readings(self) -> dict[str, int]:
        return {"gpu_utilisation": 87}


class FakeEvaluator:
    def __init__(self, collections: Mapping[str, Any]) -> None:
        self._names = list(collections)

    def evaluate(self, model: str) -> Mapping[str, float]:
        assert model == "model"
        return dict.fromkeys(self._names, 0.125)


def training(rank: int = 0) -> Any:
    return SimpleNamespace(
        group=SimpleNamespace(rank=rank),
        plan=Plan(range(8)),
        step=0,
        history=[],
        totals=SimpleNamespace(query_tokens=0, document_tokens=0),
        model="model",
        evaluations=[],
    )


def job(evaluate: Mapping[str, Any], tensorboard: bool = False) -> Any:
    Path("state").mkdir()
    return SimpleNamespace(
        options=SimpleNamespace(evaluate=evaluate, tensorboard=tensorboard),
        spec=SimpleNamespace(folder=Path("results/models/supervised-0")),
        state=Path("state"),
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, whose number is 2."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(monitor, "Gpu", SimpleNamespace(open={2: FakeGpu()}.get))


@pytest.mark.usefixtures("gpu")
def test_the_energy_is_what_the_gpu_used_since_the_last_call() -> None:
    watched = TrainingMonitor(job({}), training(), "cuda")
    assert [watched.joules_since_last_call() for _ in range(3)] == [25, 25, 25]
    watched.on_step(RECORD)
    watched.close()
    assert json.loads(Path("state/losses.jsonl").read_text()) == {**RECORD, "gpu_utilisation": 87}


def test_without_a_gpu_no_energy_is_counted_and_nothing_read() -> None:
    watched = TrainingMonitor(job({}), training(), "cpu")
    assert [watched.joules_since_last_call() for _ in range(2)] == [0, 0]
    watched.on_step(RECORD)
    watched.close()
    assert json.loads(Path("state/losses.jsonl").read_text()) == RECORD
    assert read_progress(Path("state"))["step"] == 1
    assert not TENSORBOARD.exists()


@pytest.mark.usefixtures("gpu")
def test_other_ranks_count_their_energy_and_report_nothing() -> None:
    watched = TrainingMonitor(job({"steps": [1], "collections": {}}, tensorboard=True), training(rank=1), "cuda")
    watched.on_step(RECORD)
    assert watched.joules_since_last_call() == 25
    watched.close()
    assert not any(Path("state").iterdir())
    assert not TENSORBOARD.exists()


def test_it_is_evaluated_after_the_named_steps_and_steps_that_never_come_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(evaluator, "Evaluator", FakeEvaluator)
    trainer = training()
    watched = TrainingMonitor(job({"steps": [8, 2, 10, 9], "collections": {"small": {}}}, True), trainer, "cpu")
    assert caplog.messages == ["no evaluation at 9, 10: there are 8 steps"]
    for step in range(1, 9):
        watched.on_step({**RECORD, "step": step})
    watched.close()
    assert caplog.messages[1:] == [f"step {step}: nDCG@10 12.50 on small" for step in (2, 8)]
    assert trainer.evaluations == [{"step": step, "collection": "small", "nDCG@10": 0.125} for step in (2, 8)]
    assert len(list(TENSORBOARD.iterdir())) == 1


def test_steps_that_all_come_are_no_news(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(evaluator, "Evaluator", FakeEvaluator)
    TrainingMonitor(job({"steps": [8], "collections": {}}), training(), "cpu").close()
    assert not caplog.messages
