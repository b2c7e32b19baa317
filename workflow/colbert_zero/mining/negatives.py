"""Choose each row's negatives among its candidates, those too close to the positive left out.

    python -m colbert_zero.mining.negatives --spec JSON

A candidate is kept if its score is below `s - |s| (1 - p)`, s being the positive's: the filter that NV-Retriever calls
TopK-PercPos (arXiv 2407.15831), in the form that also holds for negative scores. Where more documents are known to
answer the query, s is the lowest score among the row's own and those that were found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_zero.data.rows import MINED, RowWriter
from colbert_zero.graph.artifact import Job, step_main
from colbert_zero.graph.console import UserError, progress
from colbert_zero.graph.draws import sample
from colbert_zero.mining.candidates import Candidates, fused_candidates
from colbert_zero.mining.corpus import TrainingCorpus

ROWS_AT_ONCE = 512


@dataclass
class NegativeSampler:
    """Chooses negatives, and counts what becomes of every candidate: kept, or dropped for one reason.

    Attributes:
        p: Of the filter: below which part of the positive's score a candidate's must lie.
        negatives: How many a row gets; a row that cannot have so many is dropped.
        skip: How many of the best candidates are passed over, known positives not counted.
        choose: `top`, the best ones, or `random`, a draw among all that are left.
        seed: The study's seed, for the draws.
        label: The source, for the draws.
    """

    p: float
    negatives: int
    skip: int
    choose: str
    seed: int
    label: str
    rows: int = 0
    rows_kept: int = 0
    candidates: int = 0
    dropped: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            (
                "known positive",
                "skipped rank",
                "too close to the positive",
                "beyond what was asked",
                "too few for the row",
            ),
            0,
        )
    )

    def sample(self, row: int, found: Candidates, known: npt.NDArray[np.int32]) -> list[int] | None:
        """The numbers of a row's negatives, best first, or None if there are too few.

        Args:
            row: Which row; it decides the draw.
            found: Its candidates.
            known: Numbers of the documents known to answer its query.
        """
        self.rows += 1
        self.candidates += len(found.documents)
        answers = np.isin(found.documents, known)
        documents, scores = found.documents[~answers][self.skip :], found.scores[~answers][self.skip :]
        positive = float(np.append(found.scores[answers], found.positive).min())
        kept: list[int] = documents[scores < positive - abs(positive) * (1 - self.p)].tolist()
        self._drop("known positive", int(answers.sum()))
        self._drop("skipped rank", len(answers) - int(answers.sum()) - len(documents))
        self._drop("too close to the positive", len(documents) - len(kept))
        if len(kept) < self.negatives:
            self._drop("too few for the row", len(kept))
            return None
        self._drop("beyond what was asked", len(kept) - self.negatives)
        self.rows_kept += 1
        if self.choose == "random":
            return sample(kept, self.negatives, self.seed, "negatives", self.label, row)
        return kept[: self.negatives]

    def _drop(self, reason: str, count: int) -> None:
        self.dropped[reason] += count

    @property
    def report(self) -> dict[str, Any]:
        """What became of all candidates and rows; `candidates` is the sum of `kept` and `dropped`."""
        return {
            "source": self.label,
            "candidates": self.candidates,
            "dropped": self.dropped,
            "kept": self.rows_kept * self.negatives,
            "rows_read": self.rows,
            "rows_kept": self.rows_kept,
            "rows_dropped": self.rows - self.rows_kept,
        }


def make(job: Job) -> Mapping[str, Any]:
    """Write `rows-*.parquet` and `report.json`.

    Raises:
        UserError: No row has enough negatives.
    """
    shards = job.input("shards")
    corpus = TrainingCorpus.of(shards)
    sampler = NegativeSampler(**job.settings, label=job.spec.label)
    with RowWriter(job.folder, MINED, shards.spec.settings["rows_per_shard"]) as writer:
        waiting: list[dict[str, Any]] = []
        for record in progress(_records(job, corpus, sampler), len(corpus.queries), "rows"):
            waiting.append(record)
            if len(waiting) == ROWS_AT_ONCE:
                writer.write(waiting)
                waiting = []
        writer.write(waiting)
    if not writer.rows:
        raise UserError(
            f"{job.spec.label}: no row has {sampler.negatives} negatives left ({sampler.report['dropped']}): "
            "ask for fewer, mine deeper, or raise p"
        )
    (job.folder / "report.json").write_text(json.dumps(sampler.report, indent=1) + "\n", encoding="utf-8")
    return {**writer.facts, "mining": sampler.report}


def _records(job: Job, corpus: TrainingCorpus, sampler: NegativeSampler) -> Iterator[dict[str, Any]]:
    for row, found in enumerate(fused_candidates(job.inputs("candidates"))):
        negatives = sampler.sample(row, found, corpus.known_positives(row))
        if negatives is not None:
            yield {
                "row": row,
                "query": corpus.queries[row],
                "document": corpus.texts[corpus.positive[row]],
                "negatives": [corpus.texts[number] for number in negatives],
            }


if __name__ == "__main__":
    step_main(make, __doc__)
