"""Stages that train in a second; their inputs are published in the current study."""

from __future__ import annotations

import shutil
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from colbert_zero.data import batches
from colbert_zero.data.rows import PAIR_SCHEMA, SCORED_SCHEMA, TRIPLE_SCHEMA, RowWriter
from colbert_zero.graph.artifact import Job, Spec, input_records, run_step
from colbert_zero.training import train

STAGES = ("unsupervised", "supervised", "distillation")
WORDS = ["a", "model", "scores", "every", "query", "document", "it", "sums", "best", "the", "quick", "fox", ",", "!"]
ROWS, BATCH_SIZE = 24, 4


def random_text(generator: np.random.Generator, word_limit: int) -> str:
    return " ".join(generator.choice(WORDS, generator.integers(1, word_limit)))


def random_rows(stage: str, count: int = ROWS, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with the columns that a stage needs; each list has one entry more than the stage uses."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        row: dict[str, Any] = {
            "row": number,
            "query": random_text(generator, 8),
            "document": random_text(generator, 25),
        }
        row["negatives"] = [random_text(generator, 25) for _ in range(3)]
        row["documents"] = [random_text(generator, 25) for _ in range(4)]
        row["raw"] = row["scores"] = list(generator.permutation(4) / 3)
        rows.append({name: row[name] for name in schema(stage).names})
    return rows


def schema(stage: str) -> pa.Schema:
    return {"unsupervised": PAIR_SCHEMA, "supervised": TRIPLE_SCHEMA, "distillation": SCORED_SCHEMA}[stage]


def publish(spec: Spec, write: Callable[[Job], Any]) -> str:
    assert run_step(write, None, ["--spec", spec.text]) == 0
    return spec.name


def publish_rows(kind: str, label: str, content: list[dict[str, Any]], fields: pa.Schema) -> str:
    def write(job: Job) -> Any:
        with RowWriter(job.folder, fields, rows_per_shard=10) as writer:
            writer.write(content)
        return writer.facts

    return publish(Spec(kind, label, {}), write)


def model_spec(base: Path, stage: str, content: Any = None, fields: pa.Schema = None, **changes: Any) -> Spec:
    """Publish the inputs of a stage, and return the spec of its model."""

    def copy(job: Job) -> Any:
        shutil.copytree(base, job.folder, dirs_exist_ok=True)
        return {}

    start = publish(Spec("bases", "folder.tiny", {}), copy)
    kind = {"unsupervised": "shards", "supervised": "negatives", "distillation": "scores"}[stage]
    rows = [
        publish_rows(kind, "first", random_rows(stage) if content is None else content, fields or schema(stage)),
        publish_rows(kind, "second", random_rows(stage, 9, seed=1), schema(stage)),
    ]
    plan = Spec("batches", stage, {"seed": 1, "batch_size": BATCH_SIZE, "epochs": 1}, {"rows": rows})
    publish(plan, batches.make)
    settings = {
        "stage": stage,
        "query_prompt": "search_query: ",
        "document_prompt": "search_document: ",
        "query_length": 14,
        "document_length": 20,
        "query_expansion": False,
        "dimensions": 16,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.2,
        "weight_decay": 0.01,
        "gradient_clip": 1.0,
        "precision": "fp32",
        "seed": 7,
    }
    settings |= {
        "unsupervised": {"temperature": 0.2},
        "supervised": {"temperature": 0.2, "negatives": 2},
        "distillation": {"documents": 3},
    }[stage]
    return Spec("models", stage, settings | changes, {"start": [start], "rows": rows, "batches": [plan.name]})


def job(spec: Spec, folder: Path, *flags: str) -> Job:
    parser = ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    train.add_options(parser)
    folder.mkdir(exist_ok=True)
    # What the machine has free must not decide what the tests compute.
    return Job(
        spec,
        folder,
        parser.parse_args(["--device", "cpu", "--memory-mb", "4000", *flags]),
        input_records(spec),
        lambda **_: None,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def never(_step: int) -> bool:
    return False
