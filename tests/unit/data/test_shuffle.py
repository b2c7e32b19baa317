"""Laws of the external shuffle: it equals one sort of all rows, for any split into files, spills and shards."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import MonkeyPatch, TempPathFactory

from colbert_zero.data import shuffle
from colbert_zero.data.shuffle import BucketRange, merge_spills, partition, plan_shards, read_counts, with_places
from colbert_zero.data.text import normalise
from colbert_zero.graph.draws import draw

TEXTS = st.text("aAbB é", min_size=1, max_size=4)
CUTS = st.lists(st.integers(0, 60), max_size=5)


def digest(text: str) -> bytes:
    """Texts that differ in case only are duplicates."""
    return hashlib.blake2b(text.lower().encode(), digest_size=16).digest()


def batches(texts: list[str], size: int = 3) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(texts), size):
        piece = texts[start : start + size]
        columns = {"text": pa.array(piece, pa.large_string()), "list": pa.array([[text] for text in piece])}
        yield with_places(columns, [digest(text) for text in piece], 7, "mine")


def expected_order(texts: list[str]) -> list[str]:
    best = {text.lower(): min(other for other in texts if other.lower() == text.lower()) for text in texts}
    return sorted(best.values(), key=lambda text: draw(7, "shuffle", "mine", digest(text).hex()))


def shuffled(folder: Path, texts: list[str], cuts: list[int], rows_per_shard: int = 5) -> tuple[list[Any], int, int]:
    """The texts of the shards, the number of duplicates left out, and the number of rows."""
    marks = sorted({0, len(texts), *(cut % (len(texts) + 1) for cut in cuts)})
    folders = []
    for number, (start, stop) in enumerate(zip(marks, marks[1:] or marks, strict=False)):
        folders.append(folder / str(number))
        partition(batches(texts[start:stop]), folders[-1])
    shard_parts = [list(merge_spills(folders, buckets)) for buckets in plan_shards(folders, rows_per_shard)]
    counts = [read_counts(folder) for folder in folders]
    duplicates = sum(left_out.total() for parts in shard_parts for _, left_out in parts) + sum(
        count["duplicates"] for count in counts
    )
    shards = [[text for table, _ in parts for text in table["text"].to_pylist()] for parts in shard_parts]
    return shards, duplicates, sum(count["rows"] for count in counts)


@settings(max_examples=60)
@given(texts=st.lists(TEXTS, min_size=1, max_size=60), cuts=CUTS, spill=st.sampled_from([1, 300, 2**26]))
def test_shards_one_after_the_other_are_all_rows_sorted(
    tmp_path_factory: TempPathFactory, texts: list[str], cuts: list[int], spill: int
) -> None:
    with MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "SPILL_BYTES", spill)
        shards, duplicates, rows = shuffled(tmp_path_factory.mktemp("a"), texts, cuts)
        backwards, _, _ = shuffled(tmp_path_factory.mktemp("b"), texts[::-1], [])
    expected = expected_order(texts)
    assert [text for shard in shards for text in shard] == expected
    assert shards == backwards
    assert rows == len(texts)
    assert duplicates == len(texts) - len(expected)


def triples(rows: list[tuple[str, list[str]]]) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(rows), 3):
        piece = rows[start : start + 3]
        columns = {
            "query": pa.array([query for query, _ in piece], pa.large_string()),
            "negatives": pa.array([texts for _, texts in piece], pa.large_list(pa.large_string())),
        }
        yield with_places(columns, [digest(query) for query, _ in piece], 7, "mine")


def merged(
    folder: Path, rows: list[tuple[str, list[str]]], cuts: list[int]
) -> tuple[list[dict[str, Any]], Counter[str], int]:
    """The rows of the shards, how many were left out and why, and how many the spills hold."""
    marks = sorted({0, len(rows), *(cut % (len(rows) + 1) for cut in cuts)})
    folders = [folder / str(number) for number in range(len(marks) - 1)]
    for part, (start, stop) in zip(folders, pairwise(marks), strict=True):
        partition(triples(rows[start:stop]), part)
    parts = [part for buckets in plan_shards(folders, 5) for part in merge_spills(folders, buckets)]
    left_out = sum((counter for _, counter in parts), Counter())
    in_spills = sum(pa.ipc.open_file(path).read_all().num_rows for path in folder.glob("*/spill-*"))
    left_out["duplicate"] += sum(read_counts(part)["duplicates"] for part in folders)
    return [row for table, _ in parts for row in table.to_pylist()], +left_out, in_spills


@settings(max_examples=150)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("aAbBc"), st.lists(st.sampled_from("xXyz"), max_size=3)), min_size=1, max_size=20
    ),
    cuts=CUTS,
    spill=st.sampled_from([1, 300, 2**26]),
)
def test_duplicates_share_their_negatives_however_the_rows_are_split(
    tmp_path_factory: TempPathFactory, rows: list[tuple[str, list[str]]], cuts: list[int], spill: int
) -> None:
    whole, left_out, _ = merged(tmp_path_factory.mktemp("a"), rows, [])
    with MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "SPILL_BYTES", spill)
        assert merged(tmp_path_factory.mktemp("b"), rows[::-1], cuts)[:2] == (whole, left_out)
    assert len(rows) == len(whole) + left_out.total()
    assert len({row["query"].lower() for row in whole}) == len(whole)
    for row in whole:
        lists = [texts for query, texts in rows if query.lower() == row["query"].lower()]
        expected = {normalise(text) for texts in lists for text in texts}
        assert {normalise(text) for text in row["negatives"]} == expected
        if len(lists) == 1:
            assert row["negatives"] == lists[0]


def test_a_row_that_adds_no_negative_is_a_duplicate_and_one_that_does_is_merged(tmp_path: Path) -> None:
    rows = [("a", ["x"]), ("a", ["y", "X"]), ("a", ["x"]), ("A", []), ("b", ["z"])]
    found, left_out, in_spills = merged(tmp_path, rows, [])
    assert {row["query"].lower(): sorted(map(str.lower, row["negatives"])) for row in found} == {
        "a": ["x", "y"],
        "b": ["z"],
    }
    # In one order of the two, the row with y has all negatives, and those with x add nothing to it.
    assert left_out in (Counter(merged=1, duplicate=2), Counter(duplicate=3))
    assert in_spills <= 4


def test_a_pair_with_endless_negatives_keeps_enough_of_them(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "MOST_NEGATIVES", 7)
    rows = [("a", [f"negative {number}"]) for number in range(300)]
    whole, left_out, in_spills = merged(tmp_path / "a", rows, [])
    monkeypatch.setattr(shuffle, "SPILL_BYTES", 1)
    assert merged(tmp_path / "b", rows[::-1], [100])[:2] == (whole, left_out)
    assert len(whole[0]["negatives"]) == 7
    assert left_out == Counter(merged=6, duplicate=293)
    assert in_spills <= 8


def test_buckets_decide_where_shards_end_and_nothing_else(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    texts = [f"text {number}" for number in range(1000)]
    many, _, _ = shuffled(tmp_path / "many", texts, [], rows_per_shard=100)
    monkeypatch.setattr(shuffle, "BUCKETS", 4)
    few, _, _ = shuffled(tmp_path / "few", texts, [], rows_per_shard=100)
    assert len(few) == 4
    assert all(90 < len(shard) <= 100 for shard in many[:-1])
    assert (
        [text for shard in few for text in shard] == [text for shard in many for text in shard] == expected_order(texts)
    )


def test_long_rows_make_shards_of_fewer_rows(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    texts = [f"{number:4d}" + "x" * 96 for number in range(1000)]
    monkeypatch.setattr(shuffle, "SHARD_BYTES", 22_400)
    # 100 bytes twice, and 24 of place and digest: 100 rows.
    shards, _, _ = shuffled(tmp_path, texts, [], rows_per_shard=500)
    assert all(90 < len(shard) <= 100 for shard in shards[:-1])


def test_every_place_belongs_to_one_shard(tmp_path: Path) -> None:
    partition(batches([f"{number}" for number in range(50)]), tmp_path / "0")
    ranges = plan_shards([tmp_path / "0"], 7)
    assert [ranges[0].first, ranges[-1].stop] == [0, shuffle.BUCKETS]
    assert [buckets.stop for buckets in ranges[:-1]] == [buckets.first for buckets in ranges[1:]]
    pieces = merge_spills([tmp_path / "0"], BucketRange(0, shuffle.BUCKETS))
    assert sum(table.num_rows for table, _ in pieces) == 50


def test_no_spill_stays_mapped_while_a_shard_is_made(tmp_path: Path) -> None:
    partition(batches([f"text {number}" for number in range(50)]), tmp_path / "part")
    (buckets,) = plan_shards([tmp_path / "part"], 100)
    for table, _ in merge_spills([tmp_path / "part"], buckets):
        assert table.num_rows and str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_partitioned_file_is_not_read_again_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from batches(["a", "b"])
        raise RuntimeError("the disk")

    with pytest.raises(RuntimeError):
        partition(broken(), tmp_path / "0")
    assert list(tmp_path.iterdir()) == []
    partition(batches(["a", "b"]), tmp_path / "0", lambda: {"read": 3})
    partition(broken(), tmp_path / "0")
    assert read_counts(tmp_path / "0") == {"rows": 2, "bytes": 2 * (1 + 1 + 24), "duplicates": 0, "read": 3}
