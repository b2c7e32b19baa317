"""File locks, which end with the process that holds them: one process at a time does a piece of work."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from pathlib import Path
from typing import IO

from colbert_zero.graph.console import RetryableError, UserError, log

POLL_SECONDS = 2.0
HELD_ERRNOS = (errno.EAGAIN, errno.EACCES)
NO_FILE_ERRNOS = (errno.ELOOP, errno.EISDIR, errno.ENXIO)
"""What opening a link, a folder or a socket fails with."""
HOLDER_PREFIX = "process "
"""Starts the text of a lock file, which names the process that holds the lock, or held it last."""
UNSUPPORTED_ERRNOS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


def acquire_lock(path: Path, activity: str, wait_seconds: float = 0.0) -> IO[str]:
    """Hold the lock at `path` until the returned file is closed or this process ends.

    The lock is the kernel's (flock). Network file systems pass it on between nodes, and the kernel releases it when the
    process or its node dies.

    Args:
        path: The lock file; created if it does not exist.
        activity: What the lock protects, for the message to a process that does not get it: `making models/...`.
        wait_seconds: How long to wait while another process holds the lock.

    Raises:
        RetryableError: Another process still holds the lock; the message names that process.
        UserError: The file system does not support locks, or there is something else than a lock file at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _open_lock_file(path)
    started = time.monotonic()
    logged = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in UNSUPPORTED_ERRNOS:
                file.close()
                raise UserError(
                    f"{path.parent}: this file system has no locks ({error.strerror}): put the study on one that has "
                    "them, or mount this one with them (Lustre: -o flock)"
                ) from None
            if error.errno not in HELD_ERRNOS:
                raise
            holder = _read_holder(file) or "another process"
            if time.monotonic() - started >= wait_seconds:
                file.close()
                raise RetryableError(
                    f"{activity} is under way in {holder}; wait for it, or stop it, and run again"
                ) from None
        if not logged:
            log.info("%s is under way in %s: waiting for it", activity, holder)
            logged = True
        time.sleep(POLL_SECONDS)
    holder = _read_holder(file)
    if holder and not holder.startswith(HOLDER_PREFIX):
        file.close()
        raise _no_lock_file(path)
    file.truncate(0)
    job = os.environ.get("SLURM_JOB_ID")
    file.write(f"{HOLDER_PREFIX}{os.getpid()} on {socket.gethostname()}" + (f", SLURM job {job}" if job else ""))
    file.flush()
    return file


def look_at_lock(path: Path) -> tuple[bool, str]:
    """Whether a process holds the lock at `path`, and the text that names who does, or did last; nothing is written.

    On a file system whose locks do not reach other nodes, a lock that is held on another node seems free.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False, ""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return False, ""
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
        try:
            # Shared, for an instant: who wants the lock then tries again.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            held = False
        except OSError as error:
            held = error.errno in HELD_ERRNOS
        return held, _read_holder(file)


def _open_lock_file(path: Path) -> IO[str]:
    """Open a lock file to read and append, without following a link: whoever gets the lock writes into the file."""
    try:
        # A FIFO without a reader must not block; for a regular file O_NONBLOCK means nothing.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in NO_FILE_ERRNOS:
            raise
        raise _no_lock_file(path) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_lock_file(path)
    return os.fdopen(descriptor, "a+", encoding="utf-8", errors="replace")


def _read_holder(file: IO[str]) -> str:
    """The beginning of a lock file's text; a power loss may have left zeros, which say nothing."""
    file.seek(0)
    return file.read(200).strip("\0\n ")


def _no_lock_file(path: Path) -> UserError:
    return UserError(
        f"{path} is not a lock file of ours (a link, a folder, other text): nothing is written to it; move it away"
    )
