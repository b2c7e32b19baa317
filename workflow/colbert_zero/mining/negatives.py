"""Choose each row's negatives among its candidates, except those too close to the positive.

    python -m colbert_zero.mining.negatives --spec JSON

A candidate is kept if its score is below `s - |s| (1 - p)`, where s is the positive's score: NV-Retriever's filter
TopK-PercPos (arXiv 2407.15831), in a form that also holds for negative scores. If more documents are known to answer
the query, s is the lowest score among the row's own document and those of them that are candidates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_zero.data.rows import MINED_SCHEMA, RowWriter
from colbert_zero.graph.artifact import Job, step_main
from colbert_zero.graph.console import UserError, progress
from colbert_zero.graph.draws import sample
from colbert_zero.mining.candidates import Candidates, read_fused_candidates
from colbert_zero.mining.corpus import TrainingCorpus


@dataclass
class NegativeSampler:
    """Chooses negatives, and counts for every candidate whether it is kept, or for which reason it is dropped.

    Attributes:
        p: The fraction of the positive's score that a candidate's score must lie below.
        negatives: Number of negatives per row; a row with fewer is dropped.
        skip: Number of best candidates to skip, known positives not counted.
        choose: `top` for the best candidates that are left, or `random` for a random sample of them.
        seed: The study's seed, for the random sample.
        label: The source, for the random sample.
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

    def sample(self, row: int, candidates: Candidates, known_positives: npt.NDArray[np.int32]) -> list[int] | None:
        """Choose a row's negatives: their numbers, best first, or None if there are too few.

        Args:
            row: The row's number, which seeds the random sample.
            candidates: The row's candidates.
            known_positives: Numbers of the documents known to answer the row's query.
        """
        self.rows += 1
        self.candidates += len(candidates.documents)
        is_positive = np.isin(candidates.documents, known_positives)
        documents = candidates.documents[~is_positive][self.skip :]
        scores = candidates.scores[~is_positive][self.skip :]
        positive_score = float(np.append(candidates.scores[is_positive], candidates.positive_score).min())
        kept: list[int] = documents[scores < positive_score - abs(positive_score) * (1 - self.p)].tolist()
        self._count_dropped("known positive", int(is_positive.sum()))
        self._count_dropped("skipped rank", len(is_positive) - int(is_positive.sum()) - len(documents))
        self._count_dropped("too close to the positive", len(documents) - len(kept))
        if len(kept) < self.negatives:
            self._count_dropped("too few for the row", len(kept))
            return None
        self._count_dropped("beyond what was asked", len(kept) - self.negatives)
        self.rows_kept += 1
        if self.choose == "random":
            return sample(kept, self.negatives, self.seed, "negatives", self.label, row)
        return kept[: self.negatives]

    def _count_dropped(self, reason: str, count: int) -> None:
        self.dropped[reason] += count

    @property
    def report(self) -> dict[str, Any]:
        """How many candidates and rows were kept and dropped; `candidates` is the sum of `kept` and `dropped`."""
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
    corpus = TrainingCorpus.from_shards(shards)
    sampler = NegativeSampler(**job.settings, label=job.spec.label)
    with RowWriter(job.folder, MINED_SCHEMA, shards.spec.settings["rows_per_shard"]) as writer:
        writer.write_records(progress(_mined_rows(job, corpus, sampler), len(corpus.queries), "rows"))
    if not writer.rows:
        raise UserError(
            f"{job.spec.label}: no row has {sampler.negatives} negatives left ({sampler.report['dropped']}): "
            "ask for fewer negatives, mine deeper, or raise p"
        )
    (job.folder / "report.json").write_text(json.dumps(sampler.report, indent=1) + "\n", encoding="utf-8")
    return {**writer.facts, "mining": sampler.report}


def _mined_rows(job: Job, corpus: TrainingCorpus, sampler: NegativeSampler) -> Iterator[dict[str, Any]]:
    for row, candidates in enumerate(read_fused_candidates(job.inputs("candidates"))):
        negatives = sampler.sample(row, candidates, corpus.known_positives(row))
        if negatives is not None:
            yield {
                "row": row,
                "query": corpus.queries[row],
                "document": corpus.texts[corpus.positives[row]],
                "negatives": [corpus.texts[number] for number in negatives],
            }


if __name__ == "__main__":
    step_main(make, __doc__)
