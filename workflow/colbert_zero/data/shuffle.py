"""Shuffle more rows than fit in memory: partition them by their place, then sort one part after the other.

A row's place is a 64-bit number drawn for what the row says. `partition` writes the rows of one file in order of their
places, a spill for each so many bytes; `plan_shards` says which places make which shard; `gather` brings the rows of one
shard together from all spills. Each of these can be done for any file, and any shard, by itself. The outcome is that of
one sort of all rows, whatever the files, their number and their order.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from colbert_zero.graph.digests import canonical
from colbert_zero.graph.draws import draws

BUCKETS = 4096
"""Into so many ranges of equal size the places are divided; a shard is made of whole ones."""
SPILL_BYTES = 2**24
"""A spill is sorted in memory: it and two copies are what partitioning takes."""
SHARD_BYTES = 2**27
"""So many bytes of text a shard may have: rows with long lists make shards of fewer rows."""
PIECES = 16
"""In so many a shard is sorted: all at once, it would be held twice."""
PLACE, DIGEST = pa.field("place", pa.uint64()), pa.field("digest", pa.binary(16))
COUNTS, HISTOGRAM = "counts.json", "rows-by-bucket.npy"


def placed(columns: Mapping[str, pa.Array], digests: Sequence[bytes], seed: int, source: str) -> pa.RecordBatch:
    """Rows with their places.

    Args:
        columns: What the rows hold.
        digests: 16 bytes per row; equal bytes mean the same row.
        seed: The study's seed.
        source: The source's label.
    """
    places = draws(seed, "shuffle", source, identities=[digest.hex() for digest in digests])
    keys = {PLACE.name: pa.array(places, PLACE.type), DIGEST.name: pa.array(digests, DIGEST.type)}
    return pa.RecordBatch.from_pydict(keys | dict(columns))


def partition(batches: Iterable[pa.RecordBatch], folder: Path, more: Callable[[], Mapping[str, Any]] = dict) -> None:
    """Write the rows of one file into `folder`, which appears when it is complete.

    Args:
        batches: Rows with their places.
        folder: Where to; if it is there already, nothing is read.
        more: Asked when all are read: what else `read_counts` is to tell.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A process's own, so that two that partition the same file do not meet.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        counts = _partition(batches, unfinished)
        (unfinished / COUNTS).write_text(json.dumps({**counts, **more()}), encoding="utf-8")
        os.replace(unfinished, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_counts(folder: Path) -> dict[str, Any]:
    """Of a partitioned file: rows; bytes of what they hold; duplicates, which were left out; what else was told."""
    counts: dict[str, Any] = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
    return counts


def _partition(batches: Iterable[pa.RecordBatch], folder: Path) -> dict[str, int]:
    counts = dict.fromkeys(("rows", "bytes", "duplicates"), 0)
    histogram = np.zeros(BUCKETS, dtype=np.int64)
    for number, table in enumerate(_spill_tables(batches)):
        counts["rows"] += table.num_rows
        counts["bytes"] += sum(_bytes_in(column) for column in table.columns)
        histogram += np.bincount(_bucket(table), minlength=BUCKETS)
        spill = distinct(table)
        counts["duplicates"] += table.num_rows - spill.num_rows
        with pa.ipc.new_file(folder / f"spill-{number:05d}.arrow", spill.schema) as file:
            file.write_table(spill)
        del table, spill
        # The allocator keeps what was freed; other processes have better use for it.
        pa.default_memory_pool().release_unused()
    np.save(folder / HISTOGRAM, histogram)
    return counts


def _spill_tables(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """As many batches at a time as a spill may hold."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        waiting.append(batch)
        size += batch.nbytes
        if size >= SPILL_BYTES:
            yield pa.Table.from_batches(waiting).combine_chunks()
            waiting, size = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()


def _bytes_in(column: pa.ChunkedArray) -> int:
    """The bytes of a column's values, however they are split into chunks."""
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


def _bucket(table: pa.Table) -> npt.NDArray[np.int64]:
    places = table[PLACE.name].to_numpy()
    buckets: npt.NDArray[np.int64] = (places // np.uint64(_first_place(1))).astype(np.int64)
    return buckets


def distinct(table: pa.Table) -> pa.Table:
    """The rows in order of their places, each once; of equal rows the one whose content comes first."""
    places = table[PLACE.name].to_numpy()
    digests = np.concatenate([_numbers(chunk) for chunk in table[DIGEST.name].chunks])
    order = np.lexsort((digests[:, 1], digests[:, 0], places))
    ordered = digests[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    if len(starts) < len(order):
        ends = np.append(starts[1:], len(order))
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            rows = table.take(pa.array(order[start:end])).drop_columns([PLACE.name, DIGEST.name]).to_pylist()
            order[start] = order[start + min(range(len(rows)), key=lambda at: canonical(rows[at]))]
        order = order[starts]
    return table.take(pa.array(order))


def _numbers(digests: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint64]:
    """Digests as pairs of numbers, which have their order (rows x 2)."""
    values = np.frombuffer(digests.buffers()[1], dtype=np.dtype(">u8")).reshape(-1, 2)
    return values[digests.offset : digests.offset + len(digests)].astype(np.uint64)


@dataclass(frozen=True)
class Range:
    """The places of one shard: buckets from `first` up to `stop`, which is not among them."""

    first: int
    stop: int


def plan_shards(folders: Sequence[Path], rows_per_shard: int) -> list[Range]:
    """Which places make which shard: as many buckets as do not exceed `rows_per_shard` rows, or `SHARD_BYTES`.

    Args:
        folders: Those of all files, partitioned.
        rows_per_shard: Rows that a shard may have before duplicates are left out.
    """
    histogram = np.zeros(BUCKETS, dtype=np.int64)
    size = 0
    for folder in folders:
        histogram += np.load(folder / HISTOGRAM)
        size += read_counts(folder)["bytes"]
    rows = int(histogram.sum())
    limit = min(rows_per_shard, max(1, SHARD_BYTES * rows // max(1, size)))
    ranges: list[Range] = []
    first, held = 0, 0
    for bucket, count in enumerate(histogram.tolist()):
        if held and held + count > limit:
            ranges.append(Range(first, bucket))
            first, held = bucket, 0
        held += count
    return [*ranges, Range(first, BUCKETS)]


def gather(folders: Sequence[Path], places: Range) -> Iterator[tuple[pa.Table, int]]:
    """The rows of one shard in order, and how many duplicates were left out, piece by piece; holds the whole shard.

    Args:
        folders: Those of all files, partitioned.
        places: Which rows.
    """
    paths = sorted(path for folder in folders for path in folder.glob("spill-*.arrow"))
    spills = [_rows_of(path, places) for path in paths]
    buckets = places.stop - places.first
    step = -(-buckets // PIECES)
    for first in range(0, buckets, step):
        stop = min(first + step, buckets)
        slices = [
            spill.slice(starts[first], starts[stop] - starts[first])
            for spill, starts in spills
            if starts[first] < starts[stop]
        ]
        if slices:
            table = pa.concat_tables(slices)
            kept = distinct(table)
            yield kept.drop_columns([PLACE.name, DIGEST.name]), table.num_rows - kept.num_rows


def _rows_of(path: Path, places: Range) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The rows of one shard in a spill, and where among them each bucket starts; at last where the last one ends."""
    # Mapped: only the pages of the shard, and a few that the search looks at, are read.
    spill = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    ordered = spill[PLACE.name].chunk(0).to_numpy()
    edges = np.array([_first_place(bucket) for bucket in range(places.first, places.stop)], dtype=np.uint64)
    last = len(ordered) if places.stop == BUCKETS else np.searchsorted(ordered, np.uint64(_first_place(places.stop)))
    starts = np.append(np.searchsorted(ordered, edges), last)
    # Copied, since the system maps much more around what is read, and all spills' would add up.
    return spill.take(pa.array(np.arange(starts[0], last))), starts - starts[0]
