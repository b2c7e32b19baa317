"""The corpus to mine in: the distinct documents of one source's shards, numbered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from colbert_zero.data.rows import RowReader, text_digest
from colbert_zero.graph.artifact import Artifact


@dataclass(frozen=True)
class TrainingCorpus:
    """The distinct documents of a source, and which of them are known to answer each row's query.

    Attributes:
        texts: The documents (positives and, if the rows have some, negatives) in order of first occurrence. Of texts
            that `normalise` maps to the same string, the first one is kept. A document's number is its index here.
        queries: The query of each row.
        positives: The number of each row's own document (rows).
        query_of_row: The number of each row's query among the distinct queries (rows).
    """

    texts: list[str]
    queries: list[str]
    positives: npt.NDArray[np.int32]
    query_of_row: npt.NDArray[np.int32]
    _known_positives: npt.NDArray[np.int32]
    _known_positive_starts: npt.NDArray[np.int64]

    @classmethod
    def from_shards(cls, shards: Artifact) -> TrainingCorpus:
        """Read the corpus of a `shards/*` artifact.

        Raises:
            UserError: A file is missing, truncated or edited.
        """
        reader = RowReader(shards)
        columns = [name for name in ("query", "document", "negatives") if name in reader.schema.names]
        texts: list[str] = []
        queries: list[str] = []
        document_numbers: dict[bytes, int] = {}
        query_numbers: dict[bytes, int] = {}
        positives: list[int] = []
        query_of_row: list[int] = []

        def number_of(document: str) -> int:
            number = document_numbers.setdefault(text_digest(document), len(texts))
            if number == len(texts):
                texts.append(document)
            return number

        for batch in reader.scan(columns):
            rows: dict[str, list[str]] = batch.select(["query", "document"]).to_pydict()
            negatives: Iterable[list[str]] = (
                batch.column("negatives").to_pylist() if "negatives" in columns else [[]] * batch.num_rows
            )
            for query, document, row_negatives in zip(rows["query"], rows["document"], negatives, strict=True):
                queries.append(query)
                query_of_row.append(query_numbers.setdefault(text_digest(query), len(query_numbers)))
                positives.append(number_of(document))
                for negative in row_negatives:
                    number_of(negative)

        row_positives, row_queries = np.array(positives, dtype=np.int32), np.array(query_of_row, dtype=np.int32)
        pairs = np.unique(np.stack([row_queries, row_positives], axis=1), axis=0)
        starts = np.searchsorted(pairs[:, 0], np.arange(len(query_numbers) + 1))
        return cls(texts, queries, row_positives, row_queries, np.ascontiguousarray(pairs[:, 1]), starts)

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.texts)

    def known_positives(self, row: int) -> npt.NDArray[np.int32]:
        """Numbers of the documents known to answer a row's query, ascending: those of all rows with the same query."""
        query = self.query_of_row[row]
        return self._known_positives[self._known_positive_starts[query] : self._known_positive_starts[query + 1]]
