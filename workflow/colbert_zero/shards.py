"""Make the shards of one source: its rows validated, deduplicated, shuffled, in files of one size.

    python -m colbert_zero.shards --spec JSON --threads 2

Rows of texts (`query`, `document`, perhaps `negatives`) keep their columns. Rows of teacher scores (format `scored`)
are joined with the texts their ids stand for. A row's place is decided by a digest of seed, source and what the row
says: neither the order of a source's files, nor how many they are, nor any number of workers can change it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from colbert_zero.artifact import Artifact, Job, main_of
from colbert_zero.console import UserError, progress
from colbert_zero.draws import draw
from colbert_zero.rows import (
    PAIRS,
    SCORED,
    TRIPLES,
    Column,
    RowWriter,
    id_column,
    ids_column,
    min_max,
    numbers_column,
    read_files,
    read_source,
    text_column,
    text_digest,
)
from colbert_zero.text import document_text

ROWS_AT_ONCE = 512
"""Rows put together at a time: with 32 documents each they stay far below the 2 GB that an Arrow column may hold."""


@dataclass
class Sieve:
    """Says which rows are valid, and counts why the others are not.

    Attributes:
        minimum: Characters that a text must have.
        maximum: Characters that it may have, or None.
        read: Rows seen.
        dropped: Rows dropped, by reason.
    """

    minimum: int
    maximum: int | None
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def finding(self, what: str, text: str) -> str | None:
        """Why a stripped text is not valid, or None."""
        if not text:
            return f"no {what}"
        if len(text) < self.minimum:
            return f"{what} is too short"
        if self.maximum is not None and len(text) > self.maximum:
            return f"{what} is too long"
        return None

    def checked(self, kept: int, source: Artifact) -> Mapping[str, Any]:
        """The counts for the manifest.

        Raises:
            UserError: No row is left.
        """
        if kept == 0:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items())) or "none dropped"
            raise UserError(f"{source.name} gives no row: {self.read} read, {reasons}; mend the source or name another")
        return {"read": self.read, "dropped": dict(sorted(self.dropped.items()))}


def shuffled(digests: bytes, seed: int, source: str) -> npt.NDArray[np.int64]:
    """The order of a source's rows, each distinct one once.

    Args:
        digests: 16 bytes per row; equal bytes mean the same row.
        seed: The study's seed.
        source: The source's label.

    Returns:
        Positions of the rows to keep, in their new order; of equal rows the first is kept.
    """
    rows = [digests[start : start + 16] for start in range(0, len(digests), 16)]
    draws = np.fromiter((draw(seed, "shuffle", source, row.hex()) for row in rows), dtype=np.uint64, count=len(rows))
    keys = np.frombuffer(digests, dtype=np.dtype(">u8")).reshape(-1, 2)
    # Equal rows draw the same number, so they come to stand side by side; the sort keeps their order.
    order = np.lexsort((keys[:, 1], keys[:, 0], draws))
    ordered = keys[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return order[first].astype(np.int64)


def make(job: Job) -> Mapping[str, Any]:
    """Write `rows-*.parquet` from the source.

    Returns:
        rows, rows_per_shard, shards, read, dropped (rows by reason), characters (of all texts kept).

    Raises:
        UserError: A file cannot be read, or no valid row is left.
    """
    pa.set_cpu_count(max(1, job.threads))
    source = job.input("source")
    sieve = Sieve(job.settings["minimum_characters"], job.settings["maximum_characters"])
    if source.spec.settings.get("format", "rows") == "scored":
        return _make_scored(job, source, sieve)
    return _make_rows(job, source, sieve)


def _order(digests: bytes, job: Job, source: Artifact, sieve: Sieve) -> npt.NDArray[np.int64]:
    order = shuffled(digests, job.settings["seed"], source.spec.label)
    duplicates = len(digests) // 16 - len(order)
    if duplicates:
        sieve.dropped["duplicate"] = duplicates
    return order


def _slices(order: npt.NDArray[np.int64]) -> Iterator[tuple[pa.Array, npt.NDArray[np.int64]]]:
    """The new row numbers and the old positions, a few hundred rows at a time."""
    for start in range(0, len(order), ROWS_AT_ONCE):
        positions = order[start : start + ROWS_AT_ONCE]
        yield pa.array(np.arange(start, start + len(positions))), positions


# Rows of texts


def _make_rows(job: Job, source: Artifact, sieve: Sieve) -> Mapping[str, Any]:
    digests = bytearray()
    batches = [
        _valid(batch, sieve, digests) for batch in progress(read_source(source), None, "batches of 4096 rows read")
    ]
    order = _order(bytes(digests), job, source, sieve)
    counts = sieve.checked(len(order), source)
    # In one piece: taking rows from many chunks would put them together again each time.
    table = pa.Table.from_batches(batches).combine_chunks()
    batches.clear()
    has_negatives = pc.any(pc.greater(pc.list_value_length(table["negatives"]), 0)).as_py()
    characters = 0
    with RowWriter(job.folder, TRIPLES if has_negatives else PAIRS, job.settings["rows_per_shard"]) as writer:
        for row, positions in _slices(order):
            rows = table.take(pa.array(positions)).append_column("row", row)
            texts = [rows["query"], rows["document"], rows["negatives"].combine_chunks().flatten()]
            characters += sum(_characters(text) for text in texts)
            writer.write(rows)
    return {**writer.facts, **counts, "characters": characters}


def _valid(batch: pa.RecordBatch, sieve: Sieve, digests: bytearray) -> pa.RecordBatch:
    """The valid rows of a batch, stripped; their digests are appended to `digests`."""
    columns = batch.to_pydict()
    negatives = columns.get("negatives") or [[]] * batch.num_rows
    kept: dict[str, list[Any]] = {"query": [], "document": [], "negatives": []}
    for raw_query, raw_document, raw_others in zip(columns["query"], columns["document"], negatives, strict=True):
        query, document = _stripped(raw_query), _stripped(raw_document)
        finding = sieve.finding("query", query) or sieve.finding("document", document)
        if not finding and (raw_others is None or None in raw_others):
            finding = "negatives are not texts"
        sieve.read += 1
        if finding:
            sieve.dropped[finding] += 1
            continue
        kept["query"].append(query)
        kept["document"].append(document)
        kept["negatives"].append([text for text in map(_stripped, raw_others) if text])
        digests += text_digest(query, document)
    text = pa.large_string()
    return pa.RecordBatch.from_pydict(
        kept, pa.schema({"query": text, "document": text, "negatives": pa.large_list(text)})
    )


def _stripped(text: str | None) -> str:
    return document_text(None, text)


def _characters(texts: pa.Array | pa.ChunkedArray) -> int:
    return pc.sum(pc.utf8_length(texts)).as_py() or 0


# Rows of teacher scores


def _make_scored(job: Job, source: Artifact, sieve: Sieve) -> Mapping[str, Any]:
    queries, documents = _texts(source, "queries", "query_id"), _texts(source, "documents", "document_id")
    asked, listed, raw = _judgements(source, source.spec.settings.get("documents"), sieve)
    query_at = _positions(asked, queries)
    documents_at = _positions(listed, documents).reshape(raw.shape)
    valid, digests = [], bytearray()
    for position, (number, numbers) in enumerate(zip(query_at, documents_at, strict=True)):
        query = queries["text"][int(number)].as_py() if number >= 0 else ""
        finding = sieve.finding("query", query) or ("no document" if numbers.min() < 0 else None)
        if finding:
            sieve.dropped[finding] += 1
            continue
        valid.append(position)
        digests += text_digest(query, " ".join(map(str, numbers)))
    order = np.array(valid, dtype=np.int64)[_order(bytes(digests), job, source, sieve)]
    counts = sieve.checked(len(order), source)
    characters = 0
    with RowWriter(job.folder, SCORED, job.settings["rows_per_shard"]) as writer:
        for row, positions in _slices(order):
            texts = queries["text"].take(pa.array(query_at[positions]))
            others = documents["text"].take(pa.array(documents_at[positions].ravel()))
            characters += _characters(texts) + _characters(others)
            scores = raw[positions]
            columns = [row, texts, _lists(others, raw.shape[1])]
            columns += [_lists(pa.array(values.ravel()), raw.shape[1]) for values in (scores, min_max(scores))]
            writer.write(pa.Table.from_arrays(columns, names=SCORED.names))
    return {**writer.facts, **counts, "characters": characters, "documents": raw.shape[1]}


def _judgements(
    source: Artifact, documents: int | None, sieve: Sieve
) -> tuple[pa.ChunkedArray, pa.ChunkedArray, npt.NDArray[np.float32]]:
    """The teacher's valid rows: query ids (rows), document ids (rows x documents, flat), scores (rows x documents)."""
    columns = {
        "query": id_column("query_id"),
        "documents": ids_column("document_ids"),
        "scores": numbers_column("scores"),
    }
    size = documents
    queries, listed, judged = [], [], []
    for batch in progress(_read_role(source, "train", columns), None, "batches of 4096 rows read"):
        asked: list[str] = []
        identifiers: list[str] = []
        for row in batch.to_pylist():
            sieve.read += 1
            finding = _unusable(row)
            if not finding:
                size = size or len(row["documents"])
                if documents is None and len(row["documents"]) != size:
                    raise UserError(
                        f"{source.name}: query {row['query']} has {len(row['documents'])} documents, others {size}; "
                        "say in the registry how many to use of each (documents)"
                    )
                scores = np.array(row["scores"][:size], dtype=np.float32)
                finding = _unfit(scores, size)
            if finding:
                sieve.dropped[finding] += 1
                continue
            asked.append(row["query"])
            identifiers.extend(row["documents"][:size])
            judged.append(scores)
        queries.append(pa.array(asked, type=pa.string()))
        listed.append(pa.array(identifiers, type=pa.string()))
    if not judged:
        sieve.checked(0, source)
    return pa.chunked_array(queries), pa.chunked_array(listed), np.stack(judged)


def _unusable(row: Mapping[str, Any]) -> str | None:
    """Why a teacher's row is not one, or None."""
    if row["query"] is None:
        return "no query"
    if not row["documents"] or not row["scores"] or None in row["documents"] or None in row["scores"]:
        return "documents or scores are not lists"
    return None if len(row["documents"]) == len(row["scores"]) else "not as many scores as documents"


def _unfit(scores: npt.NDArray[np.float32], size: int) -> str | None:
    """Why nothing can be learned from a query's scores, or None."""
    if len(scores) < size:
        return "too few documents"
    if not np.isfinite(scores).all():
        return "a score is not finite"
    return "all scores are equal" if scores.min() == scores.max() else None


def _texts(source: Artifact, role: str, identifier: str) -> pa.Table:
    """The texts of a role by id, those without any left out; one chunk a column."""
    columns = {"id": id_column(identifier), "text": text_column("text")}
    schema = pa.schema({"id": pa.string(), "text": pa.large_string()})
    batches = []
    for batch in _read_role(source, role, columns):
        pairs = zip(batch["id"].to_pylist(), map(_stripped, batch["text"].to_pylist()), strict=True)
        there = [(identifier, text) for identifier, text in pairs if identifier is not None and text]
        arrays = {"id": [identifier for identifier, _ in there], "text": [text for _, text in there]}
        batches.append(pa.RecordBatch.from_pydict(arrays, schema))
    return pa.Table.from_batches(batches, schema).combine_chunks()


def _read_role(source: Artifact, role: str, columns: Mapping[str, Column]) -> Iterator[pa.RecordBatch]:
    return read_files(source, source.facts["files"][role], columns)


def _positions(identifiers: pa.ChunkedArray, texts: pa.Table) -> npt.NDArray[np.int64]:
    """Where the texts of these ids are, -1 for an id that has none."""
    found: npt.NDArray[np.int64] = pc.fill_null(pc.index_in(identifiers, texts["id"]), -1).to_numpy().astype(np.int64)
    return found


def _lists(values: pa.Array | pa.ChunkedArray, size: int) -> pa.Array:
    """Lists of `size` values each."""
    flat = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_large_string(flat.type):
        flat = flat.cast(pa.string())
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(flat) + 1, size, dtype=np.int32)), flat)


if __name__ == "__main__":
    main_of(make, __doc__)
