"""The parts that all teachers share: choose the documents to score, and write the scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from colbert_zero.data.rows import TEACHER_SCORED_SCHEMA, RowWriter, min_max
from colbert_zero.graph.artifact import Job
from colbert_zero.graph.console import UserError
from colbert_zero.machine.pieces import make_once
from colbert_zero.mining.candidates import fuse, read_lists
from colbert_zero.mining.corpus import TrainingCorpus
from colbert_zero.teaching.report import ScoreReport

ROWS_FILE, DOCUMENTS_FILE = "rows.npy", "documents.npy"
"""The numbers of `DocumentsToScore`, in the state folder."""


@dataclass(frozen=True)
class DocumentsToScore:
    """The queries and documents that a teacher scores. The corpus is mapped from files, and so are these numbers.

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

    def query(self, position: int) -> str:
        """The query of one row; `position` is the row's index in `rows`."""
        return self.corpus.queries[int(self.rows[position])]

    def texts(self, position: int) -> list[str]:
        """The texts of one row's documents; `position` is the row's index in `rows`."""
        return [self.corpus.texts[number] for number in self.documents[position]]


def choose_documents(job: Job) -> DocumentsToScore:
    """Choose `documents` (a setting) documents per row: its own, and the best candidates that are no known positive.

    They are chosen once, by the first of the jobs that share the work.

    Raises:
        UserError: No row has enough candidates.
    """
    corpus = TrainingCorpus.of(job)
    doing = f"choosing the documents of {job.spec.label}"
    folder = make_once(job.state / "documents", doing, partial(_choose, job, corpus))
    rows, documents = (
        np.load(folder / file, mmap_mode="r", allow_pickle=False) for file in (ROWS_FILE, DOCUMENTS_FILE)
    )
    return DocumentsToScore(corpus, rows, documents)


def _choose(job: Job, corpus: TrainingCorpus, folder: Path) -> Mapping[str, Any]:
    size = job.settings["documents"]
    rows, documents = [], []
    for row, candidates in enumerate(map(fuse, read_lists(job.inputs("candidates")))):
        is_positive = np.isin(candidates.documents, corpus.known_positives(row))
        negatives = candidates.documents[~is_positive][: size - 1]
        if len(negatives) == size - 1:
            rows.append(row)
            documents.append(np.append(corpus.positives[row], negatives))
    if not rows:
        raise UserError(
            f"{job.spec.label}: no row has {size} documents to score; ask for fewer documents, or mine deeper"
        )
    np.save(folder / ROWS_FILE, np.array(rows, np.int64), allow_pickle=False)
    np.save(folder / DOCUMENTS_FILE, np.array(documents, np.int32), allow_pickle=False)
    return {"rows": len(rows)}


def refuse_nonfinite(label: str, row: int, raw: npt.NDArray[np.float32]) -> None:
    """Refuse scores of a row that are no numbers.

    Raises:
        UserError: One is NaN or infinite; `label` is that of the scores.
    """
    if not np.isfinite(raw).all():
        raise UserError(f"{label}: a score of row {row} is not finite; try the teacher in fp32")


class ScoredRow(NamedTuple):
    """A row's number in the shards, its query, and its documents with their raw scores, its own first."""

    row: int
    query: str
    documents: Sequence[str]
    raw: npt.NDArray[np.float32]


def write_scores(job: Job, to_score: DocumentsToScore, scores: Iterable[npt.NDArray[np.float32]]) -> Mapping[str, Any]:
    """Write the raw scores of each row's documents, which come in the order of `to_score`; see `write_rows`."""
    rows = (
        ScoredRow(row, to_score.query(position), to_score.texts(position), raw)
        for position, (row, raw) in enumerate(zip(to_score.rows.tolist(), scores, strict=True))
    )
    return write_rows(job, rows, too_few=len(to_score.corpus.queries) - len(to_score.rows))


def write_rows(job: Job, rows: Iterable[ScoredRow], too_few: int) -> Mapping[str, Any]:
    """Write `rows-*.parquet`: texts, raw scores, and scores that are min-max normalised per query.

    Args:
        job: The job; its folder gets the files, without the rows whose scores are all equal.
        rows: The rows, ascending; rows whose scores are all equal may be left out.
        too_few: How many rows of the shards have too few candidates.

    Returns:
        Counts for the manifest: rows, dropped rows by reason, and what `ScoreReport` tells of the others.

    Raises:
        UserError: A score is not finite, or all rows are dropped.
    """
    report, shards = ScoreReport(), job.input("shards")
    with RowWriter(job.folder, TEACHER_SCORED_SCHEMA, shards.spec.settings["rows_per_shard"]) as writer:
        writer.write_records(_records(job.spec.label, rows, report))
    if not writer.rows:
        raise UserError(
            f"{job.spec.label}: the teacher gives all documents of a query one score, on every row; try another teacher"
        )
    equal = shards.facts["rows"] - too_few - writer.rows
    dropped = {"too few candidates": too_few, "all scores equal": equal}
    return {**writer.facts, "dropped": dropped, **report.facts}


def _records(label: str, rows: Iterable[ScoredRow], report: ScoreReport) -> Iterator[dict[str, Any]]:
    """Yield the rows to write, those whose scores differ, which `report` counts."""
    for scored in rows:
        refuse_nonfinite(label, scored.row, scored.raw)
        normalised = min_max(scored.raw)
        if report.add(scored.raw, normalised):
            yield {**scored._asdict(), "scores": normalised}
