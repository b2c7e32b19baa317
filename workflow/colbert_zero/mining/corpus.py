"""The documents of one source's shards as a corpus to mine in: each distinct text once, numbered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from colbert_zero.data.rows import RowReader, text_digest
from colbert_zero.graph.artifact import Artifact


@dataclass(frozen=True)
class TrainingCorpus:
    """The distinct documents of a source, and which of them answer which row.

    Attributes:
        texts: The documents (positives and, where the rows bring some, negatives), the first of those that
            `normalise` calls the same, in order of first occurrence. A document's number is its place here.
        queries: The query of each row.
        positive: The number of each row's own document (rows).
        group: For each row, the number of its query among the distinct ones (rows).
    """

    texts: list[str]
    queries: list[str]
    positive: npt.NDArray[np.int32]
    group: npt.NDArray[np.int32]
    _members: npt.NDArray[np.int32]
    _starts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, shards: Artifact) -> TrainingCorpus:
        """Read the corpus of a `shards/*` artifact.

        Raises:
            UserError: A file is missing, truncated or edited.
        """
        reader = RowReader(shards)
        columns = [name for name in ("query", "document", "negatives") if name in reader.schema.names]
        texts: list[str] = []
        queries: list[str] = []
        numbers: dict[bytes, int] = {}
        groups: dict[bytes, int] = {}
        positive: list[int] = []
        group: list[int] = []

        def number(document: str) -> int:
            found = numbers.setdefault(text_digest(document), len(texts))
            if found == len(texts):
                texts.append(document)
            return found

        for batch in reader.scan(columns):
            rows: dict[str, list[str]] = batch.select(["query", "document"]).to_pydict()
            negatives: Iterable[list[str]] = (
                batch.column("negatives").to_pylist() if "negatives" in columns else [[]] * batch.num_rows
            )
            for query, document, others in zip(rows["query"], rows["document"], negatives, strict=True):
                queries.append(query)
                group.append(groups.setdefault(text_digest(query), len(groups)))
                positive.append(number(document))
                for other in others:
                    number(other)

        own, of_query = np.array(positive, dtype=np.int32), np.array(group, dtype=np.int32)
        pairs = np.unique(np.stack([of_query, own], axis=1), axis=0)
        starts = np.searchsorted(pairs[:, 0], np.arange(len(groups) + 1))
        return cls(texts, queries, own, of_query, np.ascontiguousarray(pairs[:, 1]), starts)

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.texts)

    def known_positives(self, row: int) -> npt.NDArray[np.int32]:
        """The documents known to answer a row's query, ascending: its own, and those of rows with the same query."""
        group = self.group[row]
        return self._members[self._starts[group] : self._starts[group + 1]]
