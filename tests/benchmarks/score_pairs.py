"""Score pairs with a cross-encoder: by ours, or by `CrossEncoder.predict` of the sentence-transformers that is found.

    [PYTHONPATH=.venv/peers] python score_pairs.py JSON

The scores are written as a NumPy array. What is printed is the seconds that scoring took, once the model is loaded and
has scored a few pairs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentence_transformers
import torch

FEW = 8
"""Pairs that are scored before the clock starts."""

Score = Callable[[Sequence[tuple[str, str]]], npt.NDArray[np.float32]]


def ours(asked: dict[str, Any]) -> Score:
    """Our teacher."""
    from colbert_zero.teaching.rerankers import CrossEncoderTeacher

    teacher = CrossEncoderTeacher(Path(asked["model"]), asked["length"], torch.float32, asked["device"])
    return lambda pairs: teacher.score(pairs, asked["threads"])


def theirs(asked: dict[str, Any]) -> Score:
    """The library's own, with its own batches of 32 pairs."""
    model = sentence_transformers.CrossEncoder(
        asked["model"],
        max_length=asked["length"],
        device=asked["device"],
        local_files_only=True,
        model_kwargs={"dtype": torch.float32},
    )
    identity = torch.nn.Identity()
    return lambda pairs: np.asarray(model.predict(list(pairs), activation_fn=identity, show_progress_bar=False))


def main() -> None:
    """Score, and print what it took."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    pairs = [tuple(pair) for pair in json.loads(Path(asked["pairs"]).read_text())]
    score = ours(asked) if asked["ours"] else theirs(asked)
    score(pairs[:FEW])
    started = time.perf_counter()
    scores = score(pairs)
    seconds = time.perf_counter() - started
    np.save(asked["scores"], scores)
    print(json.dumps({"seconds": seconds, "version": sentence_transformers.__version__}))


if __name__ == "__main__":
    main()
