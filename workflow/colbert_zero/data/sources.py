"""Rows as the sources bring them: Parquet or JSON lines with columns of any name, streamed in one form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero.data.json_lines import read_records
from colbert_zero.data.rows import ROWS_PER_GROUP
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.console import UserError


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
