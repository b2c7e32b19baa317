"""Pairs per second of a cross-encoder that teaches, against `CrossEncoder.predict`, on the same pairs in the same run.

    make bench-teaching
    python tests/benchmarks/bench_teaching.py [--queries N] [--documents N] [--threads N] [--device auto|cpu|cuda]
        [--folder FOLDER]

The model has the shape of MiniLM-L6 and random weights; the text is the embedded study's, a document's number of words
drawn so that lengths are spread as those of MS MARCO's passages are (56 words on average). Each side has a process of
its own and as many threads, and is timed once its model is loaded. The peers are the sentence-transformers that is
installed, which takes pairs as they come, and that of `.venv/peers`, which sorts them by their characters.

The scores of all sides must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from bench_train import PEERS, make_sources, run_script
from colbert_zero.data.sources import read_source
from colbert_zero.graph.artifact import Artifact
from measured import table, work_folder

GOAL = 1.2
"""How many times the pairs per second of `CrossEncoder.predict` ours shall have."""
SAME = 1e-4
"""By how much scores may differ in fp32."""
LENGTH = 512
MEAN_WORDS, SPREAD = 56, 0.45
"""Words of a passage of MS MARCO, and the standard deviation of their logarithm."""
SEED = 7


def make_model(base: str) -> Path:
    """Save a cross-encoder of MiniLM-L6's shape, with the tokenizer of a base."""
    folder = Path("model").absolute()
    tokenizer = AutoTokenizer.from_pretrained(Artifact.open(base).verified_folder())
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        max_position_embeddings=LENGTH, pad_token_id=tokenizer.pad_token_id, num_labels=1,
    )  # fmt: skip
    torch.manual_seed(SEED)
    kind: Any = BertForSequenceClassification
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def draw_pairs(sources: list[str], queries: int, documents: int) -> list[tuple[str, str]]:
    """Pairs of each of some queries with its own document and with others'."""
    rows = [
        pair
        for name in sources
        for batch in read_source(Artifact.open(name))
        for pair in zip(*(batch.column(column).to_pylist() for column in ("query", "document")), strict=True)
    ]
    generator = np.random.default_rng(SEED)
    words = " ".join(document for _, document in rows).split()
    chosen = generator.permutation(len(rows))[:queries]
    sizes = np.maximum(5, generator.lognormal(np.log(MEAN_WORDS) - SPREAD**2 / 2, SPREAD, (queries, documents)))
    starts = generator.integers(0, len(words) - int(sizes.max()), sizes.shape)
    return [
        (rows[row][0], " ".join(words[start : start + int(size)]))
        for row, of_starts, of_sizes in zip(chosen, starts, sizes, strict=True)
        for start, size in zip(of_starts, of_sizes, strict=True)
    ]


def main() -> None:
    """Measure, and print the table and how it stands to the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=32, help="how many queries (32)")
    parser.add_argument("--documents", type=int, default=32, help="documents of each (32)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (2)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (auto)")
    parser.add_argument("--folder", type=work_folder, help="where to work; by default in TMPDIR")
    options = parser.parse_args()
    if not PEERS.is_dir():
        parser.error(f"no {PEERS}: `make bench-teaching` installs what ours is compared with")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, chdir(folder):
        sources, base = make_sources()
        model = make_model(base)
        pairs = draw_pairs(sources, options.queries, options.documents)
        Path("pairs.json").write_text(json.dumps(pairs))
        lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(model)(pairs)["input_ids"]]
        asked = {"model": str(model), "pairs": str(Path("pairs.json").absolute()), "length": LENGTH}
        asked |= {"threads": options.threads, "device": device}
        lines, seconds, scores = [], [], []
        for side, variables in (("ours", {}), ("predict", {}), ("predict", {"PYTHONPATH": str(PEERS)})):
            file = Path(f"{len(scores)}.npy").absolute()
            run, said = run_script("score_pairs.py", asked | {"ours": side == "ours", "scores": str(file)}, **variables)
            seconds.append(said["seconds"])
            scores.append(np.load(file))
            apart = float(np.abs(scores[-1] - scores[0]).max())
            if apart > SAME:
                sys.exit(f"the scores of {side} are {apart} apart from ours")
            name = side if side == "ours" else f"sentence-transformers {said['version']}"
            ratio = f"{seconds[-1] / seconds[0]:.2f}"
            lines.append((name, f"{len(pairs) / seconds[-1]:.1f}", ratio, run.resident, f"{apart:.0e}"))
    print(
        f"{len(pairs)} pairs of {np.mean(lengths):.0f} tokens on average, from {min(lengths)} to {max(lengths)}, "
        f"on {options.threads} threads ({device})"
    )
    print(table(("", "pairs/s", "ours is faster by", "MiB", "scores differ"), lines))
    print(f"{seconds[1] / seconds[0]:.2f} times the pairs/s of CrossEncoder.predict (goal: {GOAL})")


if __name__ == "__main__":
    main()
