"""Choose each row's negatives among its candidates, except those too close to the positive.

    python -m colbert_zero.mining.negatives --spec JSON

A candidate is kept if its score is below `s - |s| (1 - p)`, where s is the positive's score: NV-Retriever's filter
TopK-PercPos (arXiv 2407.15831), in a form that also holds for negative scores. If more documents are known to answer
the query, s is the lowest score among the row's own document and those of them that are candidates.

Of several miners, each that filters is asked for its own scores; fusion only orders. A candidate that one of them did
not retrieve scores at most as much there as the last one that it did, and is kept only if that is low enough as well.
So no negative's score exceeds the positive's, by any miner that filters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from colbert_zero.data.rows import MINED_SCHEMA, RowWriter
from colbert_zero.graph.artifact import Job, step_main
from colbert_zero.graph.console import UserError, progress
from colbert_zero.graph.draws import sample
from colbert_zero.graph.limits import DEFAULT_FUSION
from colbert_zero.mining.candidates import Candidates, fuse, highest_unknown_score, raw_scores, read_lists
from colbert_zero.mining.corpus import TrainingCorpus

REASONS = (
    "known positive",
    "skipped rank",
    "too close to the positive",
    "perhaps too close: not retrieved by a miner that filters",
    "beyond what was asked",
    "too few for the row",
)
"""Why candidates are dropped."""


class Miner(NamedTuple):
    """What proposed one of the lists of candidates.

    Attributes:
        name: What the report calls it.
        depth: How many candidates it was asked for.
        filters: Whether its scores decide which candidates are too close to the positive.
    """

    name: str
    depth: int
    filters: bool = True


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
        fusion: How the lists of several miners are put in one order; see `candidates.fuse`.
    """

    p: float
    negatives: int
    skip: int
    choose: str
    seed: int
    label: str
    miners: Sequence[Miner]
    fusion: str = DEFAULT_FUSION
    rows: int = 0
    rows_kept: int = 0
    candidates: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    above_the_positive: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        """Start counting."""
        names = [miner.name for miner in self.miners]
        self.above_the_positive = dict.fromkeys([*names, "fused"] if len(names) > 1 else names, 0)

    def sample(self, row: int, lists: Sequence[Candidates], known_positives: npt.NDArray[np.int32]) -> list[int] | None:
        """Choose a row's negatives: their numbers, best first, or None if there are too few.

        Args:
            row: The row's number, which seeds the random sample.
            lists: The row's candidates, a list from each miner, in their order.
            known_positives: Numbers of the documents known to answer the row's query.
        """
        fused = fuse(lists, self.fusion)
        raw = [raw_scores(candidates, fused.documents) for candidates in lists]
        is_positive = np.isin(fused.documents, known_positives)
        ranked = np.flatnonzero(~is_positive)[self.skip :]
        close, perhaps_close = self._too_close(lists, [scores[ranked] for scores in raw], known_positives)
        kept: list[int] = ranked[~(close | perhaps_close)].tolist()
        self.rows += 1
        self.candidates += len(fused.documents)
        self.dropped["known positive"] += int(is_positive.sum())
        self.dropped["skipped rank"] += len(is_positive) - int(is_positive.sum()) - len(ranked)
        self.dropped["too close to the positive"] += int(close.sum())
        self.dropped["perhaps too close: not retrieved by a miner that filters"] += int((perhaps_close & ~close).sum())
        if len(kept) < self.negatives:
            self.dropped["too few for the row"] += len(kept)
            return None
        self.dropped["beyond what was asked"] += len(kept) - self.negatives
        self.rows_kept += 1
        if self.choose == "random":
            chosen = sample(kept, self.negatives, self.seed, "negatives", self.label, row)
        else:
            chosen = kept[: self.negatives]
        by_score = zip([*raw, fused.scores], [*lists, fused], strict=True)
        # A single miner's list is the fused one, and has one name.
        for name, (scores, candidates) in zip(self.above_the_positive, by_score, strict=False):
            self.above_the_positive[name] += int((scores[chosen] > candidates.positive_score).sum())
        numbers: list[int] = fused.documents[chosen].tolist()
        return numbers

    def _too_close(
        self,
        lists: Sequence[Candidates],
        raw: Sequence[npt.NDArray[np.float32]],
        known_positives: npt.NDArray[np.int32],
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which of a row's documents score too much by a miner that filters, and which may, not being retrieved by it.

        Args:
            lists: The row's candidates, a list from each miner.
            raw: Each miner's scores of the documents, NaN for those that it did not retrieve.
            known_positives: Numbers of the documents known to answer the row's query.
        """
        close, perhaps_close = np.zeros((2, len(raw[0])), np.bool_)
        for miner, candidates, scores in zip(self.miners, lists, raw, strict=True):
            if miner.filters:
                bound = self._bound(candidates, known_positives)
                unknown = np.isnan(scores)
                close |= ~unknown & ~(scores < bound)
                if highest_unknown_score(candidates, miner.depth) >= bound:
                    perhaps_close |= unknown
        return close, perhaps_close

    def _bound(self, candidates: Candidates, known_positives: npt.NDArray[np.int32]) -> float:
        """What a miner's scores must lie below."""
        is_positive = np.isin(candidates.documents, known_positives)
        positive_score = float(np.append(candidates.scores[is_positive], candidates.positive_score).min())
        return positive_score - abs(positive_score) * (1 - self.p)

    @property
    def report(self) -> dict[str, Any]:
        """How many candidates and rows were kept and dropped; `candidates` is the sum of `kept` and `dropped`.

        `above_the_positive` says how many of the kept have a score above that of the row's own document: by each
        miner's scores, among those that it retrieved, and by the fused ones.
        """
        return {
            "source": self.label,
            "candidates": self.candidates,
            "dropped": self.dropped,
            "kept": self.rows_kept * self.negatives,
            "above_the_positive": self.above_the_positive,
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
    corpus = TrainingCorpus.from_shards(shards, job.state)
    settings = {name: value for name, value in job.settings.items() if name != "filter"}
    sampler = NegativeSampler(**settings, label=job.spec.label, miners=_miners(job))
    with RowWriter(job.folder, MINED_SCHEMA, shards.spec.settings["rows_per_shard"]) as writer:
        writer.write_records(progress(_mined_rows(job, corpus, sampler), len(corpus.queries), "rows"))
    if not writer.rows:
        raise UserError(
            f"{job.spec.label}: no row has {sampler.negatives} negatives left ({sampler.report['dropped']}): "
            "ask for fewer negatives, mine deeper, or raise p"
        )
    (job.folder / "report.json").write_text(json.dumps(sampler.report, indent=1) + "\n", encoding="utf-8")
    return {**writer.facts, **sampler.report}


def _miners(job: Job) -> list[Miner]:
    """The miners of a job's candidates. Its setting `filter` has the positions of those that filter, of several."""
    artifacts = job.inputs("candidates")
    filters = job.settings.get("filter", range(len(artifacts)))
    names = [artifact.spec.label.partition(".")[0] for artifact in artifacts]
    return [
        Miner(
            name if names.count(name) == 1 else f"{name}-{artifact.spec.key}",
            artifact.spec.settings["depth"],
            at in filters,
        )
        for at, (name, artifact) in enumerate(zip(names, artifacts, strict=True))
    ]


def _mined_rows(job: Job, corpus: TrainingCorpus, sampler: NegativeSampler) -> Iterator[dict[str, Any]]:
    for row, lists in enumerate(read_lists(job.inputs("candidates"))):
        negatives = sampler.sample(row, lists, corpus.known_positives(row))
        if negatives is not None:
            yield {
                "row": row,
                "query": corpus.queries[row],
                "document": corpus.texts[corpus.positives[row]],
                "negatives": [corpus.texts[number] for number in negatives],
            }


if __name__ == "__main__":
    step_main(make, __doc__)
