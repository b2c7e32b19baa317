"""Average the scores of several teachers, each normalised per query: a teacher that is an ensemble.

    python -m colbert_zero.teaching.ensemble --spec JSON

The members are scores of the same documents, made once, and shared with whoever learns from one of them alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_zero.data.rows import RowReader
from colbert_zero.graph.artifact import Artifact, Job, step_main
from colbert_zero.graph.console import UserError
from colbert_zero.teaching.agreement import Agreement
from colbert_zero.teaching.scoring import ScoredRow, write_rows


def standardise(raw: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Shift and scale scores to mean 0 and variance 1, so that those of teachers with other scales can be added.

    This is ZMUV (zero mean, unit variance) of Montague and Aslam, Relevance Score Normalization for Metasearch, CIKM
    2001. Min-max, which they compare it with, leaves it to a query's worst document how far apart the others are.

    Args:
        raw: Finite scores of one query's documents.

    Returns:
        The standard scores; zeros where all scores are equal.
    """
    scores = raw.astype(np.float64)
    if scores.min() == scores.max():
        return np.zeros_like(scores)
    centred = scores - scores.mean()
    standard: npt.NDArray[np.float64] = centred / centred.std()
    return standard


def average(
    rows: Iterator[Mapping[int, ScoredRow]], weights: Sequence[float], label: str, agreement: Agreement
) -> Iterator[ScoredRow]:
    """Yield rows with the weighted mean of their members' standardised scores.

    Args:
        rows: Of each row, what the members say, by their number. A member that gave all documents one score has left
            the row out: it counts as zeros.
        weights: The weight of each member.
        label: The label of the ensemble's scores.
        agreement: Counts how far the members agree.

    Raises:
        UserError: The members have different documents in a row.
    """
    for of_members in rows:
        first = next(iter(of_members.values()))
        if any(list(of.documents) != list(first.documents) for of in of_members.values()):
            raise UserError(
                f"{label}: its members have different documents in row {first.row}: one was made by another version; "
                "move it away and run snakemake again"
            )
        agreement.add({number: of.raw for number, of in of_members.items()})
        total = np.sum([weights[number] * standardise(of.raw) for number, of in of_members.items()], axis=0)
        yield first._replace(raw=(total / sum(weights)).astype(np.float32))


def rows_of(members: Sequence[Artifact]) -> Iterator[dict[int, ScoredRow]]:
    """Yield what members say of each row, by their number; rows ascend, and each is of one member at least."""
    streams = (_numbered(number, member) for number, member in enumerate(members))
    for _, found in groupby(heapq.merge(*streams, key=itemgetter(0)), itemgetter(0)):
        yield {number: scored for _, number, scored in found}


def _numbered(number: int, member: Artifact) -> Iterator[tuple[int, int, ScoredRow]]:
    for batch in RowReader(member).scan(ScoredRow._fields):
        for record in batch.to_pylist():
            yield record["row"], number, ScoredRow(**record | {"raw": np.array(record["raw"], np.float32)})


def make(job: Job) -> Mapping[str, Any]:
    """Write `rows-*.parquet`; the facts say besides how far the members agree.

    Raises:
        UserError: The members have different documents, or their means of all documents are equal in every row.
    """
    members = job.inputs("members")
    weights = job.settings.get("weights", [1] * len(members))
    too_few = members[0].facts["dropped"]["too few candidates"]
    agreement = Agreement([member.name for member in members])
    facts = write_rows(job, average(rows_of(members), weights, job.spec.label, agreement), too_few)
    return {**facts, "agreement": agreement.facts}


if __name__ == "__main__":
    step_main(make, __doc__)
