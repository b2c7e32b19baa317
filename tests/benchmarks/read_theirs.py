"""The same with `datasets`, as the reference does it: load, shuffle, save; then batches through a permutation.

python read_theirs.py save FILES SAVED
python read_theirs.py read SAVED BATCH_SIZE
"""

import json
import sys
from pathlib import Path

import torch
from datasets import disable_progress_bars, load_dataset, load_from_disk
from sentence_transformers.sampler import DefaultBatchSampler
from torch.utils.data import DataLoader, RandomSampler


def save(files: str, saved: str) -> None:
    """Load, shuffle, save."""
    paths = sorted(map(str, Path(files).glob("*.parquet")))
    rows = load_dataset("parquet", data_files=paths, split="train", cache_dir=f"{saved}.cache")
    rows.shuffle(seed=42).save_to_disk(saved)


def read(saved: str, batch_size: str) -> None:
    """Read every batch; print how many rows and characters they hold."""
    rows = load_from_disk(saved)
    generator = torch.Generator().manual_seed(42)
    sampler = DefaultBatchSampler(
        RandomSampler(rows, generator=generator), batch_size=int(batch_size), drop_last=True, generator=generator
    )
    count = characters = 0
    for batch in DataLoader(rows, batch_sampler=sampler, collate_fn=list):
        count += len(batch)
        characters += sum(len(row["query"]) + len(row["document"]) for row in batch)
    print(json.dumps({"rows": count, "characters": characters}))


if __name__ == "__main__":
    disable_progress_bars()
    {"save": save, "read": read}[sys.argv[1]](*sys.argv[2:])
