"""The pieces in which a collection's documents are encoded, and how an index takes those that another one has encoded.

Documents are encoded in runs. Those of a small collection are of one size. A large collection is cut where its texts
say, as files are cut for deduplication (Muthitacharoen, Chen and Mazieres, SOSP 2001): so a corpus that differs from
another in some documents has the same runs but for the few that hold these. Their names are digests of the documents
and of what else decides their vectors. With which others a text is encoded changes the rounding of its vectors, so the
bytes of an index are the same whether or not it took runs from another.

An index gives each run that it encodes to those beside it (`graph.shared_documents`) which are not published: as a link
in their state folder. It is there until they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation.texts import document_texts
from colbert_zero.graph.artifact import MANIFEST_FILE, STATE_FOLDER, Job, artifact_folder
from colbert_zero.graph.console import UserError
from colbert_zero.graph.digests import canonical_json, digest
from colbert_zero.graph.json_values import read_json
from colbert_zero.graph.limits import PLAID_MIN_DOCUMENTS
from colbert_zero.graph.local_files import keep_private, link_or_copy
from colbert_zero.graph.shared_documents import encoding_of_documents
from colbert_zero.machine.devices import add_device_option
from colbert_zero.machine.pieces import FACTS_FILE, Part, is_intact, make_once, seal, sealed_facts

CUT_FROM = PLAID_MIN_DOCUMENTS
"""A collection of so many documents or more is cut where its texts say."""
GIVEN_FOLDER = "given"
"""In an index's state folder, the runs that others have encoded, by name."""
STOPS_FILE, RUNS_FILE = "stops.npy", "runs.json"
"""Where each run ends, and the digests of their documents."""
INDEX_NAME = re.compile(r"indexes/[\w.-]+")


def add_index_options(parser: argparse.ArgumentParser) -> None:
    """Add `--device` and `--beside`."""
    add_device_option(parser)
    parser.add_argument(
        "--beside", nargs="*", default=[], metavar="NAME", help="indexes that encode documents of the same corpus alike"
    )


class DocumentPieces:
    """The pieces of a collection's documents for one index.

    Attributes:
        size: How many documents a piece has at most.
    """

    def __init__(self, job: Job, collection: Collection, size: int, device: str) -> None:
        """Prepare to cut; a large collection is read when its cuts are asked for.

        Args:
            job: Of the index.
            collection: The collection.
            size: How many documents are encoded together at most.
            device: Where they are encoded.

        Raises:
            UserError: `--beside` names something else than an index.
        """
        self.size = size
        self._job, self._collection, self._device = job, collection, device
        self._documents: int = job.input("collection").facts["documents"]
        self._beside: Sequence[str] = vars(job.options).get("beside", ())
        for name in self._beside:
            if not INDEX_NAME.fullmatch(name):
                raise UserError(f"--beside {name}: give names of indexes, such as indexes/mine-0123456789ab")

    @property
    def count(self) -> int:
        """The number of pieces."""
        return len(self._stops)

    def part(self, name: str, write: Callable[[int, Path], Mapping[str, Any]]) -> Part:
        """The part of the work that jobs can share.

        Args:
            name: Of its folder in the index's state folder.
            write: Encodes the piece with a number into an empty folder, and returns facts about it.
        """

        def take_or_write(number: int, folder: Path) -> Mapping[str, Any]:
            facts = self._take(number, folder)
            if facts is None:
                facts = write(number, folder)
                self._give(number, folder, facts)
            return facts

        unit = f"pieces of {self.size} documents encoded"
        return Part(self._job.state / name, self.count, unit, take_or_write, first=self.first)

    @property
    def first(self) -> int:
        """The piece to begin with: of two indexes that are made at once, each then encodes a half."""
        return self.count // 2 if any(name < self._job.spec.name for name in self._beside) else 0

    def bounds(self, number: int) -> tuple[int, int]:
        """The number of the first document of a piece, and of the one after its last."""
        return int(self._stops[number - 1]) if number else 0, int(self._stops[number])

    def is_given(self, number: int) -> bool:
        """Whether another index has encoded a piece."""
        return self._is_cut and (self._given / self._names[number]).is_dir()

    def _take(self, number: int, folder: Path) -> Mapping[str, Any] | None:
        """Link the files of a piece that another index has encoded into a folder.

        Returns:
            The facts about it; None if no other index has encoded it, or a disk has damaged what it gave.
        """
        if not self.is_given(number):
            return None
        given = self._given / self._names[number]
        if not is_intact(given):
            return None
        for file in given.iterdir():
            if file.name != FACTS_FILE:
                link_or_copy(file, folder / file.name)
        facts = sealed_facts(given)
        return facts | {"given": facts["documents"]}

    def _give(self, number: int, folder: Path, facts: Mapping[str, Any]) -> None:
        """Give the files of a piece, which are in a folder, to the indexes beside this one that are not published."""
        if not self._is_cut:
            return
        for name in self._beside:
            if (artifact_folder(name) / MANIFEST_FILE).is_file():
                continue
            given = STATE_FOLDER / name / GIVEN_FOLDER
            given.mkdir(parents=True, exist_ok=True)
            for original in map(artifact_folder, self._job.input_records):
                keep_private(given, original)
            unfinished = Path(tempfile.mkdtemp(prefix=".", dir=given))
            try:
                for file in folder.iterdir():
                    link_or_copy(file, unfinished / file.name)
                seal(unfinished, facts)
                os.replace(unfinished, given / self._names[number])
            except OSError:
                # Another process gave the same, or the disk is too full for a link: the other index encodes it itself.
                shutil.rmtree(unfinished, ignore_errors=True)

    @property
    def _is_cut(self) -> bool:
        return self._documents >= CUT_FROM

    @property
    def _given(self) -> Path:
        return self._job.state / GIVEN_FOLDER

    @cached_property
    def _stops(self) -> npt.NDArray[np.int64]:
        """The number of the document after the last of each piece."""
        if not self._is_cut:
            return np.minimum(np.arange(self.size, self._documents + self.size, self.size), self._documents)
        stops: npt.NDArray[np.int64] = np.load(self._cuts / STOPS_FILE, allow_pickle=False)
        return stops

    @cached_property
    def _names(self) -> list[str]:
        """The name of each piece: of its documents, and of what else decides the vectors that this process makes."""
        job = self._job
        threads = job.threads if self._device == "cpu" else None
        model = job.input("model").record()["files"]
        made_with = canonical_json([encoding_of_documents(job.spec), model, self._device, threads])
        runs: list[str] = read_json(self._cuts / RUNS_FILE)
        return [digest(made_with + run) for run in runs]

    @cached_property
    def _cuts(self) -> Path:
        """The folder that says where the documents are cut."""

        def write(folder: Path) -> Mapping[str, Any]:
            digests = _digests(self._collection)
            stops = cut(digests, self.size)
            np.save(folder / STOPS_FILE, stops, allow_pickle=False)
            runs = [hashlib.sha256(run.tobytes()).hexdigest() for run in np.split(digests, stops[:-1])]
            (folder / RUNS_FILE).write_text(json.dumps(runs), encoding="utf-8")
            return {"pieces": len(stops)}

        return make_once(self._job.state / "cuts", f"reading the documents of {self._job.spec.label}", write)


def given_facts(facts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What a manifest says of the documents that another index has encoded; nothing if there are none."""
    given = sum(fact.get("given", 0) for fact in facts)
    return {"given_documents": given} if given else {}


def _digests(collection: Collection) -> npt.NDArray[np.uint64]:
    """Two numbers for each document, of its id and the text that a model sees (documents x 2)."""
    digests = bytearray()
    for name, text in document_texts(collection):
        digests += hashlib.blake2b(f"{name}\0{text}".encode(errors="surrogatepass"), digest_size=16).digest()
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def cut(digests: npt.NDArray[np.uint64], size: int) -> npt.NDArray[np.int64]:
    """Cut documents into runs where their digests say.

    A run ends before the document with the smallest digest among those that may be the first of the next one, so that
    it has half of `size` documents at least, and `size` at most. The last run may be shorter.

    Args:
        digests: Of the documents (documents x 2).
        size: How many documents a run may have.

    Returns:
        The number of the document after the last of each run.
    """
    stops, start, least = [], 0, max(1, size // 2)
    while start + size < len(digests):
        start += least + int(digests[start + least : start + size + 1, 0].argmin())
        stops.append(start)
    return np.array([*stops, len(digests)], np.int64)
