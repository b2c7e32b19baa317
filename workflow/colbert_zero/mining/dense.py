"""Retrieve the candidates of each training query with an encoder, among the documents of its source.

    python -m colbert_zero.mining.dense --spec JSON --threads 2 [--device auto|cpu|cuda]

An encoder makes one vector of each text (`late_interaction` is for those that make one of each token). The search is
exact, unless the setting `approximate` is there: it computes the inner product with every document. It is done in
pieces: slices of the documents are encoded, and then slices of the queries are encoded and searched for. Memory does
not grow with either.

An approximate search looks into some lists of an inverted file, which the first job makes of the documents' vectors,
and computes the products of what it finds there. Its recall, the share of what the exact search finds that it finds as
well, is measured for some queries, drawn by the seed, before the others are searched for. Where the lists hold fewer
documents than are asked for, the search is exact.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import UserError
from colbert_zero.machine.devices import add_device_option, choose_device
from colbert_zero.mining.candidates import Candidates
from colbert_zero.mining.encoder_mining import EncoderMining, Numbers
from colbert_zero.mining.sliced import SlicedMining, parts_of
from colbert_zero.models.encoders import Encoder, Vectors, load_encoder
from colbert_zero.retrieval.inverted_file import (
    CANDIDATES_PER_HIT,
    build_inverted_file,
    open_inverted_file,
    training_numbers,
)
from colbert_zero.retrieval.nearest import SlicedVectors, nearest

QUERIES_PER_RESCORING = 64
VECTORS_FILE, INVERTED_FILE = "vectors.npy", "documents.faiss"


class DenseMining(EncoderMining[Vectors]):
    """Mining with an encoder of one vector per text, which is loaded when there is something to encode.

    A slice is encoded together, sorted by length so that a batch needs little padding. The last bits of a vector may
    depend on the texts beside its own, so the sizes of slices decide bytes.
    """

    documents_per_piece = 16_384

    @cached_property
    def _encoder(self) -> Encoder:
        return load_encoder(self._job, self.corpus.texts)

    @cached_property
    def _device(self) -> str:
        """Where to search: where the encoder computes. Latent semantic analysis asks for no GPU."""
        if self._job.settings["encoder"]["kind"] == "lsa":
            torch.set_num_threads(self._job.threads)
            return "cpu"
        return choose_device(self._job)

    def prepare(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Write the vectors of a slice of the documents."""
        first = number * self.documents_per_piece
        numbers = range(len(self.corpus))[first : first + self.documents_per_piece]
        vectors = self._encoder.encode_documents(self.corpus.texts[numbers.start : numbers.stop])
        _refuse_nonfinite(vectors, "document", numbers)
        np.save(folder / VECTORS_FILE, vectors, allow_pickle=False)
        return {"documents": len(vectors)}

    def encode_queries(self, rows: Sequence[int]) -> Vectors:
        """The vectors of the queries of rows (rows x dimensions)."""
        queries = self._encoder.encode_queries([self.corpus.queries[row] for row in rows])
        _refuse_nonfinite(queries, "query", rows)
        return queries

    @cached_property
    def _documents(self) -> SlicedVectors:
        part = self.documents()
        files = [part.piece(number) / VECTORS_FILE for number in range(part.count)]
        return SlicedVectors([np.load(file, mmap_mode="r", allow_pickle=False) for file in files])

    def write_pool(self, folder: Path, pool: npt.NDArray[np.int64]) -> None:
        """Write the vectors of the documents that are searched into a file."""
        shape = (len(pool), self._documents.dimensions)
        vectors: Any = np.lib.format.open_memmap(folder / VECTORS_FILE, "w+", np.float32, shape)
        for start in range(0, len(pool), self.documents_per_piece):
            some = slice(start, start + self.documents_per_piece)
            vectors[some] = self._documents.take(pool[some])
        vectors.flush()

    @cached_property
    def _searched(self) -> SlicedVectors:
        if self.pool_folder is None:
            return self._documents
        vectors = np.load(self.pool_folder / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
        starts = range(0, len(vectors), self.documents_per_piece)
        return SlicedVectors([vectors[start : start + self.documents_per_piece] for start in starts])

    def exact(self, queries: Vectors) -> Numbers:
        """The documents with the greatest inner products of all."""
        return nearest(queries, self._searched, self.size, self._device)

    def build(self, folder: Path, seed: int) -> Mapping[str, Any]:
        """Write an inverted file; return its number of lists."""
        documents = self._searched
        training = documents.take(training_numbers(len(documents), seed))
        faiss.omp_set_num_threads(self._job.threads)
        index = build_inverted_file(training, documents.slices, len(documents), seed)
        faiss.write_index(index, str(folder / INVERTED_FILE))
        return {"lists": index.nlist}

    def approximate(self, queries: Vectors, folder: Path) -> Numbers:
        """The best documents, by their bytes, of those in the nearest lists: some for each that is asked for."""
        faiss.omp_set_num_threads(self._job.threads)
        size = min(max(self.depth * CANDIDATES_PER_HIT, self.size), self.searched)
        found: Numbers = np.sort(open_inverted_file(str(folder / INVERTED_FILE)).search(queries, size)[1])
        return found

    def find(self, queries: Vectors, rows: Sequence[int], retrieved: Numbers) -> Iterator[Candidates]:
        """Yield the candidates of rows, by the inner products of what was retrieved."""
        yield from find(self._documents, queries, self.corpus.positives[np.asarray(rows)], self.depth, retrieved)


def _refuse_nonfinite(vectors: Vectors, what: str, numbers: Sequence[int]) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise UserError(
            f"the encoder's vector of {what} {numbers[int(finite.argmin())]} is not finite; name another model"
        )


def find(
    documents: SlicedVectors,
    queries: Vectors,
    positives: npt.NDArray[np.int32],
    depth: int,
    retrieved: npt.NDArray[np.int64],
) -> Iterator[Candidates]:
    """Yield the `depth` documents with the highest scores for each query, of those that were retrieved for it.

    Args:
        documents: The documents' vectors.
        queries: Vectors (queries x dimensions).
        positives: The number of each query's own document (queries).
        depth: How many documents to yield of each, or all if there are fewer.
        retrieved: The numbers of the documents to choose from (queries x documents), ascending; -1 for none.
    """
    for start in range(0, len(queries), QUERIES_PER_RESCORING):
        batch = slice(start, start + QUERIES_PER_RESCORING)
        numbers = np.unique(np.column_stack([retrieved[batch], positives[batch]]))
        numbers = numbers[numbers >= 0]
        vectors = documents.take(numbers)
        for query, of_query, positive in zip(queries[batch], retrieved[batch], positives[batch], strict=True):
            found = of_query[of_query >= 0]
            scores = _inner_products(vectors[np.searchsorted(numbers, found)], query)
            # A stable sort keeps documents with equal scores in ascending order.
            best = np.argsort(-scores, kind="stable")[:depth]
            positive_score = _inner_products(vectors[np.searchsorted(numbers, [positive])], query)[0]
            yield Candidates(found[best].astype(np.int32), scores[best], positive_score)


def _inner_products(documents: Vectors, query: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scores in a fixed order of summing: the last bits of the search's depend on the slice a document is in."""
    products: npt.NDArray[np.float64] = np.einsum("ij,j->i", documents.astype(np.float64), query.astype(np.float64))
    return products.astype(np.float32)


def mining_of(job: Job) -> SlicedMining:
    """The work on a job's candidates, with an encoder of one vector per text or of one per token."""
    if job.settings["encoder"]["kind"] != "late-interaction":
        return DenseMining(job)
    from colbert_zero.mining.late_interaction import LateInteractionMining

    return LateInteractionMining(job)


PARTS = parts_of(mining_of)


def make(job: Job) -> Mapping[str, Any]:
    """Write `candidates.parquet`."""
    return mining_of(job).mine()


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option, parts=PARTS))
