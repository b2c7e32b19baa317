"""Search an index for a collection's judged queries.

    python -m colbert_zero.evaluation.search --spec '{"kind":"runs","label":"colbert.toy",...}' --threads 2 --device cpu

A document's score is its MaxSim: the sum, over the query's token vectors, of the largest inner product with any of the
document's (Khattab and Zaharia 2020, equation 3). An exact search scores all documents; PLAID scores only those near
the query's tokens, from quantised vectors. PLAID merges its files in the folder `--scratch`, by default `TMPDIR`, which
needs room for a second copy.
"""

from __future__ import annotations

import argparse
import os
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
from colbert_zero.evaluation.disk_space import check_space
from colbert_zero.evaluation.trec import Hits, drop_self_match, write_run
from colbert_zero.evaluation.vectors import TokenVectors
from colbert_zero.graph.artifact import Artifact, Job, run_step
from colbert_zero.graph.console import UserError, log
from colbert_zero.machine.devices import add_device_option, choose_device

TOKENS_PER_BLOCK = {"cpu": (2048, 512), "cuda": (65536, 4096)}
"""Token vectors of documents and of queries that are multiplied at once: they fit a CPU's cache, or fill a GPU."""
SCORES_IN_MEMORY = 2**26
"""Scores (queries x documents) in memory at once, of 4 bytes each."""
PLAID_PROBES, PLAID_FULL_SCORES, PLAID_QUERIES_PER_BATCH = 8, 8192, 512
"""Centroids looked up for each query token, documents scored in full (PyLate's defaults), and queries at once."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `run.trec`; return counts and times.

    Raises:
        UserError: The index holds other queries than the collection.
    """
    device = choose_device(job)
    index, collection = job.input("index"), Collection.open(job.input("collection"))
    queries = TokenVectors.open(index.file("queries.safetensors"), index.file("queries.parquet"))
    if queries.ids != list(collection.judged_queries):
        raise UserError(
            f"{index.folder} was made for other queries than those of {collection.queries_file}; "
            f"give the run the index of its own collection"
        )
    depth, drop_self = job.settings["depth"], job.settings["drop_self"]
    started = time.monotonic()
    ranked = search_index(index, queries, depth + drop_self, device, vars(job.options).get("scratch") or None)
    results = {query: drop_self_match(query, hits, drop_self)[:depth] for query, hits in ranked}
    seconds = time.monotonic() - started
    write_run(job.folder / "run.trec", results, index.spec.inputs["model"][0])
    empty = sum(not documents for documents in results.values())
    if empty:
        log.info("%d queries retrieved no document", empty)
    return {
        "queries": len(results),
        "retrieved": sum(map(len, results.values())),
        "queries_without_results": empty,
        "searching_seconds": round(seconds, 3),
        "queries_per_second": round(len(results) / seconds, 1),
    }


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add `--device` and `--scratch`."""
    add_device_option(parser)
    parser.add_argument("--scratch", help="a folder for what PLAID writes, $VARIABLES in it replaced (TMPDIR)")


def search_index(
    index: Artifact, queries: TokenVectors, depth: int, device: str, scratch: str | None = None
) -> Iterator[tuple[str, Hits]]:
    """Search an index of either kind for queries; yield each query's id and its best documents.

    Raises:
        UserError: `scratch`, where PLAID merges its files, is no folder, or has too little room.
    """
    if index.facts["kind"] == "exact":
        documents = TokenVectors.open(index.file("documents.safetensors"), index.file("documents.parquet"))
        return search_exact(documents, queries, depth, device)
    return _search_plaid(index, queries, depth, device, scratch)


def search_exact(
    documents: TokenVectors, queries: TokenVectors, depth: int, device: str = "cpu"
) -> Iterator[tuple[str, Hits]]:
    """Score all documents by MaxSim and yield each query's best; equal scores go by descending id (trec_eval's order).

    Args:
        documents: At least one.
        queries: At least one, of the same dimensions.
        depth: The number of documents for each query.
        device: Where to compute.

    Yields:
        Each query's id and hits, in the order of `queries`.
    """
    by_descending_id = sorted(range(len(documents.ids)), key=lambda position: documents.ids[position], reverse=True)
    queries_per_batch = max(1, SCORES_IN_MEMORY // len(documents.ids))
    for start in range(0, len(queries.ids), queries_per_batch):
        batch = range(start, min(start + queries_per_batch, len(queries.ids)))
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


def _search_plaid(
    index: Artifact, queries: TokenVectors, depth: int, device: str, scratch: str | None
) -> Iterator[tuple[str, Hits]]:
    from fast_plaid.search import FastPlaid

    parent = Path(os.path.expandvars(scratch) if scratch else tempfile.gettempdir())
    if not parent.is_dir():
        raise UserError(f"{parent} is no folder on this machine; name one under resources.search_index.scratch")
    merged = [name for name in index.files() if name.endswith((".codes.npy", ".residuals.npy"))]
    needed = sum(index.manifest["outputs"][name]["bytes"] for name in merged)
    check_space(
        parent, needed, "the merged files of PLAID", "name a larger folder under resources.search_index.scratch"
    )
    ids = pq.read_table(index.file("documents.parquet"))["id"].to_pylist()
    matrices = torch.split(queries.vectors, queries.lengths.tolist())
    with tempfile.TemporaryDirectory(prefix="colbert-zero-", dir=parent) as folder:
        # fast-plaid writes into the folder that it searches: give it a folder of links instead of the published one.
        for name in index.files():
            if name.startswith("plaid/"):
                (Path(folder) / Path(name).name).symlink_to(index.file(name).resolve())
        plaid = FastPlaid(index=folder, device=device)
        for start in range(0, len(queries.ids), PLAID_QUERIES_PER_BATCH):
            batch = slice(start, start + PLAID_QUERIES_PER_BATCH)
            results = plaid.search(
                [matrix.float() for matrix in matrices[batch]],
                top_k=depth,
                n_ivf_probe=PLAID_PROBES,
                n_full_scores=max(PLAID_FULL_SCORES, depth),
                show_progress=False,
                n_processes=1,
            )
            for query, hits in zip(queries.ids[batch], results, strict=True):
                yield query, [(ids[position], score) for position, score in hits]
        plaid.close()


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_search_options))
