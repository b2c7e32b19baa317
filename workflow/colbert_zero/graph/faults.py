"""Faults of the machine, in one line each: a full disk, a limit of the process, missing permissions, no memory.

Libraries pass on what the operating system told them in exceptions of their own, often as text alone. So an error is
recognised by its number, by a number or the operating system's words in its message, or in that of its cause.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

AGAIN = "then run the same command again"
FAULTS = {
    errno.ENOSPC: "no space left while writing {where}: free some",
    errno.EDQUOT: "no space left while writing {where}, the quota is used up: free some",
    errno.EFBIG: "{where} is larger than a file may be here: raise ulimit -f, or take another file system",
    errno.EROFS: "{where} is on a file system that can only be read: make it writable",
    errno.EACCES: "no permission for {where}: change its owner or mode",
    errno.EPERM: "no permission for {where}: change its owner or mode",
    errno.EEXIST: "{where} is in the way: move it away",
    errno.ENOTDIR: "a file is in the way, where {where} has a folder: move it away",
    errno.EISDIR: "{where} is a folder, where a file should be: move it away",
    errno.ENXIO: "{where} is no file, and a file should be there: move it away",
    errno.ELOOP: "{where} leads to itself, by symbolic links: remove them",
    errno.ENOTEMPTY: "another process still uses {where}: wait for it, or end it",
    errno.EBUSY: "another process still uses {where}: wait for it, or end it",
    errno.ENAMETOOLONG: "the name is too long for this file system: {where}: choose shorter ones",
    errno.EMFILE: "too many files are open, at {where}: raise ulimit -n",
    errno.ENFILE: "too many files are open on this machine, at {where}: end other programs",
    errno.EAGAIN: "no further process or thread may be started: raise ulimit -u, or use fewer threads",
    errno.EIO: "the disk or file system failed at {where} (input/output error): have it checked",
    errno.ESTALE: "the file server no longer knows {where} (stale file handle): mount it anew",
    errno.ENOMEM: "not enough memory: end other programs, or raise ulimit -v or the step's mem_mb in config.yaml",
}
"""What is wrong and what to do, by the number of the operating system's error."""
NUMBER = re.compile(r"\b(?:os error|errno) (\d+)", re.IGNORECASE)
MESSAGES = {
    r"\d+ requested and \d+ written": "not all of {where} could be written: free space, or raise ulimit -f",
    r"can't start new thread": FAULTS[errno.EAGAIN],
    r"(can't|cannot|unable to|failed to) allocate|bad_?alloc|failed to map segment|heap space": FAULTS[errno.ENOMEM],
    r"(CUDA|HIP) (error: )?out of memory": "CUDA out of memory: end what else runs on the GPU, or take a larger one",
}
"""The same, by what libraries write that give neither a number nor the operating system's words."""
MISTAKES_IN_CODE = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, SyntaxError, TypeError)
"""Errors that are no machine's fault, whatever they were raised from and whatever they say."""


def explain_fault(error: BaseException) -> str | None:
    """What to tell the user of an error that is a fault of the machine; None for any other error.

    Args:
        error: The error; what it was raised from is looked at as well.

    Returns:
        One line without a prefix: what is wrong, where, what to do.
    """
    for one in _with_causes(error):
        if isinstance(one, MISTAKES_IN_CODE):
            return None
        fault = _fault(one)
        if fault:
            # The second name is the target, where there are two.
            names = [getattr(one, attribute, None) for attribute in ("filename2", "filename")]
            where = next((os.fsdecode(name) for name in names if isinstance(name, str | bytes)), "the study's folder")
            return f"{fault.format(where=where)}, {AGAIN}"
    return None


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _fault(error: BaseException) -> str | None:
    """The fault that an error reports, without a look at its causes."""
    if isinstance(error, MemoryError):
        return FAULTS[errno.ENOMEM]
    if isinstance(error, OSError) and error.errno is not None:
        return FAULTS.get(error.errno)
    text = str(error)
    number = NUMBER.search(text)
    if number:
        return FAULTS.get(int(number[1]))
    said = [code for code in FAULTS if os.strerror(code).lower() in text.lower()]
    if said:
        # Some words begin with those of another error.
        return FAULTS[max(said, key=lambda code: len(os.strerror(code)))]
    return next((fault for pattern, fault in MESSAGES.items() if re.search(pattern, text, re.IGNORECASE)), None)
