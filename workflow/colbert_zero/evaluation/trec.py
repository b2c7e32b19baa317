"""Runs in TREC format: `query Q0 document rank score tag`, in the order in which trec_eval reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from colbert_zero.graph.console import UserError

Run = dict[str, list[tuple[str, float]]]
"""Documents and scores of each query, best first."""


def write_run(path: Path, results: Mapping[str, Iterable[tuple[str, float]]], tag: str) -> None:
    """Write a run, its ranks in trec_eval's order: score descending, then document id descending.

    Scores are rounded to single precision, which is all that trec_eval keeps, and written with just the digits that
    give them back. So the ranks in the file are the ranks that get measured.

    Args:
        path: The file to write.
        results: The retrieved documents and their scores, in any order, by query. Queries are written as they come. No
            id has white space in it: `beir.py` sees to that.
        tag: The run's name, in every line.
    """
    with path.open("w", encoding="utf-8") as file:
        for query, documents in results.items():
            rounded = [(np.float32(score), document) for document, score in documents]
            for rank, (score, document) in enumerate(sorted(rounded, reverse=True), start=1):
                file.write(f"{query} Q0 {document} {rank} {score} {tag}\n")


def read_run(path: Path) -> Run:
    """Read a run back, in the file's order.

    Raises:
        UserError: A line has not six columns, or its score is not a number.
    """
    run: Run = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                query, _, document, _, score, _ = line.rstrip("\n").split(" ")
                run.setdefault(query, []).append((document, float(score)))
            except ValueError:
                raise UserError(f"{path}, line {number}: not `query Q0 document rank score tag`") from None
    return run
