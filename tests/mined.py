"""Publish small artifacts in the current study, and read rows back, for tests of mining and teaching."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colbert_zero.data.rows import PAIR_SCHEMA, RowReader, RowWriter
from colbert_zero.graph.artifact import Artifact, Job, Spec, run_step
from colbert_zero.mining.candidates import Candidates, write_candidates
from colbert_zero.mining.corpus import TrainingCorpus
from publishing import publish


def publish_shards(pairs: Sequence[tuple[str, str]], rows_per_shard: int = 1000) -> Artifact:
    """Publish shards of (query, document) pairs."""

    def write(folder: Path) -> dict[str, int]:
        with RowWriter(folder, PAIR_SCHEMA, rows_per_shard) as writer:
            writer.write([{"query": query, "document": text} for query, text in pairs])
        return writer.facts

    return publish(Spec("shards", "mine", {"pairs": list(map(list, pairs)), "rows_per_shard": rows_per_shard}), write)


def publish_candidates(
    shards: Artifact, lists: Sequence[tuple[list[int], list[float], float]], label: str = "a", depth: int = 100
) -> Artifact:
    """Publish one miner's candidates: for each row, document numbers, scores and the positive's score.

    Lists shorter than `depth` have all documents that score anything.
    """
    positives = TrainingCorpus.open(shards, [], Path("corpora") / shards.spec.key).positives
    rows = [
        Candidates(np.array(documents, np.int32), np.array(scores, np.float32), np.float32(positive_score))
        for documents, scores, positive_score in lists
    ]
    settings = {"found": [list(row) for row in lists], "depth": depth}
    spec = Spec("candidates", f"{label}.mine", settings, {"shards": [shards.name]})
    return publish(spec, lambda folder: write_candidates(folder, rows, positives))


def publish_model(folder: Path) -> Artifact:
    """Publish a base with a folder's files."""

    def write(target: Path) -> dict[str, int]:
        shutil.copytree(folder, target, dirs_exist_ok=True)
        return {}

    return publish(Spec("bases", f"folder.{folder.name}", {}), write)


def publish_step(make: Callable[[Job], Mapping[str, Any]], spec: Spec, *flags: str, **run: Any) -> Artifact:
    """Run a step, and open the artifact that it publishes."""
    assert run_step(make, None, ["--spec", spec.text, *flags], **run) == 0
    return Artifact.open(spec.name)


def rows_in(artifact: Artifact) -> list[dict[str, Any]]:
    """Read all rows of an artifact."""
    reader = RowReader(artifact)
    rows: list[dict[str, Any]] = reader.read(0, len(reader)).to_pylist()
    return rows
