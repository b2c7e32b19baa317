"""A judge of negatives: a teacher that has scored a row's candidates, and knows better than the miners what answers it.

It proposes none, and is asked about those that the miners propose. Its scores are counted, which tells how many of the
chosen negatives are perhaps false ones; and where it has a fraction `p` or a margin, it refuses those that score too
much, by the same tests as a miner (`filters`). What a teacher did not score may score anything, so a judge that refuses
keeps nothing of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from colbert_zero.data.rows import ROWS_PER_GROUP, RowReader
from colbert_zero.graph.artifact import Artifact
from colbert_zero.mining.filters import score_tests

BY_JUDGE = "too close to the positive by the judge"
NOT_JUDGED = "not scored by the judge"
JUDGE_REASONS = (BY_JUDGE, NOT_JUDGED)
"""Why candidates are dropped for a judge's scores."""
JUDGE = "judge"
"""What a judge is called beside the miners."""


class Judgement(NamedTuple):
    """What a teacher says of a row.

    Attributes:
        positive_score: Its score of the row's own document; NaN if it left out the row.
        by_text: Its scores of the row's documents.
    """

    positive_score: float
    by_text: Mapping[str, float]

    def scores(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Its scores of some texts, NaN for those that it did not score (texts)."""
        return np.array([self.by_text.get(text, np.nan) for text in texts], np.float32)


NO_JUDGEMENT = Judgement(np.nan, {})


@dataclass(frozen=True)
class Judge:
    """What a judge refuses: nothing, if it has neither of the two.

    Attributes:
        p: The fraction of the positive's score that a candidate's score must lie below.
        margin: How far a candidate's score must lie below the positive's.
    """

    p: float | None = None
    margin: float | None = None

    def refused(self, scores: npt.NDArray[np.float32], positive_score: float) -> dict[str, npt.NDArray[np.bool_]]:
        """By each of `JUDGE_REASONS`, which of a row's documents it refuses (documents).

        Args:
            scores: Its scores of the documents, NaN for those that it did not score (documents).
            positive_score: Its score of the row's own document; NaN if it left out the row.
        """
        unknown = np.isnan(scores)
        refused = {BY_JUDGE: np.zeros(len(scores), np.bool_), NOT_JUDGED: np.zeros(len(scores), np.bool_)}
        for _, passes in score_tests(positive_score, self.p, self.margin):
            refused[BY_JUDGE] |= ~unknown & ~passes(scores)
            refused[NOT_JUDGED] |= unknown
        return refused


def judgements(scores: Artifact, rows: range) -> Iterator[Judgement]:
    """Yield what a teacher says of each of some consecutive rows of the shards.

    Raises:
        UserError: A file of the scores is missing, truncated or edited.
    """
    reader = RowReader(scores)
    # A teacher leaves out rows, so the first is looked for.
    first = bisect_left(range(len(reader)), rows.start, key=lambda at: reader.read(at, at + 1)["row"][0].as_py())
    judged = _records(reader, first)
    following = next(judged, None)
    for row in rows:
        if following is None or following["row"] != row:
            yield NO_JUDGEMENT
            continue
        # A teacher scores a row's own document first.
        yield Judgement(following["raw"][0], dict(zip(following["documents"], following["raw"], strict=True)))
        following = next(judged, None)


def _records(reader: RowReader, first: int) -> Iterator[dict[str, Any]]:
    """The records of a teacher's scores, from the one with a number on."""
    for start in range(first, len(reader), ROWS_PER_GROUP):
        table = reader.read(start, min(start + ROWS_PER_GROUP, len(reader)))
        yield from table.select(["row", "documents", "raw"]).to_pylist()
