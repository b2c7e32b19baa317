"""Search an index for a collection's judged queries.

    python -m colbert_zero.evaluation.search --spec '{"kind":"runs","label":"colbert.numpy",...}' --threads 2 --device cpu

A document's score is its MaxSim: the sum, over the query's token vectors, of the largest inner product with any of the
document's (Khattab and Zaharia 2020, equation 3). An exact index gives the best documents of all; PLAID gives the best
of those it looks at, from quantised vectors. PLAID merges its files in `TMPDIR`, which needs room for a second copy.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation.trec import write_run
from colbert_zero.evaluation.vectors import Vectors
from colbert_zero.graph.artifact import Artifact, Job, run_step
from colbert_zero.graph.console import UserError, log
from colbert_zero.machine.devices import add_device_option, choose_device

BLOCK = {"cpu": (2048, 512), "cuda": (65536, 4096)}
"""Token vectors of documents and of queries that are multiplied at once: to stay in a cache, or fill a GPU."""
SCORES = 2**26
"""Scores of queries x documents held at once (4 bytes each)."""
PROBES, FULL_SCORES, PLAID_QUERIES = 8, 8192, 512
"""Of PLAID: centroids looked up for each query token, documents scored in full (PyLate's defaults); queries at once."""

Hits = Iterator[tuple[str, list[tuple[str, float]]]]
"""Query by query, its id and its documents with their scores, best first."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `run.trec`; returns counts and times.

    Raises:
        UserError: The index has other queries than the collection.
    """
    device = choose_device(job)
    index, collection = job.input("index"), Collection.open(job.input("collection"))
    queries = Vectors.open(index.file("queries.safetensors"), index.file("queries.parquet"))
    if queries.ids != list(collection.judged):
        raise UserError(
            f"{index.folder} was made for other queries than those of {collection.queries_file}; "
            f"give the run the index of its own collection"
        )
    depth, drop_self = job.settings["depth"], job.settings["drop_self"]
    started = time.monotonic()
    hits = _search(index, queries, depth + drop_self, device)
    results = {query: without_self(query, found, drop_self)[:depth] for query, found in hits}
    seconds = time.monotonic() - started
    write_run(job.folder / "run.trec", results, index.spec.inputs["model"][0])
    empty = sum(not documents for documents in results.values())
    if empty:
        log.info("%d queries found nothing", empty)
    return {
        "queries": len(results),
        "retrieved": sum(map(len, results.values())),
        "queries_without_results": empty,
        "searching_seconds": round(seconds, 3),
        "queries_per_second": round(len(results) / seconds, 1),
    }


def without_self(query: str, found: list[tuple[str, float]], drop_self: bool) -> list[tuple[str, float]]:
    """What was found for a query, without the document that is the query, where `drop_self` says that there is one."""
    return [(document, score) for document, score in found if not (drop_self and document == query)]


def _search(index: Artifact, queries: Vectors, depth: int, device: str) -> Hits:
    if index.facts["kind"] == "exact":
        documents = Vectors.open(index.file("documents.safetensors"), index.file("documents.parquet"))
        return search_exact(documents, queries, depth, device)
    return _search_plaid(index, queries, depth, device)


def search_exact(documents: Vectors, queries: Vectors, depth: int, device: str = "cpu") -> Hits:
    """The best documents of all, by MaxSim; of equal ones, those whose id is greater (trec_eval's order).

    Args:
        documents: At least one.
        queries: At least one, of the same dimensions.
        depth: How many documents for each query.
        device: Where to compute.

    Yields:
        Query by query, in their order.
    """
    order = sorted(range(len(documents.ids)), key=lambda position: documents.ids[position], reverse=True)
    step = max(1, SCORES // len(order))
    for first in range(0, len(queries.ids), step):
        chosen = range(first, min(first + step, len(queries.ids)))
        scores = maxsim(documents, queries, chosen, device)[:, order]
        for query, row in zip(chosen, scores, strict=True):
            found = _top(row, depth)
            yield queries.ids[query], [(documents.ids[order[place]], float(row[place])) for place in found]


def maxsim(documents: Vectors, queries: Vectors, chosen: range, device: str = "cpu") -> npt.NDArray[np.float32]:
    """The MaxSim of some queries with all documents, in single precision.

    Documents and queries are taken in the order of their lengths, so that padding to a block's longest costs little.
    A document is padded with its own last vector, which leaves a largest product as it is; a query with zeros, which
    leave a sum as it is. A document without vectors scores 0.

    Args:
        documents: Any number.
        queries: Any number, of the same dimensions.
        chosen: Positions in `queries`.
        device: Where to compute.

    Returns:
        queries chosen x documents.
    """
    of_documents, of_queries = BLOCK[device]
    scores = torch.zeros(len(chosen), len(documents.ids), device=device)
    blocks = [
        (torch.from_numpy(block - chosen.start).to(device), _padded(queries, block, device, repeat=False))
        for block in _blocks(queries.lengths, np.arange(chosen.start, chosen.stop), of_queries)
    ]
    for block in _blocks(documents.lengths, np.arange(len(documents.ids)), of_documents):
        matrix = _padded(documents, block, device, repeat=True)
        texts, tokens, dimensions = matrix.shape
        flat = matrix.reshape(-1, dimensions).T.contiguous()
        columns = torch.from_numpy(block).to(device)
        for rows, asked in blocks:
            best = (asked.reshape(-1, dimensions) @ flat).view(-1, texts, tokens).amax(dim=2)
            scores[rows[:, None], columns] = best.view(*asked.shape[:2], texts).sum(dim=1)
    result: npt.NDArray[np.float32] = scores.cpu().numpy()
    return result


def _blocks(
    lengths: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64], tokens: int
) -> Iterator[npt.NDArray[np.int64]]:
    """The chosen texts that have vectors, longest first, in blocks of about `tokens` vectors."""
    ordered = chosen[np.argsort(-lengths[chosen], kind="stable")]
    ordered = ordered[lengths[ordered] > 0]
    first = 0
    while first < len(ordered):
        size = max(1, tokens // int(lengths[ordered[first]]))
        yield ordered[first : first + size]
        first += size


def _padded(vectors: Vectors, block: npt.NDArray[np.int64], device: str, *, repeat: bool) -> torch.Tensor:
    """Texts x tokens of the longest x dimensions; what is too short is padded with its last vector, or with zeros."""
    lengths = vectors.lengths[block][:, None]
    places = np.arange(lengths.max())[None, :]
    wanted = vectors.starts[block][:, None] + np.minimum(places, lengths - 1)
    matrix = vectors.tokens[torch.from_numpy(wanted)].to(device=device, dtype=torch.float32)
    if not repeat:
        matrix *= torch.from_numpy(places < lengths).to(device)[:, :, None]
    return matrix


def _top(scores: npt.NDArray[np.float32], depth: int) -> npt.NDArray[np.int64]:
    """Places of the `depth` greatest scores, greatest first; of equal ones, the first."""
    places = np.arange(len(scores))
    if depth < len(scores):
        least = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        places = np.flatnonzero(scores >= least)
    return places[np.argsort(-scores[places], kind="stable")][:depth]


def _search_plaid(index: Artifact, queries: Vectors, depth: int, device: str) -> Hits:
    from fast_plaid.search import FastPlaid

    ids = pq.read_table(index.file("documents.parquet"))["id"].to_pylist()
    matrices = torch.split(queries.tokens, queries.lengths.tolist())
    with tempfile.TemporaryDirectory(prefix="colbert-zero-") as scratch:
        # fast-plaid writes into the folder that it searches: let that not be the published one.
        for name in index.files():
            if name.startswith("plaid/"):
                (Path(scratch) / Path(name).name).symlink_to(index.file(name).resolve())
        plaid = FastPlaid(index=scratch, device=device)
        for first in range(0, len(queries.ids), PLAID_QUERIES):
            found = plaid.search(
                [matrix.float() for matrix in matrices[first : first + PLAID_QUERIES]],
                top_k=depth,
                n_ivf_probe=PROBES,
                n_full_scores=max(FULL_SCORES, depth),
                show_progress=False,
                n_processes=1,
            )
            for query, documents in zip(queries.ids[first : first + PLAID_QUERIES], found, strict=True):
                yield query, [(ids[position], score) for position, score in documents]
        plaid.close()


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option))
