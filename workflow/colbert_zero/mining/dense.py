"""Retrieve the candidates of each training query with a dense encoder, among the documents of its source.

    python -m colbert_zero.mining.dense --spec JSON --threads 2 [--device auto|cpu|cuda]

The search is exact: it computes the inner product with every document. It is done in pieces: slices of the documents
are encoded, and then slices of the queries are encoded and searched for. Memory does not grow with either.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import UserError
from colbert_zero.machine.devices import add_device_option, choose_device
from colbert_zero.mining.candidates import Candidates, write_candidates
from colbert_zero.mining.nearest import SlicedVectors, nearest
from colbert_zero.mining.sliced import SlicedMining, parts_of
from colbert_zero.models.encoders import Encoder, Vectors, load_encoder

QUERIES_PER_RESCORING = 64
RESCORED_BEYOND_DEPTH = 16
"""Documents to retrieve beyond the depth: before the rescoring, rounding may swap documents near the cut-off."""
VECTORS_FILE = "vectors.npy"


class DenseMining(SlicedMining):
    """Mining with an encoder, which is loaded when there is something to encode.

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
        vectors = self._encoder.encode_documents(self.corpus.texts[first : first + self.documents_per_piece])
        _refuse_nonfinite(vectors, "document", first)
        np.save(folder / VECTORS_FILE, vectors, allow_pickle=False)
        return {"documents": len(vectors)}

    @cached_property
    def _documents(self) -> SlicedVectors:
        part = self.documents()
        files = [part.piece(number) / VECTORS_FILE for number in range(part.count)]
        return SlicedVectors([np.load(file, mmap_mode="r", allow_pickle=False) for file in files])

    def search(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Write the candidates of a slice of the queries."""
        first = number * self.queries_per_piece
        queries = self._encoder.encode_queries(self.corpus.queries[first : first + self.queries_per_piece])
        _refuse_nonfinite(queries, "query", first)
        positives = self.corpus.positives[first : first + self.queries_per_piece]
        candidates = find(self._documents, queries, positives, self._job.settings["depth"], self._device)
        return write_candidates(folder, candidates, self.corpus.positives, first)


def _refuse_nonfinite(vectors: Vectors, what: str, first: int) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise UserError(
            f"the encoder's vector of {what} {first + int(finite.argmin())} is not finite; name another model"
        )


def find(
    documents: SlicedVectors, queries: Vectors, positives: npt.NDArray[np.int32], depth: int, device: str = "cpu"
) -> Iterator[Candidates]:
    """Yield the `depth` documents with the highest scores for each query.

    Args:
        documents: The documents' vectors.
        queries: Vectors (queries x dimensions).
        positives: The number of each query's own document (queries).
        depth: How many documents to retrieve, or all if there are fewer.
        device: Where to search: `cpu` or `cuda`. The scores are computed again on a CPU.
    """
    retrieved = nearest(queries, documents, min(depth + RESCORED_BEYOND_DEPTH, len(documents)), device)
    for start in range(0, len(queries), QUERIES_PER_RESCORING):
        batch = slice(start, start + QUERIES_PER_RESCORING)
        numbers = np.column_stack([retrieved[batch], positives[batch]])
        unique, places = np.unique(numbers, return_inverse=True)
        vectors = documents.take(unique)
        for query, found, places_of_query in zip(queries[batch], retrieved[batch], places, strict=True):
            scores = _inner_products(vectors[places_of_query[:-1]], query)
            # A stable sort keeps documents with equal scores in ascending order.
            best = np.argsort(-scores, kind="stable")[:depth]
            positive_score = _inner_products(vectors[places_of_query[-1:]], query)[0]
            yield Candidates(found[best].astype(np.int32), scores[best], positive_score)


def _inner_products(documents: Vectors, query: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scores in a fixed order of summing: the last bits of the search's depend on the slice a document is in."""
    products: npt.NDArray[np.float64] = np.einsum("ij,j->i", documents.astype(np.float64), query.astype(np.float64))
    return products.astype(np.float32)


PARTS = parts_of(DenseMining)


def make(job: Job) -> Mapping[str, Any]:
    """Write `candidates.parquet`."""
    return DenseMining(job).mine()


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option, parts=PARTS))
