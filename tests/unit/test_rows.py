"""Laws of rows: what is written is read, whole or in part, and bad files are named."""

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import MonkeyPatch, TempPathFactory

from colbert_zero import rows as rows_module
from colbert_zero.artifact import Artifact, Spec, listing
from colbert_zero.console import UserError
from colbert_zero.rows import MINED, RowReader, RowWriter, min_max, read_source, text_digest


def artifact_of(folder: Path, kind: str, settings_: dict[str, object], facts: dict[str, object]) -> Artifact:
    return Artifact(Spec(kind, "hub.mine", settings_), {"outputs": listing(folder), "facts": facts}, folder)


def table_of(size: int) -> pa.Table:
    made = [
        {"row": row, "query": f"q{row}", "document": f"d{row} é", "negatives": [f"n{row}"] * (row % 3)}
        for row in range(size)
    ]
    return pa.Table.from_pylist(made, schema=MINED)


def written(folder: Path, pieces: list[pa.Table], rows_per_shard: int) -> Artifact:
    with RowWriter(folder, MINED, rows_per_shard) as writer:
        for piece in pieces:
            writer.write(piece)
    return artifact_of(folder, "shards", {}, dict(writer.facts))


def cut(table: pa.Table, at: list[int]) -> list[pa.Table]:
    marks = sorted({0, table.num_rows, *(mark % (table.num_rows + 1) for mark in at)})
    return [table.slice(start, stop - start) for start, stop in pairwise(marks)]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "ROWS_PER_GROUP", 4)


sizes = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(size=sizes, rows_per_shard=st.integers(1, 15), at=st.lists(st.integers(0, 100), max_size=6))
def test_bytes_do_not_depend_on_how_rows_are_handed_over(
    tmp_path_factory: TempPathFactory, size: int, rows_per_shard: int, at: list[int]
) -> None:
    table = table_of(size)
    whole = written(tmp_path_factory.mktemp("whole"), [table], rows_per_shard)
    pieces = written(tmp_path_factory.mktemp("pieces"), cut(table, at), rows_per_shard)
    assert whole.manifest == pieces.manifest


def test_pages_do_not_depend_on_how_rows_are_handed_over(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "ROWS_PER_GROUP", 4096)
    made = [{"row": row, "query": f"q{row}", "document": f"{row} " * 200, "negatives": []} for row in range(5000)]
    table = pa.Table.from_pylist(made, schema=MINED)
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
    whole = written(tmp_path / "whole", [table], 5000)
    assert written(tmp_path / "pieces", cut(table, list(range(0, 5000, 117))), 5000).manifest == whole.manifest


@settings(max_examples=60, deadline=None)
@given(size=sizes, rows_per_shard=st.integers(1, 15), ranges=st.lists(st.tuples(sizes, sizes), min_size=1, max_size=6))
def test_any_range_is_that_part_of_the_whole(
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


def test_dictionaries_are_rows_too_and_named_columns_alone_are_scanned(tmp_path: Path) -> None:
    with RowWriter(tmp_path, MINED, 10) as writer:
        for row in table_of(7).to_pylist():
            writer.write([row])
    reader = RowReader(artifact_of(tmp_path, "shards", {}, dict(writer.facts)))
    assert reader.read(0, 7).equals(table_of(7))
    assert pa.Table.from_batches(reader.scan(["query"])).equals(table_of(7).select(["query"]))


def test_no_rows_are_an_empty_table_with_the_columns(tmp_path: Path) -> None:
    reader = RowReader(written(tmp_path, [], 10))
    assert len(reader) == 0
    assert reader.read(0, 0).equals(MINED.empty_table())


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 8)])
def test_rows_that_are_not_there_are_refused(tmp_path: Path, start: int, stop: int) -> None:
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
    with pytest.raises(KeyError, match="mine"), RowWriter(tmp_path, MINED, 10) as writer:
        writer.write(table_of(3))
        raise KeyError("mine")


def test_min_max_is_per_query() -> None:
    raw = np.array([[1.0, 3.0, 2.0], [-5.0, -5.0, -1.0]], dtype=np.float32)
    assert min_max(raw).tolist() == [[0.0, 1.0, 0.5], [0.0, 0.0, 1.0]]
    assert min_max(raw[0]).tolist() == [0.0, 1.0, 0.5]
    assert min_max(raw).dtype == np.float32


@given(one=st.text(), other=st.text())
def test_a_digest_tells_pairs_apart_by_where_they_part(one: str, other: str) -> None:
    assert text_digest(f" {one.upper()}", other) == text_digest(one.upper(), f"{other}\n")
    assert text_digest("a" + one, other) != text_digest("", "a" + one + other)


# Sources

LINES: list[dict[str, Any]] = [
    {"q": "one", "d": "eins", "n": ["zwei", "drei"]},
    {"q": "two", "d": "zwei", "n": '["eins"]'},
    {"q": 3, "d": None, "n": None},
    {"q": "four", "d": "\ud800", "n": [1]},
    {"q": "five", "d": "fünf", "n": "not a list"},
]
EXPECTED = [
    {"query": "one", "document": "eins", "negatives": ["zwei", "drei"]},
    {"query": "two", "document": "zwei", "negatives": ["eins"]},
    {"query": None, "document": None, "negatives": []},
    {"query": "four", "document": None, "negatives": None},
    {"query": "five", "document": "fünf", "negatives": None},
]
COLUMNS = {"query": "q", "document": "d", "negatives": "n"}


def source_of(folder: Path, **settings_: object) -> Artifact:
    return artifact_of(folder, "sources", {"columns": COLUMNS, **settings_}, {})


def read(artifact: Artifact) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pa.Table.from_batches(read_source(artifact)).to_pylist()
    return found


def json_lines(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines_are_read_with_their_own_column_names(tmp_path: Path, suffix: str) -> None:
    content = json_lines(LINES) + b"\n"
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert read(source_of(tmp_path)) == EXPECTED


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_of_any_text_type_says_the_same(tmp_path: Path, text: pa.DataType) -> None:
    lists = pa.table(
        {
            "q": pa.array(["one", None]).cast(text),
            "d": pa.array(["eins", "zwei"]).cast(text),
            "n": pa.array([["zwei"], None], type=pa.list_(pa.string())),
            "other": [1, 2],
        }
    )
    pq.write_table(lists, tmp_path / "a.parquet")
    strings = pa.table({"q": ["one", None], "d": ["eins", "zwei"], "n": ['["zwei"]', None]})
    pq.write_table(strings, tmp_path / "b.parquet")
    found = read(source_of(tmp_path))
    assert found == 2 * [
        {"query": "one", "document": "eins", "negatives": ["zwei"]},
        {"query": None, "document": "zwei", "negatives": []},
    ]


def test_files_are_read_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines([{"q": name, "d": name, "n": []}]))
    assert [row["query"] for row in read(source_of(tmp_path))] == ["a", "b", "c"]


def test_without_named_columns_a_source_is_pairs(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query": ["one"], "document": ["eins"]}), tmp_path / "pairs.parquet")
    assert read(artifact_of(tmp_path, "sources", {}, {})) == [{"query": "one", "document": "eins"}]


def test_only_the_default_column_of_negatives_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"q": "one", "d": "eins"}]))
    pq.write_table(pa.table({"q": ["two"], "d": ["zwei"]}), tmp_path / "b.parquet")
    found = read(source_of(tmp_path, columns=COLUMNS | {"negatives": "negatives"}))
    assert [row["negatives"] for row in found] == [[], []]
    with pytest.raises(UserError, match=r"a\.jsonl: no line has 'n'; the last one has q, d"):
        read(source_of(tmp_path))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"b\.parquet has no column 'n'; it has q, d"):
        read(source_of(tmp_path))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b'{"q": "caf\xe9"}\n', "3: not UTF-8"),
        (b'{"q": "one"\n', "3: not JSON"),
        (b"[1]\n", "3: a JSON list"),
    ],
)
@pytest.mark.parametrize("compressed", [True, False])
def test_a_bad_line_is_named(tmp_path: Path, bad: bytes, says: str, compressed: bool) -> None:
    content = json_lines(LINES[:2]) + bad + json_lines(LINES[:1])
    file = tmp_path / ("a.jsonl.gz" if compressed else "a.jsonl")
    file.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(UserError) as caught:
        read(source_of(tmp_path))
    assert str(caught.value).startswith(f"{file}:{says}")


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    binary = pa.array([b"one", b"caf\xe9"])
    text = pa.StringArray.from_buffers(2, binary.buffers()[1], binary.buffers()[2])
    pq.write_table(pa.table({"q": text, "d": ["a", "b"], "n": [[""], [""]]}), file)
    with pytest.raises(UserError, match=r"a\.parquet, column 'q', rows 0 to 1: not UTF-8"):
        read(source_of(tmp_path))
    file.write_bytes(b"query,document\n")
    with pytest.raises(UserError, match=r"a\.parquet is not a Parquet file"):
        read(source_of(tmp_path))


def test_a_cut_gzip_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(LINES * 50))[:-20])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: damaged after line"):
        read(source_of(tmp_path))


def test_other_files_and_teacher_scores_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("query,document\n")
    with pytest.raises(UserError, match=r"a\.csv is neither"):
        read(source_of(tmp_path))
    with pytest.raises(UserError, match="teacher scores"):
        read(source_of(tmp_path, format="scored"))
