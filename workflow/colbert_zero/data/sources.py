"""Stream the rows of sources, Parquet or JSON lines with columns of any name, in one common form."""

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
    """A column of a source, and the type as which it is read; a value that cannot be converted becomes null.

    Attributes:
        name: The column's name in the file.
        type: The Arrow type of the values.
        convert: Converts a JSON value to that type, or to None.
        optional: Whether a file may lack the column.
    """

    name: str
    type: pa.DataType
    convert: Callable[[Any], Any]
    optional: bool = False


def text_column(name: str) -> Column:
    """A column of texts."""
    return Column(name, pa.string(), _to_text)


def texts_column(name: str, optional: bool = False) -> Column:
    """A column of lists of texts, or of their JSON; a null or absent value means an empty list."""
    return Column(
        name, pa.list_(pa.string()), lambda value: [] if value is None else _to_list(value, _to_text), optional
    )


def id_column(name: str) -> Column:
    """A column of ids, each a text or a whole number."""
    return Column(name, pa.string(), _to_id)


def ids_column(name: str) -> Column:
    """A column of lists of ids, or of their JSON."""
    return Column(name, pa.list_(pa.string()), lambda value: _to_list(value, _to_id))


def numbers_column(name: str) -> Column:
    """A column of lists of numbers, or of their JSON."""
    return Column(name, pa.list_(pa.float64()), lambda value: _to_list(value, _to_number))


def read_source(artifact: Artifact, files: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Stream the rows of a source, file by file.

    Args:
        artifact: A `sources/*` artifact. `settings.columns` maps `query`, `document` and `negatives` to the columns of
            its files; without this setting the files have the columns `query` and `document`. A column for negatives
            may be missing from a file if it is called `negatives`; every other column must be there.
        files: Which of its files to read; by default all.

    Returns:
        Batches of at most 4096 rows with the columns `query`, `document` and, if the settings name it, `negatives`. A
        value that is not a text (or not a list of texts) is null.

    Raises:
        UserError: A file cannot be read; the message names the file, and the line or row.
    """
    if artifact.spec.settings.get("format", "rows") != "rows":
        raise UserError(
            f"{artifact.name} holds teacher scores, not rows of query and document; use it for distillation only"
        )
    names: Mapping[str, str] = artifact.spec.settings.get("columns") or {"query": "query", "document": "document"}
    columns = {"query": text_column(names["query"]), "document": text_column(names["document"])}
    negatives = names.get("negatives")
    if negatives:
        columns["negatives"] = texts_column(negatives, optional=negatives == "negatives")
    return read_files(artifact, artifact.files() if files is None else files, columns)


def read_files(artifact: Artifact, files: Sequence[str], columns: Mapping[str, Column]) -> Iterator[pa.RecordBatch]:
    """Stream columns of an artifact's Parquet and JSON lines files.

    Args:
        artifact: The artifact that has the files.
        files: The files to read, in this order; `.parquet`, `.jsonl` or `.jsonl.gz`.
        columns: The columns to read, by the name that each has in the returned batches.

    Returns:
        Batches of at most 4096 rows.

    Raises:
        UserError: A file cannot be read; the message names the file, and the line or row.
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
        raise UserError(f"{path} is not a Parquet file: {_one_line(error)}") from None
    with file:
        available = file.schema_arrow.names
        for column in columns.values():
            if column.name not in available and not column.optional:
                raise UserError(f"{path} has no column {column.name!r}; it has {', '.join(available)}")
        names = [column.name for column in columns.values() if column.name in available]
        rows_read = 0
        try:
            for batch in file.iter_batches(ROWS_PER_GROUP, columns=names):
                arrays = {
                    name: _convert_array(batch.column(column.name), column, path, rows_read)
                    if column.name in available
                    else pa.array(map(column.convert, [None] * batch.num_rows), type=column.type)
                    for name, column in columns.items()
                }
                yield pa.RecordBatch.from_pydict(arrays)
                rows_read += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path} cannot be read after row {rows_read}: {_one_line(error)}") from None


def _convert_array(array: pa.Array, column: Column, path: Path, first_row: int) -> pa.Array:
    """Convert an array to the column's type; `first_row` is the number of its first row, for messages."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        where = f"rows {first_row} to {first_row + len(array) - 1}"
        raise UserError(f"{path}, column {column.name!r}, {where}: not UTF-8 ({_one_line(error)})") from None
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type == column.type and (array.null_count == 0 or column.type == pa.string()):
        return array
    return pa.array(map(column.convert, array.to_pylist()), type=column.type)


def _read_json_lines(path: Path, columns: Mapping[str, Column]) -> Iterator[pa.RecordBatch]:
    values: dict[str, list[Any]] = {name: [] for name in columns}
    missing = {column.name for column in columns.values() if not column.optional}
    pending = 0
    record: dict[str, Any] = {}
    for _, record in read_records(path):
        missing.difference_update(record)
        for name, column in columns.items():
            values[name].append(column.convert(record.get(column.name)))
        pending += 1
        if pending == ROWS_PER_GROUP:
            yield _record_batch(values, columns)
            values, pending = {name: [] for name in columns}, 0
    if record and missing:
        raise UserError(f"{path}: no line has {min(missing)!r}; the last line has {', '.join(record)}")
    if pending:
        yield _record_batch(values, columns)


def _record_batch(values: Mapping[str, list[Any]], columns: Mapping[str, Column]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: pa.array(values[name], type=columns[name].type) for name in columns})


def _to_text(value: Any) -> str | None:
    return value if isinstance(value, str) and _is_encodable(value) else None


def _is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode a text: JSON can escape half a surrogate pair, which is not a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_id(value: Any) -> str | None:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _to_text(value)


def _to_number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _to_list(value: Any, convert: Callable[[Any], Any]) -> list[Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    if not isinstance(value, list):
        return None
    items = [convert(item) for item in value]
    return None if any(item is None for item in items) else items


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
