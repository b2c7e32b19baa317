"""Call something where file modes bind root too, as they bind everybody else."""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def without_rights_of_root(call: Callable[..., T], *arguments: object) -> T:
    """What `call` returns or raises in a thread without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (bits 1 and 2)."""
    with ThreadPoolExecutor(1, initializer=_give_up_rights) as thread:
        return thread.submit(call, *arguments).result()


def _give_up_rights() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for which in (0, 1):  # Those in effect, and those that `access` looks at.
        sets[which] &= ~0b110
    assert libc.capset(header, sets) == 0
