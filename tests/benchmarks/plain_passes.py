"""What no trainer can be faster than: one forward and one backward pass of a stage's tokens, in full batches.

    python plain_passes.py JSON

All texts are put one after the other and cut to the documents' mean length, so there is no padding; nor is there
reading, tokenising, a loss or an optimiser. Prints the seconds, with as many tokens at once as are the fastest.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from pylate import models

from colbert_zero.machine.devices import keep_freed_memory
from colbert_zero.models.colbert import embed, load_colbert, tokenize
from colbert_zero.training.stages import Stage

AT_ONCE = (1024, 2048, 4096, 16384)
"""Tokens."""


def seconds(model: models.ColBERT, ids: torch.Tensor, at_once: int, bf16: bool) -> float:
    """Encode `ids` (texts x tokens) and go back, after a first batch that is not counted."""
    parts = list(ids.split(max(1, at_once // ids.shape[1])))
    started = 0.0
    for number, part in enumerate([parts[0], *parts]):
        if number == 1:
            started = time.monotonic()
        with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=bf16):
            vectors = embed(model, {"input_ids": part, "attention_mask": torch.ones_like(part)})
        vectors.backward(torch.ones_like(vectors))
        if ids.is_cuda:
            torch.cuda.synchronize()
    return time.monotonic() - started


def main() -> None:
    """Measure, and print the least seconds."""
    asked = json.loads(sys.argv[1])
    stage, rows = Stage(**asked["settings"]), pq.read_table(asked["rows"])
    model = load_colbert(Path(asked["start"]), stage.encoding, asked["device"], strict=False)
    model.train()
    keep_freed_memory()
    columns = [rows[name].to_pylist() for name in rows.column_names if name not in ("query", "scores")]
    documents = [text for column in columns for text in (chain(*column) if isinstance(column[0], list) else column)]
    queries = tokenize(model, rows["query"].to_pylist(), True, stage.query_prompt)
    answers = tokenize(model, documents, False, stage.document_prompt)
    length = round(float(answers.lengths.mean()))
    ids = np.concatenate([queries.ids, answers.ids])
    whole = torch.from_numpy(ids[: len(ids) // length * length]).view(-1, length).to(asked["device"])
    least = min(seconds(model, whole, at_once, stage.precision == "bf16") for at_once in AT_ONCE)
    print(json.dumps({"seconds": least * len(ids) / whole.numel()}))


if __name__ == "__main__":
    main()
