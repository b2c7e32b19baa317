"""What a user sees: one line for a mistake of theirs, a progress bar on a terminal, plain lines in a batch log."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from colbert_zero.graph.faults import explain_fault

T = TypeVar("T")

log = logging.getLogger("colbert_zero")

MESSAGE_PREFIX = "colbert-zero: "
"""Starts every line that reports an error."""
SECONDS_BETWEEN_LINES = 60.0
"""Seconds between two lines of progress in a batch log."""


def one_line(text: str) -> str:
    """Escape what is not printable as Python's `repr` does: control characters, line ends, marks that reorder text.

    Names from a config, a file or a server can hold them; shown as they are, they would forge lines of a log, or steer
    the terminal.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


class UserError(Exception):
    """A mistake that the user can fix. The message is one line: what is wrong, where, what to do."""

    def __str__(self) -> str:
        """The message, as one line whatever names are in it."""
        return one_line(super().__str__())


class RetryableError(UserError):
    """A failure of this attempt on this machine: the same command may succeed later or elsewhere."""


class OneLineFormatter(logging.Formatter):
    """Time and message, the message as one line; a traceback keeps its lines."""

    def __init__(self) -> None:
        """Write the time of day."""
        super().__init__("%(asctime)s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return one_line(super().formatMessage(record))


def error_line(error: Exception) -> str | None:
    """What to tell the user of a mistake of theirs or a fault of the machine, in one line; None for a bug of ours."""
    if isinstance(error, UserError):
        return str(error)
    fault = explain_fault(error)
    return one_line(fault) if fault else None


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the process with one line on stderr and exit status 1 on a user's mistake or a fault of the machine."""
    try:
        yield
    except Exception as error:
        line = error_line(error)
        if line is None:
            raise
        sys.exit(f"{MESSAGE_PREFIX}{line}")


def run_reporting_errors(main: Callable[[], int], failure: int = 1) -> int:
    """Run `main`; report a user's mistake or a fault of the machine as one line on stderr, with exit status `failure`.

    Any other exception is a bug of ours and keeps its traceback.
    """
    if not gc.isenabled():  # see colbert_zero/__init__.py
        gc.freeze()
        gc.enable()
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        return main()
    except KeyboardInterrupt:
        sys.stderr.write(f"{MESSAGE_PREFIX}interrupted; the same command resumes from here\n")
        return 130
    except Exception as error:
        line = error_line(error)
        if line is None:
            raise
        sys.stderr.write(f"{MESSAGE_PREFIX}{line}\n")
    return failure


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
