"""Score each training query's documents with BM25.

    python -m colbert_zero.teaching.bm25 --spec JSON --threads 2 --heap-mb 1024

A document that shares no term with the query scores 0.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import progress
from colbert_zero.retrieval.lucene import LuceneIndex, add_heap_option
from colbert_zero.teaching.scoring import choose_documents, write_scores


def make(job: Job) -> Mapping[str, Any]:
    """Write `rows-*.parquet`."""
    settings, to_score = job.settings, choose_documents(job)
    texts = to_score.corpus.texts
    with LuceneIndex(texts, settings["k1"], settings["b"], job.threads, job.options.heap_mb) as index:
        scores = index.score(to_score.queries, to_score.documents)
        return write_scores(job, to_score, progress(scores, len(to_score.rows), "queries"))


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_heap_option))
