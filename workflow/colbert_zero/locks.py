"""One worker at a time: locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from colbert_zero.console import UserError


def hold(path: Path, what: str) -> IO[str]:
    """Hold the lock at `path` until the returned file is closed or this process ends.

    Args:
        path: The lock's file; made if need be.
        what: What one process does alone, for the message to another.

    Raises:
        UserError: Another process holds it; which one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(f"{what} is under way in {holder}; wait for it, or stop it, and run again") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
