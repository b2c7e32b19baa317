"""Retrieve the candidates of each training query with a dense encoder, among the documents of its source.

    python -m colbert_zero.mining.dense --spec JSON --threads 2 [--device auto|cpu|cuda]

The search is exact, unless the setting `approximate` is there: it computes the inner product with every document. It is
done in pieces: slices of the documents are encoded, and then slices of the queries are encoded and searched for. Memory
does not grow with either.

An approximate search looks into some lists of an inverted file, which the first job makes of the documents' vectors,
and computes the products of what it finds there. Its recall, the share of what the exact search finds that it finds as
well, is measured for some queries, drawn by the seed, before the others are searched for. Where the lists hold fewer
documents than are asked for, the search is exact.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import UserError
from colbert_zero.graph.draws import sample
from colbert_zero.machine.devices import add_device_option, choose_device
from colbert_zero.machine.pieces import FACTS_FILE, make_once
from colbert_zero.mining.candidates import Candidates, write_candidates
from colbert_zero.mining.nearest import SlicedVectors, nearest
from colbert_zero.mining.sliced import SlicedMining, parts_of
from colbert_zero.models.encoders import Encoder, Vectors, load_encoder
from colbert_zero.models.inverted_file import (
    CANDIDATES_PER_HIT,
    build_inverted_file,
    open_inverted_file,
    training_numbers,
)

QUERIES_PER_RESCORING = 64
RESCORED_BEYOND_DEPTH = 16
"""Documents to retrieve beyond the depth: before the rescoring, rounding may swap documents near the cut-off."""
VECTORS_FILE, INVERTED_FILE = "vectors.npy", "documents.faiss"
MEASURED_QUERIES = 256
"""Queries that the recall of an approximate search is measured with."""


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
        if "approximate" in self._job.settings:
            retrieved = self._approximate(queries, self._inverted_folder / INVERTED_FILE)
        else:
            retrieved = self._exact(queries)
        candidates = find(self._documents, queries, positives, self._job.settings["depth"], retrieved)
        return write_candidates(folder, candidates, self.corpus.positives, first)

    def mine(self) -> Mapping[str, Any]:
        """Write `candidates.parquet`; return facts for the manifest, of an approximate search its recall among them."""
        facts = super().mine()
        if "approximate" not in self._job.settings:
            return facts
        return {**facts, "approximate": json.loads((self._inverted_folder / FACTS_FILE).read_bytes())}

    def _exact(self, queries: Vectors) -> npt.NDArray[np.int64]:
        size = min(self._job.settings["depth"] + RESCORED_BEYOND_DEPTH, len(self._documents))
        return nearest(queries, self._documents, size, self._device)

    def _approximate(self, queries: Vectors, inverted_file: Path) -> npt.NDArray[np.int64]:
        faiss.omp_set_num_threads(self._job.threads)
        depth, count = self._job.settings["depth"], len(self._documents)
        size = min(max(depth * CANDIDATES_PER_HIT, depth + RESCORED_BEYOND_DEPTH), count)
        retrieved: npt.NDArray[np.int64] = np.sort(open_inverted_file(str(inverted_file)).search(queries, size)[1])
        # Fewer candidates than the depth mean, to who filters them, that there are no others: so these are all.
        short = (retrieved >= 0).sum(axis=1) < min(depth, count)
        if short.any():
            exact = self._exact(queries[short])
            retrieved[short] = -1
            retrieved[short, : exact.shape[1]] = exact
        return retrieved

    @cached_property
    def _inverted_folder(self) -> Path:
        """The folder with the inverted file, whose recall has been measured."""
        return make_once(self._job.state / "inverted", f"indexing the vectors of {self._job.spec.label}", self._invert)

    def _invert(self, folder: Path) -> Mapping[str, Any]:
        """Write the inverted file into a folder; return its lists and its recall.

        Raises:
            UserError: The recall is below what is asked for.
        """
        approximate, count, depth = self._job.settings["approximate"], len(self._documents), self._job.settings["depth"]
        training = self._documents.take(training_numbers(count, approximate["seed"]))
        faiss.omp_set_num_threads(self._job.threads)
        index = build_inverted_file(training, self._documents.slices, count, approximate["seed"])
        faiss.write_index(index, str(folder / INVERTED_FILE))
        rows = sample(
            list(range(len(self.corpus.queries))), MEASURED_QUERIES, approximate["seed"], "recall", self._job.spec.label
        )
        queries = self._encoder.encode_queries([self.corpus.queries[row] for row in rows])
        probed = self._approximate(queries, folder / INVERTED_FILE)
        found, exact = (
            list(find(self._documents, queries, self.corpus.positives[rows], depth, retrieved))
            for retrieved in (probed, self._exact(queries))
        )
        recall = mean_recall(found, exact)
        if recall < approximate["recall"]:
            raise UserError(
                f"{self._job.spec.label}: the approximate search finds {recall:.4f} of what the exact one does, less "
                f"than recall: {approximate['recall']:g}; ask for less, or search exactly"
            )
        return {"lists": index.nlist, "recall": round(recall, 6), "measured_queries": len(rows)}


def mean_recall(found: Sequence[Candidates], exact: Sequence[Candidates]) -> float:
    """The share of the candidates of an exact search that another one found as well, the mean over queries."""
    return fmean(
        np.isin(expected.documents, candidates.documents).mean()
        for candidates, expected in zip(found, exact, strict=True)
    )


def _refuse_nonfinite(vectors: Vectors, what: str, first: int) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise UserError(
            f"the encoder's vector of {what} {first + int(finite.argmin())} is not finite; name another model"
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


PARTS = parts_of(DenseMining)


def make(job: Job) -> Mapping[str, Any]:
    """Write `candidates.parquet`."""
    return DenseMining(job).mine()


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option, parts=PARTS))
