"""Shuffle more rows than fit in memory: an external sort of the rows by their place.

A row's place is a 64-bit number drawn for the row's content. `partition` writes the rows of one file, sorted by place:
first as spills of bounded size, which it then merges into one. `plan_shards` assigns a range of places to each shard.
`merge_spills` collects the rows of one shard from the spills of all files. Each file and each shard can be processed
independently. The result is that of one sort of all rows, whatever their files, the number of files and the order of
the files.

A shard opens one spill of each file, however large the file is, and reads little more of it than the shard's rows: they
lie together. The 66 million rows of Reddit are 134 GB in some 660 files and make 1000 shards, so they take 0.7 million
opens of 0.2 MB each. Merging costs one more copy of a file, in time and on the disk while the file is processed.

Of duplicates one row stays. If rows have a list of negatives, it gets those of all its duplicates, each once, in an
order that a digest of the rows decides: at least `MOST_NEGATIVES`, if there are so many. A spill keeps only the rows
that may add one, so that a group of duplicates takes little memory whatever its size.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from colbert_zero.data.text import normalise
from colbert_zero.graph.digests import canonical_json
from colbert_zero.graph.draws import draws

BUCKETS = 4096
"""The number of equal ranges into which the places are divided; a shard consists of whole buckets."""
SPILL_BYTES = 2**24
"""The size of a spill before it is merged. Partitioning holds a spill and two copies in memory to sort it."""
READS_PER_SPILL = 64
"""A spill is written, and read, in batches of this part of `SPILL_BYTES`: less than a shard takes from a large file."""
SPILLS_AT_ONCE = 64
"""The most spills that are merged, and so open, at once: a batch of each is as much as a spill."""
SHARD_BYTES = 2**27
"""The most bytes of text in a shard: a source with long lists has shards of fewer rows."""
SORT_PARTS_PER_SHARD = 16
"""A shard is sorted in so many parts: a sort of the whole shard would hold it in memory twice."""
NEGATIVES_FIELD = "negatives"
"""The column whose lists duplicates share."""
MOST_NEGATIVES = 100
"""No further duplicate adds negatives to a row that has so many; the reference's lists have 50."""
PLACE_FIELD, DIGEST_FIELD = pa.field("place", pa.uint64()), pa.field("digest", pa.binary(16))
HISTOGRAM_FILE, ROWS_FILE = "rows-by-bucket.npy", "rows.arrow"
FIRST_BUCKETS = "first buckets"
"""Where the footer of a spill says with which bucket each of its batches begins."""


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


def partition(batches: Iterable[pa.RecordBatch], folder: Path) -> dict[str, int]:
    """Write the rows of one file, sorted, into a folder, and their number by bucket.

    Args:
        batches: Rows from `with_places`.
        folder: An empty folder.

    Returns:
        The number of `rows`, the `bytes` of their values, and how many `duplicates` of these rows were left out.
    """
    counts = dict.fromkeys(("rows", "bytes", "duplicates"), 0)
    histogram = np.zeros(BUCKETS, dtype=np.int64)
    paths = (folder / f"spill-{number:05d}.arrow" for number in count())
    spills: list[Path] = []
    for table in _spill_tables(batches):
        size = sum(_bytes_in(column) for column in table.columns)
        by_bucket = np.bincount(_buckets_of(table), minlength=BUCKETS)
        counts["rows"] += table.num_rows
        counts["bytes"] += size
        histogram += by_bucket
        spills.append(next(paths))
        spill = sort_for_spill(table)
        counts["duplicates"] += table.num_rows - spill.num_rows
        ranges = _divide(by_bucket, _rows_in(SPILL_BYTES // READS_PER_SPILL, table.num_rows, size))
        with _new_spill(spills[-1], spill.schema, ranges) as file:
            _write_ranges(file, spill, ranges)
        del table, spill
        # The allocator keeps freed memory, which other processes need.
        pa.default_memory_pool().release_unused()
    while len(spills) > 1:
        # All merges but the first are of as many spills as possible, so that few rows are copied twice.
        number = (len(spills) - 2) % (SPILLS_AT_ONCE - 1) + 2
        part = _size(spills[:number]) / _size(spills)
        rows_per_read = _rows_in(SPILL_BYTES // READS_PER_SPILL, counts["rows"], counts["bytes"])
        merged = next(paths)
        counts["duplicates"] += _merge(spills[:number], merged, _divide(histogram, rows_per_read / part))
        spills = [*spills[number:], merged]
    if spills:
        spills[0].rename(folder / ROWS_FILE)
    else:
        with _new_spill(folder / ROWS_FILE, pa.schema([PLACE_FIELD, DIGEST_FIELD]), []):
            pass
    np.save(folder / HISTOGRAM_FILE, histogram)
    return counts


def _spill_tables(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Concatenate as many batches as a spill may hold."""
    pending: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if batch.num_rows:
            pending.append(batch)
            size += batch.nbytes
        if size >= SPILL_BYTES:
            yield pa.Table.from_batches(pending).combine_chunks()
            pending, size = [], 0
    if pending:
        yield pa.Table.from_batches(pending).combine_chunks()


def _size(paths: Sequence[Path]) -> int:
    """The bytes of files."""
    return sum(path.stat().st_size for path in paths)


def _rows_in(size: int, rows: int, of_bytes: int) -> int:
    """How many rows are of this size, at least 1, where so many rows have so many bytes."""
    return max(1, size * rows // max(1, of_bytes))


@dataclass(frozen=True)
class BucketRange:
    """The buckets `first` to `stop` (exclusive)."""

    first: int
    stop: int


def _divide(histogram: npt.NDArray[np.int64], most_rows: float) -> list[BucketRange]:
    """Divide the buckets into ranges of at most so many rows, or of one bucket.

    Args:
        histogram: The number of rows in each bucket.
        most_rows: The most rows of a range.
    """
    ranges: list[BucketRange] = []
    first, rows = 0, 0
    for bucket, in_bucket in enumerate(histogram.tolist()):
        if rows and rows + in_bucket > most_rows:
            ranges.append(BucketRange(first, bucket))
            first, rows = bucket, 0
        rows += in_bucket
    return [*ranges, BucketRange(first, BUCKETS)]


@contextmanager
def _new_spill(path: Path, schema: pa.Schema, ranges: Sequence[BucketRange]) -> Iterator[pa.RecordBatchFileWriter]:
    """Open a new spill, for a batch of each range."""
    metadata = {FIRST_BUCKETS: np.array([buckets.first for buckets in ranges], dtype=np.int64).tobytes()}
    # Given a path, the writer would leave its file open.
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema, metadata=metadata) as file:
        yield file


def _write_ranges(file: pa.RecordBatchFileWriter, rows: pa.Table, ranges: Sequence[BucketRange]) -> None:
    """Write the batches of some ranges, which hold all the rows; these are sorted by place."""
    starts = np.searchsorted(_buckets_of(rows), [buckets.first for buckets in ranges])
    for start, stop in pairwise([*starts.tolist(), rows.num_rows]):
        columns = [column.combine_chunks() for column in rows.slice(start, stop - start).columns]
        file.write_batch(pa.RecordBatch.from_arrays(columns, schema=rows.schema))


def _read(spill: pa.RecordBatchFileReader, buckets: BucketRange) -> pa.Table:
    """Read the rows of some buckets, sorted by place."""
    firsts = np.frombuffer(spill.metadata[FIRST_BUCKETS.encode()], dtype=np.int64)
    start = max(0, int(np.searchsorted(firsts, buckets.first, side="right")) - 1)
    stop = int(np.searchsorted(firsts, buckets.stop))
    batches = []
    for batch in map(spill.get_batch, range(start, stop)):
        # A copy: a slice would keep the rest of the batch in memory.
        rows = np.arange(*np.searchsorted(_buckets_of(batch), [buckets.first, buckets.stop]))
        batches.append(batch.take(pa.array(rows)))
    return pa.Table.from_batches(batches, spill.schema)


def _merge(paths: Sequence[Path], merged: Path, ranges: Sequence[BucketRange]) -> int:
    """Merge spills into a new one, and remove them.

    Args:
        paths: The spills.
        merged: The new spill.
        ranges: The buckets of its batches.

    Returns:
        How many duplicates were left out.
    """
    duplicates = 0
    with ExitStack() as files:
        spills = [pa.ipc.open_file(files.enter_context(pa.OSFile(str(path)))) for path in paths]
        file = files.enter_context(_new_spill(merged, spills[0].schema, ranges))
        for start in range(0, len(ranges), READS_PER_SPILL):
            some = ranges[start : start + READS_PER_SPILL]
            table = pa.concat_tables([_read(spill, BucketRange(some[0].first, some[-1].stop)) for spill in spills])
            rows = sort_for_spill(table)
            duplicates += table.num_rows - rows.num_rows
            _write_ranges(file, rows, some)
            del table, rows
            pa.default_memory_pool().release_unused()
    for path in paths:
        path.unlink()
    return duplicates


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


def _buckets_of(table: pa.Table | pa.RecordBatch) -> npt.NDArray[np.int64]:
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


def plan_shards(folders: Sequence[Path], rows_per_shard: int, size: int) -> list[BucketRange]:
    """Divide the buckets into shards: each has as many as fit into `rows_per_shard` rows and into `SHARD_BYTES`.

    Args:
        folders: The folders of all partitioned files.
        rows_per_shard: The most rows of a shard, counted before duplicates are left out.
        size: The bytes of all rows.
    """
    histogram = np.zeros(BUCKETS, dtype=np.int64)
    for folder in folders:
        histogram += np.load(folder / HISTOGRAM_FILE)
    return _divide(histogram, min(rows_per_shard, _rows_in(SHARD_BYTES, int(histogram.sum()), size)))


def merge_spills(folders: Sequence[Path], buckets: BucketRange) -> Iterator[tuple[pa.Table, Counter[str]]]:
    """Yield the rows of one shard in order, part by part, each with how many rows were left out of it and why.

    The rows of the whole shard are held in memory.

    Args:
        folders: The folders of all partitioned files.
        buckets: The buckets of the shard.
    """
    spills = []
    for folder in folders:
        with pa.OSFile(str(folder / ROWS_FILE)) as file:
            rows = _read(pa.ipc.open_file(file), buckets)
        if rows.num_rows:
            starts = np.searchsorted(_buckets_of(rows), np.arange(buckets.first, buckets.stop + 1))
            spills.append((rows, starts))
    number = buckets.stop - buckets.first
    step = -(-number // SORT_PARTS_PER_SHARD)
    for first in range(0, number, step):
        stop = min(first + step, number)
        slices = [
            rows.slice(starts[first], starts[stop] - starts[first])
            for rows, starts in spills
            if starts[first] < starts[stop]
        ]
        if slices:
            kept, left_out = sort_and_merge(pa.concat_tables(slices))
            yield kept.drop_columns([PLACE_FIELD.name, DIGEST_FIELD.name]), left_out
