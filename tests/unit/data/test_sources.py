"""Laws of sources: every file format gives the same rows; errors name the bad file."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colbert_zero.data.sources import read_source
from colbert_zero.graph.artifact import Artifact, Spec, file_digests
from colbert_zero.graph.console import UserError

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


def source_of(folder: Path, **settings: object) -> Artifact:
    spec = Spec("sources", "hub.mine", {"columns": COLUMNS, **settings})
    return Artifact(spec, {"outputs": file_digests(folder), "facts": {}}, folder)


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
def test_parquet_of_any_text_type_gives_the_same_rows(tmp_path: Path, text: pa.DataType) -> None:
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


def test_without_the_setting_columns_a_source_has_pairs(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query": ["one"], "document": ["eins"]}), tmp_path / "pairs.parquet")
    assert read(source_of(tmp_path, columns=None)) == [{"query": "one", "document": "eins"}]


def test_only_the_default_column_of_negatives_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"q": "one", "d": "eins"}]))
    pq.write_table(pa.table({"q": ["two"], "d": ["zwei"]}), tmp_path / "b.parquet")
    found = read(source_of(tmp_path, columns=COLUMNS | {"negatives": "negatives"}))
    assert [row["negatives"] for row in found] == [[], []]
    with pytest.raises(UserError, match=r"a\.jsonl: no line has 'n'; the last line has q, d"):
        read(source_of(tmp_path))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"b\.parquet has no column 'n'; it has q, d"):
        read(source_of(tmp_path))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"q": "caf\xe9"}\n', "3: not UTF-8"),
        (b'{"q": "one"\n', "3: not JSON"),
        (b"[1]\n", "3: a JSON list"),
    ],
)
@pytest.mark.parametrize("compressed", [True, False])
def test_a_bad_line_is_named(tmp_path: Path, bad: bytes, message: str, compressed: bool) -> None:
    content = json_lines(LINES[:2]) + bad + json_lines(LINES[:1])
    file = tmp_path / ("a.jsonl.gz" if compressed else "a.jsonl")
    file.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(UserError) as caught:
        read(source_of(tmp_path))
    assert str(caught.value).startswith(f"{file}:{message}")


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
