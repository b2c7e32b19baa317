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
from colbert_zero.machine.pieces import Part
from colbert_zero.mining.candidates import Candidates, join_candidates, write_candidates
from colbert_zero.mining.corpus import TrainingCorpus
from colbert_zero.models.lucene import LuceneSearcher, add_heap_option, write_index

DOCUMENTS_PER_PIECE = 262_144
QUERIES_PER_PIECE = 16_384
INDEX = "index"
"""The folder of a slice's index, in its piece."""


class Bm25Mining:
    """The work on one artifact: its parts, and what they share."""

    def __init__(self, job: Job) -> None:
        """Open the corpus; Lucene is started when there is something to index or to search for."""
        self._job = job
        self.corpus = TrainingCorpus.from_shards(job.input("shards"), job.state)

    def documents(self) -> Part:
        """The first part of the work: the indexes."""
        count = -(-len(self.corpus) // DOCUMENTS_PER_PIECE)
        return Part(self._job.state / "documents", count, "slices of documents indexed", self._index)

    def queries(self) -> Part:
        """The second part, once all documents are indexed: the candidates of the queries."""
        count = -(-len(self.corpus.queries) // QUERIES_PER_PIECE)
        return Part(self._job.state / "queries", count, "slices of queries searched", self._search)

    def _index(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Write the index of a slice of the documents."""
        first = number * DOCUMENTS_PER_PIECE
        (folder / INDEX).mkdir()
        texts = self.corpus.texts[first : first + DOCUMENTS_PER_PIECE]
        write_index(folder / INDEX, texts, first, self._job.options.heap_mb)
        return {"documents": len(texts)}

    def _search(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Write the candidates of a slice of the queries."""
        part, settings, options = self.documents(), self._job.settings, self._job.options
        first = number * QUERIES_PER_PIECE
        queries = self.corpus.queries[first : first + QUERIES_PER_PIECE]
        positives = self.corpus.positives[first : first + QUERIES_PER_PIECE]
        folders = [part.piece(at) / INDEX for at in range(part.count)]
        with LuceneSearcher(folders, settings["k1"], settings["b"], self._job.threads, options.heap_mb) as searcher:
            candidates = search(searcher, queries, positives, settings["depth"])
            return write_candidates(folder, candidates, self.corpus.positives, first)


def search(
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


PARTS = {"documents": lambda job: Bm25Mining(job).documents(), "queries": lambda job: Bm25Mining(job).queries()}
"""The parts of the work, which jobs can share."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `candidates.parquet`."""
    mining = Bm25Mining(job)
    mining.documents().make()
    queries = mining.queries()
    queries.make()
    return {**join_candidates(job.folder, queries), "documents": len(mining.corpus)}


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_heap_option, parts=PARTS))
