"""Work in pieces, each a folder in an artifact's state: what ends a process costs it the piece it was at, and no more.

A step that may take hours does its work in *parts*, one after another, such as the files of a source and then its
shards. A part has *pieces*, whose bytes depend on their numbers alone: whoever makes them, in whatever order. A piece
appears under its name only when it is complete and on disk, and whoever finds it there goes on with the next. So a
retry resumes, and several jobs can share a part, each with every n-th piece.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from colbert_zero.graph.console import RetryableError, log
from colbert_zero.graph.json_values import read_json
from colbert_zero.graph.locks import acquire_lock
from colbert_zero.graph.text_files import replace_text, sync, sync_folder
from colbert_zero.machine.pool import run_parallel
from colbert_zero.machine.slurm import deadline_is_near

FACTS_FILE = "facts.json"
"""What was counted of a piece, in its folder."""
PLAN_FILE = "part.json"
"""How many pieces a part has and what they are, beside them: for whoever looks how far it is."""
ALL = slice(None)
LOCK_WAIT_SECONDS = 3600.0
"""How long a job waits for another that does what is done once for all of them."""


@dataclass(frozen=True)
class Part:
    """A part of an artifact's work.

    Attributes:
        folder: Where the pieces are, in the artifact's state folder.
        count: The number of pieces.
        unit: The plural noun for pieces, for the progress.
        write: Writes the files of the piece with a number into an empty folder, and returns facts about it (JSON
            values). With several processes it can be pickled.
        processes: How many processes make pieces at once; with 1, this one does.
        first: The number of the piece to begin with; those before it come last.
    """

    folder: Path
    count: int
    unit: str
    write: Callable[[int, Path], Mapping[str, Any]]
    processes: int = 1
    first: int = 0

    def piece(self, number: int) -> Path:
        """The folder of a piece, whether or not it is there yet."""
        return self.folder / f"{number:06d}"

    def facts(self) -> list[dict[str, Any]]:
        """The facts about each piece, in order; all must be made."""
        return [read_json(self.piece(number) / FACTS_FILE) for number in range(self.count)]

    def make(self, share: slice = ALL) -> None:
        """Make the pieces that are not there yet, or those of them that are in a share of all.

        However short the time of a job is, it makes a piece: else retries would come no further.

        Raises:
            RetryableError: The time of the SLURM job is nearly up, or a process was killed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / PLAN_FILE, json.dumps({"count": self.count, "unit": self.unit}))
        # Listing the folder also refreshes a network file system's cache: other nodes may have made pieces.
        there = set(os.listdir(self.folder))
        wanted = range(self.count)[share]
        missing = [number for number in wanted if self.piece(number).name not in there]
        missing.sort(key=lambda number: number < self.first)
        if 0 < len(missing) < len(wanted):
            log.info("going on: %d of %d %s are done", len(wanted) - len(missing), len(wanted), self.unit)
        begun = missing[: self.processes]
        run_parallel(partial(self._make_piece, begun), missing, self.processes, self.unit)

    def _make_piece(self, begun: Collection[int], number: int) -> None:
        if number not in begun and deadline_is_near():
            raise RetryableError(f"the job's time is up; what is done of the {self.unit} is kept, a retry goes on")
        piece = self.piece(number)
        # Each process has its own folder, so that two can make the same piece at once.
        unfinished = Path(tempfile.mkdtemp(prefix=f".{piece.name}-", dir=self.folder))
        try:
            facts = self.write(number, unfinished)
            (unfinished / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")
            # On disk before the name is: a power loss would otherwise leave a piece of zeros, which counts as done.
            for path in sorted(unfinished.rglob("*")):
                (sync_folder if path.is_dir() else sync)(path)
            os.replace(unfinished, piece)
        except OSError:
            if not piece.is_dir():
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def make_once(folder: Path, doing: str, write: Callable[[Path], Mapping[str, Any]]) -> Path:
    """Do what the jobs that share some work need done once: the first one does it, while the others wait.

    Args:
        folder: A folder in the artifact's state folder.
        doing: What is done, for the message of a job that waits: `reading the corpus of ...`.
        write: Writes files into an empty folder, and returns facts about them (JSON values).

    Returns:
        The folder with the files, which is in `folder`.

    Raises:
        RetryableError: The time of the SLURM job is nearly up.
        UserError: Another job has been at it for more than `LOCK_WAIT_SECONDS`.
    """
    part = Part(folder, 1, "folders", lambda _, piece: write(piece))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with acquire_lock(folder.with_name(f"{folder.name}.lock"), doing, wait_seconds=LOCK_WAIT_SECONDS):
        part.make()
    return part.piece(0)
