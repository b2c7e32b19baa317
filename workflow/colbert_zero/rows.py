"""Training rows: as the sources bring them, and as the artifacts of this study hold them.

A source (`sources/*`) is Parquet or JSON lines with columns of any name; `read_source` streams it in one form. The
artifacts made from it (`shards/*`, `negatives/*`, `scores/*`) are folders of `rows-00000.parquet`, `rows-00001.parquet`
... in row groups of one size. How many rows each file has is in the manifest, so that a row's number leads to its row
group: `RowWriter` writes them, `RowReader` reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero.artifact import Artifact
from colbert_zero.console import UserError
from colbert_zero.json_lines import read_records
from colbert_zero.text import normalise

ROWS_PER_GROUP = 4096
"""A row group: what is decoded to read any of its rows, and what a stream hands out at once."""

PAIRS = pa.schema([("query", pa.string()), ("document", pa.string())])
TRIPLES = PAIRS.append(pa.field("negatives", pa.list_(pa.string())))
SCORED = pa.schema(
    [
        ("query", pa.string()),
        ("documents", pa.list_(pa.string())),
        ("raw", pa.list_(pa.float32())),
        ("scores", pa.list_(pa.float32())),
    ]
)
"""The three kinds of rows of shards."""
ROW = pa.field("row", pa.int64())
MINED, TAUGHT = TRIPLES.insert(0, ROW), SCORED.insert(0, ROW)
"""What is made of shards; `row` is the 0-based number of a row there."""


def min_max(raw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Teacher scores in [0, 1], per query: `(s - min) / (max - min + 1e-8)`.

    PyLate's distillation loss normalises the student's scores so, and takes the teacher's as they are.

    Args:
        raw: Scores of one query's documents, or of many queries (queries x documents); finite.

    Returns:
        The same shape.
    """
    scores = raw.astype(np.float64)
    low, high = scores.min(axis=-1, keepdims=True), scores.max(axis=-1, keepdims=True)
    normalised: npt.NDArray[np.float32] = ((scores - low) / (high - low + 1e-8)).astype(np.float32)
    return normalised


def text_digest(*texts: str) -> bytes:
    """16 bytes that are the same for the same texts, up to `normalise`, in the same order."""
    # No normalised text holds the separator: it counts as white space.
    return hashlib.blake2b("\x1f".join(map(normalise, texts)).encode(), digest_size=16).digest()


class ShardWriter:
    """Writes one file of rows; the bytes do not depend on how the rows were handed over.

    Attributes:
        schema: The columns.
        rows: How many rows were handed over.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Write the columns of `schema` to `path`."""
        self.schema, self.rows = schema, 0
        self._file = pq.ParquetWriter(path, schema, compression="zstd", compression_level=3, write_statistics=False)
        self._pending: list[pa.Table] = []
        self._waiting = 0

    def write(self, rows: pa.Table) -> None:
        """Append rows: a table of the schema."""
        self._pending.append(rows)
        self.rows += rows.num_rows
        self._waiting += rows.num_rows
        if self._waiting >= ROWS_PER_GROUP:
            self._flush(ROWS_PER_GROUP)

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self._waiting:
            self._flush(1)
        self._file.close()

    def _flush(self, least: int) -> None:
        """Write row groups as long as `least` rows are left."""
        table = pa.concat_tables(self._pending)
        while table.num_rows >= least:
            # One chunk per column: the pages then depend on the rows alone.
            group = table.slice(0, ROWS_PER_GROUP).combine_chunks()
            self._file.write_table(group, row_group_size=ROWS_PER_GROUP)
            table = table.slice(ROWS_PER_GROUP)
        self._pending, self._waiting = [table], table.num_rows


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"rows-{number:05d}.parquet"


class RowWriter:
    """Writes rows as shards of a fixed size, the last one shorter.

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
        """Close the last file; there is one even without rows."""
        if error is None and self._shard is None and not self.rows_by_shard:
            self._open()
        self._close()

    @property
    def rows(self) -> int:
        """How many rows were written."""
        return sum(self.rows_by_shard) + (self._shard.rows if self._shard else 0)

    @property
    def facts(self) -> dict[str, Any]:
        """What every manifest of rows holds; complete once the writer is closed."""
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

    def _open(self) -> ShardWriter:
        self._shard = ShardWriter(self._folder / shard_name(len(self.rows_by_shard)), self._schema)
        return self._shard

    def _close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self.rows_by_shard.append(self._shard.rows)
            self._shard = None


def row_facts(rows_by_shard: Sequence[int]) -> dict[str, Any]:
    """The facts of an artifact of rows that `RowReader` needs."""
    return {"rows": sum(rows_by_shard), "rows_by_shard": list(rows_by_shard)}


class RowReader:
    """Reads the rows of an artifact that a `RowWriter` wrote, by number."""

    def __init__(self, artifact: Artifact) -> None:
        """Read the rows of `artifact`; each file's digest is checked when it is first opened."""
        self.artifact = artifact
        self._files = [shard_name(number) for number in range(len(artifact.facts["rows_by_shard"]))]
        self._ends = np.cumsum(artifact.facts["rows_by_shard"])
        self._first, self._group = 0, self.schema.empty_table()

    def __len__(self) -> int:
        """The number of rows."""
        return int(self._ends[-1])

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return pq.read_schema(self.artifact.file(self._files[0]))

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
            if not self._first <= start < self._first + self._group.num_rows:
                self._load(start)
            piece = self._group.slice(start - self._first, stop - start)
            pieces.append(piece)
            start += piece.num_rows
        return pa.concat_tables(pieces) if pieces else self.schema.empty_table()

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in order, a row group at a time; only some columns if they are named."""
        for file in self._files:
            with pq.ParquetFile(self.artifact.file(file)) as shard:
                yield from shard.iter_batches(ROWS_PER_GROUP, columns=None if columns is None else list(columns))

    def _load(self, row: int) -> None:
        """Decode the row group of a row and keep it: a batch is smaller, and a small source has no other."""
        shard = int(np.searchsorted(self._ends, row, side="right"))
        position = row - int(self._ends[shard - 1] if shard else 0)
        with pq.ParquetFile(self.artifact.file(self._files[shard])) as file:
            size = file.metadata.row_group(0).num_rows
            self._group = file.read_row_group(position // size)
        self._first = row - position % size


@dataclass(frozen=True)
class Column:
    """A column of a source, and what it is read as; a value that is something else becomes null.

    Attributes:
        name: What the file calls it.
        type: The Arrow type it is given.
        convert: What makes that of a JSON value.
        optional: Whether a file may lack it.
    """

    name: str
    type: pa.DataType
    convert: Callable[[Any], Any]
    optional: bool = False


def text_column(name: str) -> Column:
    """A text."""
    return Column(name, pa.string(), _text)


def texts_column(name: str, optional: bool = False) -> Column:
    """A list of texts, or the JSON of one; null and absent mean an empty one."""
    return Column(name, pa.list_(pa.string()), lambda value: [] if value is None else _list_of(value, _text), optional)


def id_column(name: str) -> Column:
    """An identifier, a text or a whole number."""
    return Column(name, pa.string(), _identifier)


def ids_column(name: str) -> Column:
    """A list of identifiers, or the JSON of one."""
    return Column(name, pa.list_(pa.string()), lambda value: _list_of(value, _identifier))


def numbers_column(name: str) -> Column:
    """A list of numbers, or the JSON of one."""
    return Column(name, pa.list_(pa.float64()), lambda value: _list_of(value, _number))


def read_source(artifact: Artifact, files: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Stream a source's rows in its files' order.

    Args:
        artifact: A `sources/*` artifact. `settings.columns` says what its files call `query`, `document` and
            `negatives`; without it they are pairs called so. Only a column of another name than `negatives` must be
            there.
        files: Which of its files; by default all.

    Returns:
        Batches of at most 4096 rows with the columns `query`, `document` and, if named, `negatives`. A value that is
        no text (or no list of texts) is null.

    Raises:
        UserError: A file cannot be read: which one, and which line or row.
    """
    if artifact.spec.settings.get("format", "rows") != "rows":
        raise UserError(f"{artifact.name} holds teacher scores, not rows of query and document; use it to distil only")
    names: Mapping[str, str] = artifact.spec.settings.get("columns") or {"query": "query", "document": "document"}
    columns = {"query": text_column(names["query"]), "document": text_column(names["document"])}
    negatives = names.get("negatives")
    if negatives:
        columns["negatives"] = texts_column(negatives, optional=negatives == "negatives")
    return read_files(artifact, artifact.files() if files is None else files, columns)


def read_files(artifact: Artifact, files: Sequence[str], columns: Mapping[str, Column]) -> Iterator[pa.RecordBatch]:
    """Stream columns of an artifact's Parquet and JSON lines files.

    Args:
        artifact: Whose files.
        files: Which of them, in order; `.parquet`, `.jsonl` or `.jsonl.gz`.
        columns: What to read, by the name it is given.

    Returns:
        Batches of at most 4096 rows.

    Raises:
        UserError: A file cannot be read: which one, and which line or row.
    """
    for file in files:
        if file.endswith(".parquet"):
            yield from _read_parquet(artifact.file(file), columns)
        elif file.endswith((".jsonl", ".jsonl.gz")):
            yield from _read_json_lines(artifact.file(file), columns)
        else:
            raise UserError(f"{artifact.folder / file} is neither .parquet, .jsonl nor .jsonl.gz; name other files")


def _read_parquet(path: Path, columns: Mapping[str, Column]) -> Iterator[pa.RecordBatch]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file: {_line(error)}") from None
    with file:
        there = file.schema_arrow.names
        for column in columns.values():
            if column.name not in there and not column.optional:
                raise UserError(f"{path} has no column {column.name!r}; it has {', '.join(there)}")
        wanted = [column.name for column in columns.values() if column.name in there]
        read = 0
        try:
            for batch in file.iter_batches(ROWS_PER_GROUP, columns=wanted):
                arrays = {
                    name: _as_type(batch.column(column.name), column, path, read)
                    if column.name in there
                    else pa.array(map(column.convert, [None] * batch.num_rows), type=column.type)
                    for name, column in columns.items()
                }
                yield pa.RecordBatch.from_pydict(arrays)
                read += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path} cannot be read after row {read}: {_line(error)}") from None


def _as_type(array: pa.Array, column: Column, path: Path, first: int) -> pa.Array:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        where = f"rows {first} to {first + len(array) - 1}"
        raise UserError(f"{path}, column {column.name!r}, {where}: not UTF-8 ({_line(error)})") from None
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type == column.type and (array.null_count == 0 or column.type == pa.string()):
        return array
    return pa.array(map(column.convert, array.to_pylist()), type=column.type)


def _read_json_lines(path: Path, columns: Mapping[str, Column]) -> Iterator[pa.RecordBatch]:
    values: dict[str, list[Any]] = {name: [] for name in columns}
    missing = {column.name for column in columns.values() if not column.optional}
    waiting = 0
    record: dict[str, Any] = {}
    for _, record in read_records(path):
        missing.difference_update(record)
        for name, column in columns.items():
            values[name].append(column.convert(record.get(column.name)))
        waiting += 1
        if waiting == ROWS_PER_GROUP:
            yield _batch_of(values, columns)
            values, waiting = {name: [] for name in columns}, 0
    if record and missing:
        raise UserError(f"{path}: no line has {min(missing)!r}; the last one has {', '.join(record)}")
    if waiting:
        yield _batch_of(values, columns)


def _batch_of(values: Mapping[str, list[Any]], columns: Mapping[str, Column]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: pa.array(values[name], type=columns[name].type) for name in columns})


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and _encodable(value) else None


def _encodable(text: str) -> bool:
    """Whether UTF-8 can hold it: JSON can escape half a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _identifier(value: Any) -> str | None:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _list_of(value: Any, convert: Callable[[Any], Any]) -> list[Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    if not isinstance(value, list):
        return None
    items = [convert(item) for item in value]
    return None if any(item is None for item in items) else items


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
