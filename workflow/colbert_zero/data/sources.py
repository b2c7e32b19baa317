"""Stream the rows of sources, Parquet or JSON lines with columns of any name, in one common form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero.data.columns import Column, FieldPath, documents_column, first_names, text_column, texts_column
from colbert_zero.data.json_lines import read_records
from colbert_zero.data.rows import ROWS_PER_GROUP
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.console import UserError


def read_source(artifact: Artifact, files: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Stream the pairs of a source: like `read_rows`, but a row with a list of documents gives a pair of each."""
    return map(_one_document_each, read_rows(artifact, files))


def read_rows(artifact: Artifact, files: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Stream the rows of a source, file by file.

    Args:
        artifact: A `sources/*` artifact; `source_columns` says what its files hold.
        files: Which of its files to read; by default all.

    Returns:
        Batches of at most 4096 rows with the columns `query`, `document` and, if the settings name it, `negatives`. A
        value that is not a text (or not a list of texts) is null. `document` is a column of lists in a batch in which
        a row has several.

    Raises:
        UserError: A file cannot be read; the message names the file, and the line, row or column.
    """
    if artifact.spec.settings.get("format", "rows") != "rows":
        raise UserError(
            f"{artifact.name} holds teacher scores, not rows of query and document; use it for distillation only"
        )
    files = artifact.files() if files is None else files
    return read_files(artifact, files, source_columns(artifact.spec.settings))


def source_columns(settings: Mapping[str, Any]) -> dict[str, Column]:
    """The columns of a source's files, by what they hold.

    Args:
        settings: Those of the source. `columns` maps `query`, `document` and `negatives` to the columns of its files;
            without this setting the files have the columns `query` and `document`. A column for negatives may be
            missing from a file if it is called `negatives`; every other column must be there.
    """
    names = settings.get("columns") or {"query": "query", "document": "document"}
    columns = {"query": text_column(names["query"]), "document": documents_column(names["document"])}
    negatives = names.get("negatives")
    if negatives:
        columns["negatives"] = texts_column(negatives, optional=negatives == "negatives")
    return columns


def check_file(path: Path, columns: Mapping[str, Column]) -> None:
    """Read the first rows of a file.

    Raises:
        UserError: A column is missing, or none of the first rows can be used.
    """
    next(read_file(path, columns), None)


def read_files(artifact: Artifact, files: Sequence[str], columns: Mapping[str, Column]) -> Iterator[pa.RecordBatch]:
    """Stream columns of an artifact's Parquet and JSON lines files.

    Args:
        artifact: The artifact that has the files.
        files: The files to read, in this order; `.parquet`, `.jsonl` or `.jsonl.gz`.
        columns: The columns to read, by the name that each has in the returned batches.

    Returns:
        Batches of at most 4096 rows.

    Raises:
        UserError: A file cannot be read; the message names the file, and the line, row or column.
    """
    for file in files:
        yield from read_file(artifact.file(file), columns)


def read_file(path: Path, columns: Mapping[str, Column]) -> Iterator[pa.RecordBatch]:
    """Stream columns of one file, as `read_files` does."""
    if path.suffix == ".parquet":
        return _read_parquet(path, columns)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return _read_json_lines(path, columns)
    raise UserError(f"{path} is neither .parquet, .jsonl nor .jsonl.gz; name other files")


def _read_parquet(path: Path, columns: Mapping[str, Column]) -> Iterator[pa.RecordBatch]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file: {_one_line(error)}") from None
    with file:
        schema = file.schema_arrow
        located = {name: column.locate(schema.names) for name, column in columns.items()}
        roots = sorted({root for paths in located.values() for root, *_ in paths})
        if repeated := [name for name in roots if schema.names.count(name) > 1]:
            raise UserError(f"{path} has several columns called {repeated[0]!r}; rename all but one")
        paths = {name: [found for found in located[name] if _leads_on(schema, found)] for name in columns}
        for name, column in columns.items():
            if not paths[name] and not column.optional:
                raise UserError(f"{path} has no {column.label}; it has {first_names(schema.names)}")
        rows_read = 0
        try:
            for batch in file.iter_batches(ROWS_PER_GROUP, columns=roots):
                yield pa.RecordBatch.from_pydict(
                    {
                        name: _convert_batch(batch, column, paths[name], path, rows_read)
                        for name, column in columns.items()
                    }
                )
                rows_read += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path} cannot be read after row {rows_read}: {_one_line(error)}") from None


def _leads_on(schema: pa.Schema, path: FieldPath) -> bool:
    """Whether a Parquet file with this schema has the field of a path."""
    return _has_path(schema.field(path[0]).type, path[1:])


def _has_path(data_type: pa.DataType, path: FieldPath) -> bool:
    """Whether values of a type have the fields of a path."""
    if not path:
        return True
    if not pa.types.is_nested(data_type):
        return False
    if pa.types.is_struct(data_type):
        index = data_type.get_field_index(path[0])
        return index >= 0 and _has_path(data_type.field(index).type, path[1:])
    return hasattr(data_type, "value_type") and _has_path(data_type.value_type, path)


def _convert_batch(
    batch: pa.RecordBatch, column: Column, paths: Sequence[FieldPath], path: Path, first_row: int
) -> pa.Array:
    """Convert what a batch holds of a column; `first_row` is the number of its first row."""
    arrays = {}
    for root in {root for root, *_ in paths}:
        array = batch.column(batch.schema.get_field_index(root))
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            where = f"rows {first_row} to {first_row + len(array) - 1}"
            raise UserError(f"{path}, column {root!r}, {where}: not UTF-8 ({_one_line(error)})") from None
        arrays[root] = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    if len(paths) == 1 and len(paths[0]) == 1:
        (array,) = arrays.values()
        if pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
            array = array.cast(pa.string())
        is_list = pa.types.is_list(array.type)
        if array.type == column.type and not (is_list and (array.null_count or array.flatten().null_count)):
            if not first_row:
                values = array.to_pylist()
                column.check(path, [[value] for value in values], values)
            return array
    records = pa.RecordBatch.from_pydict(arrays).to_pylist() if arrays else [{}] * batch.num_rows
    held = [column.held(record, paths) for record in records]
    values = list(map(column.convert_all, held))
    if not first_row:
        column.check(path, held, values)
    return _array(values, column)


def _read_json_lines(path: Path, columns: Mapping[str, Column]) -> Iterator[pa.RecordBatch]:
    rows = 0
    keys: list[str] = []
    paths: dict[str, list[FieldPath]] = {}
    available: dict[str, None] = {}
    held: dict[str, list[Any]] = {name: [] for name in columns}

    def batch() -> pa.RecordBatch:
        values = {name: list(map(column.convert_all, held[name])) for name, column in columns.items()}
        if rows <= ROWS_PER_GROUP:
            for name, column in columns.items():
                if not column.optional and not column.locate(list(available)):
                    raise UserError(
                        f"{path}: none of the first {rows} lines has the {column.label}; they have "
                        f"{first_names(available)}"
                    )
                column.check(path, held[name], values[name])
        return pa.RecordBatch.from_pydict({name: _array(values[name], columns[name]) for name in columns})

    for _, record in read_records(path):
        # A line may lack keys that others have.
        if list(record) != keys:
            keys = list(record)
            paths = {name: column.locate(keys) for name, column in columns.items()}
            if rows < ROWS_PER_GROUP:
                available |= dict.fromkeys(keys)
        for name, column in columns.items():
            held[name].append(column.held(record, paths[name]))
        rows += 1
        if rows % ROWS_PER_GROUP == 0:
            yield batch()
            held = {name: [] for name in columns}
    if rows % ROWS_PER_GROUP:
        yield batch()


def _array(values: Sequence[Any], column: Column) -> pa.Array:
    """An array of converted values; of lists, if one of a column of texts is a list."""
    if any(isinstance(value, list) for value in values) and not pa.types.is_list(column.type):
        return pa.array([[value] if isinstance(value, str) else value for value in values], pa.list_(column.type))
    return pa.array(values, type=column.type)


def _one_document_each(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Repeat the rows that have several documents."""
    documents = batch.column("document")
    if not pa.types.is_list(documents.type):
        return batch
    lists = [[None] if texts is None else texts for texts in documents.to_pylist()]
    repeated = batch.take(pa.array([row for row, texts in enumerate(lists) for _ in texts]))
    texts = pa.array([text for texts in lists for text in texts], documents.type.value_type)
    return repeated.set_column(batch.schema.get_field_index("document"), "document", texts)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
