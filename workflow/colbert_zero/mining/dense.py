"""Retrieve the candidates of each training query with a dense encoder, among the documents of its source.

    python -m colbert_zero.mining.dense --spec JSON --threads 2 [--device auto|cpu|cuda]

The search is exact: it computes the inner product with every document.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import progress
from colbert_zero.machine.devices import add_device_option
from colbert_zero.mining.candidates import Candidates, write_candidates
from colbert_zero.mining.corpus import TrainingCorpus
from colbert_zero.models.encoders import Encoder, Vectors, load_encoder

QUERIES_PER_BATCH = 4096
RESCORED_BEYOND_DEPTH = 16
"""Documents to retrieve beyond the depth: before the rescoring, rounding may swap documents near the cut-off."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `candidates.parquet`."""
    corpus = TrainingCorpus.from_shards(job.input("shards"))
    encoder = load_encoder(job, corpus.texts)
    faiss.omp_set_num_threads(job.threads)
    candidates = progress(search(encoder, corpus, job.settings["depth"]), len(corpus.queries), "queries")
    return {**write_candidates(job.folder, candidates, corpus.positives), "documents": len(corpus)}


def search(encoder: Encoder, corpus: TrainingCorpus, depth: int) -> Iterator[Candidates]:
    """Yield the `depth` documents with the highest scores for each row's query."""
    documents = encoder.encode_documents(corpus.texts)
    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(documents)
    for start in range(0, len(corpus.queries), QUERIES_PER_BATCH):
        queries = encoder.encode_queries(corpus.queries[start : start + QUERIES_PER_BATCH])
        _, retrieved = index.search(queries, min(depth + RESCORED_BEYOND_DEPTH, len(documents)))
        for query, numbers, positive in zip(queries, retrieved, corpus.positives[start:], strict=False):
            yield _rescore(query, documents, numbers, positive, depth)


def _rescore(
    query: npt.NDArray[np.float32], documents: Vectors, retrieved: npt.NDArray[np.int64], positive: int, depth: int
) -> Candidates:
    """Recompute the scores in a fixed order: the last bits of faiss's scores depend on the batch a document is in."""
    numbers = np.sort(retrieved).astype(np.int32)
    scores = _inner_products(documents[numbers], query)
    best = np.argsort(-scores, kind="stable")[:depth]
    return Candidates(numbers[best], scores[best], _inner_products(documents[positive][None], query)[0])


def _inner_products(documents: Vectors, query: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    products: npt.NDArray[np.float64] = np.einsum("ij,j->i", documents.astype(np.float64), query.astype(np.float64))
    return products.astype(np.float32)


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option))
