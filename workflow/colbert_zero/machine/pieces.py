"""Work in pieces, each a folder in an artifact's state: what ends a process costs it the piece it was at, and no more.

A step that may take hours does its work in *parts*, one after another, such as the files of a source and then its
shards. A part has *pieces*, whose bytes depend on their numbers alone: whoever makes them, in whatever order. A piece
appears under its name only when it is complete and on disk, and whoever finds it there goes on with the next. So a
retry resumes, and several jobs can share a part, each with every n-th piece. A piece that a disk has damaged is made
again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from colbert_zero.graph.console import RetryableError, log, progress
from colbert_zero.graph.json_values import parse_json, read_json
from colbert_zero.graph.locks import acquire_lock
from colbert_zero.graph.text_files import open_file, replace_text, sync, sync_folder
from colbert_zero.machine.pool import run_parallel
from colbert_zero.machine.slurm import deadline_is_near

FACTS_FILE = "facts.json"
"""What was counted of a piece, in its folder, and the checksums of its files."""
BLOCK_BYTES = 2**20
"""How much of a file is read at once for its checksum."""
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
        return self.folder / _name(number)

    def facts(self) -> list[dict[str, Any]]:
        """The facts about each piece, in order; all must be made."""
        return [sealed_facts(self.piece(number)) for number in range(self.count)]

    def make(self, share: slice = ALL) -> None:
        """Make the pieces that are not there yet, or damaged, or those of them that are in a share of all.

        However short the time of a job is, it makes a piece: else retries would come no further.

        Raises:
            RetryableError: The time of the SLURM job is nearly up, or a process was killed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / PLAN_FILE, json.dumps({"count": self.count, "unit": self.unit}))
        wanted = range(self.count)[share]
        # Listing the folder also refreshes a network file system's cache: other nodes may have made pieces.
        names = set(os.listdir(self.folder))
        made = [number for number in wanted if self.piece(number).name in names]
        intact = set(filter(self._keep_intact, progress(made, len(made), f"{self.unit} checked")))
        missing = [number for number in wanted if number not in intact]
        missing.sort(key=lambda number: number < self.first)
        if 0 < len(missing) < len(wanted):
            log.info("going on: %d of %d %s are done", len(wanted) - len(missing), len(wanted), self.unit)
        begun = missing[: self.processes]
        run_parallel(partial(self._make_piece, begun), missing, self.processes, self.unit)

    def _keep_intact(self, number: int) -> bool:
        """Whether a piece is as it was made; if not, it is deleted."""
        piece = self.piece(number)
        if is_intact(piece):
            return True
        log.warning("%s is damaged: it is made again", piece)
        shutil.rmtree(piece)
        return False

    def _make_piece(self, begun: Collection[int], number: int) -> None:
        if number not in begun and deadline_is_near():
            raise RetryableError(f"the job's time is up; what is done of the {self.unit} is kept, a retry goes on")
        piece = self.piece(number)
        # Each process has its own folder, so that two can make the same piece at once.
        unfinished = Path(tempfile.mkdtemp(prefix=f".{piece.name}-", dir=self.folder))
        try:
            seal(unfinished, self.write(number, unfinished))
            os.replace(unfinished, piece)
        except OSError:
            if not piece.is_dir():
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _name(number: int) -> str:
    """The name of a piece's folder."""
    return f"{number:06d}"


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Complete a folder before it gets its name: write facts about it, and see to it that all of it is on disk.

    Otherwise a power loss would leave a folder of zeros, which counts as done.

    Args:
        folder: The folder with all other files.
        facts: JSON values.
    """
    paths = sorted(folder.rglob("*"))
    files = {path.relative_to(folder).as_posix(): checksum(path) for path in paths if path.is_file()}
    content = parse_json(json.dumps({"facts": facts, "files": files}))  # as it will be read
    (folder / FACTS_FILE).write_text(json.dumps({**content, "checksum": _checksum_of(content)}), encoding="utf-8")
    for path in [*paths, folder / FACTS_FILE, folder]:
        (sync_folder if path.is_dir() else sync)(path)


def sealed_facts(folder: Path) -> dict[str, Any]:
    """The facts about a folder that was sealed."""
    sealed: dict[str, Any] = read_json(folder / FACTS_FILE)
    return sealed["facts"] if "checksum" in sealed else sealed


def is_intact(folder: Path) -> bool:
    """Whether the files of a folder are as they were when it was sealed; true of one that an older version made.

    Raises:
        OSError: A file is there and cannot be read, which is no damage: another attempt may go well.
    """
    try:
        sealed = read_json(folder / FACTS_FILE)
        if isinstance(sealed, dict) and "checksum" not in sealed:
            return bool(sealed)
        content = {"facts": sealed["facts"], "files": sealed["files"]}
        return sealed["checksum"] == _checksum_of(content) and all(
            checksum(folder / name) == recorded for name, recorded in sealed["files"].items()
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return False


def checksum(path: Path) -> int:
    """CRC-32 of a file: it tells damage, and takes a fraction of the time that writing the file takes."""
    value = 0
    with open_file(path) as file:
        while block := file.read(BLOCK_BYTES):
            value = zlib.crc32(block, value)
    return value


def _checksum_of(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


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
    return folder_made_once(folder)


def folder_made_once(folder: Path) -> Path:
    """The folder with the files that `make_once` has had written."""
    return folder / _name(0)
