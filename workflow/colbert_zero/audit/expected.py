"""What today's steps write of each kind of artifact: who leaves it out hides what would be counted again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

EXPECTED_FACTS: Mapping[str, tuple[str, ...]] = {
    "collections": ("documents", "queries", "judgements"),
    "shards": ("rows", "rows_by_shard", "read"),
    "candidates": ("candidates", "rows"),
    "negatives": ("rows", "rows_by_shard", "rows_read", "kept"),
    "scores": ("rows", "rows_by_shard", "dropped"),
    "batches": ("steps", "steps_by_source", "dropped_rows"),
    "models": ("steps", "final_loss", "parameters", "samples", "batch_size", "epochs", "seconds", "stage"),
    "indexes": ("documents", "queries", "document_tokens", "dimensions", "bytes", "kind", "encoding"),
    "indexes/dense": ("documents", "queries", "dimensions", "bytes", "kind", "encoding", "similarity", "pooling"),
    "runs": ("queries", "retrieved"),
    "measures": ("means", "queries", "queries_without_results"),
    "reports": ("means", "reference"),
    "releases": ("row", "model", "measure", "values"),
}
"""Facts that all steps of a kind record, or of a kind and the first part of a label."""
EXPECTED_FILES: Mapping[str, tuple[str, ...]] = {
    "models": ("losses.jsonl",),
    "indexes/dense": ("documents.npy", "documents.parquet", "queries.npy", "queries.parquet"),
    "runs": ("run.trec",),
    "measures": ("measures.parquet",),
    "reports": ("ledger.csv", "report.html", "statistics.json", "table.csv", "table.md"),
    "releases": ("README.md", "SHA256SUMS"),
}
"""Files that all steps of a kind write, or of a kind and the first part of a label."""


def left_out(kind: str, label: str, facts: Mapping[str, object], outputs: Mapping[str, object]) -> Iterator[str]:
    """What the manifest of an artifact that a step of today made does not have, in words."""
    kind = next((one for one in (f"{kind}/{label.partition('.')[0]}",) if one in EXPECTED_FACTS), kind)
    for name in EXPECTED_FACTS.get(kind, ()):
        if name not in facts:
            yield f"has no fact {name}, which every step of its kind records"
    for name in EXPECTED_FILES.get(kind, ()):
        if name not in outputs:
            yield f"lists no {name}, which every step of its kind writes"
