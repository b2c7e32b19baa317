"""The bytes of artifacts' files against the digests in their manifests, by several threads.

hashlib lets other threads run while it computes, so threads do what processes would, without starting any.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from colbert_zero.audit.vouched import Vouched, is_settled, state_of

BUFFER_BYTES = 2**20
BATCH_BYTES = 2**23
BATCH_FILES = 64
"""Files are given to a thread together, up to so many, or until they have so many bytes."""

Expected = tuple[Path, int, str]
"""A file, its size, and its SHA-256 by the manifest."""

_local = threading.local()


@dataclass
class Read:
    """What reading some files showed.

    Attributes:
        problems: What is wrong with them, in words.
        states: Of each file that is intact, what the file system said of it while it was read; None if it may change
            again unseen.
        vouched: How many files were not read, as they have not changed since they last were.
    """

    problems: list[str] = field(default_factory=list)
    states: dict[str, list[int] | None] = field(default_factory=dict)
    vouched: int = 0


def batches(folder: Path, files: Mapping[str, tuple[int, str]]) -> Iterator[list[Expected]]:
    """Split the files of an artifact into batches for threads."""
    batch: list[Expected] = []
    total = 0
    for name, (size, sha256) in files.items():
        batch.append((folder / name, size, sha256))
        total += size
        if total >= BATCH_BYTES or len(batch) == BATCH_FILES:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def read_files(batch: Sequence[Expected], vouched: Vouched | None) -> Read:
    """Compare some files with what is expected of them; those that `vouched` covers are not read."""
    read = Read()
    for path, size, sha256 in batch:
        if vouched is not None and vouched.covers(path, sha256):
            read.vouched += 1
            read.states[path.as_posix()] = vouched.files[path.as_posix()][:3]
            continue
        try:
            found, entry = digest_of(path, size)
        except OSError as error:
            read.problems.append(f"{path} cannot be read: {error.strerror}")
            continue
        if found != sha256:
            read.problems.append(f"{path} was changed: its digest is not the manifest's")
        else:
            read.states[path.as_posix()] = state_of(entry) if is_settled(entry) else None
    return read


def digest_of(path: Path, size: int) -> tuple[str | None, os.stat_result]:
    """SHA-256 of a file, and what the file system says of it; None instead if it is no file, or changes meanwhile.

    Raises:
        OSError: It cannot be read.
    """
    # Whatever was put there meanwhile: a link is not followed, a pipe does not block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            return None, before
        if size < BUFFER_BYTES:
            digest = hashlib.sha256(os.read(descriptor, BUFFER_BYTES))
        else:
            digest = _digest_of_large(descriptor)
        after = os.fstat(descriptor)
        return (digest.hexdigest() if state_of(before) == state_of(after) else None), after
    finally:
        os.close(descriptor)


def _digest_of_large(descriptor: int) -> hashlib._Hash:
    buffer = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = memoryview(bytearray(BUFFER_BYTES))
    digest = hashlib.sha256()
    while count := os.readv(descriptor, [buffer]):
        digest.update(buffer[:count])
    return digest
