"""Plan the batches of a stage: which rows of which source make step 1, 2, 3 ...

    python -m colbert_zero.data.batches --spec JSON

A batch has rows of one source only, so that a model cannot tell a query's document from the in-batch negatives by the
kind of text alone. In an epoch each source contributes all its whole batches, which is proportional to its size; the
last, partial batch is dropped and counted. The plan does not depend on the number of training processes: a step has the
same rows on one GPU and on 64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero.data.rows import RowReader
from colbert_zero.graph.artifact import Artifact, Job, step_main
from colbert_zero.graph.console import UserError
from colbert_zero.graph.draws import draw

PLAN_SCHEMA = pa.schema([("step", pa.int64()), ("rows", pa.int32()), ("start", pa.int64())])
"""`rows` is the index of the source among the stage's sources; the batch has that source's rows from `start` on."""


def plan_batches(rows: Sequence[int], labels: Sequence[str], batch_size: int, epochs: int, seed: int) -> pa.Table:
    """Plan every step of a stage, in order.

    The rows of a source are already shuffled, so a batch is a range of rows. Each epoch shifts the ranges by a random
    offset, at most the size of the partial batch, so that different epochs drop different rows.

    Args:
        rows: The number of rows of each source.
        labels: The sources' names, distinct: random draws use the name, so they do not depend on the sources' order.
        batch_size: Rows per step.
        epochs: The number of passes over the sources.
        seed: The study's seed.

    Returns:
        A table of `PLAN_SCHEMA`; the steps of all epochs are numbered from 0.

    Raises:
        UserError: No source has a whole batch, or two sources share a name.
    """
    if len(set(labels)) < len(labels):
        raise UserError(f"two of a stage's sources share a name: {', '.join(sorted(labels))}; name each source once")
    if all(count < batch_size for count in rows):
        sizes = ", ".join(f"{label} has {count}" for label, count in zip(labels, rows, strict=True))
        raise UserError(f"no source has the {batch_size} rows of one batch ({sizes}); lower batch_size or add rows")
    sources: list[int] = []
    starts: list[int] = []
    for epoch in range(epochs):
        batches = []
        for source, (label, count) in enumerate(zip(labels, rows, strict=True)):
            whole_batches, remainder = divmod(count, batch_size)
            shift = draw(seed, "shift", epoch, label) % (remainder + 1)
            for index in range(whole_batches):
                place = draw(seed, "batches", epoch, label, index)
                batches.append((place, source, shift + index * batch_size))
        for _, source, start in sorted(batches):
            sources.append(source)
            starts.append(start)
    return pa.Table.from_arrays(
        [np.arange(len(starts)), np.array(sources, np.int32), np.array(starts)], schema=PLAN_SCHEMA
    )


class BatchPlan:
    """The batches of a stage, read from the inputs `batches` and `rows`; several threads may read at once."""

    def __init__(self, job: Job) -> None:
        """Open the job's plan and rows."""
        batches = job.input("batches")
        self.readers = [RowReader(artifact) for artifact in job.inputs("rows")]
        self.batch_size: int = batches.spec.settings["batch_size"]
        self.epochs: int = batches.spec.settings["epochs"]
        table = pq.read_table(batches.file("plan.parquet"), columns=["rows", "start"])
        self._source_index, self._start = table["rows"].to_numpy(), table["start"].to_numpy()
        self._read_lock = Lock()

    def __len__(self) -> int:
        """The number of steps."""
        return len(self._source_index)

    def source(self, step: int) -> Artifact:
        """The artifact that has the rows of a step."""
        return self.readers[int(self._source_index[step])].artifact

    def describe_step(self, step: int) -> str:
        """Describe the rows of a step, for a message."""
        return f"{self.source(step).name}, {self.batch_size} rows from row {self._start[step]}"

    def read(self, step: int) -> pa.Table:
        """Read the rows of a step."""
        start = int(self._start[step])
        with self._read_lock:
            return self.readers[int(self._source_index[step])].read(start, start + self.batch_size)


def make(job: Job) -> Mapping[str, Any]:
    """Write `plan.parquet`.

    Returns:
        steps, steps_by_source and dropped_rows (of each epoch, by source).

    Raises:
        UserError: No source has a whole batch, or two sources share a name.
    """
    batch_size, epochs = job.settings["batch_size"], job.settings["epochs"]
    labels = [artifact.spec.label for artifact in job.inputs("rows")]
    rows = [artifact.facts["rows"] for artifact in job.inputs("rows")]
    table = plan_batches(rows, labels, batch_size, epochs, job.settings["seed"])
    pq.write_table(table, job.folder / "plan.parquet", compression="zstd")
    sizes = dict(zip(labels, rows, strict=True))
    return {
        "steps": table.num_rows,
        "steps_by_source": {label: epochs * (size // batch_size) for label, size in sizes.items()},
        "dropped_rows": {label: size % batch_size for label, size in sizes.items()},
    }


if __name__ == "__main__":
    step_main(make, __doc__)
