"""What all teachers share: which documents they score, and how their scores are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from colbert_zero.data.rows import TEACHER_SCORED, RowWriter, min_max
from colbert_zero.graph.artifact import Job
from colbert_zero.graph.console import UserError
from colbert_zero.mining.candidates import fused_candidates
from colbert_zero.mining.corpus import TrainingCorpus

ROWS_AT_ONCE = 512


class DocumentsToScore(NamedTuple):
    """What a teacher scores.

    Attributes:
        corpus: Where the documents' numbers lead.
        rows: int64, the shards' rows that have enough documents, ascending.
        documents: int32 (rows x documents), each row's own document first, then the best candidates.
    """

    corpus: TrainingCorpus
    rows: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int32]

    @property
    def queries(self) -> Sequence[str]:
        """The query of each row."""
        return [self.corpus.queries[row] for row in self.rows]

    def texts(self, position: int) -> list[str]:
        """The texts of one row's documents."""
        return [self.corpus.texts[number] for number in self.documents[position]]


def choose_documents(job: Job) -> DocumentsToScore:
    """Choose `settings.documents` documents per row: its own, and the best candidates that no row calls an answer.

    Raises:
        UserError: No row has so many candidates.
    """
    corpus, size = TrainingCorpus.of(job.input("shards")), job.settings["documents"]
    rows, chosen = [], []
    for row, found in enumerate(fused_candidates(job.inputs("candidates"))):
        others = found.documents[~np.isin(found.documents, corpus.known_positives(row))][: size - 1]
        if len(others) == size - 1:
            rows.append(row)
            chosen.append(np.append(corpus.positive[row], others))
    if not rows:
        raise UserError(f"{job.spec.label}: no row has {size} documents to score; ask for fewer, or mine deeper")
    return DocumentsToScore(corpus, np.array(rows, np.int64), np.array(chosen, np.int32))


def write_scores(job: Job, lesson: DocumentsToScore, scores: Iterable[npt.NDArray[np.float32]]) -> Mapping[str, Any]:
    """Write `rows-*.parquet`: the texts with raw scores and scores that are min-max normalised per query.

    Args:
        job: Whose folder to write in.
        lesson: What was scored.
        scores: The raw scores of each row's documents, in order.

    Returns:
        The counts for the manifest: rows, those dropped by reason, and how often the row's own document came first.

    Raises:
        UserError: A score is not finite, or no row is left.
    """
    constant = first = 0
    with RowWriter(job.folder, TEACHER_SCORED, job.input("shards").spec.settings["rows_per_shard"]) as writer:
        waiting: list[dict[str, Any]] = []
        for position, raw in enumerate(scores):
            row = int(lesson.rows[position])
            if not np.isfinite(raw).all():
                raise UserError(f"{job.spec.label}: a score of row {row} is not finite; try the teacher in fp32")
            if raw.min() == raw.max():
                constant += 1
                continue
            first += bool(raw.argmax() == 0)
            waiting.append(
                {
                    "row": row,
                    "query": lesson.corpus.queries[row],
                    "documents": lesson.texts(position),
                    "raw": raw,
                    "scores": min_max(raw),
                }
            )
            if len(waiting) == ROWS_AT_ONCE:
                writer.write(waiting)
                waiting = []
        writer.write(waiting)
    if not writer.rows:
        raise UserError(f"{job.spec.label}: the teacher gives all documents of a query one score, on every row")
    dropped = {"too few candidates": len(lesson.corpus.queries) - len(lesson.rows), "all scores equal": constant}
    return {**writer.facts, "dropped": dropped, "positive_first": first}
