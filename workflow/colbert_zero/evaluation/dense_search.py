"""Search the vectors of a dense model for a collection's judged queries.

    python -m colbert_zero.evaluation.dense_search --spec '{"kind":"runs","label":"dense.toy",...}' --threads 2

A document's score is the inner product of its vector with the query's, computed in double precision and rounded to
single precision: so it depends neither on the blocks in which documents are scored, nor on the device. An exact search
scores all documents. A search of an inverted file looks into the 64 lists whose centroids are nearest to the query, and
scores in the same way the best that it finds there by their bytes: four for each document that is asked for.

Memory holds one block of documents, the best of each query so far, and about 40 bytes for each document's id.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation.embeddings import INVERTED_FILE, Embeddings, Vectors
from colbert_zero.evaluation.trec import Hits, drop_self_match, write_run
from colbert_zero.graph.artifact import Artifact, Job, run_step
from colbert_zero.graph.console import UserError, progress
from colbert_zero.machine.devices import add_device_option, choose_device
from colbert_zero.retrieval.inverted_file import CANDIDATES_PER_HIT, open_inverted_file

DOCUMENTS_PER_BLOCK = {"cpu": 8192, "cuda": 131_072}
"""Documents whose vectors are in memory at once, in double precision."""
SCORES_PER_BLOCK = {"cpu": 2**22, "cuda": 2**26}
"""Scores (queries x documents) in memory at once; they take some 50 bytes each."""
QUERIES_PER_BATCH = 256
"""Queries for which an inverted file is searched at once."""

Keys = npt.NDArray[np.int64]
"""Hits as numbers: the greater one ranks first, and no two documents of a query have the same."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `run.trec`; return counts and times.

    Raises:
        UserError: The index holds other queries than the collection.
    """
    device = choose_device(job)
    index, collection = job.input("index"), Collection.open(job.input("collection"))
    queries, documents = Embeddings.open(index, "queries"), Embeddings.open(index, "documents")
    query_ids = queries.ids.to_pylist()
    if query_ids != list(collection.judged_queries):
        raise UserError(
            f"{index.folder} was made for other queries than those of {collection.queries_file}; "
            f"give the run the index of its own collection"
        )
    depth, drop_self = job.settings["depth"], job.settings["drop_self"]
    started = time.monotonic()
    order = IdOrder(documents.ids)
    wanted = min(depth + drop_self, len(order))
    found: Iterable[Keys]
    if index.facts["kind"] == "exact":
        found = search_exact(documents.vectors, queries.vectors, order, wanted, device)
    else:
        found = search_inverted_file(index, documents.vectors, queries.vectors, order, wanted, job.threads)
    run = {
        query: drop_self_match(query, order.hits(keys), drop_self)[:depth]
        for query, keys in zip(query_ids, found, strict=True)
    }
    seconds = time.monotonic() - started
    write_run(job.folder / "run.trec", run, index.spec.inputs["model"][0])
    return {
        "queries": len(run),
        "retrieved": sum(map(len, run.values())),
        "queries_without_results": sum(not hits for hits in run.values()),
        "searching_seconds": round(seconds, 3),
        "queries_per_second": round(len(run) / seconds, 1),
    }


class IdOrder:
    """The order of documents by id, which decides between equal scores: the greater id ranks first, as in trec_eval."""

    def __init__(self, ids: pa.ChunkedArray) -> None:
        """Sort the ids of documents, by code points as Python sorts texts."""
        self._ids = ids
        self._order: npt.NDArray[np.int64] = pc.sort_indices(ids).to_numpy().astype(np.int64)
        self.ranks = np.empty(len(ids), np.int64)
        self.ranks[self._order] = np.arange(len(ids))

    def __len__(self) -> int:
        """The number of documents."""
        return len(self._order)

    def hits(self, keys: Keys) -> Hits:
        """The ids and scores that keys of one query stand for, best first."""
        keys = np.sort(keys)[::-1]
        bits = (keys >> 32).astype(np.int32)
        scores = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).view(np.float32)
        ids = self._ids.take(pa.array(self._order[keys & 0xFFFFFFFF])).to_pylist()
        return list(zip(ids, scores.tolist(), strict=True))


def _keys(scores: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Make a key of each score: its bits, as an integer of the same order, above the rank of the document's id.

    Args:
        scores: In double precision, of any shape.
        ranks: The ranks of the documents' ids, int64, of the same shape or one that is spread over it.
    """
    # Adding zero makes -0.0 a 0.0, which has other bits. Those of negative numbers fall as the numbers rise.
    bits = (scores.to(torch.float32) + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(torch.int64) << 32) | ranks


def search_exact(documents: Vectors, queries: Vectors, order: IdOrder, depth: int, device: str = "cpu") -> Keys:
    """Score all documents for all queries, block by block, and keep the best.

    Args:
        documents: Vectors (documents x dimensions).
        queries: Vectors (queries x dimensions).
        order: The order of the documents' ids.
        depth: The number of documents for each query, at most as many as there are.
        device: Where to compute.

    Returns:
        Keys (queries x depth), in no order.
    """
    block_size = DOCUMENTS_PER_BLOCK[device]
    batch_size = max(1, SCORES_PER_BLOCK[device] // block_size)
    ranks = torch.from_numpy(order.ranks)
    batches = [
        torch.tensor(queries[start : start + batch_size], dtype=torch.float64, device=device)
        for start in range(0, len(queries), batch_size)
    ]
    best = [torch.empty((len(batch), 0), dtype=torch.int64, device=device) for batch in batches]
    starts = range(0, len(documents), block_size)
    for start in progress(starts, len(starts), "blocks of documents"):
        block = torch.tensor(documents[start : start + block_size], dtype=torch.float64, device=device).T
        block_ranks = ranks[start : start + block_size].to(device)
        for number, batch in enumerate(batches):
            keys = torch.cat([best[number], _keys(batch @ block, block_ranks)], dim=1)
            best[number] = keys.topk(min(depth, keys.shape[1]), dim=1, sorted=False).values
    return torch.cat(best).cpu().numpy()


def search_inverted_file(
    index: Artifact, documents: Vectors, queries: Vectors, order: IdOrder, depth: int, threads: int
) -> Iterator[Keys]:
    """Find candidates in an inverted file, and score them exactly.

    Args:
        index: The index, whose inverted file is mapped into memory, not read.
        documents: Vectors (documents x dimensions).
        queries: Vectors (queries x dimensions).
        order: The order of the documents' ids.
        depth: The number of documents for each query, at most as many as there are.
        threads: How many threads to use.

    Yields:
        Each query's keys: `depth` of them, fewer if the lists hold fewer.
    """
    faiss.omp_set_num_threads(threads)
    inverted_file = open_inverted_file(str(index.file(INVERTED_FILE)))
    candidates = min(depth * CANDIDATES_PER_HIT, len(documents))
    starts = range(0, len(queries), QUERIES_PER_BATCH)
    for start in progress(starts, len(starts), "batches of queries"):
        batch = np.ascontiguousarray(queries[start : start + QUERIES_PER_BATCH])
        _, found = inverted_file.search(batch, candidates)
        for query, positions in zip(batch, found, strict=True):
            # Sorted, as they lie on the disk. Where the lists hold too few, their positions are -1.
            positions = np.sort(positions[positions >= 0])
            scores = documents[positions].astype(np.float64) @ query.astype(np.float64)
            keys: Keys = _keys(torch.from_numpy(scores), torch.from_numpy(order.ranks[positions])).numpy()
            yield np.sort(keys)[::-1][:depth]


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option))
