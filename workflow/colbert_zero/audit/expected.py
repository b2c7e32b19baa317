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
    "runs": ("queries", "retrieved"),
    "measures": ("means", "queries", "queries_without_results"),
    "reports": ("means", "reference"),
}
"""Facts that all steps of a kind record."""
EXPECTED_FILES: Mapping[str, tuple[str, ...]] = {
    "models": ("losses.jsonl",),
    "runs": ("run.trec",),
    "measures": ("measures.parquet",),
    "reports": ("report.html", "table.csv", "table.md"),
}
"""Files that all steps of a kind write."""


def left_out(kind: str, facts: Mapping[str, object], outputs: Mapping[str, object]) -> Iterator[str]:
    """What the manifest of an artifact that a step of today made does not have, in words."""
    for name in EXPECTED_FACTS.get(kind, ()):
        if name not in facts:
            yield f"has no fact {name}, which every step of its kind records"
    for name in EXPECTED_FILES.get(kind, ()):
        if name not in outputs:
            yield f"lists no {name}, which every step of its kind writes"
