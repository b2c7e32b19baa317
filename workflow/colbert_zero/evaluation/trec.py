"""Read and write runs in TREC format: lines of `query Q0 document rank score tag`, in trec_eval's order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from colbert_zero.graph.console import UserError

Hits = list[tuple[str, float]]
"""One query's (document id, score) pairs, best first."""
Run = dict[str, Hits]
"""Hits by query id."""


def drop_self_match(query: str, hits: Hits, drop_self: bool) -> Hits:
    """Remove the document whose id is the query's from its hits if `drop_self`: the query is in the corpus itself."""
    return [(document, score) for document, score in hits if not (drop_self and document == query)]


def write_run(path: Path, results: Mapping[str, Iterable[tuple[str, float]]], tag: str) -> None:
    """Write a run, ranked as trec_eval ranks: by descending score, then by descending document id.

    Scores are rounded to single precision, which is all that trec_eval keeps, and written with the fewest digits that
    read back as the same number. So the ranks in the file are the ranks that are measured.

    Args:
        path: The file to write.
        results: By query, the retrieved documents and their scores, in any order. Queries are written in the order
            given. No id has white space in it: `beir.py` refuses such ids.
        tag: The run's name, written in every line.
    """
    with path.open("w", encoding="utf-8") as file:
        for query, documents in results.items():
            rounded = [(np.float32(score), document) for document, score in documents]
            for rank, (score, document) in enumerate(sorted(rounded, reverse=True), start=1):
                file.write(f"{query} Q0 {document} {rank} {score} {tag}\n")


def read_run(path: Path) -> Run:
    """Read a run, in the file's order.

    Raises:
        UserError: A line does not have six columns, or its score is not a number.
    """
    run: Run = {}
    with path.open(encoding="utf-8") as file:
        for line_number, line in enumerate(file, start=1):
            try:
                query, _, document, _, score, _ = line.rstrip("\n").split(" ")
                run.setdefault(query, []).append((document, float(score)))
            except ValueError:
                raise UserError(f"{path}, line {line_number}: not `query Q0 document rank score tag`") from None
    return run
