"""File locks, which end with the process that holds them: one process at a time does a piece of work."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from colbert_zero.graph.console import RetryableError, UserError, log

POLL_SECONDS = 2.0
HELD_ERRNOS = (errno.EAGAIN, errno.EACCES)
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
        UserError: The file system does not support locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
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
            file.seek(0)
            holder = file.read().strip() or "another process"
            if time.monotonic() - started >= wait_seconds:
                file.close()
                raise RetryableError(
                    f"{activity} is under way in {holder}; wait for it, or stop it, and run again"
                ) from None
        if not logged:
            log.info("%s is under way in %s: waiting for it", activity, holder)
            logged = True
        time.sleep(POLL_SECONDS)
    file.truncate(0)
    job = os.environ.get("SLURM_JOB_ID")
    file.write(f"process {os.getpid()} on {socket.gethostname()}" + (f", SLURM job {job}" if job else ""))
    file.flush()
    return file
