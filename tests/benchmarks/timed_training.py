"""Train one of our stages with the command of a study, and print what each step took.

python timed_training.py FLAGS OF colbert_zero.training.train ...
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from typing import Any

import torch

from colbert_zero.training import train
from colbert_zero.training.trainer import Trainer


def main() -> None:
    """Train, and print the seconds of each step, from the end of the one before, and the most memory on the GPU."""
    times = [time.monotonic()]
    train_step = Trainer.train_step

    def timed(trainer: Trainer) -> Any:
        record = train_step(trainer)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.monotonic())
        return record

    Trainer.train_step = timed  # type: ignore[method-assign]
    if status := train.main():
        sys.exit(status)
    seconds = [after - before for before, after in pairwise(times)]
    print(json.dumps({"seconds": seconds, "memory": peak_memory()}))


def peak_memory() -> int:
    """The most MiB that PyTorch has allocated on the GPU; 0 without one."""
    return torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else 0


if __name__ == "__main__":
    main()
