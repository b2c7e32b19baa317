"""One worker at a time: locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from colbert_zero.graph.console import RetryableError, UserError, log

SECONDS_BETWEEN_LOOKS = 2.0
HELD = (errno.EAGAIN, errno.EACCES)
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


def acquire_lock(path: Path, what: str, wait: float = 0.0) -> IO[str]:
    """Hold the lock at `path` until the returned file is closed or this process ends.

    The lock is the kernel's (flock), which network file systems carry from node to node; it goes with the process or
    the node that held it.

    Args:
        path: The lock's file; made if need be.
        what: What one process does alone, for the message to another.
        wait: Seconds to wait while another process holds it.

    Raises:
        RetryableError: Another process holds it; which one.
        UserError: The file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    started = time.monotonic()
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in UNSUPPORTED:
                file.close()
                raise UserError(
                    f"{path.parent}: this file system has no locks ({error.strerror}): put the study on one that has, "
                    "or have it mounted with them (Lustre: -o flock)"
                ) from None
            if error.errno not in HELD:
                raise
            file.seek(0)
            holder = file.read().strip() or "another process"
            if time.monotonic() - started >= wait:
                file.close()
                raise RetryableError(
                    f"{what} is under way in {holder}; wait for it, or stop it, and run again"
                ) from None
        if not told:
            log.info("%s is under way in %s: waiting for it", what, holder)
            told = True
        time.sleep(SECONDS_BETWEEN_LOOKS)
    file.truncate(0)
    job = os.environ.get("SLURM_JOB_ID")
    file.write(f"process {os.getpid()} on {socket.gethostname()}" + (f", SLURM job {job}" if job else ""))
    file.flush()
    return file
