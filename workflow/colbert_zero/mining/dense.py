"""Find each training query's candidates with a dense encoder, among the documents of its source.

    python -m colbert_zero.mining.dense --spec JSON --threads 2 [--device auto|cpu|cuda]

The search is exact: the inner product with every document.
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

QUERIES_AT_ONCE = 4096
SPARE = 16
"""Documents searched for beyond the depth: those at the cut may swap places by a rounding."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `candidates.parquet`."""
    corpus = TrainingCorpus.of(job.input("shards"))
    encoder = load_encoder(job, corpus.texts)
    faiss.omp_set_num_threads(job.threads)
    found = progress(search(encoder, corpus, job.settings["depth"]), len(corpus.queries), "queries")
    return {**write_candidates(job.folder, found, corpus.positive), "documents": len(corpus)}


def search(encoder: Encoder, corpus: TrainingCorpus, depth: int) -> Iterator[Candidates]:
    """The `depth` nearest documents of each row's query."""
    documents = encoder.documents(corpus.texts)
    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(documents)
    for start in range(0, len(corpus.queries), QUERIES_AT_ONCE):
        queries = encoder.queries(corpus.queries[start : start + QUERIES_AT_ONCE])
        _, found = index.search(queries, min(depth + SPARE, len(documents)))
        for query, numbers, positive in zip(queries, found, corpus.positive[start:], strict=False):
            yield _ranked(query, documents, numbers, positive, depth)


def _ranked(
    query: npt.NDArray[np.float32], documents: Vectors, found: npt.NDArray[np.int64], positive: int, depth: int
) -> Candidates:
    """Score what was found once more, in one order: faiss's last bits depend on the company a document is in."""
    numbers = np.sort(found).astype(np.int32)
    scores = _products(documents[numbers], query)
    best = np.argsort(-scores, kind="stable")[:depth]
    return Candidates(numbers[best], scores[best], _products(documents[positive][None], query)[0])


def _products(documents: Vectors, query: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    products: npt.NDArray[np.float64] = np.einsum("ij,j->i", documents.astype(np.float64), query.astype(np.float64))
    return products.astype(np.float32)


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option))
