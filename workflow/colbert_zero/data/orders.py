"""Read a source's rows in another order in each epoch, with little random access and a bounded memory.

An order goes through the rows window by window. A window is a number of blocks, drawn from all of the source's; a block
is the 4096 rows of a row group. Within a window, the rows of its blocks are in a drawn order. Two rows of the first
epoch's batch, which are neighbours in a block, are then together again about as often as any two rows of a window.

Places are computed from the epoch's number, so that reading starts anywhere. A source's window is in memory, decoded,
and while the next one is read a second copy of it: of all sources at most `WINDOW_BYTES` twice, or two batches of each
source if that is more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from colbert_zero.data.rows import RowReader
from colbert_zero.graph.draws import draws

BLOCK_ROWS = 4096
"""The rows of a block; the orders of finished plans depend on it, so it must not change."""
MOST_BLOCKS = 16
"""The blocks of a window, if their rows are small and so are the batches."""
WINDOW_BYTES = 2**30
"""The bytes that the windows of all sources take together."""
BATCHES_PER_WINDOW = 16
"""The least number of batches in a window, if its size allows it."""


def blocks_per_window(reader: RowReader, batch_size: int, sources: int) -> int:
    """How many blocks a window of a source has.

    Args:
        reader: The source's rows.
        batch_size: Rows per step.
        sources: How many sources share the memory.
    """
    wanted = max(MOST_BLOCKS, -(-BATCHES_PER_WINDOW * batch_size // BLOCK_ROWS))
    allowed = WINDOW_BYTES // sources // max(1, int(reader.bytes_per_row() * BLOCK_ROWS))
    needed = -(-2 * batch_size // BLOCK_ROWS)
    return max(1, needed, min(wanted, allowed))


class EpochOrder:
    """The order of a source's rows in an epoch.

    Attributes:
        epoch: The number of the epoch, from 0. The first one has the rows in the order of their numbers.
        window_ends: The place after the last one of each window.
    """

    def __init__(
        self,
        rows_by_shard: Sequence[int],
        left_out: npt.NDArray[np.int64],
        label: str,
        epoch: int,
        seed: int,
        window_blocks: int,
    ) -> None:
        """Draw the blocks of each window.

        Args:
            rows_by_shard: How many rows each file of the source has.
            left_out: The numbers of the rows that the order leaves out, sorted.
            label: The source's label.
            epoch: The number of the epoch.
            seed: The study's seed.
            window_blocks: How many blocks a window has.
        """
        self.epoch, self._left_out, self._draw = epoch, left_out, (seed, "rows", label, epoch)
        ends = np.cumsum(rows_by_shard)
        starts = np.concatenate(
            [np.arange(end - rows, end, BLOCK_ROWS) for end, rows in zip(ends, rows_by_shard, strict=True)]
        )
        stops = np.append(starts[1:], ends[-1])
        if epoch:
            places = draws(seed, "blocks", label, epoch, identities=map(str, range(len(starts))))
            order = np.argsort(np.array(places, np.uint64), kind="stable")
            starts, stops = starts[order], stops[order]
        self._starts, self._stops, self._window_blocks = starts, stops, window_blocks if epoch else 1
        kept = (stops - np.searchsorted(left_out, stops)) - (starts - np.searchsorted(left_out, starts))
        firsts = np.arange(0, len(starts), self._window_blocks)
        self.window_ends: npt.NDArray[np.int64] = np.cumsum(np.add.reduceat(kept, firsts))

    def blocks(self, window: int) -> list[tuple[int, int]]:
        """The blocks of a window: the number of each one's first row, and of the one after its last."""
        blocks = slice(window * self._window_blocks, (window + 1) * self._window_blocks)
        return list(zip(self._starts[blocks].tolist(), self._stops[blocks].tolist(), strict=True))

    def places(self, window: int) -> npt.NDArray[np.int64]:
        """The rows of a window in their order, as places in its blocks, which stand one after the other."""
        rows = np.concatenate([np.arange(start, stop) for start, stop in self.blocks(window)])
        is_kept = [self._is_kept(start, stop) for start, stop in self.blocks(window)]
        places = np.flatnonzero(np.concatenate(is_kept))
        if not self.epoch:
            return places
        keys = draws(*self._draw, identities=map(str, rows[places].tolist()))
        return places[np.argsort(np.array(keys, np.uint64), kind="stable")]

    def _is_kept(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Which of the rows `start` to `stop` the order does not leave out."""
        is_kept = np.ones(stop - start, dtype=bool)
        first, last = np.searchsorted(self._left_out, (start, stop))
        is_kept[self._left_out[first:last] - start] = False
        return is_kept


class WindowReader:
    """Reads ranges of an order; the rows of one window are held in memory.

    Attributes:
        order: The order.
    """

    def __init__(self, rows: RowReader, order: EpochOrder) -> None:
        """Read `rows` in `order`."""
        self.order, self._rows = order, rows
        self._window = -1
        self._table: pa.Table | None = None
        self._places = np.empty(0, np.int64)

    def read(self, start: int, stop: int) -> pa.Table:
        """The rows at the places `start` to `stop` (exclusive) of the order."""
        pieces = []
        while start < stop:
            window = int(np.searchsorted(self.order.window_ends, start, side="right"))
            end = int(self.order.window_ends[window])
            table = self._load(window)
            first = start - (end - len(self._places))
            places = self._places[first : first + stop - start]
            pieces.append(table.take(pa.array(places)))
            start += len(places)
        return pa.concat_tables(pieces)

    def _load(self, window: int) -> pa.Table:
        """The rows of the blocks of a window."""
        if self._table is None or window != self._window:
            blocks = [self._rows.read(start, stop) for start, stop in self.order.blocks(window)]
            # In one chunk: of several, `take` would make one for each batch.
            self._table, self._window = pa.concat_tables(blocks).combine_chunks(), window
            self._places = self.order.places(window)
        return self._table
