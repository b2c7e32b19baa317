"""Search an index for a collection's judged queries.

    python -m colbert_zero.evaluation.search --spec '{"kind":"runs","label":"colbert.toy",...}' --threads 2 --device cpu

A document's score is its MaxSim: the sum, over the query's token vectors, of the largest inner product with any of the
document's (Khattab and Zaharia 2020, equation 3). An exact search scores all documents. PLAID (`plaid_search`) scores
only those near the query's tokens, from quantised vectors; it merges its files in the folder `--scratch`, by default
`TMPDIR`, which needs room for a second copy.

The queries are searched for in batches, each a piece of the work (see `machine.pieces`), which jobs can share: `--part
queries --share 2 --jobs 4`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation.trec import Hits, drop_self_match, write_run
from colbert_zero.evaluation.vectors import TokenVectors
from colbert_zero.graph.artifact import Artifact, Job, run_step
from colbert_zero.graph.console import UserError, log
from colbert_zero.machine.devices import add_device_option, choose_device
from colbert_zero.machine.pieces import Part

RUN_FILE = "run.trec"
QUERIES = "queries"
"""Of the part of the work that jobs can share, and of the files with the queries' vectors and ids."""
TOKENS_PER_BLOCK = {"cpu": (2048, 512), "cuda": (65536, 4096)}
"""Token vectors of documents and of queries that are multiplied at once: they fit a CPU's cache, or fill a GPU."""
SCORES_IN_MEMORY = 2**26
"""Scores (queries x documents) in memory at once, of 4 bytes each."""
PLAID_QUERIES_PER_BATCH = 512

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

    Raises:
        UserError: `scratch`, where PLAID merges its files, is no folder, or has too little room.
    """
    if index.facts["kind"] == "exact":
        documents = TokenVectors.open(index.file("documents.safetensors"), index.file("documents.parquet"))
        return partial(search_exact, documents, queries, depth, device)
    from colbert_zero.evaluation.plaid_search import PlaidSearch

    return partial(PlaidSearch(index, device, scratch).search, queries, depth)


def queries_per_batch(documents: int) -> int:
    """How many queries are scored at once with all of so many documents."""
    return max(1, SCORES_IN_MEMORY // documents)


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


def maxsim(
    documents: TokenVectors, queries: TokenVectors, batch: range, device: str = "cpu"
) -> npt.NDArray[np.float32]:
    """Compute the MaxSim of a batch of queries with all documents, in single precision.

    Blocks hold texts of similar length, so that padding to the longest text of a block costs little. A document is
    padded with its own last vector, which does not change a maximum; a query is padded with zeros, which do not change
    a sum. A document without vectors scores 0.

    Args:
        documents: Any number.
        queries: Any number, of the same dimensions.
        batch: The positions in `queries` to score.
        device: Where to compute.

    Returns:
        Scores (queries of the batch x documents).
    """
    document_tokens, query_tokens = TOKENS_PER_BLOCK[device]
    scores = torch.zeros(len(batch), len(documents.ids), device=device)
    query_blocks = [
        (torch.from_numpy(block - batch.start).to(device), _pad(queries, block, device, repeat_last=False))
        for block in _blocks(queries.lengths, np.arange(batch.start, batch.stop), query_tokens)
    ]
    for block in _blocks(documents.lengths, np.arange(len(documents.ids)), document_tokens):
        document_block = _pad(documents, block, device, repeat_last=True)
        texts, tokens, dimensions = document_block.shape
        transposed = document_block.reshape(-1, dimensions).T.contiguous()
        columns = torch.from_numpy(block).to(device)
        for rows, query_block in query_blocks:
            best = (query_block.reshape(-1, dimensions) @ transposed).view(-1, texts, tokens).amax(dim=2)
            scores[rows[:, None], columns] = best.view(*query_block.shape[:2], texts).sum(dim=1)
    result: npt.NDArray[np.float32] = scores.cpu().numpy()
    return result


def _blocks(
    lengths: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], tokens_per_block: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Sort the positions of texts, longest text first, and split them into blocks; texts without vectors are left out.

    A block has at most `tokens_per_block` vectors once padded, or one text.
    """
    ordered = positions[np.argsort(-lengths[positions], kind="stable")]
    ordered = ordered[lengths[ordered] > 0]
    start = 0
    while start < len(ordered):
        size = max(1, tokens_per_block // int(lengths[ordered[start]]))
        yield ordered[start : start + size]
        start += size


def _pad(texts: TokenVectors, block: npt.NDArray[np.int64], device: str, *, repeat_last: bool) -> torch.Tensor:
    """Pad a block's texts with their last vector or with zeros: texts x tokens of the longest text x dimensions."""
    lengths = texts.lengths[block][:, None]
    columns = np.arange(lengths.max())[None, :]
    indices = texts.offsets[block][:, None] + np.minimum(columns, lengths - 1)
    padded = texts.vectors[torch.from_numpy(indices)].to(device=device, dtype=torch.float32)
    if not repeat_last:
        padded *= torch.from_numpy(columns < lengths).to(device)[:, :, None]
    return padded


def _top_k(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """The positions of the `k` greatest scores, greatest first; equal scores keep their order."""
    positions = np.arange(len(scores))
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        positions = np.flatnonzero(scores >= threshold)
    return positions[np.argsort(-scores[positions], kind="stable")][:k]


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_search_options, parts=PARTS))
