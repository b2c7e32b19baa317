"""PyTorch computes on the device that `--device` asks for, or one line says which GPUs SLURM gave instead."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from colbert_zero.graph.artifact import Job, Spec
from colbert_zero.graph.console import RetryableError
from colbert_zero.machine.devices import choose_device, threads_per_process

NO_GPU = "a GPU is requested (gpu under resources in config.yaml), and none is visible: "
VARIABLES = (
    "SLURM_JOB_ID", "SLURMD_NODENAME", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE",
    "CUDA_VISIBLE_DEVICES", "LOCAL_WORLD_SIZE", "LOCAL_RANK",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_slurm_no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide this machine's SLURM and GPUs."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def job_with(device: str, count: int = 4) -> Job:
    return Job(Spec("models", "a", {}), Path("out"), Namespace(device=device, threads=count), {}, lambda **_: None)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "no SLURM job here (CUDA_VISIBLE_DEVICES is not set); set gpu: 0 to compute on the CPU"),
        (
            {"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n1", "SLURM_JOB_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "0,1"},
            "SLURM gave job 12 on n1 the GPUs 0,1 (CUDA_VISIBLE_DEVICES=0,1); does the node's driver work "
            "(nvidia-smi), and does the image run with --nv?",
        ),
        (
            {"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n1", "SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": ""},
            "SLURM gave job 12 on n1 2 of its GPUs (CUDA_VISIBLE_DEVICES=); does the node's driver work "
            "(nvidia-smi), and does the image run with --nv?",
        ),
        (
            {"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n1"},
            "SLURM gave job 12 on n1 none (CUDA_VISIBLE_DEVICES is not set): has its partition any "
            "(sinfo -o '%P %G'), and does gpu_model name one of them?",
        ),
    ],
)
def test_a_missing_gpu_is_an_error_that_says_what_slurm_gave(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RetryableError) as caught:
        choose_device(job_with("cuda"))
    assert str(caught.value) == NO_GPU + message
    assert choose_device(job_with("auto")) == choose_device(job_with("cpu")) == "cpu"


def test_each_process_of_a_node_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device(job_with("auto")) == "cuda" and not chosen
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device(job_with("cuda")) == "cuda" and chosen == [1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(
        RetryableError, match=r"^3 processes on this node need a GPU each, and 2 are visible: no SLURM job"
    ):
        choose_device(job_with("auto"))
    assert choose_device(job_with("cpu")) == "cpu"


def test_the_processes_of_a_node_share_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_per_process(job_with("cpu", 4)) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert threads_per_process(job_with("cpu", 7)) == 2
    assert threads_per_process(job_with("cpu", 1)) == 1
    choose_device(job_with("cpu", 7))
    assert torch.get_num_threads() == 2


COUNT_PAGE_FAULTS = """
import resource, torch
from colbert_zero.machine.devices import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for megabytes in (40, 70, 30) * 3:
        torch.ones(megabytes, 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = page_faults()
keep_freed_memory()
print(default, page_faults(), page_faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has it")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT_PAGE_FAULTS], capture_output=True, text=True, check=True)
    default, _, kept = map(int, done.stdout.split())
    assert kept < default / 10
