"""Several processes do each thing once, and the end of one of them is a line."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from colbert_zero.graph.console import RetryableError, UserError
from colbert_zero.machine.pool import run_parallel


def mark(folder: Path, number: int) -> None:
    (folder / str(number)).touch(exist_ok=False)


def fail(number: int) -> None:
    if number == 2:
        raise UserError("number 2 is bad")


def die(number: int) -> None:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("processes", [1, 3])
def test_each_thing_is_done_once(tmp_path: Path, processes: int) -> None:
    run_parallel(partial(mark, tmp_path), range(7), processes, "numbers")
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(7))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mistake_is_told_as_it_is(processes: int) -> None:
    with pytest.raises(UserError, match="number 2 is bad"):
        run_parallel(fail, range(4), processes, "numbers")


def test_a_process_that_is_killed_is_a_line() -> None:
    with pytest.raises(RetryableError, match=r"one of 2 processes was killed \(numbers\), for want of memory perhaps"):
        run_parallel(die, range(4), 2, "numbers")
