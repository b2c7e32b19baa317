"""Laws of the external shuffle: it equals one sort of all rows, for any split into files, spills and shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import MonkeyPatch, TempPathFactory

from colbert_zero.data import shuffle
from colbert_zero.data.shuffle import BucketRange, merge_spills, partition, plan_shards, read_counts, with_places
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
    duplicates = sum(count for parts in shard_parts for _, count in parts) + sum(
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
