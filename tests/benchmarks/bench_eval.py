"""Documents and queries per second of an evaluation: ours against PyLate, with the same model in the same run.

    make bench-eval
    python tests/benchmarks/bench_eval.py [--documents N] [--queries N] [--threads N] [--device auto|cpu|cuda]
        [--folder FOLDER]

The model and the texts are those of `bench_train.py`, the prompts and lengths those of the first recipe in
`config.yaml`. Ours are the commands of a study, which make an exact and a PLAID index and search both; the other side
is `evaluate_pylate.py`, in a process of its own with as many threads. Vectors must be the same, but for rounding.
Neither side's time includes loading the model. PyLate has no exact search: it re-ranks all documents.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench_train import make_sources, make_start, paper_settings, publish, read_texts, run_script
from colbert_zero.data.beir import Document, check_collection, write_collection
from colbert_zero.graph.artifact import Artifact, Job, Spec
from colbert_zero.models.colbert import EncodingSettings, load_colbert
from colbert_zero.retrieval.vectors import read_vectors
from colbert_zero.training.stages import Stage
from measured import Measured, measure, table, work_folder

DOCUMENTS, QUERIES, DEPTH = 4096, 200, 100
GOAL = 1.3
"""How many times PyLate's documents per second ours shall encode on a CPU."""
SAME = 2.0**-10
"""By how much a component may differ: two units in the last place of half precision, near 1."""


def publish_collection(texts: Sequence[tuple[str, str]], documents: int, queries: int) -> str:
    """A collection of these texts; its name. Where there are fewer than documents, they come again after a number."""

    def write(job: Job) -> Mapping[str, Any]:
        corpus = (
            Document(f"d{number}", "", f"{number // len(texts)} {texts[number % len(texts)][1]}")
            for number in range(documents)
        )
        asked = {f"q{number}": texts[number % len(texts)][0] for number in range(queries)}
        write_collection(job.folder, corpus, asked, {query: {f"d{query[1:]}": 1} for query in asked})
        return check_collection(job.folder)

    return publish(Spec("collections", "folder.bench", {"split": "test", "documents": documents}), write)


def run_ours(spec: Spec, module: str, flags: Sequence[str]) -> tuple[Measured, Artifact]:
    """Run the command of a study; what it made."""
    run = measure([sys.executable, "-m", f"colbert_zero.evaluation.{module}", "--spec", spec.text, *flags], Path())
    return run, Artifact.open(spec.name)


def compare(model: str, collection: str, encoding: EncodingSettings, threads: int, device: str) -> list[list[object]]:
    """Evaluate with both sides; the lines of the table, encoding first, with the ratio of the speeds last but two."""
    flags = ["--threads", str(threads), "--device", device]
    encoded, speeds, memory = {}, {}, 0
    for kind in ("exact", "plaid"):
        settings = {"encoding": asdict(encoding), "index": {"kind": kind, "seed": 7}}
        spec = Spec("indexes", kind, settings, {"model": [model], "collection": [collection]})
        run, encoded[kind] = run_ours(spec, "index", flags)
        memory = max(memory, run.anonymous)
        inputs = {"index": [spec.name], "collection": [collection]}
        run, found = run_ours(
            Spec("runs", f"colbert.{kind}", {"depth": DEPTH, "drop_self": False}, inputs), "search", flags
        )
        speeds[kind] = found.facts["queries_per_second"]
    asked = {
        "model": str(Artifact.open(model).folder.absolute()),
        "collection": str(Artifact.open(collection).folder.absolute()),
        "encoding": asdict(encoding),
        "device": device,
        "threads": threads,
        "depth": DEPTH,
        "vectors": str(Path("pylate.npy").absolute()),
        "index": str(Path("pylate").absolute()),
    }
    peer_run, peer = run_script("evaluate_pylate.py", asked)
    ours = read_vectors(encoded["exact"].file("documents.safetensors")).float().numpy()
    apart = float(np.abs(ours - np.load(asked["vectors"])).max())
    if apart > SAME:
        sys.exit(f"vectors differ by {apart}")
    facts = encoded["exact"].facts
    found = [
        ("encode, documents/s", facts["documents_per_second"], facts["documents"] / peer["documents"]),
        (
            "build PLAID, documents/s",
            *(facts["documents"] / seconds for seconds in (encoded["plaid"].facts["indexing_seconds"], peer["index"])),
        ),
        *((f"search {kind}, queries/s", speeds[kind], facts["queries"] / peer[kind]) for kind in ("exact", "plaid")),
    ]
    lines: list[list[object]] = [
        [name, f"{one:.1f}", f"{other:.1f}", f"{one / other:.2f}"] for name, one, other in found
    ]
    lines.append(["memory, MiB", memory, peer_run.anonymous, ""])
    lines.append(["a component differs by", f"{apart:.0e}", "", ""])
    return lines


def main() -> None:
    """Measure, print the table and how it stands to the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help=f"how many ({DOCUMENTS})")
    parser.add_argument("--queries", type=int, default=QUERIES, help=f"how many ({QUERIES})")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (2)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (auto)")
    parser.add_argument("--folder", type=work_folder, help="where to work; by default in TMPDIR")
    options = parser.parse_args()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, chdir(folder):
        stage = Stage(**paper_settings()["unsupervised"])
        sources, base = make_sources()
        model = make_start(base, stage)
        tokenizer = load_colbert(Artifact.open(model).verified_folder(), stage.encoding).tokenizer
        collection = publish_collection(read_texts(sources, tokenizer), options.documents, options.queries)
        lines = compare(model, collection, stage.encoding, options.threads, device)
    print(table(("", "ours", "PyLate", "ratio"), lines))
    print(f"encode: {lines[0][-1]} times PyLate's documents/s (goal on a CPU: {GOAL})")


if __name__ == "__main__":
    main()
