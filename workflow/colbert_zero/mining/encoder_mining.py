"""Mining with what makes vectors of texts: an exact search, or an approximate one whose recall is measured.

With the setting `pool`, so many documents are searched, drawn by the seed. The score of a row's own document is known
whether or not it is one of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from colbert_zero.graph.console import UserError
from colbert_zero.graph.draws import draw, sample
from colbert_zero.machine.pieces import make_once, sealed_facts
from colbert_zero.mining.candidates import Candidates, write_candidates
from colbert_zero.mining.sliced import SlicedMining

RESCORED_BEYOND_DEPTH = 16
"""Documents to retrieve beyond the depth: before the rescoring, rounding may swap documents near the cut-off."""
MEASURED_QUERIES = 256
"""Queries that the recall of an approximate search is measured with."""

Queries = TypeVar("Queries")
"""The vectors of some queries."""
Numbers = npt.NDArray[np.int64]
"""The numbers of the documents that were retrieved for some queries (queries x documents), ascending; -1 for none.

In the corpus; or, as a search returns them, among the documents that are searched."""


class EncoderMining(SlicedMining, Generic[Queries]):
    """Mining with a model. What a search retrieves is scored anew, in a way that knows neither slices nor batches."""

    @abstractmethod
    def encode_queries(self, rows: Sequence[int]) -> Queries:
        """The vectors of the queries of rows.

        Raises:
            UserError: One is not finite.
        """

    @abstractmethod
    def write_pool(self, folder: Path, pool: npt.NDArray[np.int64]) -> None:
        """Write the vectors of the documents that are searched, with these numbers, into a folder."""

    @abstractmethod
    def exact(self, queries: Queries) -> Numbers:
        """The documents with the highest scores of all, `self.size` of each query."""

    @abstractmethod
    def build(self, folder: Path, seed: int) -> Mapping[str, Any]:
        """Write what an approximate search needs into a folder; return facts."""

    @abstractmethod
    def approximate(self, queries: Queries, folder: Path) -> Numbers:
        """At least about `self.size` documents with high scores of each query, by means of what is in a folder."""

    @abstractmethod
    def find(self, queries: Queries, rows: Sequence[int], retrieved: Numbers) -> Iterator[Candidates]:
        """Yield the candidates of rows: of what was retrieved for their queries, as many as `depth` says."""

    @property
    def depth(self) -> int:
        """How many candidates a row has, or all documents if there are fewer."""
        depth: int = self._job.settings["depth"]
        return depth

    @property
    def size(self) -> int:
        """How many documents to retrieve for a query before they are scored anew."""
        return min(self.depth + RESCORED_BEYOND_DEPTH, self.searched)

    @property
    def searched(self) -> int:
        """How many documents are searched."""
        return len(self.corpus) if self._pool is None else len(self._pool)

    @cached_property
    def _pool(self) -> npt.NDArray[np.int64] | None:
        """The numbers of the documents that are searched, ascending; None for all."""
        pool, count = self._job.settings.get("pool"), len(self.corpus)
        if pool is None or pool["documents"] >= count:
            return None
        generator = np.random.default_rng(draw(pool["seed"], "pool"))
        return np.sort(generator.choice(count, pool["documents"], replace=False))

    @cached_property
    def pool_folder(self) -> Path | None:
        """The folder with the vectors of the documents that are searched; None if all are."""
        pool = self._pool
        if pool is None:
            return None

        def write(folder: Path) -> Mapping[str, Any]:
            self.write_pool(folder, pool)
            return {"documents": len(pool)}

        return make_once(self._job.state / "pool", f"drawing the pool of {self._job.spec.label}", write)

    def search(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Write the candidates of a slice of the queries."""
        rows = range(len(self.corpus.queries))[number * self.queries_per_piece : (number + 1) * self.queries_per_piece]
        queries = self.encode_queries(rows)
        if "approximate" in self._job.settings:
            retrieved = self._approximate(queries, rows, self._index_folder)
        else:
            retrieved = self._exact(queries)
        return write_candidates(folder, self.find(queries, rows, retrieved), self.corpus.positives, rows.start)

    def mine(self) -> Mapping[str, Any]:
        """Write `candidates.parquet`; return facts for the manifest, of an approximate search its recall among them."""
        facts = super().mine()
        if "approximate" not in self._job.settings:
            return facts
        return {**facts, "approximate": sealed_facts(self._index_folder)}

    def _exact(self, queries: Queries) -> Numbers:
        return self._in_corpus(self.exact(queries))

    def _in_corpus(self, retrieved: Numbers) -> Numbers:
        return retrieved if self._pool is None else np.where(retrieved >= 0, self._pool[retrieved], -1)

    def _approximate(self, queries: Queries, rows: Sequence[int], folder: Path) -> Numbers:
        retrieved = self._in_corpus(self.approximate(queries, folder))
        # Fewer candidates than the depth mean, to who filters them, that there are no others: so these are all.
        short = np.flatnonzero((retrieved >= 0).sum(axis=1) < min(self.depth, self.searched))
        if len(short):
            exact = self._exact(self.encode_queries([rows[at] for at in short.tolist()]))
            retrieved[short] = -1
            retrieved[short, : exact.shape[1]] = exact
        return retrieved

    @cached_property
    def _index_folder(self) -> Path:
        """The folder with what an approximate search needs, whose recall has been measured."""
        return make_once(self._job.state / "index", f"indexing the vectors of {self._job.spec.label}", self._build)

    def _build(self, folder: Path) -> Mapping[str, Any]:
        """Write what an approximate search needs into a folder; return its facts and its recall.

        Raises:
            UserError: The recall is below what is asked for.
        """
        approximate, label = self._job.settings["approximate"], self._job.spec.label
        facts = self.build(folder, approximate["seed"])
        every = list(range(len(self.corpus.queries)))
        rows = sample(every, MEASURED_QUERIES, approximate["seed"], "recall", label)
        queries = self.encode_queries(rows)
        found, exact = (
            list(self.find(queries, rows, retrieved))
            for retrieved in (self._approximate(queries, rows, folder), self._exact(queries))
        )
        recall = mean_recall(found, exact)
        if recall < approximate["recall"]:
            raise UserError(
                f"{label}: the approximate search finds {recall:.4f} of what the exact one does, less than recall: "
                f"{approximate['recall']:g}; ask for less, or search exactly"
            )
        return {**facts, "recall": round(recall, 6), "measured_queries": len(rows)}


def mean_recall(found: Sequence[Candidates], exact: Sequence[Candidates]) -> float:
    """The share of the candidates of an exact search that another one found as well, the mean over queries."""
    return fmean(
        np.isin(expected.documents, candidates.documents).mean()
        for candidates, expected in zip(found, exact, strict=True)
    )
