"""Plan the batches of a stage: which rows of which source make step 1, 2, 3 ...

    python -m colbert_zero.data.batches --spec JSON

A batch has rows of one source only, so that a model cannot tell a query's document from the in-batch negatives by the
kind of text alone. In an epoch each source contributes all its whole batches, which is proportional to its size; the
last, partial batch is dropped and counted. The plan does not depend on the number of training processes: a step has the
same rows on one GPU and on 64.

In the first epoch a batch is a range of the shards' rows, which are shuffled. Later epochs read them in other orders,
see `orders`, so that rows meet new company.

A supervised stage that uses its rows' own negatives has the setting `negatives`. A source then gives as many to each
row as half of its rows have, and at most that setting; the other rows are left out and counted. The reference takes the
fewest of any row of the source instead, so that one short row decides for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from colbert_zero.data.orders import EpochOrder, WindowReader, blocks_per_window
from colbert_zero.data.rows import RowReader
from colbert_zero.graph.artifact import Artifact, Job, step_main
from colbert_zero.graph.console import UserError, log
from colbert_zero.graph.draws import draw

PLAN_FILE, LEFT_OUT_FILE = "plan.parquet", "left-out.parquet"
PLAN_SCHEMA = pa.schema([("step", pa.int64()), ("rows", pa.int32()), ("start", pa.int64())])
"""`rows` is the index of the source among the stage's sources; the batch has that source's rows from `start` on."""
EPOCH_FIELD = pa.field("epoch", pa.int32())
"""With this column, `start` is a place in the order of that epoch, not the number of a row."""
LEFT_OUT_SCHEMA = pa.schema([("rows", pa.int32()), ("row", pa.int64())])
"""The rows that no batch has: the index of the source, and the number of the row."""


def plan_batches(
    rows: Sequence[int], labels: Sequence[str], batch_size: int, epochs: int, seed: int, with_epochs: bool = False
) -> pa.Table:
    """Plan every step of a stage, in order.

    A batch is a range of the order of its epoch. Each epoch shifts the ranges by a random offset, at most the size of
    the partial batch, so that different epochs drop different rows.

    Args:
        rows: The number of rows of each source.
        labels: The sources' names, distinct: random draws use the name, so they do not depend on the sources' order.
        batch_size: Rows per step.
        epochs: The number of passes over the sources.
        seed: The study's seed.
        with_epochs: Whether to add the column `epoch`.

    Returns:
        A table of `PLAN_SCHEMA`, and perhaps `EPOCH_FIELD`; the steps of all epochs are numbered from 0.

    Raises:
        UserError: No source has a whole batch, or two sources share a name.
    """
    if len(set(labels)) < len(labels):
        raise UserError(f"two of a stage's sources share a name: {', '.join(sorted(labels))}; name each source once")
    if all(count < batch_size for count in rows):
        sizes = ", ".join(f"{label} has {count}" for label, count in zip(labels, rows, strict=True))
        raise UserError(f"no source has the {batch_size} rows of one batch ({sizes}); lower batch_size or add rows")
    steps: list[tuple[int, int, int]] = []
    for epoch in range(epochs):
        batches: list[tuple[int, int, int]] = []
        for source, (label, count) in enumerate(zip(labels, rows, strict=True)):
            whole_batches, remainder = divmod(count, batch_size)
            shift = draw(seed, "shift", epoch, label) % (remainder + 1)
            places = [draw(seed, "batches", epoch, label, index) for index in range(whole_batches)]
            if epoch:
                # The rows are in a drawn order already; in order, its windows are read one after the other.
                places.sort()
            batches.extend((place, source, shift + index * batch_size) for index, place in enumerate(places))
        steps.extend((epoch, source, start) for _, source, start in sorted(batches))
    epoch_numbers, sources, starts = np.array(steps).T
    table = pa.Table.from_arrays([np.arange(len(steps)), sources.astype(np.int32), starts], schema=PLAN_SCHEMA)
    return table.append_column(EPOCH_FIELD, pa.array(epoch_numbers, EPOCH_FIELD.type)) if with_epochs else table


def negatives_per_row(counts: npt.NDArray[np.integer], most: int) -> int:
    """How many negatives a source gives to each row: the most that half of its rows have, from 1 to `most`.

    Args:
        counts: How many negatives each row has.
        most: How many the stage asks for.
    """
    # The middle one from above: so many have half of the rows, or one row more.
    middle = np.sort(counts)[::-1][(len(counts) - 1) // 2]
    return min(most, max(1, int(middle)))


class BatchPlan:
    """The batches of a stage, read from the inputs `batches` and `rows`; several threads may read at once.

    A batch of the first epoch needs its row groups only; of a later epoch, a window of its source is held in memory.
    """

    def __init__(self, job: Job) -> None:
        """Open the job's plan and rows."""
        batches = job.input("batches")
        self.readers = [RowReader(artifact) for artifact in job.inputs("rows")]
        self.batch_size: int = batches.spec.settings["batch_size"]
        self.epochs: int = batches.spec.settings["epochs"]
        self._seed: int = batches.spec.settings["seed"]
        table = pq.read_table(batches.file(PLAN_FILE))
        self._source_index, self._start = table["rows"].to_numpy(), table["start"].to_numpy()
        # Plans of one epoch that use every row, and those made before version 0.2, have rows for places.
        self._epoch = table[EPOCH_FIELD.name].to_numpy() if EPOCH_FIELD.name in table.column_names else None
        self._left_out = [np.empty(0, np.int64) for _ in self.readers]
        if LEFT_OUT_FILE in batches.files():
            left_out = pq.read_table(batches.file(LEFT_OUT_FILE))
            index, rows = left_out["rows"].to_numpy(), left_out["row"].to_numpy()
            self._left_out = [rows[index == number] for number in range(len(self.readers))]
        self._negatives: Mapping[str, int] = batches.facts.get("negatives", {})
        self._window_blocks: Mapping[str, int] = batches.facts.get("window_blocks", {})
        self._windows: dict[int, WindowReader] = {}
        self._read_lock = Lock()

    def __len__(self) -> int:
        """The number of steps."""
        return len(self._source_index)

    def source(self, step: int) -> Artifact:
        """The artifact that has the rows of a step."""
        return self.readers[int(self._source_index[step])].artifact

    def negatives(self, step: int) -> int | None:
        """How many negatives each row of a step uses, or None if the plan does not say."""
        return self._negatives.get(self.source(step).spec.label)

    def describe_step(self, step: int) -> str:
        """Describe the rows of a step, for a message."""
        epoch = "" if self._epoch is None else f" of epoch {self._epoch[step] + 1}"
        return f"{self.source(step).name}, {self.batch_size} rows from row {self._start[step]}{epoch}"

    def read(self, step: int) -> pa.Table:
        """Read the rows of a step."""
        source, start = int(self._source_index[step]), int(self._start[step])
        with self._read_lock:
            if self._epoch is None:
                return self.readers[source].read(start, start + self.batch_size)
            return self._window_reader(source, int(self._epoch[step])).read(start, start + self.batch_size)

    def _window_reader(self, source: int, epoch: int) -> WindowReader:
        """The reader of a source in the order of an epoch."""
        reader = self._windows.get(source)
        if reader is None or reader.order.epoch != epoch:
            rows, label = self.readers[source], self.readers[source].artifact.spec.label
            order = EpochOrder(
                rows.artifact.facts["rows_by_shard"],
                self._left_out[source],
                label,
                epoch,
                self._seed,
                self._window_blocks.get(label, 1),
            )
            reader = self._windows[source] = WindowReader(rows, order)
        return reader


def make(job: Job) -> Mapping[str, Any]:
    """Write `plan.parquet` and, if rows are left out, `left-out.parquet`.

    Returns:
        steps, steps_by_source and dropped_rows (of each epoch, by source). With the setting `negatives` also, by
        source, negatives (of each row) and rows_with_fewer_negatives (which are left out). With several epochs also
        window_blocks, which the order of the rows depends on.

    Raises:
        UserError: No source has a whole batch, two sources share a name, or a source has no negatives where the
            setting asks for them.
    """
    batch_size, epochs, seed = job.settings["batch_size"], job.settings["epochs"], job.settings["seed"]
    artifacts = job.inputs("rows")
    labels = [artifact.spec.label for artifact in artifacts]
    facts: dict[str, Any] = {}
    left_out = [np.empty(0, np.int64) for _ in artifacts]
    if "negatives" in job.settings:
        counts = [count_negatives(RowReader(artifact)) for artifact in artifacts]
        given = [negatives_per_row(number, job.settings["negatives"]) for number in counts]
        left_out = [np.flatnonzero(number < least) for number, least in zip(counts, given, strict=True)]
        facts["negatives"] = dict(zip(labels, given, strict=True))
        facts["rows_with_fewer_negatives"] = dict(zip(labels, map(len, left_out), strict=True))
        for label, least, without, number in zip(labels, given, left_out, counts, strict=True):
            log.info(
                "%s gives %d negatives to each row; %d of its %d rows have fewer, and are left out",
                label,
                least,
                len(without),
                len(number),
            )
    rows = [artifact.facts["rows"] - len(without) for artifact, without in zip(artifacts, left_out, strict=True)]
    has_left_out = any(map(len, left_out))
    table = plan_batches(rows, labels, batch_size, epochs, seed, with_epochs=epochs > 1 or has_left_out)
    pq.write_table(table, job.folder / PLAN_FILE, compression="zstd")
    if has_left_out:
        index = np.repeat(np.arange(len(artifacts), dtype=np.int32), list(map(len, left_out)))
        left_out_table = pa.Table.from_arrays([index, np.concatenate(left_out)], schema=LEFT_OUT_SCHEMA)
        pq.write_table(left_out_table, job.folder / LEFT_OUT_FILE, compression="zstd")
    if epochs > 1:
        facts["window_blocks"] = {
            label: blocks_per_window(RowReader(artifact), batch_size, len(artifacts))
            for label, artifact in zip(labels, artifacts, strict=True)
        }
    sizes = dict(zip(labels, rows, strict=True))
    return {
        "steps": table.num_rows,
        "steps_by_source": {label: epochs * (size // batch_size) for label, size in sizes.items()},
        "dropped_rows": {label: size % batch_size for label, size in sizes.items()},
        **facts,
    }


def count_negatives(reader: RowReader) -> npt.NDArray[np.int32]:
    """How many negatives each row has; four bytes a row are held in memory.

    Raises:
        UserError: No row has any.
    """
    if "negatives" in reader.schema.names:
        lists = (batch.column("negatives") for batch in reader.scan(["negatives"]))
        counts = np.concatenate([pc.fill_null(pc.list_value_length(column), 0).to_numpy() for column in lists])
        if counts.any():
            return counts.astype(np.int32)
    label = reader.artifact.spec.label
    raise UserError(
        f"{label}: no row has negatives, and a supervised stage needs them; name their column (config.yaml: sources."
        f"{label}.columns.negatives), let the stage mine some (mining), or leave the source out"
    )


if __name__ == "__main__":
    step_main(make, __doc__)
