"""Small text files that others read, or that a power loss may meet: they are whole, or as they were before."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from colbert_zero.graph.console import UserError


def sync(path: Path) -> None:
    """Flush a file or a folder's list of names to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk, where the file system can: some network file systems refuse."""
    with suppress(OSError):
        sync(folder)


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading bytes.

    Raises:
        OSError: It cannot be read, or is no file (`ENXIO`): reading a pipe would wait for ever.
    """
    mode = path.stat().st_mode  # of a folder, `open` says what it is
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), str(path))
    return path.open("rb")


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: See `open_file`.
    """
    with open_file(path) as file:
        return file.read()


def json_argument(argument: str) -> str:
    """The JSON that a command-line argument gives: the argument itself if it is an object, else the file it names.

    Raises:
        UserError: The file cannot be read.
    """
    if argument.lstrip().startswith("{"):
        return argument
    path = Path(argument)
    try:
        # Listing the folder refreshes a network file system's cache, so that a file from another node is seen.
        os.listdir(path.parent)
        return read_file(path).decode()
    except (OSError, ValueError) as error:
        raise UserError(f"{argument[:200]} cannot be read ({error}); run snakemake again") from None


def check_writable(folder: Path) -> None:
    """Write a file into `folder` and delete it; make the folder if needed.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(b"0")


def replace_text(path: Path, text: str) -> None:
    """Write `text` to the file at `path`, so that a reader finds all of it, or what was there before.

    The folder is made if needed. Processes on several nodes may write the same file at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}")
    try:
        # A newline is written as it is, so that a digest of the text is one of the file.
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
