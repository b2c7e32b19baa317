"""The file that says how far a training is: its numbers, when it is written, and what is read of a broken one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from colbert_zero.training import progress_file
from colbert_zero.training.progress_file import PROGRESS_FILE, ProgressFile, read_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress_file, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_the_speed_is_of_this_attempt_and_the_time_left_follows_from_it(clock: SimpleNamespace, tmp_path: Path) -> None:
    file = ProgressFile(tmp_path, steps=20, batch_size=6, first_step=4)
    clock.now += 8
    file.update({"step": 8, "loss": 0.5, "source": "first"})
    assert read_progress(tmp_path) == {
        "step": 8, "steps": 20, "loss": 0.5, "rows_per_second": 3.0, "seconds_left": 24.0
    }  # fmt: skip


def test_it_is_written_every_five_seconds_and_at_the_end(clock: SimpleNamespace, tmp_path: Path) -> None:
    file = ProgressFile(tmp_path, steps=20, batch_size=6, first_step=0)
    file.close()
    assert read_progress(tmp_path) == {}
    written = []
    for seconds in (0.0, 4.9, 5.0, 9.9, 10.0, 11.0):
        clock.now = 1000 + seconds
        file.update({"step": len(written) + 1, "loss": 0.5})
        written.append(read_progress(tmp_path)["step"])
    assert written == [1, 1, 3, 3, 5, 5]
    file.close()
    assert read_progress(tmp_path)["step"] == 6


def test_a_file_that_cannot_be_written_ends_no_training(tmp_path: Path) -> None:
    file = ProgressFile(tmp_path / "not-there", steps=20, batch_size=6, first_step=0)
    file.update({"step": 1, "loss": 0.5})
    file.close()


@pytest.mark.parametrize("content", ["", "[1]", '{"step": 1', "\xff"])
def test_a_broken_file_says_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / PROGRESS_FILE).write_text(content, encoding="latin-1")
    assert read_progress(tmp_path) == {}
