"""Mining in two parts of pieces: slices of the documents are made ready, then slices of the queries are searched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import Job
from colbert_zero.machine.pieces import Part
from colbert_zero.mining.candidates import join_candidates
from colbert_zero.mining.corpus import TrainingCorpus


class SlicedMining(ABC):
    """The work on the candidates of one source.

    Attributes:
        documents_per_piece: The size of a slice of the documents.
        queries_per_piece: The size of a slice of the queries.
        corpus: The documents, and the queries.
    """

    documents_per_piece: int
    queries_per_piece = 16_384

    def __init__(self, job: Job) -> None:
        """Open the corpus; what searches is loaded when there is something to do."""
        self._job = job
        self.corpus = TrainingCorpus.of(job)

    @abstractmethod
    def prepare(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Make the slice of the documents with a number ready to be searched, in an empty folder; return facts."""

    @abstractmethod
    def search(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Write the candidates of the slice of the queries with a number into an empty folder; return facts."""

    def documents(self) -> Part:
        """The first part of the work."""
        count = -(-len(self.corpus) // self.documents_per_piece)
        return Part(self._job.state / "documents", count, "slices of documents prepared", self.prepare)

    def queries(self) -> Part:
        """The second part, once all documents are prepared."""
        count = -(-len(self.corpus.queries) // self.queries_per_piece)
        return Part(self._job.state / "queries", count, "slices of queries searched", self.search)

    def mine(self) -> Mapping[str, Any]:
        """Write `candidates.parquet`; return facts for the manifest."""
        self.documents().make()
        queries = self.queries()
        queries.make()
        return {**join_candidates(self._job.folder, queries), "documents": len(self.corpus)}


def parts_of(mining: Callable[[Job], SlicedMining]) -> Mapping[str, Callable[[Job], Part]]:
    """The parts of a miner's work, which jobs can share."""
    return {"documents": lambda job: mining(job).documents(), "queries": lambda job: mining(job).queries()}
