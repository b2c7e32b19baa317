"""The parts that all teachers share: choose the documents to score, and write the scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from colbert_zero.data.rows import TEACHER_SCORED_SCHEMA, RowWriter, min_max
from colbert_zero.graph.artifact import Job
from colbert_zero.graph.console import UserError
from colbert_zero.mining.candidates import fuse, read_lists
from colbert_zero.mining.corpus import TrainingCorpus
from colbert_zero.teaching.report import ScoreReport


class RowToScore(NamedTuple):
    """A query and the documents that a teacher scores.

    Attributes:
        row: The row's number in the shards.
        query: Its query.
        documents: The row's own document first, then its best candidates.
    """

    row: int
    query: str
    documents: list[str]


class ToScore(Protocol):
    """All that a teacher scores."""

    @property
    def left_out(self) -> int:
        """How many rows of the shards have too few documents."""

    def records(self) -> Iterator[RowToScore]:
        """The other rows, ascending."""


class DocumentsToScore(NamedTuple):
    """The queries and documents that a teacher scores, in memory.

    Attributes:
        corpus: The corpus that the numbers in `documents` refer to.
        rows: int64, the rows of the shards that have enough documents, ascending.
        documents: int32 (rows x documents), each row's own document first, then its best candidates.
    """

    corpus: TrainingCorpus
    rows: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int32]

    @property
    def queries(self) -> Sequence[str]:
        """The query of each row."""
        return [self.corpus.queries[row] for row in self.rows]

    @property
    def left_out(self) -> int:
        """How many rows of the shards have too few documents."""
        return len(self.corpus.queries) - len(self.rows)

    def records(self) -> Iterator[RowToScore]:
        """The rows, ascending."""
        for row, numbers in zip(self.rows.tolist(), self.documents, strict=True):
            yield RowToScore(row, self.corpus.queries[row], [self.corpus.texts[number] for number in numbers])


def choose(job: Job, corpus: TrainingCorpus) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
    """Choose `documents` (a setting) documents per row: its own, and the best candidates that are no known positive.

    Args:
        job: Its input `candidates` has those of each row.
        corpus: The documents of the job's shards.

    Yields:
        The number of each row that has enough, and the numbers of its documents.

    Raises:
        UserError: No row has enough candidates.
    """
    size, found = job.settings["documents"], False
    for row, candidates in enumerate(map(fuse, read_lists(job.inputs("candidates")))):
        is_positive = np.isin(candidates.documents, corpus.known_positives(row))
        negatives = candidates.documents[~is_positive][: size - 1]
        if len(negatives) == size - 1:
            found = True
            yield row, np.append(corpus.positives[row], negatives)
    if not found:
        raise UserError(
            f"{job.spec.label}: no row has {size} documents to score; ask for fewer documents, or mine deeper"
        )


def choose_documents(job: Job) -> DocumentsToScore:
    """Choose the documents to score, see `choose`.

    Raises:
        UserError: No row has enough candidates.
    """
    corpus = TrainingCorpus.from_shards(job.input("shards"), job.state)
    rows, documents = zip(*choose(job, corpus), strict=True)
    return DocumentsToScore(corpus, np.array(rows, np.int64), np.array(documents, np.int32))


def refuse_nonfinite(label: str, row: int, raw: npt.NDArray[np.float32]) -> None:
    """Refuse scores of a row that are no numbers.

    Raises:
        UserError: One is NaN or infinite; `label` is that of the scores.
    """
    if not np.isfinite(raw).all():
        raise UserError(f"{label}: a score of row {row} is not finite; try the teacher in fp32")


def write_scores(job: Job, to_score: ToScore, scores: Iterable[npt.NDArray[np.float32]]) -> Mapping[str, Any]:
    """Write `rows-*.parquet`: texts, raw scores, and scores that are min-max normalised per query.

    Args:
        job: The job; its folder gets the files.
        to_score: The rows and documents that were scored.
        scores: The raw scores of each row's documents, in order.

    Returns:
        Counts for the manifest: rows, dropped rows by reason, and what `ScoreReport` tells of the others.

    Raises:
        UserError: A score is not finite, or all rows are dropped.
    """
    report = ScoreReport()
    with RowWriter(job.folder, TEACHER_SCORED_SCHEMA, job.input("shards").spec.settings["rows_per_shard"]) as writer:
        writer.write_records(_scored_rows(job, to_score, scores, report))
    if not writer.rows:
        raise UserError(
            f"{job.spec.label}: the teacher gives all documents of a query one score, on every row; try another teacher"
        )
    dropped = {"too few candidates": to_score.left_out, "all scores equal": report.constant}
    return {**writer.facts, "dropped": dropped, **report.facts}


def _scored_rows(
    job: Job, to_score: ToScore, scores: Iterable[npt.NDArray[np.float32]], report: ScoreReport
) -> Iterator[dict[str, Any]]:
    """Yield the rows to write, those whose scores differ; `report` counts all."""
    for (row, query, documents), raw in zip(to_score.records(), scores, strict=True):
        refuse_nonfinite(job.spec.label, row, raw)
        normalised = min_max(raw)
        if report.add(raw, normalised):
            yield {"row": row, "query": query, "documents": documents, "raw": raw, "scores": normalised}
