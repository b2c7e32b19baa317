"""Score each training query's documents with a neural re-ranker (see `rerankers`), or a late-interaction model.

    python -m colbert_zero.teaching.neural --spec JSON --threads 2 --device auto [--part rows --share 2 --jobs 4]

A thousand rows are a piece of the work (see `machine.pieces`): a retry resumes, and several jobs can share the pieces.
The pairs of one piece alone decide its scores, so these do not depend on who makes them. However many rows there are,
whoever scores them holds those of a piece; only the first, who chooses the documents, holds the corpus.
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
from colbert_zero.graph.locks import acquire_lock
from colbert_zero.machine.devices import add_device_option, choose_device
from colbert_zero.machine.pieces import Part
from colbert_zero.models.loading import model_name
from colbert_zero.teaching.choice import Choice, write_choice
from colbert_zero.teaching.late_interaction import LateInteractionTeacher
from colbert_zero.teaching.pairs import Scores
from colbert_zero.teaching.rerankers import INSTRUCTION, CausalLMTeacher, CrossEncoderTeacher
from colbert_zero.teaching.scoring import refuse_nonfinite, write_scores
from colbert_zero.teaching.teacher import Teacher

SCORES_FILE = "scores.npy"
"""What is in a piece: the raw scores, rows x documents."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
LOCK_WAIT_SECONDS = 3600.0
"""How long to wait for another job that chooses the documents."""


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
    """The work on the scores of one source."""

    def __init__(self, job: Job) -> None:
        """Begin, or go on where another process stopped."""
        self._job = job
        self._loaded: Teacher | None = None

    def _teacher(self) -> Teacher:
        """The teacher, loaded when it is first asked for."""
        if self._loaded is None:
            self._loaded = load_teacher(self._job, choose_device(self._job))
        return self._loaded

    @cached_property
    def choice(self) -> Choice:
        """The documents to score; the first process chooses them, while others wait for it."""
        part = Part(self._job.state / "documents", count=1, unit="choices of documents", write=self._choose)
        with acquire_lock(self._job.state / "documents.lock", "choosing the documents", wait_seconds=LOCK_WAIT_SECONDS):
            part.make()
        (facts,) = part.facts()
        return Choice(part.piece(0), facts["left_out"])

    def _choose(self, _number: int, folder: Path) -> Mapping[str, Any]:
        self._teacher()  # What is wrong with it shows before the rows are read.
        return write_choice(self._job, folder)

    @cached_property
    def rows(self) -> Part:
        """The pieces of the work. The teacher is loaded for the first one that is not there."""
        unit = f"pieces of {self._job.input('shards').name} scored"
        return Part(self._job.state / "rows", self.choice.pieces, unit, self._score)

    def _score(self, number: int, folder: Path) -> Mapping[str, Any]:
        rows = self.choice.piece(number)
        pairs = [(row.query, document) for row in rows for document in row.documents]
        scores = self._teacher().score(pairs, self._job.threads).reshape(len(rows), -1)
        for row, raw in zip(rows, scores, strict=True):
            refuse_nonfinite(self._job.spec.label, row.row, raw)
        np.save(folder / SCORES_FILE, scores)
        return {"rows": len(rows)}

    def scores(self) -> Iterator[Scores]:
        """The raw scores of each row's documents, in order; all pieces must be made."""
        for number in range(self.rows.count):
            yield from np.load(self.rows.piece(number) / SCORES_FILE)


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
    return write_scores(job, scoring.choice, scoring.scores())


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option, parts=PARTS))
