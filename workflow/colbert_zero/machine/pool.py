"""Run one function on many items in several worker processes."""

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


def run_parallel(function: Callable[[T], None], items: Sequence[T], processes: int, unit: str) -> None:
    """Call `function` on every item, in any order; stop at the first error.

    Args:
        function: The function. It can be pickled, as can the items, and it prints nothing.
        items: What to call it on.
        processes: The number of worker processes; with 1, this process does the work.
        unit: The noun after the number of items, for the progress.

    Raises:
        RetryableError: A worker process was killed.
    """
    if min(processes, len(items)) <= 1:
        for item in progress(items, len(items), unit):
            function(item)
        return
    # Spawn: a forked process would inherit the locks of threads that it does not have.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(items)), context, initializer=_exit_with_parent) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in progress(as_completed(futures), len(futures), unit):
                future.result()
        except BrokenProcessPool:
            raise RetryableError(
                f"one of {processes} processes was killed ({unit}), perhaps for lack of memory: use fewer threads; "
                "the same command resumes from there"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _exit_with_parent() -> None:
    """End this worker when its parent dies: it would otherwise wait for more work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
