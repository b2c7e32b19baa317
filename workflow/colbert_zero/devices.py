"""Where PyTorch computes, as the steps that ask have it: a flag, since it never decides which result comes."""

from __future__ import annotations

import argparse

import torch

from colbert_zero.artifact import Job
from colbert_zero.console import UserError


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device` to a step's command line."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (auto)")


def choose_device(job: Job) -> str:
    """`cpu` or `cuda`, as asked for; on the CPU with the job's threads.

    Raises:
        UserError: A GPU was asked for, and there is none.
    """
    torch.set_num_threads(job.threads)
    asked: str = job.options.device
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is visible here; use --device auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked
