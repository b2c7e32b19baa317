"""Plan the batches of a stage: which rows of which source make step 1, 2, 3 ...

    python -m colbert_zero.data.batches --spec JSON

A batch has rows of one source, so that no query is told from documents of another kind by their kind alone. In an epoch
each source gives as many whole batches as its rows make, which is proportional to its size; the last, partial one is
dropped and counted. The plan knows nothing of how many processes train: a step's rows are the same on one GPU and on
64.
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

PLAN = pa.schema([("step", pa.int64()), ("rows", pa.int32()), ("start", pa.int64())])
"""`rows` says which of the stage's sources, by its place; the batch is that one's rows from `start` on."""


def plan(rows: Sequence[int], labels: Sequence[str], batch_size: int, epochs: int, seed: int) -> pa.Table:
    """Every step of a stage, in order.

    The rows of a source are shuffled already, so a batch is a range of them. Each epoch shifts the ranges by a drawn
    part of what the last, partial batch would have had, so that not always the same rows are left out.

    Args:
        rows: The number of rows of each source.
        labels: The sources' names, distinct: an order is drawn for a name, wherever it stands.
        batch_size: Rows per step.
        epochs: How often to go through the sources.
        seed: The study's seed.

    Returns:
        A table of the schema `PLAN`; steps count from 0 over all epochs.

    Raises:
        UserError: No source has a whole batch, or two have one name.
    """
    if len(set(labels)) < len(labels):
        raise UserError(f"two of a stage's sources have one name: {', '.join(sorted(labels))}; name each once")
    if all(count < batch_size for count in rows):
        sizes = ", ".join(f"{label} has {count}" for label, count in zip(labels, rows, strict=True))
        raise UserError(f"no source has the {batch_size} rows of one batch ({sizes}); lower batch_size or add rows")
    sources: list[int] = []
    starts: list[int] = []
    for epoch in range(epochs):
        batches = []
        for source, (label, count) in enumerate(zip(labels, rows, strict=True)):
            whole, left = divmod(count, batch_size)
            shift = draw(seed, "shift", epoch, label) % (left + 1)
            for index in range(whole):
                place = draw(seed, "batches", epoch, label, index)
                batches.append((place, source, shift + index * batch_size))
        for _, source, start in sorted(batches):
            sources.append(source)
            starts.append(start)
    return pa.Table.from_arrays([np.arange(len(starts)), np.array(sources, np.int32), np.array(starts)], schema=PLAN)


class Plan:
    """The batches of a stage, read from `batches` and `rows`; by several threads, if need be."""

    def __init__(self, job: Job) -> None:
        """Open the job's plan and rows."""
        batches = job.input("batches")
        self.readers = [RowReader(artifact) for artifact in job.inputs("rows")]
        self.size: int = batches.spec.settings["batch_size"]
        self.epochs: int = batches.spec.settings["epochs"]
        table = pq.read_table(batches.file("plan.parquet"), columns=["rows", "start"])
        self._rows, self._start = table["rows"].to_numpy(), table["start"].to_numpy()
        self._reading = Lock()

    def __len__(self) -> int:
        """The number of steps."""
        return len(self._rows)

    def source(self, step: int) -> Artifact:
        """Where the rows of a step come from."""
        return self.readers[int(self._rows[step])].artifact

    def where(self, step: int) -> str:
        """Which rows a step has, for a message."""
        return f"{self.source(step).name}, {self.size} rows from row {self._start[step]}"

    def table(self, step: int) -> pa.Table:
        """The rows of a step."""
        start = int(self._start[step])
        with self._reading:
            return self.readers[int(self._rows[step])].read(start, start + self.size)


def make(job: Job) -> Mapping[str, Any]:
    """Write `plan.parquet`.

    Returns:
        steps, steps_by_source and dropped_rows (of each epoch, by source).

    Raises:
        UserError: No source has a whole batch, or two have one name.
    """
    batch_size, epochs = job.settings["batch_size"], job.settings["epochs"]
    labels = [artifact.spec.label for artifact in job.inputs("rows")]
    rows = [artifact.facts["rows"] for artifact in job.inputs("rows")]
    table = plan(rows, labels, batch_size, epochs, job.settings["seed"])
    pq.write_table(table, job.folder / "plan.parquet", compression="zstd")
    sizes = dict(zip(labels, rows, strict=True))
    return {
        "steps": table.num_rows,
        "steps_by_source": {label: epochs * (size // batch_size) for label, size in sizes.items()},
        "dropped_rows": {label: size % batch_size for label, size in sizes.items()},
    }


if __name__ == "__main__":
    step_main(make, __doc__)
