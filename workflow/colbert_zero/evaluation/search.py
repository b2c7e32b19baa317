"""Search an index for a collection's judged queries.

    python -m colbert_zero.evaluation.search --spec '{"kind":"runs","label":"colbert.toy",...}' --threads 2 --device cpu

A document's score is its MaxSim: the sum, over the query's token vectors, of the largest inner product with any of the
document's (Khattab and Zaharia 2020, equation 3). An exact search scores all documents. PLAID scores only those near
the query's tokens, from quantised vectors; it merges its files in the folder `--scratch`, by default `TMPDIR`, which
needs room for a second copy.

The queries are searched for in batches, each a piece of the work (see `machine.pieces`), which jobs can share: `--part
queries --share 2 --jobs 4`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation.trec import Hits, drop_self_match, write_run
from colbert_zero.graph.artifact import Artifact, Job, run_step
from colbert_zero.graph.console import UserError, log
from colbert_zero.machine.devices import add_device_option, choose_device
from colbert_zero.machine.pieces import Part
from colbert_zero.retrieval.maxsim import maxsim, queries_per_batch
from colbert_zero.retrieval.vectors import TokenVectors

RUN_FILE = "run.trec"
QUERIES = "queries"
"""Of the part of the work that jobs can share, and of the files with the queries' vectors and ids."""
PLAID_QUERIES_PER_BATCH, PLAID_FOLDER = 512, "plaid/"

Search = Callable[[range], Iterator[tuple[str, Hits]]]
"""Searches for the queries at some positions; yields each one's id and its best documents."""


class IndexSearch:
    """The work on a run.

    Attributes:
        queries: The part of it that jobs can share: the hits of the queries, a batch in each piece.
    """

    def __init__(self, job: Job) -> None:
        """Open a job's inputs; the index is opened for searches when there is something to search for.

        Raises:
            UserError: The index holds other queries than the collection.
        """
        self._job, self._device = job, choose_device(job)
        self._index, collection = job.input("index"), Collection.open(job.input("collection"))
        self._vectors = TokenVectors.open(*(self._index.file(f"{QUERIES}.{end}") for end in ("safetensors", "parquet")))
        if self._vectors.ids != list(collection.judged_queries):
            raise UserError(
                f"{self._index.folder} was made for other queries than those of {collection.queries_file}; "
                f"give the run the index of its own collection"
            )
        exact, count = self._index.facts["kind"] == "exact", len(self._vectors.ids)
        most = queries_per_batch(self._index.facts["documents"]) if exact else PLAID_QUERIES_PER_BATCH
        self._size = min(count, most)
        batches = -(-count // self._size)
        self.queries = Part(job.state / QUERIES, batches, f"batches of {self._size} queries searched", self._write)

    @cached_property
    def _search(self) -> Search:
        depth = self._job.settings["depth"] + self._job.settings["drop_self"]
        return open_search(self._index, self._vectors, depth, self._device, vars(self._job.options).get("scratch"))

    def _write(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Write the lines of the run for a batch of queries."""
        search, settings = self._search, self._job.settings
        started = time.monotonic()
        batch = range(len(self._vectors.ids))[number * self._size : (number + 1) * self._size]
        results = {
            query: drop_self_match(query, hits, settings["drop_self"])[: settings["depth"]]
            for query, hits in search(batch)
        }
        seconds = time.monotonic() - started
        write_run(folder / RUN_FILE, results, self._index.spec.inputs["model"][0])
        return {
            "queries": len(results),
            "retrieved": sum(map(len, results.values())),
            "queries_without_results": sum(not documents for documents in results.values()),
            "searching_seconds": seconds,
        }


PARTS = {QUERIES: lambda job: IndexSearch(job).queries}
"""The part of the work that jobs can share."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `run.trec`; return counts and times.

    Raises:
        UserError: The index holds other queries than the collection.
    """
    queries = IndexSearch(job).queries
    queries.make()
    with (job.folder / RUN_FILE).open("wb") as run:
        for number in range(queries.count):
            with (queries.piece(number) / RUN_FILE).open("rb") as lines:
                shutil.copyfileobj(lines, run)
    pieces = queries.facts()
    facts = {name: sum(piece[name] for piece in pieces) for name in pieces[0]}
    if empty := facts["queries_without_results"]:
        log.info("%d queries retrieved no document", empty)
    seconds = facts.pop("searching_seconds")
    return facts | {
        "searching_seconds": round(seconds, 3),
        "queries_per_second": round(facts["queries"] / seconds, 1),
    }


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add `--device` and `--scratch`."""
    add_device_option(parser)
    parser.add_argument("--scratch", help="a folder for what PLAID writes, $VARIABLES in it replaced (TMPDIR)")


def open_search(index: Artifact, queries: TokenVectors, depth: int, device: str, scratch: str | None = None) -> Search:
    """Open an index of either kind, to search for batches of queries.

    Args:
        index: The index.
        queries: The queries.
        depth: The number of documents for each query.
        device: Where to compute.
        scratch: Where PLAID merges its files, $VARIABLES in it replaced; by default `TMPDIR`.

    Raises:
        UserError: `scratch` is no folder, or has too little room.
    """
    if index.facts["kind"] == "exact":
        documents = TokenVectors.open(index.file("documents.safetensors"), index.file("documents.parquet"))
        return partial(search_exact, documents, queries, depth, device)
    from colbert_zero.retrieval.plaid_search import PlaidSearch

    parent = Path(os.path.expandvars(scratch) if scratch else tempfile.gettempdir())
    if not parent.is_dir():
        raise UserError(f"{parent} is no folder on this machine; name one under resources.search_index.scratch")
    files = [index.file(name) for name in index.files() if name.startswith(PLAID_FOLDER)]
    plaid = PlaidSearch(files, device, parent, "name a larger folder under resources.search_index.scratch")
    ids: list[str] = pq.read_table(index.file("documents.parquet"))["id"].to_pylist()

    def search(batch: range) -> Iterator[tuple[str, Hits]]:
        for position, hits in zip(batch, plaid.search(queries, depth, batch), strict=True):
            yield queries.ids[position], [(ids[number], score) for number, score in hits]

    return search


def search_exact(
    documents: TokenVectors, queries: TokenVectors, depth: int, device: str = "cpu", positions: range | None = None
) -> Iterator[tuple[str, Hits]]:
    """Score all documents by MaxSim and yield each query's best; equal scores go by descending id (trec_eval's order).

    Args:
        documents: At least one.
        queries: At least one, of the same dimensions.
        depth: The number of documents for each query.
        device: Where to compute.
        positions: The positions of the queries to search for; by default all.

    Yields:
        Each query's id and hits, in the order of `queries`.
    """
    by_descending_id = sorted(range(len(documents.ids)), key=lambda position: documents.ids[position], reverse=True)
    positions = range(len(queries.ids)) if positions is None else positions
    size = queries_per_batch(len(documents.ids))
    for start in range(0, len(positions), size):
        batch = positions[start : start + size]
        scores = maxsim(documents, queries, batch, device)[:, by_descending_id]
        for query, row in zip(batch, scores, strict=True):
            top = _top_k(row, depth)
            yield queries.ids[query], [(documents.ids[by_descending_id[column]], float(row[column])) for column in top]


def _top_k(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """The positions of the `k` greatest scores, greatest first; equal scores keep their order."""
    positions = np.arange(len(scores))
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        positions = np.flatnonzero(scores >= threshold)
    return positions[np.argsort(-scores[positions], kind="stable")][:k]


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_search_options, parts=PARTS))
