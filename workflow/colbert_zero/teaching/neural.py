"""Score each training query's documents with a neural re-ranker (see `rerankers`), or a late-interaction model.

    python -m colbert_zero.teaching.neural --spec JSON --threads 2 --device auto [--part rows --share 2 --jobs 4]

A thousand rows are a piece of the work (see `machine.pieces`): a retry resumes, and several jobs can share the pieces.
The pairs of one piece alone decide its scores, so these do not depend on who makes them. However many rows there are,
whoever scores them holds the texts of a piece.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.machine.devices import add_device_option, choose_device
from colbert_zero.machine.pieces import Part
from colbert_zero.models.loading import model_name
from colbert_zero.teaching.late_interaction import LateInteractionTeacher
from colbert_zero.teaching.pairs import Scores
from colbert_zero.teaching.rerankers import INSTRUCTION, CausalLMTeacher, CrossEncoderTeacher
from colbert_zero.teaching.scoring import choose_documents, refuse_nonfinite, write_scores
from colbert_zero.teaching.teacher import Teacher

SCORES_FILE = "scores.npy"
"""What is in a piece: the raw scores, rows x documents."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS_PER_PIECE = 1024
"""Rows that are scored together: a minute's work of a large re-ranker on a fast GPU."""


def load_teacher(job: Job, device: str) -> Teacher:
    """Load the teacher that a job's setting `teacher` describes, from the job's input `model`.

    Raises:
        UserError: The folder contains no such model.
    """
    settings, model = job.settings["teacher"], job.input("model")
    folder, name = model.verified_folder(), model_name(model)
    if settings["kind"] == "late-interaction":
        return LateInteractionTeacher(folder, settings["precision"], device, name)
    precision, length = PRECISIONS[settings["precision"]], settings["maximum_length"]
    if settings["kind"] == "cross-encoder":
        return CrossEncoderTeacher(folder, length, precision, device, name)
    instruction = settings["instruction"] or INSTRUCTION
    return CausalLMTeacher(folder, length, precision, device, instruction, settings["answer"], name)


class Scoring:
    """The work on the scores of one source.

    Attributes:
        to_score: The rows and documents.
        rows: The pieces of the work.
    """

    def __init__(self, job: Job) -> None:
        """Choose the documents, unless it is done; the teacher is loaded for the first piece that is not there.

        Raises:
            UserError: The teacher cannot be loaded, or no row has enough candidates.
        """
        self._job, folder = job, job.state / "rows"
        if not folder.is_dir():
            self._teacher  # noqa: B018  What is wrong with it shows before the rows are read.
        self.to_score = choose_documents(job)
        count = -(-len(self.to_score.rows) // ROWS_PER_PIECE)
        self.rows = Part(folder, count, f"pieces of {job.input('shards').name} scored", self._score)

    @cached_property
    def _teacher(self) -> Teacher:
        return load_teacher(self._job, choose_device(self._job))

    def _score(self, number: int, folder: Path) -> Mapping[str, Any]:
        numbers = self.to_score.rows[number * ROWS_PER_PIECE : (number + 1) * ROWS_PER_PIECE]
        positions = range(number * ROWS_PER_PIECE, number * ROWS_PER_PIECE + len(numbers))
        pairs = [(self.to_score.query(at), document) for at in positions for document in self.to_score.texts(at)]
        scores = self._teacher.score(pairs, self._job.threads).reshape(len(numbers), -1)
        for row, raw in zip(numbers.tolist(), scores, strict=True):
            refuse_nonfinite(self._job.spec.label, row, raw)
        np.save(folder / SCORES_FILE, scores, allow_pickle=False)
        return {"rows": len(numbers)}

    def scores(self) -> Iterator[Scores]:
        """The raw scores of each row's documents, in order; all pieces must be made."""
        for number in range(self.rows.count):
            yield from np.load(self.rows.piece(number) / SCORES_FILE, allow_pickle=False)


def _rows(job: Job) -> Part:
    return Scoring(job).rows


PARTS = {"rows": _rows}
"""The parts of the work, which jobs can share."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `rows-*.parquet`.

    Raises:
        UserError: The teacher cannot be loaded, no row has enough candidates, a score is not finite, or all rows are
            dropped.
    """
    scoring = Scoring(job)
    scoring.rows.make()
    return write_scores(job, scoring.to_score, scoring.scores())


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option, parts=PARTS))
