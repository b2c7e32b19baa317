"""Where PyTorch computes, as the steps that ask have it: a flag, since it never decides which result comes."""

from __future__ import annotations

import argparse
import ctypes
import os
from collections.abc import Mapping

import torch

from colbert_zero.graph.artifact import Job
from colbert_zero.graph.console import RetryableError
from colbert_zero.machine.distributed import local_rank, local_size

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3), as glibc's malloc.h has them."""


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device` to a step's command line."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (auto)")


def threads(job: Job) -> int:
    """How many threads this process may use: the job's are for all processes of a node."""
    return max(1, job.threads // local_size())


def choose_device(job: Job) -> str:
    """`cpu` or `cuda`, as asked for: on the CPU with the process's threads, on the GPU of the process's own.

    Raises:
        RetryableError: A GPU was asked for, and there is none, or fewer than processes.
    """
    torch.set_num_threads(threads(job))
    asked: str = job.options.device
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise RetryableError(
            "a GPU is asked for (gpu under resources in config.yaml), and none is visible: "
            + _slurm_gpu_hint(os.environ)
        )
    device = ("cuda" if there else "cpu") if asked == "auto" else asked
    if device == "cuda" and local_size() > 1:
        if local_size() > torch.cuda.device_count():
            raise RetryableError(
                f"{local_size()} processes on this node need a GPU each, and {torch.cuda.device_count()} are visible: "
                + _slurm_gpu_hint(os.environ)
            )
        torch.cuda.set_device(local_rank())
    if device == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, for what is asked for next.

    A large tensor is otherwise new memory each time, which the system clears page by page as it is first written; with
    large batches that can take longer than what is computed. glibc alone can be told so.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)


def _slurm_gpu_hint(environment: Mapping[str, str]) -> str:
    """What SLURM gave this job, and what to do about it."""
    job, visible = environment.get("SLURM_JOB_ID"), environment.get("CUDA_VISIBLE_DEVICES")
    shown = "CUDA_VISIBLE_DEVICES is not set" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"
    if job is None:
        return f"no SLURM job here ({shown}); set gpu: 0 to compute on the CPU"
    where = f"SLURM gave job {job} on {environment.get('SLURMD_NODENAME', 'this node')}"
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if environment.get(name):
            given = f"the GPUs {environment[name]}"
            break
    else:
        count = environment.get("SLURM_GPUS_ON_NODE", "0")
        given = "none" if count in ("", "0") else f"{count} of its GPUs"
    if given == "none":
        return f"{where} none ({shown}): has its partition any (sinfo -o '%P %G'), and does gpu_model name one of them?"
    return f"{where} {given} ({shown}); is the node's driver working (nvidia-smi), and is the image run with --nv?"
