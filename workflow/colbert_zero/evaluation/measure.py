"""Measure a run against a collection's judgements, query by query.

    python -m colbert_zero.evaluation.measure --spec '{"kind":"measures","label":"numpy",...}'

Measures are named as in `ir_measures` (`nDCG@10`, `AP@100`, `R@100`). nDCG has linear gains and a log2 discount, as in
trec_eval. A mean is over all judged queries: a query that is missing from the run counts as 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ir_measures

from colbert_zero.data.beir import Collection
from colbert_zero.data.qrels import Qrels
from colbert_zero.evaluation.trec import Hits, Run, read_run
from colbert_zero.evaluation.values import mean_value, write_values
from colbert_zero.graph.artifact import Job, step_main
from colbert_zero.graph.console import UserError
from colbert_zero.graph.measures import canonical_name


def make(job: Job) -> Mapping[str, Any]:
    """Write `measures.parquet` (query_id, measure, value); return the means."""
    run = read_run(job.input("run").file("run.trec"))
    qrels = Collection.open(job.input("collection")).qrels
    names = job.settings["measures"]
    values = measure(names, qrels, run)
    write_values(job.folder, ((query, name, value) for (query, name), value in values.items()))
    return {
        "means": {name: mean_value({query: values[query, name] for query in qrels}) for name in names},
        "queries": len(qrels),
        "queries_without_results": sum(query not in run for query in qrels),
    }


def measure(names: Sequence[str], qrels: Qrels, run: Run) -> dict[tuple[str, str], float]:
    """Compute each measure for each judged query.

    Args:
        names: Names of measures, as `graph.measures` takes them.
        qrels: Grades; a grade below 0 counts as 0 (not relevant).
        run: The retrieved documents. Of two documents with equal scores, the one with the greater id ranks first.

    Returns:
        Values by (query, measure), the measure as it is named in `names`.

    Raises:
        UserError: One of the names is not a measure that is computed here.
    """
    grades = {query: {document: max(grade, 0) for document, grade in row.items()} for query, row in qrels.items()}
    # The ranks stand for the scores: some measures of ir_measures order equal scores by ascending ids (RR@10).
    ranks = {
        query: {document: -float(rank) for rank, (_, document) in enumerate(_ranked(documents))}
        for query, documents in run.items()
        if query in qrels and documents
    }
    # A query that is missing from `ranks` gets a 0 from ir_measures, by every measure.
    values = {}
    for name in names:
        # One by one: asked for two names of one measure, ir_measures would compute one of them.
        for metric in ir_measures.iter_calc([_parse_measure(name)], grades, ranks):
            values[metric.query_id, name] = float(metric.value)
    return values


def _ranked(documents: Hits) -> list[tuple[float, str]]:
    """(score, document id) pairs in trec_eval's order."""
    return sorted(((score, document) for document, score in documents), reverse=True)


def _parse_measure(name: str) -> Any:
    try:
        return ir_measures.parse_measure(canonical_name(name))
    except ValueError as error:
        raise UserError(f"the measure {error}") from None


if __name__ == "__main__":
    step_main(make, __doc__)
