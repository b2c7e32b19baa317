"""Several processes handle each item once, and a killed process is an error of one line."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from colbert_zero.graph.console import RetryableError, UserError
from colbert_zero.machine.pool import run_parallel


def create_file(folder: Path, number: int) -> None:
    (folder / str(number)).touch(exist_ok=False)


def fail(number: int) -> None:
    if number == 2:
        raise UserError("number 2 is bad")


def die(number: int) -> None:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("processes", [1, 3])
def test_each_item_is_handled_once(tmp_path: Path, processes: int) -> None:
    run_parallel(partial(create_file, tmp_path), range(7), processes, "numbers")
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(7))


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_is_raised_unchanged(processes: int) -> None:
    with pytest.raises(UserError, match="number 2 is bad"):
        run_parallel(fail, range(4), processes, "numbers")


def test_a_killed_process_is_an_error_of_one_line() -> None:
    with pytest.raises(RetryableError, match=r"one of 2 processes was killed \(numbers\), perhaps for lack of memory"):
        run_parallel(die, range(4), 2, "numbers")
