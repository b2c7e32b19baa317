"""Locks: a waiting process continues when the holder is gone; a file system without locks is an error of one line."""

import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from colbert_zero.graph import locks
from colbert_zero.graph.console import RetryableError, UserError
from colbert_zero.graph.locks import acquire_lock, look_at_lock

WORKFLOW = Path(__file__).parents[3] / "workflow"


@pytest.mark.parametrize("end", ["released", "killed"])
def test_a_waiting_process_continues_when_the_holder_is_gone(tmp_path, monkeypatch, caplog, end):
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.02)
    path = tmp_path / "state" / "lock"
    code = (
        "import sys; from pathlib import Path; from colbert_zero.graph.locks import acquire_lock;"
        f"lock = acquire_lock(Path({str(path)!r}), 'work'); print('held', flush=True); sys.stdin.read()"
    )
    environment = {"PYTHONPATH": str(WORKFLOW), "SLURM_JOB_ID": "17"}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        timer = threading.Timer(0.2, holder.stdin.close if end == "released" else holder.kill)
        timer.start()
        with caplog.at_level(logging.INFO):
            acquire_lock(path, "work", wait_seconds=60).close()
        timer.join()
    # Logged once, however often the lock was polled.
    (message,) = caplog.messages
    assert message.startswith(f"work is under way in process {holder.pid} on ")
    assert message.endswith(", SLURM job 17: waiting for it")
    assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_nobody_waits_for_a_lock_that_is_free(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        acquire_lock(tmp_path / "lock", "work", wait_seconds=60).close()
    assert caplog.messages == []


def test_nobody_waits_who_does_not_say_how_long(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.time, "sleep", lambda _: pytest.fail("it waits"))
    with (
        acquire_lock(tmp_path / "lock", "work"),
        pytest.raises(RetryableError, match=f"^work is under way in process {os.getpid()} on "),
    ):
        acquire_lock(tmp_path / "lock", "work")


@pytest.mark.parametrize("wait_seconds", [0, 1])
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch, wait_seconds, number):
    def flock(_file, _operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="this file system has no locks") as error:
        acquire_lock(tmp_path / "lock", "work", wait_seconds)
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(error.value)


def private_file(folder):
    path = folder / "letter.txt"
    path.write_text("dear you")
    return path


PRETENDERS = {
    "link": lambda folder, lock: lock.symlink_to(private_file(folder)),
    "dangling link": lambda folder, lock: lock.symlink_to(folder / "new"),
    "hard link": lambda folder, lock: os.link(private_file(folder), lock),
    "folder": lambda folder, lock: lock.mkdir(),
    "pipe": lambda folder, lock: os.mkfifo(lock),
    "device": lambda folder, lock: lock.symlink_to("/dev/null"),
    "text": lambda folder, lock: lock.write_bytes(b"\xff notes"),
}


@pytest.mark.parametrize("make", PRETENDERS.values(), ids=PRETENDERS)
def test_what_is_no_lock_file_is_neither_followed_nor_emptied(tmp_path, make):
    lock = tmp_path / "lock"
    make(tmp_path, lock)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match="is not a lock file of ours") as error:
        acquire_lock(lock, "work")
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_lock_that_is_looked_at_stays_as_it_is(tmp_path):
    path = tmp_path / "lock"
    assert look_at_lock(path) == (False, "")
    assert not path.exists()
    with acquire_lock(path, "work"):
        text = path.read_text()
        assert look_at_lock(path) == (True, text)
    assert look_at_lock(path) == (False, text), "who held it last"
    assert path.read_text() == text


@pytest.mark.parametrize("name", ["link", "dangling link", "folder", "pipe", "device"])
def test_what_is_no_file_is_not_looked_into(tmp_path, name):
    PRETENDERS[name](tmp_path, tmp_path / "lock")
    assert look_at_lock(tmp_path / "lock") == (False, "")


@pytest.mark.parametrize("left", [b"", b"process 1 on node, SLURM job 2", bytes(30)])
def test_what_an_earlier_process_left_in_a_lock_file_is_replaced(tmp_path, left):
    (tmp_path / "lock").write_bytes(left)
    acquire_lock(tmp_path / "lock", "work").close()
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
