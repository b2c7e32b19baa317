"""The same work on many things, by several processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from colbert_zero.graph.console import RetryableError, progress

T = TypeVar("T")


def run_parallel(work: Callable[[T], None], items: Sequence[T], processes: int, what: str) -> None:
    """Do `work` on every item, in any order; the first error ends it.

    Args:
        work: Can be pickled, as can the items; says nothing to a person.
        items: What to work on.
        processes: How many processes; one does it here.
        what: The noun after the number of items, for the progress.

    Raises:
        RetryableError: One of the processes was killed.
    """
    if min(processes, len(items)) <= 1:
        for item in progress(items, len(items), what):
            work(item)
        return
    # Processes of their own kind: a fork would take over the locks of threads that it does not have.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(items)), context, initializer=_end_with_parent) as pool:
        waiting = [pool.submit(work, item) for item in items]
        try:
            for done in progress(as_completed(waiting), len(waiting), what):
                done.result()
        except BrokenProcessPool:
            raise RetryableError(
                f"one of {processes} processes was killed ({what}), for want of memory perhaps: take fewer threads; "
                "the same command goes on from there"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever for more to do."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
