"""Choose a row's negatives among its candidates, and count for each candidate why it is kept or dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_zero.graph.draws import sample
from colbert_zero.graph.limits import DEFAULT_FUSION
from colbert_zero.mining.candidates import Candidates, fuse, raw_scores
from colbert_zero.mining.filters import SCORE_REASONS, Miner, refused_by_scores
from colbert_zero.mining.judge import JUDGE, JUDGE_REASONS, NO_JUDGEMENT, Judge, Judgement
from colbert_zero.mining.resemblance import resemblance, shingles
from colbert_zero.mining.score_histogram import ScoreHistogram

INCONSISTENT = "of a row that is not consistent"
REASONS = (
    INCONSISTENT,
    "known positive",
    "skipped rank",
    "beyond the last rank",
    *SCORE_REASONS,
    *JUDGE_REASONS,
    "near-duplicate of a positive",
    "beyond what was asked",
    "too few for the row",
)
"""Why candidates are dropped, in the order in which they are asked: the first reason counts."""


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
        miners: What proposed the candidates; each of a row's lists comes from one.
        consistency: Among how many best of each miner that filters a row's own document must be, other known positives
            not counted, for the row to be kept; None: it may be anywhere.
        last_rank: The rank of the last candidate to choose from, known positives not counted; None: all.
        fusion: How the lists of several miners are put in one order; see `candidates.fuse`.
        near_duplicates: The resemblance to a known positive from which on a candidate is dropped; None: not asked.
        judge: What is asked besides about the candidates; None: nothing is.
        texts: The documents' texts, of which near-duplicates are told, and by which a judge knows documents.
    """

    p: float
    negatives: int
    skip: int
    choose: str
    seed: int
    label: str
    miners: Sequence[Miner]
    consistency: int | None = None
    last_rank: int | None = None
    fusion: str = DEFAULT_FUSION
    near_duplicates: float | None = None
    judge: Judge | None = None
    texts: Sequence[str] = ()
    rows: int = 0
    rows_kept: int = 0
    candidates: int = 0
    dropped: dict[str, int] = field(init=False)
    above_the_positive: dict[str, int] = field(init=False)
    histograms: dict[str, ScoreHistogram] = field(init=False)

    def __post_init__(self) -> None:
        """Start counting."""
        unasked = {
            *(JUDGE_REASONS if self.judge is None else ()),
            *([INCONSISTENT] if self.consistency is None else []),
        }
        self.dropped = {reason: 0 for reason in REASONS if reason not in unasked}
        names = [miner.name for miner in self.miners]
        fused = ["fused"] if len(names) > 1 else []
        judge = [JUDGE] if self.judge is not None else []
        self.above_the_positive = dict.fromkeys([*names, *fused, *judge], 0)
        self.histograms = {name: ScoreHistogram() for name in [*names, *judge]}

    def sample(
        self,
        row: int,
        lists: Sequence[Candidates],
        known_positives: npt.NDArray[np.int32],
        judgement: Judgement = NO_JUDGEMENT,
    ) -> list[int] | None:
        """Choose a row's negatives: their numbers, best first, or None if there are too few.

        Args:
            row: The row's number, which seeds the random sample.
            lists: The row's candidates, a list from each miner, in their order.
            known_positives: Numbers of the documents known to answer the row's query.
            judgement: What the judge says of the row, if there is one.
        """
        fused = fuse(lists, self.fusion)
        raw = [raw_scores(candidates, fused.documents) for candidates in lists]
        # What each says of the documents, and of the row's own. A single miner's list is the fused one.
        scored = {
            miner.name: (scores, float(candidates.positive_score))
            for miner, scores, candidates in zip(self.miners, raw, lists, strict=True)
        }
        if len(lists) > 1:
            scored["fused"] = fused.scores, float(fused.positive_score)
        self.rows += 1
        self.candidates += len(fused.documents)
        if not self._is_consistent(lists, known_positives):
            self.dropped[INCONSISTENT] += len(fused.documents)
            return None
        left = np.arange(len(fused.documents))
        left = self._drop("known positive", left, np.isin(fused.documents, known_positives))
        ranks = np.arange(len(left)) + 1
        left = self._drop("skipped rank", left, ranks <= self.skip)
        if self.last_rank is not None:
            left = self._drop("beyond the last rank", left, ranks[self.skip :] > self.last_rank)
        for reason, refused in refused_by_scores(self.miners, lists, raw, known_positives, self.p).items():
            left = self._drop(reason, left, refused[left])
        if self.judge is not None:
            of_judge = judgement.scores([self.texts[number] for number in fused.documents])
            for reason, refused in self.judge.refused(of_judge, judgement.positive_score).items():
                left = self._drop(reason, left, refused[left])
            scored[JUDGE] = of_judge, judgement.positive_score
        left = self._drop("near-duplicate of a positive", left, self._repeats(fused.documents[left], known_positives))
        kept: list[int] = left.tolist()
        if len(kept) < self.negatives:
            self.dropped["too few for the row"] += len(kept)
            return None
        self.dropped["beyond what was asked"] += len(kept) - self.negatives
        self.rows_kept += 1
        if self.choose == "random":
            chosen = sample(kept, self.negatives, self.seed, "negatives", self.label, row)
        else:
            chosen = kept[: self.negatives]
        for name, (scores, positive_score) in scored.items():
            self.above_the_positive[name] += int((scores[chosen] > positive_score).sum())
            if name in self.histograms and not np.isnan(positive_score):
                self.histograms[name].add(positive_score, scores[chosen])
        numbers: list[int] = fused.documents[chosen].tolist()
        return numbers

    def _is_consistent(self, lists: Sequence[Candidates], known_positives: npt.NDArray[np.int32]) -> bool:
        """Whether a row's own document is among the best of each miner that filters, if that is asked."""
        if self.consistency is None:
            return True
        for miner, candidates in zip(self.miners, lists, strict=True):
            others = ~np.isin(candidates.documents, known_positives)
            better = np.count_nonzero(candidates.scores[others] > candidates.positive_score)
            if miner.filters and better >= self.consistency:
                return False
        return True

    def _drop(self, reason: str, left: npt.NDArray[np.int64], refused: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Count what is refused of the candidates that are left, and return the others."""
        self.dropped[reason] += int(refused.sum())
        return left[~refused]

    def _repeats(
        self, documents: npt.NDArray[np.int32], known_positives: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.bool_]:
        """Which of some documents are near-duplicates of a known positive, if that is asked."""
        repeats = np.zeros(len(documents), np.bool_)
        if self.near_duplicates is not None:
            positives = [shingles(self.texts[number]) for number in known_positives]
            for at, number in enumerate(documents):
                of_document = shingles(self.texts[number])
                repeats[at] = any(resemblance(of_document, other) >= self.near_duplicates for other in positives)
        return repeats

    @property
    def report(self) -> dict[str, Any]:
        """How many candidates and rows were kept and dropped; `candidates` is the sum of `kept` and `dropped`.

        `above_the_positive` says how many of the kept have a score above that of the row's own document: by each
        miner's scores, among those that it retrieved, and by the fused ones. `score_histograms` has the scores of the
        rows that were kept, by miner: those of their own documents, and of the negatives that it retrieved. A judge
        is counted beside the miners.
        """
        return {
            "source": self.label,
            "candidates": self.candidates,
            "dropped": self.dropped,
            "kept": self.rows_kept * self.negatives,
            "above_the_positive": self.above_the_positive,
            "score_histograms": {name: histogram.facts for name, histogram in self.histograms.items()},
            "rows_read": self.rows,
            "rows_kept": self.rows_kept,
            "rows_dropped": self.rows - self.rows_kept,
        }

    def include(self, report: Mapping[str, Any]) -> None:
        """Count what another sampler of the same settings reports of other rows."""
        self.rows += report["rows_read"]
        self.rows_kept += report["rows_kept"]
        self.candidates += report["candidates"]
        for counts, others in (
            (self.dropped, report["dropped"]),
            (self.above_the_positive, report["above_the_positive"]),
        ):
            for name, count in others.items():
                counts[name] += count
        for name, facts in report["score_histograms"].items():
            self.histograms[name].include(facts)
