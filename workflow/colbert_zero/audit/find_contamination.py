"""Find the texts of the test in the training rows of one source.

    python -m colbert_zero.audit.find_contamination --spec JSON

A test text is a judged query or a judged document of a collection, the latter with its title, as a model sees it. It is
looked for among all texts of a source's shards: queries, documents and negatives. Mined negatives and the documents
that a teacher scores are documents of the same shards.

Texts match exactly if `data.text.normalise` makes them equal, and by n-gram if they share any 13 words in a row, case
and punctuation aside (`ngrams`; Brown et al. 2020). Both compare 64-bit digests: of the paper's 25 billion n-grams, one
may be taken for one of the test's 35 million by chance in one of twenty studies.

The shards are read once. A process holds the digests of the test (30 bytes for each n-gram, 100 while they are sorted)
and a part of a shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from colbert_zero.audit.ngrams import Digests, Places, ngram_digests, text_chunks
from colbert_zero.data.beir import Collection
from colbert_zero.data.rows import ROWS_PER_GROUP, RowReader, text_digests
from colbert_zero.data.text import document_text, stripped
from colbert_zero.graph.artifact import Artifact, Job, step_main
from colbert_zero.graph.console import log, progress
from colbert_zero.report.overlaps import FOUND_FILE, MATCHES, PARTS, parts_of

SIDES = ("query", "document", "documents", "negatives")
"""The columns of training rows that hold texts."""
TEXTS_PER_BATCH = 4096
"""Test texts whose digests are computed together."""
NEVER = np.iinfo(np.int64).max
"""The first row of a text that is not found."""
SLOTS_PER_DIGEST = 16
"""Slots of a bit each: at most one in so many digests that are not there falls into one that is filled."""
FOUND_SCHEMA = pa.schema(
    [
        ("collection", pa.string()),
        ("id", pa.string()),
        ("kind", pa.string()),
        ("grade", pa.int32()),
        ("match", pa.string()),
        ("side", pa.string()),
        ("row", pa.int64()),
    ]
)


class DigestTable:
    """The digests of the test's texts, to look others up in.

    A digest may belong to several texts: `owners` of each have their own range.
    """

    def __init__(self, digests: Digests, owners: npt.NDArray[np.int32]) -> None:
        """Sort `digests`; `owners` has the number of each one's text."""
        order = np.argsort(digests, kind="stable")
        ordered, self._owners = digests[order], owners[order]
        self._digests, self._starts = np.unique(ordered, return_index=True)
        # Nearly all digests that are looked up are not there. Most of them fall in a slot without any, which one bit
        # tells; the slots are the digests' first bits, so the sorted digests have sorted slots.
        slots_bits = max(10, int(SLOTS_PER_DIGEST * len(self._digests)).bit_length())
        self._shift = np.uint64(64 - slots_bits)
        slots = (self._digests >> self._shift).astype(np.int64)
        self._filled = np.zeros(2 ** (slots_bits - 3), dtype=np.uint8)
        if len(slots):
            places, firsts = np.unique(slots >> 3, return_index=True)
            self._filled[places] = np.bitwise_or.reduceat(_bits(slots), firsts)
        self._seen = {side: np.zeros(len(self._digests), dtype=np.bool_) for side in SIDES}

    def first_rows(self, side: str, digests: Digests, rows: Places) -> tuple[npt.NDArray[np.int32], Places]:
        """The texts that have one of these digests, each with the row, of those not seen on this side before.

        Args:
            side: The column that the digests come from.
            digests: What to look up, in the order of the rows.
            rows: The number of each one's row. A later call has no smaller ones.
        """
        slots = (digests >> self._shift).astype(np.int64)
        likely = np.flatnonzero(self._filled[slots >> 3] & _bits(slots))
        places = np.searchsorted(self._digests, digests[likely])
        there = places < len(self._digests)
        likely, places = likely[there], places[there]
        there = (self._digests[places] == digests[likely]) & ~self._seen[side][places]
        places, firsts = np.unique(places[there], return_index=True)
        self._seen[side][places] = True
        stops = np.append(self._starts, len(self._owners))[places + 1] if len(places) else places
        counts = stops - self._starts[places]
        before = np.cumsum(counts) - counts
        owners = self._owners[np.arange(counts.sum()) + np.repeat(self._starts[places] - before, counts)]
        return owners, np.repeat(rows[likely[there]][firsts], counts)


def _bits(slots: Places) -> npt.NDArray[np.uint8]:
    """Which bit of its byte a slot has."""
    bits: npt.NDArray[np.uint8] = np.left_shift(np.uint8(1), (slots & 7).astype(np.uint8))
    return bits


@dataclass
class TestTexts:
    """The judged texts of all collections: what is looked for.

    Attributes:
        collections: The name of each text's collection.
        ids: Each one's id.
        kinds: `query` or `document`.
        grades: The highest grade of a document, None of a query.
    """

    __test__ = False  # pytest would take it for a test

    collections: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    grades: list[int | None] = field(default_factory=list)
    _digests: dict[str, list[Digests]] = field(default_factory=lambda: {match: [] for match in MATCHES})
    _owners: dict[str, list[npt.NDArray[np.int32]]] = field(default_factory=lambda: {match: [] for match in MATCHES})

    def add(self, collection: Artifact) -> None:
        """Add the judged texts of a collection, without empty ones.

        Raises:
            UserError: A file is missing, or was edited.
        """
        batch: list[str] = []
        for kind, name, grade, text in _judged_texts(Collection.open(collection)):
            if text:
                self.collections.append(collection.name)
                self.ids.append(name)
                self.kinds.append(kind)
                self.grades.append(grade)
                batch.append(text)
            if len(batch) == TEXTS_PER_BATCH:
                self._add_digests(batch)
                batch = []
        self._add_digests(batch)

    def _add_digests(self, texts: Sequence[str]) -> None:
        first = len(self.ids) - len(texts)
        for match, digests, places in _digests(pa.array(texts, pa.large_string())):
            self._digests[match].append(digests)
            self._owners[match].append((places + first).astype(np.int32))

    def tables(self) -> dict[str, DigestTable]:
        """By match, the table of their digests, which are then no longer held beside it."""
        digests, owners = self._digests, self._owners
        self._digests, self._owners = {}, {}
        empty = np.zeros(0, np.uint64), np.zeros(0, np.int32)
        return {
            match: DigestTable(np.concatenate([empty[0], *digests[match]]), np.concatenate([empty[1], *owners[match]]))
            for match in MATCHES
        }

    def judged(self, collections: Iterable[Artifact]) -> dict[str, dict[str, int]]:
        """How many texts each part of each collection has."""
        counts = {collection.name: dict.fromkeys(PARTS, 0) for collection in collections}
        for collection, kind, grade in zip(self.collections, self.kinds, self.grades, strict=True):
            for part in parts_of(kind, grade):
                counts[collection][part] += 1
        return counts


def _judged_texts(collection: Collection) -> Iterator[tuple[str, str, int | None, str]]:
    """Yield kind, id, highest grade (of a document) and text of the judged queries and documents of a collection."""
    for query, text in collection.judged_queries.items():
        yield "query", query, None, stripped(text)
    grades: dict[str, int] = {}
    for row in collection.qrels.values():
        for document, grade in row.items():
            grades[document] = max(grade, grades.get(document, grade))
    for record in collection.documents():
        if record.id in grades:
            yield "document", record.id, grades[record.id], document_text(record.title, record.text)


def _digests(texts: pa.LargeStringArray) -> Iterator[tuple[str, Digests, Places]]:
    """Yield, for each match, digests of texts and the number of each one's text."""
    for first, chunk in text_chunks(texts):
        whole = np.frombuffer(b"".join(text_digests(chunk)), np.uint64)[::2]  # of each, the first 8 of 16 bytes
        yield "exact", whole, np.arange(first, first + len(chunk))
        digests, places = ngram_digests(chunk)
        yield "ngram", digests, places + first


def make(job: Job) -> Mapping[str, Any]:
    """Write `contamination.parquet`; return counts."""
    collections, shards = job.inputs("collections"), job.input("shards")
    texts = TestTexts()
    for collection in progress(collections, len(collections), "collections read"):
        texts.add(collection)
    tables = texts.tables()
    # By match and side, the first row that holds each text.
    first = {match: {side: np.full(len(texts.ids), NEVER) for side in SIDES} for match in MATCHES}
    read = 0
    for side, column, rows in _training_texts(shards):
        read += len(column)
        for match, digests, places in _digests(column):
            owners, found = tables[match].first_rows(side, digests, rows[places])
            np.minimum.at(first[match][side], owners, found)
    found_rows = list(_found_rows(texts, first))
    table = pa.Table.from_pylist(found_rows, schema=FOUND_SCHEMA)
    pq.write_table(table, job.folder / FOUND_FILE, compression="zstd")
    log.info("%d matches of %d judged texts in %d training texts", len(found_rows), len(texts.ids), read)
    return {
        "rows": shards.facts["rows"],
        "texts": read,
        "judged": texts.judged(collections),
        "matches": {match: sum(row["match"] == match for row in found_rows) for match in MATCHES},
    }


def _training_texts(shards: Artifact) -> Iterator[tuple[str, pa.LargeStringArray, Places]]:
    """Yield a column of texts at a time, with its name and the number of each text's row, from 0, row after row."""
    reader = RowReader(shards)
    columns = [side for side in SIDES if side in reader.schema.names]
    start = 0
    for batch in progress(reader.scan(columns), -(-len(reader) // ROWS_PER_GROUP), f"batches of {ROWS_PER_GROUP} rows"):
        for side in columns:
            column = batch.column(side)
            rows = np.arange(start, start + batch.num_rows)
            if pa.types.is_list(column.type):
                rows = rows[pc.list_parent_indices(column).to_numpy()]
                column = pc.list_flatten(column)
            yield side, column.cast(pa.large_string()), rows
        start += batch.num_rows


def _found_rows(
    texts: TestTexts, first: Mapping[str, Mapping[str, npt.NDArray[np.int64]]]
) -> Iterator[dict[str, str | int | None]]:
    """Yield the rows of `contamination.parquet`: text after text, in the order of the collections' files."""
    found = np.logical_or.reduce([rows < NEVER for by_side in first.values() for rows in by_side.values()])
    for text in np.flatnonzero(found).tolist():
        for match in MATCHES:
            for side in SIDES:
                if (row := int(first[match][side][text])) < NEVER:
                    yield {
                        "collection": texts.collections[text],
                        "id": texts.ids[text],
                        "kind": texts.kinds[text],
                        "grade": texts.grades[text],
                        "match": match,
                        "side": side,
                        "row": row,
                    }


if __name__ == "__main__":
    step_main(make, __doc__)
