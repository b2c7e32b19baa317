"""Candidates: the documents that a miner ranked for each training query. Write them, read them, and fuse miners."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.limits import DEFAULT_FUSION
from colbert_zero.machine.pieces import Part

CANDIDATES_FILE = "candidates.parquet"
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("documents", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float32())),
        ("positive_score", pa.float32()),
    ]
)
ROWS_PER_GROUP = 1024
COUNTS = ("rows", "candidates", "rows_without_candidates", "positives_found")
"""What is counted while writing."""


class Candidates(NamedTuple):
    """The candidates of one row.

    Attributes:
        documents: int32, numbers in the training corpus, best first; those with equal scores in ascending order. The
            row's own document may be among them.
        scores: float32, one per document, descending.
        positive_score: The score of the row's own document, whether or not it is among the candidates.
    """

    documents: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    positive_score: np.float32


def write_candidates(
    folder: Path, rows: Iterable[Candidates], positives: npt.NDArray[np.int32], first_row: int = 0
) -> dict[str, int]:
    """Write one miner's candidates, or those of a range of rows, which `join_candidates` puts together with others.

    Args:
        folder: An existing folder.
        rows: The candidates of rows `first_row`, `first_row + 1` …
        positives: The number of each row's own document (rows): of all rows, whichever are written.
        first_row: The number of the first row.

    Returns:
        Counts: `rows`; `candidates`; `rows_without_candidates`; and `positives_found`, the number of rows whose own
        document is among their candidates.
    """
    facts = dict.fromkeys(COUNTS, 0)
    stream = iter(rows)
    with _parquet_writer(folder) as file:
        while group := list(islice(stream, ROWS_PER_GROUP)):
            first = first_row + facts["rows"]
            row_numbers = range(first, first + len(group))
            file.write_table(
                pa.table(
                    [
                        pa.array(row_numbers, pa.int64()),
                        _list_column([candidates.documents for candidates in group], pa.int32()),
                        _list_column([candidates.scores for candidates in group], pa.float32()),
                        pa.array([candidates.positive_score for candidates in group], pa.float32()),
                    ],
                    schema=SCHEMA,
                )
            )
            facts["rows"] += len(group)
            facts["candidates"] += sum(len(candidates.documents) for candidates in group)
            facts["rows_without_candidates"] += sum(not len(candidates.documents) for candidates in group)
            facts["positives_found"] += sum(
                bool(np.isin(positives[row], candidates.documents))
                for row, candidates in zip(row_numbers, group, strict=True)
            )
    return facts


def join_candidates(folder: Path, part: Part) -> dict[str, int]:
    """Write the candidates of all rows, from pieces with those of ranges of rows, and return the counts of all.

    The bytes are those that `write_candidates` writes at once, if all pieces but the last have a multiple of
    `ROWS_PER_GROUP` rows.
    """
    with _parquet_writer(folder) as joined:
        for number in range(part.count):
            with pq.ParquetFile(part.piece(number) / CANDIDATES_FILE) as file:
                for group in range(file.num_row_groups):
                    joined.write_table(file.read_row_group(group))
    facts = part.facts()
    return {name: sum(of_piece[name] for of_piece in facts) for name in COUNTS}


def _parquet_writer(folder: Path) -> pq.ParquetWriter:
    return pq.ParquetWriter(folder / CANDIDATES_FILE, SCHEMA, compression="zstd", write_statistics=False)


def read_candidates(artifact: Artifact, rows: range | None = None) -> Iterator[Candidates]:
    """Yield one miner's candidates, row by row: those of all rows, or of consecutive `rows`.

    Raises:
        UserError: The file is missing, truncated or edited.
    """
    with pq.ParquetFile(artifact.file(CANDIDATES_FILE)) as file:
        rows = range(file.metadata.num_rows) if rows is None else rows
        groups = range(rows.start // ROWS_PER_GROUP, -(-rows.stop // ROWS_PER_GROUP))
        for group, batch in zip(groups, file.iter_batches(ROWS_PER_GROUP, list(groups)), strict=True):
            first = group * ROWS_PER_GROUP
            documents = batch.column("documents")
            offsets, numbers = documents.offsets.to_numpy(), documents.values.to_numpy()
            scores = batch.column("scores").values.to_numpy()
            positive_scores = batch.column("positive_score").to_numpy()
            for row in range(max(rows.start - first, 0), min(rows.stop - first, len(batch))):
                of_row = slice(offsets[row], offsets[row + 1])
                yield Candidates(numbers[of_row], scores[of_row], positive_scores[row])


def read_lists(miners: Sequence[Artifact], rows: range | None = None) -> Iterator[tuple[Candidates, ...]]:
    """Yield the candidates of each row, or of consecutive `rows`: a list from every miner, in the order of `miners`."""
    yield from zip(*(read_candidates(miner, rows) for miner in miners), strict=True)


def fuse(lists: Sequence[Candidates], fusion: str = DEFAULT_FUSION) -> Candidates:
    """Fuse the candidates of one row: the mean over miners of what `fusion` makes of each miner's scores.

    A single miner's candidates stay as they are. A document that a miner did not retrieve scores 0 there. The order of
    the miners decides nothing.

    Fused scores order documents, and do no more: how far one lies below the positive's depends on the other documents
    that each miner happened to retrieve.

    Args:
        lists: The row's candidates, a list from each miner.
        fusion: One of `FUSIONS`.
    """
    if len(lists) == 1:
        return lists[0]
    documents = np.unique(np.concatenate([candidates.documents for candidates in lists]))
    parts = np.zeros((len(lists), len(documents) + 1))
    for part, candidates in zip(parts, lists, strict=True):
        places = np.searchsorted(documents, candidates.documents)
        part[np.append(places, len(documents))] = FUSIONS[fusion](candidates)
    # Sums in the order of the terms, not in that of the miners: their last bits would differ.
    fused = np.sort(parts, axis=0).mean(axis=0).astype(np.float32)
    # A stable sort keeps documents with equal scores in ascending order.
    order = np.argsort(-fused[:-1], kind="stable")
    return Candidates(documents[order], fused[order], fused[-1])


def _normalised(candidates: Candidates) -> npt.NDArray[np.float64]:
    """A miner's scores, the positive's last, min-max normalised: all are 0 if they are equal.

    (The normalised average that Anserini's and Pyserini's fusion experiments compare with reciprocal rank fusion.)
    """
    scores = np.append(candidates.scores, candidates.positive_score).astype(np.float64)
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else np.zeros(len(scores))


def _reciprocal_ranks(candidates: Candidates) -> npt.NDArray[np.float64]:
    """1 / (60 + rank) of a miner's documents, and of the positive's score: 0 if it is below those of all documents.

    Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009). It sums over miners; a mean orders alike.
    """
    ranks = np.arange(1.0, len(candidates.scores) + 1)
    higher = np.count_nonzero(candidates.scores > candidates.positive_score)
    positive_rank = 1.0 + higher if higher < len(ranks) else np.inf
    return 1 / (RANK_CONSTANT + np.append(ranks, positive_rank))


FUSIONS: Mapping[str, Callable[[Candidates], npt.NDArray[np.float64]]] = {
    DEFAULT_FUSION: _normalised,
    "reciprocal-rank": _reciprocal_ranks,
}
"""What a miner's candidates score in a fusion: a number for each document, and one for the positive."""
RANK_CONSTANT = 60
"""The constant of the authors of reciprocal rank fusion: the larger, the less the first ranks stand out."""


def raw_scores(candidates: Candidates, documents: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """A miner's own scores of `documents` (documents), NaN for those that it did not retrieve.

    Args:
        candidates: What the miner retrieved.
        documents: Distinct numbers, those of `candidates` among them.
    """
    scores = np.full(len(documents), np.nan, np.float32)
    order = np.argsort(documents)
    scores[order[np.searchsorted(documents, candidates.documents, sorter=order)]] = candidates.scores
    return scores


def highest_unknown_score(candidates: Candidates, depth: int) -> float:
    """The most that a miner can have given to a document that it did not retrieve.

    Args:
        candidates: What the miner retrieved.
        depth: How many documents it was asked for. A dense miner that found fewer retrieved all there are, and BM25 all
            that share a term with the query: the others score 0.
    """
    return float(candidates.scores[-1]) if len(candidates.scores) >= depth else 0.0


def _list_column(arrays: Sequence[npt.NDArray[np.generic]], value_type: pa.DataType) -> pa.ListArray:
    """Build a list column from one array per row."""
    offsets = np.cumsum([0, *map(len, arrays)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(arrays), value_type))
