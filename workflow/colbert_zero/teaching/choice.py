"""What a teacher scores, on disk: whoever scores a piece of it reads that piece alone, and holds no corpus.

The files are mapped into memory, so that what a process reads of them is cached by the system and not its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from colbert_zero.graph.artifact import Job
from colbert_zero.mining.corpus import TrainingCorpus
from colbert_zero.teaching.scoring import RowToScore, choose

ROWS_PER_PIECE = 1024
"""Rows that are scored together: a minute's work of a large re-ranker on a fast GPU."""
TEXTS_PER_BATCH = 65536
ROWS_FILE, TEXTS_FILE = "rows.arrow", "texts.arrow"
ROWS_SCHEMA = pa.schema([("row", pa.int64()), ("query", pa.large_string()), ("documents", pa.list_(pa.int32()))])
TEXTS_SCHEMA = pa.schema([("text", pa.large_string())])


def write_choice(job: Job, folder: Path) -> Mapping[str, Any]:
    """Choose the documents to score, and write them. This alone holds the corpus in memory.

    Returns:
        `left_out`: how many rows have too few documents.

    Raises:
        UserError: No row has enough candidates.
    """
    corpus = TrainingCorpus.from_shards(job.input("shards"), job.state)
    chosen, written = choose(job, corpus), 0
    with pa.ipc.new_file(str(folder / ROWS_FILE), ROWS_SCHEMA) as file:
        while piece := list(islice(chosen, ROWS_PER_PIECE)):
            rows, documents = zip(*piece, strict=True)
            queries = [corpus.queries[row] for row in rows]
            file.write_batch(pa.record_batch([rows, queries, list(documents)], schema=ROWS_SCHEMA))
            written += len(rows)
    with pa.ipc.new_file(str(folder / TEXTS_FILE), TEXTS_SCHEMA) as file:
        for start in range(0, len(corpus.texts), TEXTS_PER_BATCH):
            texts = corpus.texts[start : start + TEXTS_PER_BATCH]
            file.write_batch(pa.record_batch([texts], schema=TEXTS_SCHEMA))
    return {"left_out": len(corpus.queries) - written}


class Choice:
    """What `write_choice` wrote.

    Attributes:
        left_out: How many rows of the shards have too few documents.
    """

    def __init__(self, folder: Path, left_out: int) -> None:
        """Open the files in a folder."""
        self.left_out = left_out
        self._rows = pa.ipc.open_file(pa.memory_map(str(folder / ROWS_FILE)))
        texts = pa.ipc.open_file(pa.memory_map(str(folder / TEXTS_FILE)))
        self._texts = texts.read_all().column("text").chunks
        # Of the first text of each batch: another version may have written larger ones.
        self._numbers = np.cumsum([0, *map(len, self._texts)])

    @property
    def pieces(self) -> int:
        """The number of pieces."""
        count: int = self._rows.num_record_batches
        return count

    def piece(self, number: int) -> list[RowToScore]:
        """The rows of a piece, ascending: `ROWS_PER_PIECE`, and in the last one perhaps fewer."""
        rows = self._rows.get_batch(number)
        documents = rows.column("documents")
        texts = {at: self._text(at) for at in np.unique(documents.values.to_numpy()).tolist()}
        return [
            RowToScore(row, query, [texts[at] for at in numbers])
            for row, query, numbers in zip(*(column.to_pylist() for column in rows.columns), strict=True)
        ]

    def records(self) -> Iterator[RowToScore]:
        """All rows, ascending."""
        for number in range(self.pieces):
            yield from self.piece(number)

    def _text(self, number: int) -> str:
        batch = int(np.searchsorted(self._numbers, number, side="right")) - 1
        text: str = self._texts[batch][number - int(self._numbers[batch])].as_py()
        return text
