"""Choose the device and the number of threads for PyTorch. Both are flags, since neither decides a result."""

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
"""Parameters of mallopt(3), as in glibc's malloc.h."""


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device` to a step's command line."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (auto)")


def threads_per_process(job: Job) -> int:
    """How many threads this process may use: the processes of a node share the job's threads."""
    return max(1, job.threads // local_size())


def choose_device(job: Job) -> str:
    """Return `cpu` or `cuda`, as `--device` asks for, and set up PyTorch for it.

    Sets PyTorch's number of threads. With several processes on a node, each takes the GPU of its local rank.

    Raises:
        RetryableError: `--device` asks for a GPU and none is visible, or there are fewer GPUs than processes.
    """
    torch.set_num_threads(threads_per_process(job))
    requested: str = job.options.device
    cuda_available = torch.cuda.is_available()
    if requested == "cuda" and not cuda_available:
        raise RetryableError(
            "a GPU is requested (gpu under resources in config.yaml), and none is visible: "
            + _slurm_gpu_hint(os.environ)
        )
    device = ("cuda" if cuda_available else "cpu") if requested == "auto" else requested
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
    """Have the C library keep freed memory for the next allocation; needs glibc, and does nothing elsewhere.

    By default each large tensor is new memory, which the kernel clears page by page at the first write. With large
    batches, that can take longer than the computation.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def _slurm_gpu_hint(environment: Mapping[str, str]) -> str:
    """Say which GPUs SLURM gave this job, and what to do about it."""
    job, visible = environment.get("SLURM_JOB_ID"), environment.get("CUDA_VISIBLE_DEVICES")
    variable = "CUDA_VISIBLE_DEVICES is not set" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"
    if job is None:
        return f"no SLURM job here ({variable}); set gpu: 0 to compute on the CPU"
    job_on_node = f"SLURM gave job {job} on {environment.get('SLURMD_NODENAME', 'this node')}"
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if environment.get(name):
            allocated = f"the GPUs {environment[name]}"
            break
    else:
        count = environment.get("SLURM_GPUS_ON_NODE", "0")
        allocated = "none" if count in ("", "0") else f"{count} of its GPUs"
    if allocated == "none":
        return (
            f"{job_on_node} none ({variable}): has its partition any (sinfo -o '%P %G'), "
            "and does gpu_model name one of them?"
        )
    return (
        f"{job_on_node} {allocated} ({variable}); "
        "does the node's driver work (nvidia-smi), and does the image run with --nv?"
    )
