"""Laws of the external shuffle: it equals one sort of all rows, for any split into files, spills and shards."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import MonkeyPatch, TempPathFactory

from colbert_zero.data import shuffle
from colbert_zero.data.shuffle import BucketRange, merge_spills, plan_shards, with_places
from colbert_zero.data.text import normalise
from colbert_zero.graph.draws import draw

TEXTS = st.text("aAbB é", min_size=1, max_size=4)
CUTS = st.lists(st.integers(0, 60), max_size=5)
SIZES = st.sampled_from(
    [
        {"SPILL_BYTES": 2**26},
        {"SPILL_BYTES": 300, "READS_PER_SPILL": 2, "SPILLS_AT_ONCE": 3},
        {"SPILL_BYTES": 1},
        {"SPILL_BYTES": 1, "READS_PER_SPILL": 1, "SPILLS_AT_ONCE": 2},
    ]
)
"""One spill; or several, merged at once or few by few, in one step or in several."""


def digest(text: str) -> bytes:
    """Texts that differ in case only are duplicates."""
    return hashlib.blake2b(text.lower().encode(), digest_size=16).digest()


def batches(texts: list[str], size: int = 3) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(texts), size):
        piece = texts[start : start + size]
        columns = {"text": pa.array(piece, pa.large_string()), "list": pa.array([[text] for text in piece])}
        yield with_places(columns, [digest(text) for text in piece], 7, "mine")


def partition(rows: Iterable[pa.RecordBatch], folder: Path) -> dict[str, int]:
    folder.mkdir(parents=True)
    return shuffle.partition(rows, folder)


def expected_order(texts: list[str]) -> list[str]:
    best = {text.lower(): min(other for other in texts if other.lower() == text.lower()) for text in texts}
    return sorted(best.values(), key=lambda text: draw(7, "shuffle", "mine", digest(text).hex()))


def shuffled(folder: Path, texts: list[str], cuts: list[int], rows_per_shard: int = 5) -> tuple[list[Any], int, int]:
    """The texts of the shards, the number of duplicates left out, and the number of rows."""
    marks = sorted({0, len(texts), *(cut % (len(texts) + 1) for cut in cuts)})
    folders, counts = [], []
    for number, (start, stop) in enumerate(zip(marks, marks[1:] or marks, strict=False)):
        folders.append(folder / str(number))
        counts.append(partition(batches(texts[start:stop]), folders[-1]))
        assert len(list(folders[-1].glob("*.arrow"))) == 1
    size = sum(count["bytes"] for count in counts)
    shard_parts = [list(merge_spills(folders, buckets)) for buckets in plan_shards(folders, rows_per_shard, size)]
    duplicates = sum(left_out.total() for parts in shard_parts for _, left_out in parts) + sum(
        count["duplicates"] for count in counts
    )
    shards = [[text for table, _ in parts for text in table["text"].to_pylist()] for parts in shard_parts]
    return shards, duplicates, sum(count["rows"] for count in counts)


@settings(max_examples=30)
@given(texts=st.lists(TEXTS, min_size=1, max_size=60), cuts=CUTS, sizes=SIZES)
def test_shards_one_after_the_other_are_all_rows_sorted(
    tmp_path_factory: TempPathFactory, texts: list[str], cuts: list[int], sizes: dict[str, int]
) -> None:
    with MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(shuffle, name, value)
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
    counts = [
        partition(triples(rows[start:stop]), part) for part, (start, stop) in zip(folders, pairwise(marks), strict=True)
    ]
    size = sum(count["bytes"] for count in counts)
    parts = [part for buckets in plan_shards(folders, 5, size) for part in merge_spills(folders, buckets)]
    left_out = sum((counter for _, counter in parts), Counter())
    in_spills = sum(pa.ipc.open_file(path).read_all().num_rows for path in folder.glob("*/rows.arrow"))
    left_out["duplicate"] += sum(count["duplicates"] for count in counts)
    return [row for table, _ in parts for row in table.to_pylist()], +left_out, in_spills


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("aAbBc"), st.lists(st.sampled_from("xXyz"), max_size=3)), min_size=1, max_size=20
    ),
    cuts=CUTS,
    sizes=SIZES,
)
def test_duplicates_share_their_negatives_however_the_rows_are_split(
    tmp_path_factory: TempPathFactory, rows: list[tuple[str, list[str]]], cuts: list[int], sizes: dict[str, int]
) -> None:
    whole, left_out, _ = merged(tmp_path_factory.mktemp("a"), rows, [])
    with MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(shuffle, name, value)
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
    ranges = plan_shards([tmp_path / "0"], 7, 1)
    assert [ranges[0].first, ranges[-1].stop] == [0, shuffle.BUCKETS]
    assert [buckets.stop for buckets in ranges[:-1]] == [buckets.first for buckets in ranges[1:]]
    pieces = merge_spills([tmp_path / "0"], BucketRange(0, shuffle.BUCKETS))
    assert sum(table.num_rows for table, _ in pieces) == 50


def read_bytes() -> int:
    """How many bytes this process has read by system calls."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("rows", [1000, 10_000])
def test_a_shard_opens_a_file_once_and_reads_its_own_rows_however_many_spills_there_were(
    tmp_path: Path, monkeypatch: MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(shuffle, "SPILL_BYTES", 2**16)
    monkeypatch.setattr(shuffle, "READS_PER_SPILL", 8)
    opened: list[str] = []
    spills: list[int] = []
    open_file, sort_for_spill = pa.OSFile, shuffle.sort_for_spill
    monkeypatch.setattr(shuffle, "sort_for_spill", lambda table: spills.append(1) or sort_for_spill(table))
    partition(batches([f"{number} {'x' * 60}" for number in range(rows)], 100), tmp_path / "part")
    monkeypatch.setattr(pa, "OSFile", lambda path: opened.append(path) or open_file(path))
    monkeypatch.setattr(pa, "memory_map", None)
    shards = plan_shards([tmp_path / "part"], 500, 1)
    before = read_bytes()
    assert sum(table.num_rows for buckets in shards for table, _ in merge_spills([tmp_path / "part"], buckets)) == rows
    assert len(spills) > rows / 500
    assert opened == [str(tmp_path / "part" / shuffle.ROWS_FILE)] * len(shards)
    # A shard also reads the rest of its first and last batch (here a sixth of it each), and the footer.
    assert read_bytes() - before < 2 * Path(opened[0]).stat().st_size


def test_merging_takes_few_open_files_and_one_more_copy_on_the_disk(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "SPILL_BYTES", 2**12)
    monkeypatch.setattr(shuffle, "READS_PER_SPILL", 4)
    monkeypatch.setattr(shuffle, "SPILLS_AT_ONCE", 5)
    open_files: list[int] = []
    sizes: list[int] = []
    sort_for_spill = shuffle.sort_for_spill

    def watched(table: pa.Table) -> pa.Table:
        open_files.append(len(os.listdir("/proc/self/fd")))
        sizes.append(sum(path.stat().st_size for path in tmp_path.rglob("*.arrow")))
        return sort_for_spill(table)

    monkeypatch.setattr(shuffle, "sort_for_spill", watched)
    partition(batches([f"{number} {'x' * 60}" for number in range(1500)], 20), tmp_path / "part")
    assert max(open_files) <= open_files[0] + 5 + 1
    assert max(sizes) < 2.1 * (tmp_path / "part" / shuffle.ROWS_FILE).stat().st_size


def test_a_file_without_rows_adds_none(tmp_path: Path) -> None:
    files = [iter([]), batches(["", "a"], 1), (batch[:0] for batch in batches(["b"]))]
    folders = [tmp_path / str(number) for number in range(3)]
    counts = [partition(file, folder)["rows"] for file, folder in zip(files, folders, strict=True)]
    assert counts == [0, 2, 0]
    (buckets,) = plan_shards(folders, 100, 1)
    assert [table.num_rows for table, _ in merge_spills(folders, buckets)] in ([2], [1, 1])


def test_no_spill_stays_mapped_while_a_shard_is_made(tmp_path: Path) -> None:
    partition(batches([f"text {number}" for number in range(50)]), tmp_path / "part")
    (buckets,) = plan_shards([tmp_path / "part"], 100, 1)
    for table, _ in merge_spills([tmp_path / "part"], buckets):
        assert table.num_rows and str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_the_counts_are_those_of_the_rows_before_duplicates_are_left_out(tmp_path: Path) -> None:
    counts = partition(batches(["a", "b", "A"]), tmp_path / "0")
    assert counts == {"rows": 3, "bytes": 3 * (1 + 1 + 24), "duplicates": 1}
