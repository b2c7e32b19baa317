"""Write and read the training rows of artifacts.

Shards, negatives and scores (`shards/*`, `negatives/*`, `scores/*`) are folders of `rows-00000.parquet`,
`rows-00001.parquet` ... in row groups of one size. The manifest has the number of rows of each file, so that a row's
number leads to its row group. `RowWriter` writes such folders, `RowReader` reads them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from colbert_zero.data.text import normalise
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.digests import SEPARATOR

ROWS_PER_WRITE = 512
"""Rows that are turned into a table together, where they come one by one."""
ROWS_PER_GROUP = 4096
"""To read any row, its whole row group is decoded; a scan yields one row group at a time."""

PAIR_SCHEMA = pa.schema([("query", pa.string()), ("document", pa.string())])
TRIPLE_SCHEMA = PAIR_SCHEMA.append(pa.field("negatives", pa.list_(pa.string())))
SCORED_SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("documents", pa.list_(pa.string())),
        ("raw", pa.list_(pa.float32())),
        ("scores", pa.list_(pa.float32())),
    ]
)
"""The schemas of shards: pairs, triples, or rows of teacher scores."""
ROW_FIELD = pa.field("row", pa.int64())
MINED_SCHEMA, TEACHER_SCORED_SCHEMA = TRIPLE_SCHEMA.insert(0, ROW_FIELD), SCORED_SCHEMA.insert(0, ROW_FIELD)
"""The schemas of negatives and of teacher scores; `row` is the 0-based number of the row in the shards."""


def min_max(raw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Normalise teacher scores to [0, 1], per query: `(s - min) / (max - min + 1e-8)`.

    PyLate's distillation loss normalises the student's scores in the same way, and uses the teacher's unchanged.

    Args:
        raw: Finite scores of one query's documents, or of many queries (queries x documents).

    Returns:
        The normalised scores, in the same shape.
    """
    scores = raw.astype(np.float64)
    low, high = scores.min(axis=-1, keepdims=True), scores.max(axis=-1, keepdims=True)
    normalised: npt.NDArray[np.float32] = ((scores - low) / (high - low + 1e-8)).astype(np.float32)
    return normalised


def text_digest(*texts: str) -> bytes:
    """A 16-byte digest of texts in their order; texts that `normalise` makes equal have the same digest."""
    # A normalised text never contains the separator, which counts as white space.
    return _digest(SEPARATOR.join(map(normalise, texts)).encode())


def text_digests(*columns: pa.LargeStringArray) -> list[bytes]:
    """The `text_digest` of each row of columns without nulls."""
    plain_rows = np.logical_and.reduce([_is_plain(column) for column in columns]).tolist()
    lower = pc.binary_join_element_wise(*map(pc.ascii_lower, columns), pa.scalar(SEPARATOR, pa.large_string()))
    return [
        _digest(text) if plain else text_digest(*(column[row].as_py() for column in columns))
        for row, (text, plain) in enumerate(zip(lower.cast(pa.large_binary()).to_pylist(), plain_rows, strict=True))
    ]


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _is_plain(texts: pa.LargeStringArray) -> npt.NDArray[np.bool_]:
    """Which texts are printable ASCII with only single inner spaces: `normalise` only turns these into lower case."""
    _, offsets, content = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    characters = np.frombuffer(content or b"", np.uint8)[ends[0] : ends[-1]]
    spaces = characters == ord(" ")
    # For bytes below the space, the unsigned difference wraps around to a large number.
    special = characters - np.uint8(ord(" ")) > ord("~") - ord(" ")
    special[1:] |= spaces[1:] & spaces[:-1]
    non_empty = ends[1:] > ends[:-1]
    starts, ends = (ends[:-1] - ends[0])[non_empty], (ends[1:] - ends[0])[non_empty]
    plain = np.ones(len(texts), dtype=np.bool_)
    plain[non_empty] = ~(np.logical_or.reduceat(special, starts) | spaces[starts] | spaces[ends - 1])
    return plain


class ShardWriter:
    """Writes one file of rows; the file's bytes do not depend on how the rows are split over calls of `write`.

    Attributes:
        schema: The columns.
        rows: How many rows were passed to `write`.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Open `path` for rows with the columns of `schema`."""
        self.schema, self.rows = schema, 0
        # Texts rarely repeat, so the writer would give up a dictionary half-way. Level 2 without a dictionary takes the
        # space of level 3 with one, and half the time.
        self._file = pq.ParquetWriter(
            path, schema, compression="zstd", compression_level=2, use_dictionary=False, write_statistics=False
        )
        self._pending: list[pa.Table] = []
        self._pending_rows = 0

    def write(self, rows: pa.Table) -> None:
        """Append a table of the schema."""
        self._pending.append(rows)
        self.rows += rows.num_rows
        self._pending_rows += rows.num_rows
        if self._pending_rows >= ROWS_PER_GROUP:
            self._flush(ROWS_PER_GROUP)

    def close(self) -> None:
        """Write the pending rows, and close the file."""
        if self._pending_rows:
            self._flush(1)
        self._file.close()

    def _flush(self, minimum_rows: int) -> None:
        """Write row groups while at least `minimum_rows` rows are pending."""
        table = pa.concat_tables(self._pending)
        while table.num_rows >= minimum_rows:
            # With one chunk per column, the Parquet pages depend on the rows alone.
            group = table.slice(0, ROWS_PER_GROUP).combine_chunks()
            self._file.write_table(group, row_group_size=ROWS_PER_GROUP)
            table = table.slice(ROWS_PER_GROUP)
        self._pending, self._pending_rows = [table], table.num_rows


def shard_file_name(number: int) -> str:
    """The file name of a shard."""
    return f"rows-{number:05d}.parquet"


class RowWriter:
    """Writes rows as shards of a fixed size; the last shard may be shorter.

    Attributes:
        rows_by_shard: How many rows each file has.
    """

    def __init__(self, folder: Path, schema: pa.Schema, rows_per_shard: int) -> None:
        """Write into `folder`, which exists; `rows_per_shard` rows to a file."""
        self.rows_by_shard: list[int] = []
        self._folder, self._schema, self._rows_per_shard = folder, schema, rows_per_shard
        self._shard: ShardWriter | None = None

    def __enter__(self) -> RowWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the last file; without any rows, write one empty file."""
        if error is None and self._shard is None and not self.rows_by_shard:
            self._open()
        self._close()

    @property
    def rows(self) -> int:
        """How many rows were written."""
        return sum(self.rows_by_shard) + (self._shard.rows if self._shard else 0)

    @property
    def facts(self) -> dict[str, Any]:
        """The facts for the manifest; complete once the writer is closed."""
        return row_facts(self.rows_by_shard)

    def write(self, rows: pa.Table | Sequence[Mapping[str, Any]]) -> None:
        """Append rows: a table with the schema's columns in any order, or dictionaries."""
        if not isinstance(rows, pa.Table):
            rows = pa.Table.from_pylist(list(rows), schema=self._schema)
        rows = rows.select(self._schema.names).cast(self._schema)
        while rows.num_rows:
            shard = self._shard or self._open()
            room = self._rows_per_shard - shard.rows
            shard.write(rows.slice(0, room))
            rows = rows.slice(room)
            if shard.rows == self._rows_per_shard:
                self._close()

    def write_records(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append rows that come one by one, as dictionaries; few of them are in memory at once."""
        stream = iter(records)
        while batch := list(islice(stream, ROWS_PER_WRITE)):
            self.write(batch)

    def _open(self) -> ShardWriter:
        self._shard = ShardWriter(self._folder / shard_file_name(len(self.rows_by_shard)), self._schema)
        return self._shard

    def _close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self.rows_by_shard.append(self._shard.rows)
            self._shard = None


def row_facts(rows_by_shard: Sequence[int]) -> dict[str, Any]:
    """The facts that `RowReader` needs in an artifact's manifest."""
    return {"rows": sum(rows_by_shard), "rows_by_shard": list(rows_by_shard)}


class RowReader:
    """Reads rows by their number from an artifact that `RowWriter` wrote."""

    def __init__(self, artifact: Artifact) -> None:
        """Open the rows of `artifact`; a file's digest is checked when the file is first opened."""
        self.artifact = artifact
        self._files = [shard_file_name(number) for number in range(len(artifact.facts["rows_by_shard"]))]
        self._file_ends = np.cumsum(artifact.facts["rows_by_shard"])
        self._group_start, self._group = 0, self.schema.empty_table()

    def __len__(self) -> int:
        """The number of rows."""
        return int(self._file_ends[-1])

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return pq.read_schema(self.artifact.file(self._files[0]))

    def bytes_per_row(self) -> float:
        """About how many bytes a decoded row takes: those of the first row group, uncompressed; 0 without rows."""
        first = next((file for file, end in zip(self._files, self._file_ends, strict=True) if end), None)
        if first is None:
            return 0.0
        with pq.ParquetFile(self.artifact.file(first)) as shard:
            group = shard.metadata.row_group(0)
            return float(group.total_byte_size / group.num_rows)

    def read(self, start: int, stop: int) -> pa.Table:
        """The rows `start` to `stop` (exclusive), in order.

        Raises:
            IndexError: There are no such rows.
            UserError: A file is missing, truncated or edited.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} of {self.artifact.name}, which has {len(self)}")
        pieces = []
        while start < stop:
            if not self._group_start <= start < self._group_start + self._group.num_rows:
                self._load_row_group(start)
            piece = self._group.slice(start - self._group_start, stop - start)
            pieces.append(piece)
            start += piece.num_rows
        return pa.concat_tables(pieces) if pieces else self.schema.empty_table()

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, a row group at a time, with all columns or only `columns`."""
        for file in self._files:
            with pq.ParquetFile(self.artifact.file(file)) as shard:
                yield from shard.iter_batches(ROWS_PER_GROUP, columns=None if columns is None else list(columns))

    def _load_row_group(self, row: int) -> None:
        """Decode and cache the row group of a row: batches are smaller than it, and a small source has only one."""
        shard = int(np.searchsorted(self._file_ends, row, side="right"))
        position = row - int(self._file_ends[shard - 1] if shard else 0)
        with pq.ParquetFile(self.artifact.file(self._files[shard])) as file:
            size = file.metadata.row_group(0).num_rows
            self._group = file.read_row_group(position // size)
        self._group_start = row - position % size
