"""Positive-aware filters: a candidate that scores nearly as much as the positive probably answers the query as well.

A candidate passes if its score is below `s - |s| (1 - p)`, where s is the positive's score: NV-Retriever's filter
TopK-PercPos (arXiv 2407.15831), in a form that also holds for negative scores. Where a margin m is set, its score must
also be at most `s - m`: TopK-MarginPos, of the same paper. If more documents are known to answer the query, s is the
lowest score among the row's own document and those of them that are candidates.

Of several miners, each that filters is asked for its own scores; fusion only orders. A candidate that one of them did
not retrieve scores at most as much there as the last one that it did, and passes only if that is low enough as well.
So no negative's score exceeds the positive's, by any miner that filters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from colbert_zero.mining.candidates import Candidates, highest_unknown_score

TOO_CLOSE = "too close to the positive"
WITHIN_MARGIN = "within the margin of the positive"
PERHAPS_TOO_CLOSE = "perhaps too close: not retrieved by a miner that filters"
SCORE_REASONS = (TOO_CLOSE, WITHIN_MARGIN, PERHAPS_TOO_CLOSE)
"""Why candidates are dropped for their scores."""


class Miner(NamedTuple):
    """What proposed one of the lists of candidates.

    Attributes:
        name: What the report calls it.
        depth: How many candidates it was asked for.
        filters: Whether a candidate's score must lie below a fraction of the positive's.
        margin: How far a candidate's score must lie below the positive's; None if that is not asked.
    """

    name: str
    depth: int
    filters: bool = True
    margin: float | None = None

    def tests(self, positive_score: float, p: float) -> Iterator[tuple[str, Callable[[Any], Any]]]:
        """What this miner's scores must pass, one or an array of them, and the reason if one does not."""
        yield from score_tests(positive_score, p if self.filters else None, self.margin)


def score_tests(
    positive_score: float, p: float | None, margin: float | None
) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """What scores must pass, one or an array of them, and the reason if one does not.

    Args:
        positive_score: The positive's score.
        p: The fraction of it that they must lie below; None if that is not asked.
        margin: How far below it they must lie; None if that is not asked.
    """
    if p is not None:
        bound = positive_score - abs(positive_score) * (1 - p)
        yield TOO_CLOSE, lambda scores: scores < bound
    if margin is not None:
        most = positive_score - margin
        yield WITHIN_MARGIN, lambda scores: scores <= most


def refused_by_scores(
    miners: Sequence[Miner],
    lists: Sequence[Candidates],
    raw: Sequence[npt.NDArray[np.float32]],
    known_positives: npt.NDArray[np.int32],
    p: float,
) -> dict[str, npt.NDArray[np.bool_]]:
    """By each of `SCORE_REASONS`, which of a row's documents it refuses (documents).

    Args:
        miners: The miners.
        lists: The row's candidates, a list from each miner.
        raw: Each miner's scores of the documents, NaN for those that it did not retrieve (documents).
        known_positives: Numbers of the documents known to answer the row's query.
        p: The fraction of the positive's score that a candidate's score must lie below.
    """
    refused = {reason: np.zeros(len(raw[0]), np.bool_) for reason in SCORE_REASONS}
    for miner, candidates, scores in zip(miners, lists, raw, strict=True):
        unknown = np.isnan(scores)
        highest = highest_unknown_score(candidates, miner.depth)
        for reason, passes in miner.tests(_lowest_positive_score(candidates, known_positives), p):
            refused[reason] |= ~unknown & ~passes(scores)
            if not passes(highest):
                refused[PERHAPS_TOO_CLOSE] |= unknown
    return refused


def _lowest_positive_score(candidates: Candidates, known_positives: npt.NDArray[np.int32]) -> float:
    """The lowest score that a miner gave to a known positive: the row's own, or one that it retrieved."""
    is_positive = np.isin(candidates.documents, known_positives)
    return float(np.append(candidates.scores[is_positive], candidates.positive_score).min())
