"""The corpus to mine in: the distinct documents of one source's shards, or of a collection and its rows, numbered.

Its texts are in Arrow files in the state folder of the artifact that is made of it, and are mapped into memory, not
read: whoever opens a corpus holds some numbers for each row, and the pages of the texts that are being used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from colbert_zero.data.beir import Collection
from colbert_zero.data.rows import ROWS_PER_GROUP, RowReader, text_digests
from colbert_zero.data.text import document_text
from colbert_zero.graph.artifact import Artifact, Job
from colbert_zero.graph.limits import CORPUS_ROLE
from colbert_zero.machine.pieces import make_once

TEXTS_SCHEMA = pa.schema([("text", pa.large_string())])


class MappedTexts(Sequence[str]):
    """Texts in an Arrow file, by their number. None is in memory before it is asked for."""

    def __init__(self, file: Path) -> None:
        """Open a file that `_TextFile` wrote."""
        batches = pa.ipc.open_file(pa.memory_map(str(file)))
        self._chunks = [batches.get_batch(number).column(0) for number in range(batches.num_record_batches)]
        self._starts = np.cumsum([0, *map(len, self._chunks)])

    def __len__(self) -> int:
        """The number of texts."""
        return int(self._starts[-1])

    @overload
    def __getitem__(self, number: int) -> str: ...

    @overload
    def __getitem__(self, number: slice) -> list[str]: ...

    def __getitem__(self, number: int | slice) -> str | list[str]:
        """A text, or a list of texts."""
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(f"text {number} of {len(self)}")
        chunk = int(np.searchsorted(self._starts, number, side="right")) - 1
        text: str = self._chunks[chunk][int(number - self._starts[chunk])].as_py()
        return text

    def __iter__(self) -> Iterator[str]:
        """All texts in order."""
        for chunk in self._chunks:
            yield from chunk.to_pylist()


@dataclass(frozen=True)
class TrainingCorpus:
    """The distinct documents to mine in, and which of them are known to answer each row's query.

    Attributes:
        texts: The documents in order of first occurrence: positives and, if the rows have some, negatives; or
            positives, and then a collection's. Of texts that `normalise` maps to the same string, the first one is
            kept. A document's number is its index here.
        queries: The query of each row.
        positives: The number of each row's own document (rows).
        query_of_row: The number of each row's query among the distinct queries (rows).
    """

    texts: Sequence[str]
    queries: Sequence[str]
    positives: npt.NDArray[np.int32]
    query_of_row: npt.NDArray[np.int32]

    @classmethod
    def of(cls, job: Job) -> TrainingCorpus:
        """Open the corpus that a job's artifact is made from.

        Raises:
            UserError: A file is missing, truncated or edited.
        """
        return cls.open(job.input("shards"), job.inputs(CORPUS_ROLE), job.state)

    @classmethod
    def open(cls, shards: Artifact, collections: Sequence[Artifact], state: Path) -> TrainingCorpus:
        """Open the corpus of a `shards/*` artifact.

        Args:
            shards: The shards.
            collections: The collection to mine in, or none: then it is all documents of the shards.
            state: The state folder of what is made from the corpus. If the corpus is not there, it is read: once, by
                one job, while those that share the work wait for it.

        Raises:
            UserError: A file is missing, truncated or edited.
        """
        doing = f"reading the corpus of {shards.name}"
        folder = make_once(state / "corpus", doing, partial(_read, shards, collections))
        positives, query_of_row = (np.load(folder / f"{name}.npy") for name in ("positives", "query_of_row"))
        return cls(
            MappedTexts(folder / "documents.arrow"), MappedTexts(folder / "queries.arrow"), positives, query_of_row
        )

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.texts)

    def known_positives(self, row: int) -> npt.NDArray[np.int32]:
        """Numbers of the documents known to answer a row's query, ascending: those of all rows with the same query."""
        documents, starts = self._known_positives
        query = self.query_of_row[row]
        return documents[starts[query] : starts[query + 1]]

    @cached_property
    def _known_positives(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """The known positives of all queries one after the other, and where those of each begin."""
        pairs = np.unique((self.query_of_row.astype(np.int64) << 32) | self.positives)
        queries = int(self.query_of_row.max(initial=-1)) + 1
        return (pairs & 0xFFFFFFFF).astype(np.int32), np.searchsorted(pairs >> 32, np.arange(queries + 1))


def _read(shards: Artifact, collections: Sequence[Artifact], folder: Path) -> Mapping[str, Any]:
    """Write a corpus. It takes some 60 bytes of memory for each text, however long the texts are."""
    reader = RowReader(shards)
    # Where there is a collection to mine in, the rows' negatives are no part of the corpus.
    columns = [name for name in ("query", "document", "negatives") if name in reader.schema.names]
    columns = columns[:2] if collections else columns
    query_digests, document_digests = bytearray(), bytearray()
    documents_of_row: list[npt.NDArray[np.int32]] = []
    for batch in reader.scan(columns):
        documents, of_row = _documents(batch)
        query_digests += b"".join(text_digests(batch.column("query").cast(pa.large_string())))
        document_digests += b"".join(text_digests(documents))
        documents_of_row.append(of_row)
    for documents in _texts_of(collections):
        document_digests += b"".join(text_digests(documents))
    query_of_row, _ = _number(query_digests)
    numbers, is_first = _number(document_digests)
    counts = np.concatenate(documents_of_row)
    np.save(folder / "positives.npy", numbers[np.cumsum(counts, dtype=np.int64) - counts], allow_pickle=False)
    np.save(folder / "query_of_row.npy", query_of_row, allow_pickle=False)
    with pa.ipc.new_file(str(folder / "queries.arrow"), TEXTS_SCHEMA) as file:
        for batch in reader.scan(["query"]):
            _write(file, batch.column("query").cast(pa.large_string()))
    seen = 0
    with pa.ipc.new_file(str(folder / "documents.arrow"), TEXTS_SCHEMA) as file:
        for documents in chain((_documents(batch)[0] for batch in reader.scan(columns)), _texts_of(collections)):
            _write(file, documents.filter(pa.array(is_first[seen : seen + len(documents)])))
            seen += len(documents)
    return {"documents": int(is_first.sum()), "rows": len(query_of_row)}


def _write(file: pa.ipc.RecordBatchFileWriter, texts: pa.LargeStringArray) -> None:
    file.write_batch(pa.record_batch([texts], schema=TEXTS_SCHEMA))


def _texts_of(collections: Sequence[Artifact]) -> Iterator[pa.LargeStringArray]:
    """The documents of collections, as models see them, without those that have no text."""
    for collection in collections:
        shown = (document_text(each.title, each.text) for each in Collection.open(collection).documents())
        texts = filter(None, shown)
        while some := list(islice(texts, ROWS_PER_GROUP)):
            yield pa.array(some, pa.large_string())


def _documents(batch: pa.RecordBatch) -> tuple[pa.LargeStringArray, npt.NDArray[np.int32]]:
    """The documents of all rows, each row's own before its negatives, and how many each row has."""
    own = batch.column("document").cast(pa.large_string())
    if "negatives" not in batch.schema.names:
        return own, np.ones(len(own), np.int32)
    negatives = batch.column("negatives")
    counts = negatives.value_lengths().to_numpy() + 1
    is_own = np.zeros(counts.sum(), np.bool_)
    is_own[np.cumsum(counts) - counts] = True
    order = np.empty(len(is_own), np.int64)
    order[is_own] = np.arange(len(own))
    order[~is_own] = np.arange(len(own), len(is_own))
    return pa.concat_arrays([own, negatives.flatten().cast(pa.large_string())]).take(pa.array(order)), counts


def _number(digests: bytearray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Number texts by the first occurrence of their digests; say which texts are the first with theirs."""
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    # A stable sort: of equal digests, the first occurrence comes first.
    order = np.lexsort(halves.T)
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    firsts = order[is_new]
    is_first = np.zeros(len(order), np.bool_)
    is_first[firsts] = True
    numbers = np.empty(len(order), np.int32)
    numbers[order] = (np.cumsum(is_first, dtype=np.int32) - 1)[firsts][np.cumsum(is_new) - 1]
    return numbers, is_first
