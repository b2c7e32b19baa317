"""The parts that all teachers share: choose the documents to score, and write the scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from colbert_zero.data.rows import TEACHER_SCORED_SCHEMA, RowWriter, min_max
from colbert_zero.graph.artifact import Job
from colbert_zero.graph.console import UserError
from colbert_zero.mining.candidates import fuse, read_lists
from colbert_zero.mining.corpus import TrainingCorpus


class DocumentsToScore(NamedTuple):
    """The queries and documents that a teacher scores.

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

    def texts(self, position: int) -> list[str]:
        """The texts of one row's documents; `position` is the row's index in `rows`."""
        return [self.corpus.texts[number] for number in self.documents[position]]


def choose_documents(job: Job) -> DocumentsToScore:
    """Choose `documents` (a setting) documents per row: its own, and the best candidates that are no known positive.

    Raises:
        UserError: No row has enough candidates.
    """
    corpus, size = TrainingCorpus.from_shards(job.input("shards")), job.settings["documents"]
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
    return DocumentsToScore(corpus, np.array(rows, np.int64), np.array(documents, np.int32))


def write_scores(job: Job, to_score: DocumentsToScore, scores: Iterable[npt.NDArray[np.float32]]) -> Mapping[str, Any]:
    """Write `rows-*.parquet`: texts, raw scores, and scores that are min-max normalised per query.

    Args:
        job: The job; its folder gets the files.
        to_score: The rows and documents that were scored.
        scores: The raw scores of each row's documents, in order.

    Returns:
        Counts for the manifest: rows, dropped rows by reason, and how often the row's own document scores highest.

    Raises:
        UserError: A score is not finite, or all rows are dropped.
    """
    counts: Counter[str] = Counter()
    with RowWriter(job.folder, TEACHER_SCORED_SCHEMA, job.input("shards").spec.settings["rows_per_shard"]) as writer:
        writer.write_records(_scored_rows(job, to_score, scores, counts))
    if not writer.rows:
        raise UserError(
            f"{job.spec.label}: the teacher gives all documents of a query one score, on every row; try another teacher"
        )
    too_few = len(to_score.corpus.queries) - len(to_score.rows)
    dropped = {"too few candidates": too_few, "all scores equal": counts["constant"]}
    return {**writer.facts, "dropped": dropped, "positive_first": counts["positive_first"]}


def _scored_rows(
    job: Job, to_score: DocumentsToScore, scores: Iterable[npt.NDArray[np.float32]], counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield the rows to write; count in `counts` those dropped as `constant`, and those led by their own document."""
    for position, raw in enumerate(scores):
        row = int(to_score.rows[position])
        if not np.isfinite(raw).all():
            raise UserError(f"{job.spec.label}: a score of row {row} is not finite; try the teacher in fp32")
        if raw.min() == raw.max():
            counts["constant"] += 1
            continue
        counts["positive_first"] += bool(raw.argmax() == 0)
        yield {
            "row": row,
            "query": to_score.corpus.queries[row],
            "documents": to_score.texts(position),
            "raw": raw,
            "scores": min_max(raw),
        }
