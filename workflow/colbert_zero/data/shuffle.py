"""Shuffle more rows than fit in memory: an external sort of the rows by their place.

A row's place is a 64-bit number drawn for the row's content. `partition` writes the rows of one file, sorted by place,
as spills of bounded size. `plan_shards` assigns a range of places to each shard. `merge_spills` collects the rows of
one shard from all spills. Each file and each shard can be processed independently. The result is that of one sort of
all rows, whatever their files, the number of files and the order of the files.

Of duplicates one row stays. If rows have a list of negatives, it gets those of all its duplicates, each once, in an
order that a digest of the rows decides: at least `MOST_NEGATIVES`, if there are so many. A spill keeps only the rows
that may add one, so that a group of duplicates takes little memory whatever its size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from colbert_zero.data.text import normalise
from colbert_zero.graph.digests import canonical_json
from colbert_zero.graph.draws import draws
from colbert_zero.graph.text_files import sync

BUCKETS = 4096
"""The number of equal ranges into which the places are divided; a shard consists of whole buckets."""
SPILL_BYTES = 2**24
"""The size of a spill. Partitioning holds a spill and two copies in memory to sort it."""
SHARD_BYTES = 2**27
"""The most bytes of text in a shard: a source with long lists has shards of fewer rows."""
SORT_PARTS_PER_SHARD = 16
"""A shard is sorted in so many parts: a sort of the whole shard would hold it in memory twice."""
NEGATIVES_FIELD = "negatives"
"""The column whose lists duplicates share."""
MOST_NEGATIVES = 100
"""No further duplicate adds negatives to a row that has so many; the reference's lists have 50."""
PLACE_FIELD, DIGEST_FIELD = pa.field("place", pa.uint64()), pa.field("digest", pa.binary(16))
COUNTS_FILE, HISTOGRAM_FILE = "counts.json", "rows-by-bucket.npy"


def with_places(columns: Mapping[str, pa.Array], digests: Sequence[bytes], seed: int, source: str) -> pa.RecordBatch:
    """Add the columns `place` and `digest` to rows.

    Args:
        columns: The columns of the rows.
        digests: 16 bytes per row; rows with equal digests are duplicates.
        seed: The study's seed.
        source: The source's label.
    """
    places = draws(seed, "shuffle", source, identities=[digest.hex() for digest in digests])
    keys = {
        PLACE_FIELD.name: pa.array(places, PLACE_FIELD.type),
        DIGEST_FIELD.name: pa.array(digests, DIGEST_FIELD.type),
    }
    return pa.RecordBatch.from_pydict(keys | dict(columns))


def partition(
    batches: Iterable[pa.RecordBatch], folder: Path, extra_counts: Callable[[], Mapping[str, Any]] = dict
) -> None:
    """Write the spills of one file into `folder`, which appears under this name only when it is complete.

    Args:
        batches: Rows from `with_places`.
        folder: The output folder; if it exists already, nothing is read.
        extra_counts: Called after all rows are read; returns further entries for `read_counts`.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Each process has its own folder, so that two processes can partition the same file at once.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        counts = _write_spills(batches, unfinished)
        (unfinished / COUNTS_FILE).write_text(json.dumps({**counts, **extra_counts()}), encoding="utf-8")
        # On disk before the name is: a power loss would otherwise leave a complete folder with files of zeros.
        for path in unfinished.iterdir():
            sync(path)
        os.replace(unfinished, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_counts(folder: Path) -> dict[str, Any]:
    """The counts of a partitioned file: rows, bytes (of the values), duplicates (left out), and the extra counts."""
    counts: dict[str, Any] = json.loads((folder / COUNTS_FILE).read_text(encoding="utf-8"))
    return counts


def _write_spills(batches: Iterable[pa.RecordBatch], folder: Path) -> dict[str, int]:
    counts = dict.fromkeys(("rows", "bytes", "duplicates"), 0)
    histogram = np.zeros(BUCKETS, dtype=np.int64)
    for number, table in enumerate(_spill_tables(batches)):
        counts["rows"] += table.num_rows
        counts["bytes"] += sum(_bytes_in(column) for column in table.columns)
        histogram += np.bincount(_buckets_of(table), minlength=BUCKETS)
        spill = sort_for_spill(table)
        counts["duplicates"] += table.num_rows - spill.num_rows
        with pa.ipc.new_file(folder / f"spill-{number:05d}.arrow", spill.schema) as file:
            file.write_table(spill)
        del table, spill
        # The allocator keeps freed memory, which other processes need.
        pa.default_memory_pool().release_unused()
    np.save(folder / HISTOGRAM_FILE, histogram)
    return counts


def _spill_tables(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Concatenate as many batches as a spill may hold."""
    pending: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        pending.append(batch)
        size += batch.nbytes
        if size >= SPILL_BYTES:
            yield pa.Table.from_batches(pending).combine_chunks()
            pending, size = [], 0
    if pending:
        yield pa.Table.from_batches(pending).combine_chunks()


def _bytes_in(column: pa.ChunkedArray) -> int:
    """The bytes of a column's values; the split into chunks does not matter."""
    total = 0
    for chunk in column.chunks:
        values = chunk.flatten() if pa.types.is_nested(chunk.type) else chunk
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            total += pc.sum(pc.binary_length(values)).as_py() or 0
        else:
            total += values.nbytes
    return total


def _first_place(bucket: int) -> int:
    """The first place of a bucket."""
    return bucket * (2**64 // BUCKETS)


def _buckets_of(table: pa.Table) -> npt.NDArray[np.int64]:
    places = table[PLACE_FIELD.name].to_numpy()
    buckets: npt.NDArray[np.int64] = (places // np.uint64(_first_place(1))).astype(np.int64)
    return buckets


def sort_for_spill(table: pa.Table) -> pa.Table:
    """Sort rows by place; of each group of duplicates keep only the rows that `sort_and_merge` may need."""
    order, groups = _sort(table)
    kept = np.ones(len(order), dtype=bool)
    for start, stop in groups:
        group = _Duplicates.read(table, order[start:stop])
        kept[start:stop] = False
        kept[[start + index for index in {group.first, *group.adding}]] = True
    return table.take(pa.array(order[kept]))


def sort_and_merge(table: pa.Table) -> tuple[pa.Table, Counter[str]]:
    """Sort rows by place, and make one row of each group of duplicates: the row whose content sorts first.

    Returns:
        The rows; and how many were left out, as `merged` (the row gained negatives from it) or `duplicate`.
    """
    order, groups = _sort(table)
    if not groups:
        return table.take(pa.array(order)), Counter()
    left_out: Counter[str] = Counter()
    kept = np.ones(len(order), dtype=bool)
    shared: dict[int, list[str]] = {}
    for start, stop in groups:
        group = _Duplicates.read(table, order[start:stop])
        order[start] = order[start + group.first]
        kept[start + 1 : stop] = False
        merged = max(0, len(group.adding) - 1)
        left_out.update(merged=merged, duplicate=stop - start - 1 - merged)
        if group.adding not in ([], [group.first]):
            shared[start] = group.negatives
    rows = table.take(pa.array(order[kept]))
    if shared:
        numbers = (np.cumsum(kept) - 1)[list(shared)].tolist()
        rows = _replace_lists(rows, dict(zip(numbers, shared.values(), strict=True)))
    return rows, +left_out


def _sort(table: pa.Table) -> tuple[npt.NDArray[np.int64], list[tuple[int, int]]]:
    """The order of rows by place, and where in it groups of duplicates start and stop."""
    places = table[PLACE_FIELD.name].to_numpy()
    digests = np.concatenate([_as_number_pairs(chunk) for chunk in table[DIGEST_FIELD.name].chunks])
    order = np.lexsort((digests[:, 1], digests[:, 0], places))
    ordered = digests[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(is_first)
    stops = np.append(starts[1:], len(order))
    several = stops - starts > 1
    return order, list(zip(starts[several].tolist(), stops[several].tolist(), strict=True))


@dataclass(frozen=True)
class _Duplicates:
    """A group of duplicates.

    Attributes:
        first: The index of the row whose content sorts first.
        adding: The indexes of the rows that add negatives to those before them, in the order of the rows' digests.
        negatives: The negatives of these rows, each once.
    """

    first: int
    adding: list[int]
    negatives: list[str]

    @classmethod
    def read(cls, table: pa.Table, rows: npt.NDArray[np.int64]) -> _Duplicates:
        """Compare the rows with these numbers.

        A row that adds negatives in a whole group also does so in any part of the group: none that a spill leaves out
        is needed later.
        """
        records = table.take(pa.array(rows)).drop_columns([PLACE_FIELD.name, DIGEST_FIELD.name]).to_pylist()
        contents = [canonical_json(record) for record in records]
        adding: list[int] = []
        negatives: dict[str, str] = {}
        if NEGATIVES_FIELD in table.column_names:
            # In the order of their contents, texts that begin with an A would always come first.
            digests = [hashlib.blake2b(content.encode()).digest() for content in contents]
            for index in sorted(range(len(rows)), key=digests.__getitem__):
                if len(negatives) >= MOST_NEGATIVES:
                    break
                count = len(negatives)
                for text in records[index][NEGATIVES_FIELD]:
                    negatives.setdefault(normalise(text), text)
                if len(negatives) > count:
                    adding.append(index)
        return cls(min(range(len(rows)), key=contents.__getitem__), adding, list(negatives.values()))


def _replace_lists(rows: pa.Table, lists: Mapping[int, list[str]]) -> pa.Table:
    """Replace the negatives of the rows with these numbers."""
    column = rows[NEGATIVES_FIELD].combine_chunks()
    replaced = pa.array(list(lists.values()), column.type)
    places = np.arange(len(rows))
    places[list(lists)] = len(rows) + np.arange(len(lists))
    both = pa.concat_arrays([column, replaced])
    return rows.set_column(rows.column_names.index(NEGATIVES_FIELD), NEGATIVES_FIELD, both.take(pa.array(places)))


def _as_number_pairs(digests: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint64]:
    """Digests as pairs of numbers that sort in the same order (rows x 2)."""
    values = np.frombuffer(digests.buffers()[1], dtype=np.dtype(">u8")).reshape(-1, 2)
    return values[digests.offset : digests.offset + len(digests)].astype(np.uint64)


@dataclass(frozen=True)
class BucketRange:
    """The buckets of one shard: `first` to `stop` (exclusive)."""

    first: int
    stop: int


def plan_shards(folders: Sequence[Path], rows_per_shard: int) -> list[BucketRange]:
    """Divide the buckets into shards: each has as many as fit into `rows_per_shard` rows and into `SHARD_BYTES`.

    Args:
        folders: The folders of all partitioned files.
        rows_per_shard: The most rows of a shard, counted before duplicates are left out.
    """
    histogram = np.zeros(BUCKETS, dtype=np.int64)
    size = 0
    for folder in folders:
        histogram += np.load(folder / HISTOGRAM_FILE)
        size += read_counts(folder)["bytes"]
    rows = int(histogram.sum())
    maximum_rows = min(rows_per_shard, max(1, SHARD_BYTES * rows // max(1, size)))
    ranges: list[BucketRange] = []
    first, shard_rows = 0, 0
    for bucket, count in enumerate(histogram.tolist()):
        if shard_rows and shard_rows + count > maximum_rows:
            ranges.append(BucketRange(first, bucket))
            first, shard_rows = bucket, 0
        shard_rows += count
    return [*ranges, BucketRange(first, BUCKETS)]


def merge_spills(folders: Sequence[Path], buckets: BucketRange) -> Iterator[tuple[pa.Table, Counter[str]]]:
    """Yield the rows of one shard in order, part by part, each with how many rows were left out of it and why.

    The rows of the whole shard are held in memory.

    Args:
        folders: The folders of all partitioned files.
        buckets: The buckets of the shard.
    """
    paths = sorted(path for folder in folders for path in folder.glob("spill-*.arrow"))
    spills = [_read_spill(path, buckets) for path in paths]
    count = buckets.stop - buckets.first
    step = -(-count // SORT_PARTS_PER_SHARD)
    for first in range(0, count, step):
        stop = min(first + step, count)
        slices = [
            spill.slice(starts[first], starts[stop] - starts[first])
            for spill, starts in spills
            if starts[first] < starts[stop]
        ]
        if slices:
            kept, left_out = sort_and_merge(pa.concat_tables(slices))
            yield kept.drop_columns([PLACE_FIELD.name, DIGEST_FIELD.name]), left_out


def _read_spill(path: Path, buckets: BucketRange) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Read the rows of one shard from a spill.

    Returns:
        The rows; and the offset of each bucket's first row, followed by the number of rows.
    """
    # With a memory map, only the pages of the shard and the few that the binary search touches are read.
    spill = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    ordered = spill[PLACE_FIELD.name].chunk(0).to_numpy()
    first_places = np.array([_first_place(bucket) for bucket in range(buckets.first, buckets.stop)], dtype=np.uint64)
    end = len(ordered) if buckets.stop == BUCKETS else np.searchsorted(ordered, np.uint64(_first_place(buckets.stop)))
    starts = np.append(np.searchsorted(ordered, first_places), end)
    # Copy the rows: the system keeps many more pages mapped around them, which would add up over all spills.
    return spill.take(pa.array(np.arange(starts[0], end))), starts - starts[0]
