"""The progress of a training: its numbers, a line a minute in a log, a bar on a terminal."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from colbert_zero.training import progress_bar
from colbert_zero.training.progress_bar import ProgressBar


class Plan(list[int]):
    batch_size = 600


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress_bar, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def resumed_training() -> Any:
    """A training of ten steps, of which an earlier attempt did three."""
    totals = SimpleNamespace(query_tokens=100, document_tokens=1000)
    return SimpleNamespace(step=3, plan=Plan(range(10)), totals=totals)


def test_a_line_a_minute_says_how_fast_this_attempt_is_and_what_is_left(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    trainer = resumed_training()
    bar = ProgressBar(trainer)
    clock.now, trainer.step = 1059.9, 4
    bar.update({"loss": 0.7})
    assert not caplog.messages
    # In a minute, two steps of 600 rows with 1500 tokens: five more take two and a half minutes.
    clock.now, trainer.step = 1060.0, 5
    trainer.totals.query_tokens, trainer.totals.document_tokens = 400, 2200
    bar.update({"loss": 0.5})
    clock.now = 1119.9
    bar.update({"loss": 0.4})
    assert caplog.messages == ["step 5 of 10, loss 0.5000, 20.0 samples/s, 25 tokens/s, 150 s left"]
    clock.now, trainer.step = 1120.0, 10
    bar.update({"loss": 0.25, "gpu_utilisation": 87, "gpu_memory_mb": 3072})
    assert caplog.messages[1:] == [
        "step 10 of 10, loss 0.2500, 35.0 samples/s, 12 tokens/s, GPU 87 % busy, 3.0 GB of GPU memory, 0 s left"
    ]
    bar.close()


def test_a_terminal_shows_a_bar_that_begins_where_the_training_does(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    trainer = resumed_training()
    bar = ProgressBar(trainer)
    for trainer.step in (4, 5):
        clock.now += 30
        bar.update({"loss": 0.5})
    bar.close()
    last = terminal.getvalue().split("\r")[-1]
    assert " 5/10 " in last
    assert "loss 0.5000, 20.0 samples/s, 0 tokens/s" in last
    assert not caplog.messages
