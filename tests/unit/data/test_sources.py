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
    {"q": "five", "d": "fünf", "n": "a text"},
    {"q": "six", "d": "sechs", "n": "['cut off', 'by a tool"},
]
EXPECTED = [
    {"query": "one", "document": "eins", "negatives": ["zwei", "drei"]},
    {"query": "two", "document": "zwei", "negatives": ["eins"]},
    {"query": None, "document": None, "negatives": []},
    {"query": "four", "document": None, "negatives": None},
    {"query": "five", "document": "fünf", "negatives": ["a text"]},
    {"query": "six", "document": "sechs", "negatives": ["['cut off', 'by a tool"]},
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
    with pytest.raises(UserError, match=r"a\.jsonl: none of the first 1 lines has the column 'n'; they have q, d"):
        read(source_of(tmp_path))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"b\.parquet has no column 'n'; it has q, d"):
        read(source_of(tmp_path))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"q": "caf\xe9"}\n', "3: not UTF-8"),
        (b'{"q": "one"\n', "3: not JSON"),
        (b"[1]\n", "3: a list, where a JSON object is needed"),
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


PASSAGES = [{"docid": "1", "title": "T", "text": "eins"}, {"docid": "2", "title": "", "text": "uno"}]


@pytest.mark.parametrize(
    ("value", "documents", "negatives"),
    [
        ("eins", ["eins"], ["eins"]),
        (["eins", "uno"], ["eins", "uno"], ["eins", "uno"]),
        (["eins", None, " "], ["eins"], ["eins", " "]),
        ([], [None], []),
        (PASSAGES[0], ["T eins"], ["T eins"]),
        (PASSAGES, ["T eins", "uno"], ["T eins", "uno"]),
        ([{"text": "eins"}], ["eins"], ["eins"]),
        ([["eins"]], [None], None),
        ([{"contents": "eins"}], [None], None),
        ("[deleted]", ["[deleted]"], ["[deleted]"]),
    ],
)
def test_lists_records_and_texts_are_read_as_documents_and_as_negatives(
    tmp_path: Path, value: Any, documents: list[str | None], negatives: list[str] | None
) -> None:
    rows = [{"q": "one", "d": value, "n": value}]
    (tmp_path / "a.jsonl").write_bytes(json_lines([*rows, {"q": "two", "d": "zwei"}]))
    found = read(source_of(tmp_path))
    expected = [{"query": "one", "document": text, "negatives": negatives} for text in documents]
    assert found == [*expected, {"query": "two", "document": "zwei", "negatives": []}]
    if documents != [None]:
        (tmp_path / "a.jsonl").unlink()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        assert read(source_of(tmp_path)) == expected


@pytest.mark.parametrize(
    ("written", "negatives"),
    [
        ("['eins', \"zwei's\"]", ["eins", "zwei's"]),
        ("['eins','zwei',]", ["eins", "zwei"]),
        ('["eins", "zwei"]', ["eins", "zwei"]),
        ("[{'text': 'eins'}, {'text': 'zwei', 'title': 'T'}]", ["eins", "T zwei"]),
        ("[]", []),
        ("['eins', None]", ["eins"]),
        # numpy prints no commas; Python would read one text.
        ("['eins' 'zwei']", None),
        ("['eins' 'zwei'\n 'drei']", None),
        ("['eins', 'zwei', ...]", None),
        ("['eins', __import__('os').getcwd()]", None),
        ("[1, 2]", None),
        ("('eins', 'zwei')", None),
        ("{'eins', 'zwei'}", None),
        ('{"text": "eins"}', None),
        ("array(['eins', 'zwei'], dtype=object)", None),
        ("[f'{1 + 1}', 'zwei']", None),
        ("['" + "x" * 2**22 + "', 'y']", None),
        ("[" * 10_000 + "]" * 10_000, ["[" * 10_000 + "]" * 10_000]),
    ],
)
def test_a_list_that_was_written_as_text_is_read_and_never_run(
    tmp_path: Path, written: str, negatives: list[str] | None
) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"q": "a", "d": "b", "n": written}, {"q": "a", "d": "b", "n": []}]))
    assert read(source_of(tmp_path))[0]["negatives"] == negatives


@pytest.mark.parametrize("names", ["n_*", ["n_1", "n_2", "n_10"]])
def test_negatives_may_stand_in_columns_of_their_own(tmp_path: Path, names: Any) -> None:
    row = {"q": "a", "d": "b", "n_10": "ten", "n_2": "two", "n_1": "one", "other": 7}
    (tmp_path / "a.jsonl").write_bytes(json_lines([row, {"q": "a", "d": "b", "n_2": "two"}]))
    pq.write_table(pa.Table.from_pylist([row, {**row, "n_1": None, "n_10": None}]), tmp_path / "b.parquet")
    found = read(source_of(tmp_path, columns=COLUMNS | {"negatives": names}))
    assert [row["negatives"] for row in found] == 2 * [["one", "two", "ten"], ["two"]]


def test_a_name_may_lead_into_records_and_a_name_with_a_dot_comes_first(tmp_path: Path) -> None:
    rows = [{"text": {"en": "nested"}, "text.en": "dotted", "d": [{"body": {"x": "one"}}, {"body": {"x": "two"}}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_bytes(json_lines(rows))
    for query, expected in (("text.en", "dotted"), ("text", None)):
        columns = {"query": query, "document": "d.body.x"}
        if expected is None:
            with pytest.raises(UserError, match=r"column 'text' holds records with the fields en, .* such as text\.en"):
                read(source_of(tmp_path, columns=columns))
        else:
            found = read(source_of(tmp_path, columns=columns))
            assert found == 2 * [{"query": expected, "document": text} for text in ("one", "two")]
    rows = [{"text": {"en": "nested"}, "d": "one"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_bytes(json_lines(rows))
    found = read(source_of(tmp_path, columns={"query": "text.en", "document": "d"}))
    assert [row["query"] for row in found] == ["nested", "nested"]
    with pytest.raises(UserError, match=r"a\.parquet has no column 'text\.fr'; it has text, d"):
        read(source_of(tmp_path, columns={"query": "text.fr", "document": "d"}))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("q", [1, 2], "column 'q' holds numbers such as 1, where one text is needed; if these are ids"),
        ("d", [1.5, None], "column 'd' holds numbers such as 1.5, .*; if these are ids"),
        ("n", [[1], [2]], "column 'n' holds lists of numbers such as 1, where"),
        ("d", ["7067032", "12"], "column 'd' holds nothing but numbers, such as '7067032'; if these are ids"),
        ("n", [["17"], ["18", "19"]], "column 'n' holds nothing but numbers, such as '17'; if these are ids"),
        (
            "q",
            [["an instruction", "a query"]] * 2,
            "column 'q' holds lists of text such as 'an instruction', where one",
        ),
        ("d", ["['a', 'b']", '["c"]'], "column 'd' holds lists that were written as text, .* write them as lists"),
        ("n", ["['a' 'b']", "['c' 'd']"], r"column 'n' holds text such as \"\['a' 'b'\]\", where a text, or a list"),
        ("d", [{"contents": "a"}] * 2, r"column 'd' holds records with the fields contents, .* name .* d\.contents"),
        ("q", [True, False], "column 'q' holds true or false, where one text"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_column_of_which_nothing_can_be_used_is_refused_at_its_first_rows(
    tmp_path: Path, column: str, values: list[Any], message: str, suffix: str
) -> None:
    rows = [{"q": "a", "d": "b", "n": ["c"]} | {column: value} for value in values]
    if suffix == ".jsonl":
        (tmp_path / "a.jsonl").write_bytes(json_lines(rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"a\{suffix}, {message}"):
        next(read_source(source_of(tmp_path)))


@pytest.mark.parametrize("text", [pa.string_view(), pa.binary(), pa.large_binary()])
def test_bytes_and_views_are_texts(tmp_path: Path, text: pa.DataType) -> None:
    values = pa.array([b"one", "zw\u00f6lf".encode(), None])
    table = pa.table({"q": values.cast(pa.string()).cast(text), "d": ["a", "b", "c"], "n": [["x"]] * 3})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row["query"] for row in read(source_of(tmp_path))] == ["one", "zw\u00f6lf", None]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"])] * 3 + [pa.array([["x"]])], names=["q", "q", "d", "n"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has several columns called 'q'; rename all but one"):
        read(source_of(tmp_path))
