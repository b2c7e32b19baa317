"""Publish artifacts made by a test, in the way that the steps publish theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from colbert_zero.data.beir import Document, check_collection, write_collection
from colbert_zero.graph.artifact import Artifact, Job, Spec, run_step


def publish(
    spec: Spec, write: Callable[[Path], object] | None = None, facts: Mapping[str, Any] | None = None
) -> Artifact:
    """Publish the files that `write` puts into its folder, in the study of the current folder.

    The facts of the manifest are `facts`, or else the dictionary that `write` returns.
    """

    def make(job: Job) -> Mapping[str, Any]:
        returned = write(job.folder) if write else None
        return facts or (returned if isinstance(returned, dict) else {})

    assert run_step(make, None, ["--spec", spec.text]) == 0
    return Artifact.open(spec.name)


def publish_collection(
    label: str, documents: Mapping[str, str], queries: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]]
) -> Artifact:
    """Publish a collection of documents without titles."""
    spec = Spec("collections", f"folder.{label}", {"split": "test", "texts": [documents, queries, qrels]})
    counts: dict[str, int] = {}

    def write(folder: Path) -> None:
        write_collection(folder, (Document(name, "", text) for name, text in documents.items()), queries, qrels)
        counts.update(check_collection(folder))

    return publish(spec, write, counts)
