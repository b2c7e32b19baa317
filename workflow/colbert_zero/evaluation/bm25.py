"""Search a collection with BM25.

    python -m colbert_zero.evaluation.bm25 --spec JSON --threads 2 --heap-mb 1024

The judged queries only; a run in TREC format.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from colbert_zero.data.beir import Collection, Document
from colbert_zero.data.text import document_text
from colbert_zero.evaluation.trec import Run, write_run
from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import progress
from colbert_zero.models.lucene import LuceneIndex, add_options


def make(job: Job) -> Mapping[str, Any]:
    """Write `run.trec`: the judged queries' `depth` best documents, the query itself not among them if so asked."""
    settings = job.settings
    depth, drop_self = settings["depth"], settings["drop_self"]
    collection = Collection.open(job.input("collection"))
    queries = collection.judged
    ids: list[str] = []
    texts = _texts(collection.documents(), ids)
    run: Run = {}
    with LuceneIndex(texts, settings["k1"], settings["b"], job.threads, job.options.heap_mb) as index:
        found = progress(index.search(list(queries.values()), depth + drop_self), len(queries), "queries")
        for query, hits in zip(queries, found, strict=True):
            pairs = zip((ids[number] for number in hits.numbers), hits.scores.tolist(), strict=True)
            run[query] = [pair for pair in pairs if not (drop_self and pair[0] == query)][:depth]
    write_run(job.folder / "run.trec", run, "bm25")
    return {
        "documents": len(ids),
        "queries": len(queries),
        "retrieved": sum(map(len, run.values())),
        "queries_without_documents": sum(not documents for documents in run.values()),
    }


def _texts(documents: Iterable[Document], ids: list[str]) -> Iterator[str]:
    """The texts of documents, their ids noted on the way."""
    for document in documents:
        ids.append(document.id)
        yield document_text(document.title, document.text)


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_options))
