"""The same with `mine_hard_negatives` of sentence-transformers: python mine_theirs.py PAIRS NEGATIVES TASK."""

import json
import sys

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives


def main(pairs: str, negatives: str, task_text: str) -> None:
    """Mine, and write the rows with their negatives."""
    task = json.loads(task_text)
    torch.set_num_threads(task["threads"])
    model = SentenceTransformer(task["model"], device="cpu", local_files_only=True)
    model.max_seq_length = task["length"]
    found = mine_hard_negatives(
        Dataset(pq.read_table(pairs)),
        model,
        range_max=task["depth"],
        relative_margin=0.0,
        num_negatives=task["negatives"],
        sampling_strategy="top",
        output_format="n-tuple",
        batch_size=64,
        use_faiss=True,  # without it, all scores are in memory: 40 GB for 100,000 pairs
        verbose=False,
    )
    pq.write_table(found.data.table, negatives)


if __name__ == "__main__":
    main(*sys.argv[1:])
