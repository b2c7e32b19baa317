"""What a user sees: one line for a mistake of theirs, a progress bar on a terminal, plain lines in a batch log."""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger("colbert_zero")

SECONDS_BETWEEN_LINES = 60.0
"""Seconds between two lines of progress in a batch log."""


class UserError(Exception):
    """A mistake that the user can fix. The message is one line: what is wrong, where, what to do."""


class RetryableError(UserError):
    """A failure of this attempt on this machine: the same command may succeed later or elsewhere."""


def run_reporting_errors(main: Callable[[], int]) -> int:
    """Run `main`; report an error that the user can fix as one line on stderr, with exit status 1.

    Any other exception is a bug of ours and keeps its traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        return main()
    except UserError as error:
        sys.stderr.write(f"colbert-zero: {error}\n")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "the study's folder"
        sys.stderr.write(
            f"colbert-zero: no space left while writing {where}: free some, then run the same command again\n"
        )
    except KeyboardInterrupt:
        sys.stderr.write("colbert-zero: interrupted; the same command resumes from here\n")
        return 130
    return 1


def progress(items: Iterable[T], total: int | None, unit: str) -> Iterator[T]:
    """Yield `items` and show progress: a bar on a terminal, a line a minute elsewhere.

    Args:
        items: The items to iterate over.
        total: The number of items, or None if it is unknown.
        unit: The plural noun to print after the number: `rows`, `documents` ...
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, unit=f" {unit}", dynamic_ncols=True)
        return
    started = last = time.monotonic()
    for done, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            rate = (done + 1) / (now - started)
            left = f", {(total - done - 1) / rate:.0f} s left" if total else ""
            log.info("%d of %s %s, %.1f/s%s", done + 1, total or "?", unit, rate, left)
            last = now
