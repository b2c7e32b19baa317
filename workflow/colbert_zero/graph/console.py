"""What a person sees: one line for their mistake, a bar on a terminal, plain lines in a batch log."""

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
"""In a batch log, progress is one line a minute."""


class UserError(Exception):
    """A mistake a person can mend. The message is one line: what, where, what to do."""


class RetryableError(UserError):
    """A trouble of this attempt at this place; the same command may well succeed later or elsewhere."""


def run_reporting_errors(main: Callable[[], int]) -> int:
    """Run `main`; turn what a person can mend into one line on stderr and exit status 1.

    Anything else is our bug and keeps its traceback.
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
        sys.stderr.write("colbert-zero: interrupted; the same command goes on from here\n")
        return 130
    return 1


def progress(items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    """Yield `items`, showing how far they are: a bar on a terminal, a line a minute elsewhere.

    Args:
        items: What to go through.
        total: How many there are, or None where nobody knows.
        what: The noun after the number, in the plural.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, unit=f" {what}", dynamic_ncols=True)
        return
    started = last = time.monotonic()
    for done, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            rate = (done + 1) / (now - started)
            left = f", {(total - done - 1) / rate:.0f} s left" if total else ""
            log.info("%d of %s %s, %.1f/s%s", done + 1, total or "?", what, rate, left)
            last = now
