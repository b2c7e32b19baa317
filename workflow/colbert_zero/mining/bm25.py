"""Find each training query's candidates with BM25, among the documents of its source.

    python -m colbert_zero.mining.bm25 --spec JSON --threads 2 --heap-mb 1024

The row's own document is scored too, found or not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import progress
from colbert_zero.mining.candidates import Candidates, write_candidates
from colbert_zero.mining.corpus import TrainingCorpus
from colbert_zero.models.lucene import LuceneIndex, add_options


def make(job: Job) -> Mapping[str, Any]:
    """Write `candidates.parquet`."""
    settings = job.settings
    corpus = TrainingCorpus.of(job.input("shards"))
    with LuceneIndex(corpus.texts, settings["k1"], settings["b"], job.threads, job.options.heap_mb) as index:
        found = progress(_search(index, corpus, settings["depth"]), len(corpus.queries), "queries")
        facts = write_candidates(job.folder, found, corpus.positive)
    return {**facts, "documents": len(corpus)}


def _search(index: LuceneIndex, corpus: TrainingCorpus, depth: int) -> Iterator[Candidates]:
    positives = index.score(corpus.queries, corpus.positive[:, None])
    for hits, positive in zip(index.search(corpus.queries, depth), positives, strict=True):
        yield Candidates(hits.numbers, hits.scores, positive[0])


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_options))
