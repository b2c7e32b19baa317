"""Artifacts made by hand in the current study, for tests of mining and teaching."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colbert_zero.data.rows import PAIRS, RowReader, RowWriter
from colbert_zero.graph.artifact import Artifact, Job, Spec, run_step
from colbert_zero.mining.candidates import Candidates, write_candidates
from colbert_zero.mining.corpus import TrainingCorpus
from publishing import publish


def shards(pairs: Sequence[tuple[str, str]], rows_per_shard: int = 1000) -> Artifact:
    """Shards of (query, document) pairs."""

    def write(folder: Path) -> dict[str, int]:
        with RowWriter(folder, PAIRS, rows_per_shard) as writer:
            writer.write([{"query": query, "document": text} for query, text in pairs])
        return writer.facts

    return publish(Spec("shards", "mine", {"pairs": list(map(list, pairs)), "rows_per_shard": rows_per_shard}), write)


def candidates(of: Artifact, found: Sequence[tuple[list[int], list[float], float]], label: str = "a") -> Artifact:
    """One miner's candidates: numbers, scores, and the positive's score, for each row."""
    positives = TrainingCorpus.of(of).positive
    rows = [Candidates(np.array(ids, np.int32), np.array(s, np.float32), np.float32(own)) for ids, s, own in found]
    spec = Spec("candidates", label, {"found": [list(row) for row in found]}, {"shards": [of.name]})
    return publish(spec, lambda folder: write_candidates(folder, rows, positives))


def model(folder: Path) -> Artifact:
    """A base with a folder's files."""

    def write(target: Path) -> dict[str, int]:
        shutil.copytree(folder, target, dirs_exist_ok=True)
        return {}

    return publish(Spec("bases", f"folder.{folder.name}", {}), write)


def step(make: Callable[[Job], Mapping[str, Any]], spec: Spec, *flags: str, **run: Any) -> Artifact:
    """Publish what a step makes."""
    assert run_step(make, None, ["--spec", spec.text, *flags], **run) == 0
    return Artifact.open(spec.name)


def rows_in(artifact: Artifact) -> list[dict[str, Any]]:
    """All rows of an artifact."""
    reader = RowReader(artifact)
    rows: list[dict[str, Any]] = reader.read(0, len(reader)).to_pylist()
    return rows
