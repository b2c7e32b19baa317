"""Laws of the orders of epochs: each row once, other company in each epoch, and reading equals the naive gather."""

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import MonkeyPatch, TempPathFactory

from colbert_zero.data import orders
from colbert_zero.data.orders import EpochOrder, WindowReader, blocks_per_window
from colbert_zero.data.rows import PAIR_SCHEMA, RowReader, RowWriter
from colbert_zero.graph.artifact import Artifact, Spec, file_digests


def reader_of(folder: Path, rows: int, rows_per_shard: int = 30, text: str = "") -> RowReader:
    table = pa.table(
        {"query": [f"q{row}" for row in range(rows)], "document": [f"d{row}{text}" for row in range(rows)]}
    )
    with RowWriter(folder, PAIR_SCHEMA, rows_per_shard) as writer:
        writer.write(table)
    return RowReader(
        Artifact(Spec("shards", "mine", {}), {"outputs": file_digests(folder), "facts": writer.facts}, folder)
    )


def rows_of(order: EpochOrder) -> list[list[int]]:
    """The rows of each window, in order."""
    windows = []
    for window in range(len(order.window_ends)):
        rows = np.concatenate([np.arange(start, stop) for start, stop in order.blocks(window)])
        windows.append(rows[order.places(window)].tolist())
    return windows


def left_out_of(rows: int, numbers: list[int]) -> npt.NDArray[np.int64]:
    return np.array(sorted({number % rows for number in numbers}), np.int64)


cases = {
    "shards": st.lists(st.integers(0, 25), min_size=1, max_size=5).filter(any),
    "numbers": st.lists(st.integers(0, 200), max_size=20),
    "epoch": st.integers(0, 3),
    "blocks": st.integers(1, 5),
    "seed": st.integers(0, 2**32 - 1),
}


@given(**cases)
def test_an_order_has_each_row_once_but_those_left_out(
    shards: list[int], numbers: list[int], epoch: int, blocks: int, seed: int
) -> None:
    left_out = left_out_of(sum(shards), numbers)
    with MonkeyPatch.context() as patch:
        patch.setattr(orders, "BLOCK_ROWS", 4)
        order = EpochOrder(shards, left_out, "mine", epoch, seed, blocks)
        windows = rows_of(order)
    kept = sorted(set(range(sum(shards))) - set(left_out.tolist()))
    found = [row for rows in windows for row in rows]
    assert sorted(found) == kept
    assert np.cumsum(list(map(len, windows))).tolist() == order.window_ends.tolist()
    if not epoch:
        assert found == kept


@given(rows=st.integers(1, 70), ranges=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=5), **cases)
def test_reading_is_the_naive_gather_from_wherever_it_starts(
    tmp_path_factory: TempPathFactory,
    rows: int,
    ranges: list[tuple[int, int]],
    shards: list[int],
    numbers: list[int],
    epoch: int,
    blocks: int,
    seed: int,
) -> None:
    reader = reader_of(tmp_path_factory.mktemp("rows"), rows, rows_per_shard=len(shards) * 7)
    left_out = left_out_of(rows, numbers)
    with MonkeyPatch.context() as patch:
        patch.setattr(orders, "BLOCK_ROWS", 4)
        order = EpochOrder(reader.artifact.facts["rows_by_shard"], left_out, "mine", epoch, seed, blocks)
        naive = [row for window in rows_of(order) for row in window]
        windows = WindowReader(reader, order)
        for one, other in ranges:
            start, stop = sorted((one % (len(naive) + 1), other % (len(naive) + 1)))
            if start < stop:
                assert windows.read(start, stop)["query"].to_pylist() == [f"q{row}" for row in naive[start:stop]]


def test_neighbours_part_in_later_epochs_and_meet_no_more_often_than_by_chance() -> None:
    rows, batch = 3 * 16 * 4096, 64
    orders_of_epochs = [EpochOrder([rows], np.empty(0, np.int64), "mine", epoch, 7, 16) for epoch in range(3)]
    batch_of_row = []
    for order in orders_of_epochs:
        found = np.concatenate([np.array(window) for window in rows_of(order)])
        batches = np.empty(rows, np.int64)
        batches[found] = np.arange(rows) // batch
        batch_of_row.append(batches)
    # Of one row's 63 companions in a batch, a window of 16 blocks brings 63 / 65,535 back.
    expected = rows / batch * (batch * (batch - 1) / 2) * (batch - 1) / (16 * 4096 - 1)
    for one, other in combinations(batch_of_row, 2):
        pairs = np.unique(one * rows + other, return_counts=True)[1]
        again = int((pairs * (pairs - 1) // 2).sum())
        assert again < 1.2 * expected


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_python_hashing_does_not_matter(hash_seed: str) -> None:
    code = (
        "import numpy as np; from colbert_zero.data.orders import EpochOrder; "
        "print(EpochOrder([9000, 50], np.array([3]), 'mine', 1, 7, 2).places(1)[:50].tolist())"
    )
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[3] / "workflow")}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    order = EpochOrder([9000, 50], np.array([3]), "mine", 1, 7, 2)
    assert ran.stdout.strip() == str(order.places(1)[:50].tolist())


def test_a_window_is_as_large_as_memory_and_batches_allow(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    pairs, long_rows = reader_of(small, 100), reader_of(large, 100, text="x" * 30_000)
    assert blocks_per_window(pairs, batch_size=64, sources=1) == 16
    assert blocks_per_window(pairs, batch_size=16_384, sources=29) == 64
    # 30 kB a row are 117 MiB a block.
    assert blocks_per_window(long_rows, batch_size=64, sources=1) == 8
    assert blocks_per_window(long_rows, batch_size=64, sources=10) == 1
    assert blocks_per_window(long_rows, batch_size=16_384, sources=10) == 8
