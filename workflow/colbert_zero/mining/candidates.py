"""Candidates: the ranked documents a miner found for each training query, and the fusion of several miners' lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero.graph.artifact import Artifact

FILE = "candidates.parquet"
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("documents", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float32())),
        ("positive_score", pa.float32()),
    ]
)
ROWS_PER_GROUP = 1024


class Candidates(NamedTuple):
    """What was found for one row.

    Attributes:
        documents: int32, numbers in the training corpus, best first, equals in ascending order; the row's own document
            may be among them.
        scores: float32, one per document, descending.
        positive: The score of the row's own document, found or not.
    """

    documents: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    positive: np.float32


def write_candidates(folder: Path, rows: Iterable[Candidates], positives: npt.NDArray[np.int32]) -> dict[str, int]:
    """Write one miner's candidates.

    Args:
        folder: Where; it exists.
        rows: The candidates of row 0, 1, 2 …
        positives: The number of each row's own document (rows).

    Returns:
        Counts: `rows`; `candidates`; `rows_without_candidates`; `positives_found`, the rows whose own document is
        among their candidates.
    """
    facts = dict.fromkeys(("rows", "candidates", "rows_without_candidates", "positives_found"), 0)
    stream = iter(rows)
    with pq.ParquetWriter(folder / FILE, SCHEMA, compression="zstd", write_statistics=False) as file:
        while group := list(islice(stream, ROWS_PER_GROUP)):
            first = facts["rows"]
            numbers = range(first, first + len(group))
            file.write_table(
                pa.table(
                    [
                        pa.array(numbers, pa.int64()),
                        _lists([found.documents for found in group], pa.int32()),
                        _lists([found.scores for found in group], pa.float32()),
                        pa.array([found.positive for found in group], pa.float32()),
                    ],
                    schema=SCHEMA,
                )
            )
            facts["rows"] += len(group)
            facts["candidates"] += sum(len(found.documents) for found in group)
            facts["rows_without_candidates"] += sum(not len(found.documents) for found in group)
            facts["positives_found"] += sum(
                bool(np.isin(positives[row], found.documents)) for row, found in zip(numbers, group, strict=True)
            )
    return facts


def read_candidates(artifact: Artifact) -> Iterator[Candidates]:
    """Stream one miner's candidates, row by row.

    Raises:
        UserError: The file is missing, truncated or edited.
    """
    with pq.ParquetFile(artifact.file(FILE)) as file:
        for batch in file.iter_batches(ROWS_PER_GROUP):
            documents = batch.column("documents")
            starts, numbers = documents.offsets.to_numpy(), documents.values.to_numpy()
            values = batch.column("scores").values.to_numpy()
            for row, positive in enumerate(batch.column("positive_score").to_numpy()):
                part = slice(starts[row], starts[row + 1])
                yield Candidates(numbers[part], values[part], positive)


def fused_candidates(miners: Sequence[Artifact]) -> Iterator[Candidates]:
    """Stream the candidates of all miners as one list per row: one miner's as they are, several miners' by `fuse`."""
    if len(miners) == 1:
        yield from read_candidates(miners[0])
    else:
        for lists in zip(*map(read_candidates, miners), strict=True):
            yield fuse(lists)


def fuse(lists: Sequence[Candidates]) -> Candidates:
    """The mean over miners of scores that are min-max normalised per miner, the positive's among them.

    A document that a miner did not find counts 0 there, as does every document of a miner that scores all alike. (The
    normalised average that Anserini's and Pyserini's fusion experiments compare with reciprocal ranks.)
    """
    documents = np.unique(np.concatenate([found.documents for found in lists]))
    total, positive = np.zeros(len(documents)), 0.0
    for found in lists:
        scores = np.append(found.scores, found.positive).astype(np.float64)
        low, high = scores.min(), scores.max()
        if high > low:
            normalised = (scores - low) / (high - low)
            total[np.searchsorted(documents, found.documents)] += normalised[:-1]
            positive += normalised[-1]
    fused = (total / len(lists)).astype(np.float32)
    # Stable: equal scores stay in ascending order of the documents.
    order = np.argsort(-fused, kind="stable")
    return Candidates(documents[order], fused[order], np.float32(positive / len(lists)))


def _lists(arrays: Sequence[npt.NDArray[np.generic]], kind: pa.DataType) -> pa.ListArray:
    """A column of lists from one array per row."""
    offsets = np.cumsum([0, *map(len, arrays)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(arrays), kind))
