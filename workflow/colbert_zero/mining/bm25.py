"""Retrieve the candidates of each training query with BM25, among the documents of its source.

    python -m colbert_zero.mining.bm25 --spec JSON --threads 2 --heap-mb 1024

The row's own document is always scored, even if it is not among the candidates.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import progress
from colbert_zero.mining.candidates import Candidates, write_candidates
from colbert_zero.mining.corpus import TrainingCorpus
from colbert_zero.models.lucene import LuceneIndex, add_heap_option


def make(job: Job) -> Mapping[str, Any]:
    """Write `candidates.parquet`."""
    settings = job.settings
    corpus = TrainingCorpus.from_shards(job.input("shards"))
    with LuceneIndex(corpus.texts, settings["k1"], settings["b"], job.threads, job.options.heap_mb) as index:
        candidates = progress(_search(index, corpus, settings["depth"]), len(corpus.queries), "queries")
        facts = write_candidates(job.folder, candidates, corpus.positives)
    return {**facts, "documents": len(corpus)}


def _search(index: LuceneIndex, corpus: TrainingCorpus, depth: int) -> Iterator[Candidates]:
    positive_scores = index.score(corpus.queries, corpus.positives[:, None])
    for hits, scores in zip(index.search(corpus.queries, depth), positive_scores, strict=True):
        yield Candidates(hits.documents, hits.scores, scores[0])


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_heap_option))
