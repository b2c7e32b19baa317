"""Retrieve the candidates of each training query with BM25, among the documents of its source.

    python -m colbert_zero.mining.bm25 --spec JSON --threads 2 --heap-mb 1024

The row's own document is always scored, even if it is not among the candidates. The work is done in pieces: slices of
the documents are indexed, and then slices of the queries are searched for in all indexes as one. Neither the scores nor
their order depend on the slices, for Lucene's statistics are of all indexes together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.mining.candidates import Candidates, write_candidates
from colbert_zero.mining.sliced import SlicedMining, parts_of
from colbert_zero.retrieval.lucene import LuceneSearcher, add_heap_option, write_index

INDEX = "index"
"""The folder of a slice's index, in its piece."""


class Bm25Mining(SlicedMining):
    """Mining with Lucene, which is started when there is something to index or to search for."""

    documents_per_piece = 262_144

    def prepare(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Write the index of a slice of the documents."""
        first = number * self.documents_per_piece
        (folder / INDEX).mkdir()
        texts = self.corpus.texts[first : first + self.documents_per_piece]
        write_index(folder / INDEX, texts, first, self._job.options.heap_mb)
        return {"documents": len(texts)}

    def search(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Write the candidates of a slice of the queries."""
        part, settings, options = self.documents(), self._job.settings, self._job.options
        first = number * self.queries_per_piece
        queries = self.corpus.queries[first : first + self.queries_per_piece]
        positives = self.corpus.positives[first : first + self.queries_per_piece]
        folders = [part.piece(at) / INDEX for at in range(part.count)]
        with LuceneSearcher(folders, settings["k1"], settings["b"], self._job.threads, options.heap_mb) as searcher:
            candidates = find(searcher, queries, positives, settings["depth"])
            return write_candidates(folder, candidates, self.corpus.positives, first)


def find(
    searcher: LuceneSearcher, queries: Sequence[str], positives: npt.NDArray[np.int32], depth: int
) -> Iterator[Candidates]:
    """Yield the `depth` documents with the highest scores for each query.

    Args:
        searcher: The indexes.
        queries: The queries.
        positives: The number of each query's own document (queries).
        depth: How many documents to retrieve; fewer share a term with some queries.
    """
    found = list(searcher.search(queries, depth))
    # A document scores the same whether it is searched for or scored: only those that were not found are scored.
    ranks = [np.flatnonzero(hits.documents == positive) for hits, positive in zip(found, positives, strict=True)]
    missing = [at for at, rank in enumerate(ranks) if not len(rank)]
    missing_scores = searcher.score([queries[at] for at in missing], positives[missing, None])
    for hits, rank in zip(found, ranks, strict=True):
        yield Candidates(hits.documents, hits.scores, hits.scores[rank[0]] if len(rank) else next(missing_scores)[0])


PARTS = parts_of(Bm25Mining)


def make(job: Job) -> Mapping[str, Any]:
    """Write `candidates.parquet`."""
    return Bm25Mining(job).mine()


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_heap_option, parts=PARTS))
