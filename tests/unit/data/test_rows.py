"""Laws of rows: a reader returns the rows that were written, all of them or any range."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import MonkeyPatch, TempPathFactory

from colbert_zero.data import rows as rows_module
from colbert_zero.data.rows import MINED_SCHEMA, RowReader, RowWriter, min_max, text_digest, text_digests
from colbert_zero.data.text import are_same, normalise
from colbert_zero.graph.artifact import Artifact, Spec, file_digests
from colbert_zero.graph.console import UserError

TEXTS = st.text("aZ \t\x1f\x7fé\u2003ß", max_size=6)


def artifact_of(folder: Path, facts: dict[str, object]) -> Artifact:
    return Artifact(Spec("shards", "mine", {}), {"outputs": file_digests(folder), "facts": facts}, folder)


def table_of(size: int) -> pa.Table:
    records = [
        {"row": row, "query": f"q{row}", "document": f"d{row} é", "negatives": [f"n{row}"] * (row % 3)}
        for row in range(size)
    ]
    return pa.Table.from_pylist(records, schema=MINED_SCHEMA)


def written(folder: Path, pieces: list[pa.Table], rows_per_shard: int) -> Artifact:
    with RowWriter(folder, MINED_SCHEMA, rows_per_shard) as writer:
        for piece in pieces:
            writer.write(piece)
    return artifact_of(folder, dict(writer.facts))


def split(table: pa.Table, at: list[int]) -> list[pa.Table]:
    marks = sorted({0, table.num_rows, *(mark % (table.num_rows + 1) for mark in at)})
    return [table.slice(start, stop - start) for start, stop in pairwise(marks)]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "ROWS_PER_GROUP", 4)


sizes = st.integers(1, 40)


@settings(max_examples=60)
@given(size=sizes, rows_per_shard=st.integers(1, 15), at=st.lists(st.integers(0, 100), max_size=6))
def test_bytes_do_not_depend_on_the_split_of_rows_over_writes(
    tmp_path_factory: TempPathFactory, size: int, rows_per_shard: int, at: list[int]
) -> None:
    table = table_of(size)
    whole = written(tmp_path_factory.mktemp("whole"), [table], rows_per_shard)
    pieces = written(tmp_path_factory.mktemp("pieces"), split(table, at), rows_per_shard)
    assert whole.manifest == pieces.manifest


def test_pages_do_not_depend_on_the_split_of_rows_over_writes(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "ROWS_PER_GROUP", 4096)
    records = [{"row": row, "query": f"q{row}", "document": f"{row} " * 200, "negatives": []} for row in range(5000)]
    table = pa.Table.from_pylist(records, schema=MINED_SCHEMA)
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
    whole = written(tmp_path / "whole", [table], 5000)
    assert written(tmp_path / "pieces", split(table, list(range(0, 5000, 117))), 5000).manifest == whole.manifest


@settings(max_examples=60)
@given(size=sizes, rows_per_shard=st.integers(1, 15), ranges=st.lists(st.tuples(sizes, sizes), min_size=1, max_size=6))
def test_any_range_of_rows_is_that_slice_of_the_table(
    tmp_path_factory: TempPathFactory, size: int, rows_per_shard: int, ranges: list[tuple[int, int]]
) -> None:
    table = table_of(size)
    reader = RowReader(written(tmp_path_factory.mktemp("rows"), [table], rows_per_shard))
    assert len(reader) == size
    assert pa.Table.from_batches(reader.scan()).equals(table)
    for one, other in ranges:
        start, stop = sorted((one % (size + 1), other % (size + 1)))
        assert reader.read(start, stop).equals(table.slice(start, stop - start))


def test_every_file_but_the_last_is_full_and_groups_are_small(tmp_path: Path) -> None:
    artifact = written(tmp_path, [table_of(25)], 10)
    files = [pq.ParquetFile(tmp_path / name).metadata for name in artifact.files()]
    assert artifact.files() == ["rows-00000.parquet", "rows-00001.parquet", "rows-00002.parquet"]
    assert [file.num_rows for file in files] == [10, 10, 5]
    assert [[file.row_group(i).num_rows for i in range(file.num_row_groups)] for file in files] == [
        [4, 4, 2],
        [4, 4, 2],
        [4, 1],
    ]
    assert artifact.facts == {"rows": 25, "rows_by_shard": [10, 10, 5]}


def test_rows_may_be_dictionaries_and_a_scan_may_select_columns(tmp_path: Path) -> None:
    with RowWriter(tmp_path, MINED_SCHEMA, 10) as writer:
        for row in table_of(7).to_pylist():
            writer.write([row])
    reader = RowReader(artifact_of(tmp_path, dict(writer.facts)))
    assert reader.read(0, 7).equals(table_of(7))
    assert pa.Table.from_batches(reader.scan(["query"])).equals(table_of(7).select(["query"]))


def test_no_rows_are_an_empty_table_with_the_columns(tmp_path: Path) -> None:
    reader = RowReader(written(tmp_path, [], 10))
    assert len(reader) == 0
    assert reader.read(0, 0).equals(MINED_SCHEMA.empty_table())


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 8)])
def test_a_range_beyond_the_rows_is_refused(tmp_path: Path, start: int, stop: int) -> None:
    reader = RowReader(written(tmp_path, [table_of(7)], 10))
    with pytest.raises(IndexError):
        reader.read(start, stop)


def test_an_edited_shard_is_found_when_read(tmp_path: Path) -> None:
    artifact = written(tmp_path, [table_of(20)], 10)
    content = bytearray((tmp_path / "rows-00001.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "rows-00001.parquet").write_bytes(content)
    reader = RowReader(artifact)
    reader.read(0, 10)
    with pytest.raises(UserError, match=r"rows-00001\.parquet was changed"):
        reader.read(9, 11)


def test_a_failed_writer_keeps_its_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"), RowWriter(tmp_path, MINED_SCHEMA, 10) as writer:
        writer.write(table_of(3))
        raise KeyError("mine")


def test_min_max_is_per_query() -> None:
    raw = np.array([[1.0, 3.0, 2.0], [-5.0, -5.0, -1.0]], dtype=np.float32)
    assert min_max(raw).tolist() == [[0.0, 1.0, 0.5], [0.0, 0.0, 1.0]]
    assert min_max(raw[0]).tolist() == [0.0, 1.0, 0.5]
    assert min_max(raw).dtype == np.float32


@given(one=st.text(), other=st.text())
def test_a_digest_depends_on_where_one_text_ends_and_the_next_begins(one: str, other: str) -> None:
    assert text_digest(f" {one.upper()}", other) == text_digest(one.upper(), f"{other}\n")
    assert text_digest("a" + one, other) != text_digest("", "a" + one + other)


@given(one=TEXTS.map(str.strip), other=TEXTS.map(str.strip))
def test_texts_are_the_same_if_they_are_normalised_to_the_same(one: str, other: str) -> None:
    assert are_same(one, other) == (normalise(one) == normalise(other))
    assert are_same(one, one.swapcase()) == (normalise(one) == normalise(one.swapcase()))


@given(rows=st.lists(st.tuples(TEXTS, TEXTS)), skipped=st.integers(0, 3))
def test_digests_of_columns_are_those_of_their_rows(rows: list[tuple[str, str]], skipped: int) -> None:
    columns = [pa.array([row[number] for row in rows], pa.large_string())[skipped:] for number in range(2)]
    assert text_digests(*columns) == [text_digest(*row) for row in rows[skipped:]]
