"""Search a collection with BM25.

    python -m colbert_zero.evaluation.bm25 --spec '{"kind":"runs","label":"bm25.numpy",...}' --threads 2 --heap-mb 1024

It searches for the judged queries only, and writes a run in TREC format.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from colbert_zero.data.beir import Collection, Document
from colbert_zero.data.text import document_text
from colbert_zero.evaluation.trec import Run, drop_self_match, write_run
from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import progress
from colbert_zero.retrieval.lucene import LuceneIndex, add_heap_option


def make(job: Job) -> Mapping[str, Any]:
    """Write `run.trec`: the `depth` best documents of each judged query, without the query itself if `drop_self`."""
    settings = job.settings
    depth, drop_self = settings["depth"], settings["drop_self"]
    collection = Collection.open(job.input("collection"))
    queries = collection.judged_queries
    document_ids: list[str] = []
    texts = _texts(collection.documents(), document_ids)
    run: Run = {}
    with LuceneIndex(texts, settings["k1"], settings["b"], job.threads, job.options.heap_mb) as index:
        results = progress(index.search(list(queries.values()), depth + drop_self), len(queries), "queries")
        for query, hits in zip(queries, results, strict=True):
            ids = [document_ids[position] for position in hits.documents]
            ranked = list(zip(ids, hits.scores.tolist(), strict=True))
            run[query] = drop_self_match(query, ranked, drop_self)[:depth]
    write_run(job.folder / "run.trec", run, "bm25")
    return {
        "documents": len(document_ids),
        "queries": len(queries),
        "retrieved": sum(map(len, run.values())),
        "queries_without_documents": sum(not documents for documents in run.values()),
    }


def _texts(documents: Iterable[Document], document_ids: list[str]) -> Iterator[str]:
    """Yield the text of each document, and append its id to `document_ids`."""
    for document in documents:
        document_ids.append(document.id)
        yield document_text(document.title, document.text)


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_heap_option))
