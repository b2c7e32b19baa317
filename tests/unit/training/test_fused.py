"""The fused kernels against `losses.maxsim` in Triton's interpreter, and the stages that `check_fused` refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from colbert_zero.graph.console import UserError
from colbert_zero.training.fused import check_fused


def test_scores_and_gradients_are_those_of_maxsim() -> None:
    script = Path(__file__).with_name("run_fused.py")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)
    none = {"scores": 0.0, "queries": 0.0, "documents": 0.0}
    assert differences == {"full": none, "shorter": none, "alone": none}


@pytest.mark.parametrize(
    ("stage", "device", "precision", "dimensions", "reason"),
    [
        ("distillation", "cuda", "bf16", 128, "the documents of all"),
        ("unsupervised", "cpu", "bf16", 128, "needs a GPU"),
        ("unsupervised", "cuda", "fp32", 128, "precision: fp32"),
        ("supervised", "cuda", "bf16", 100, "not 100"),
        ("supervised", "cuda", "bf16", 264, "not 264"),
    ],
)
def test_a_stage_that_the_kernels_cannot_compute_is_refused(
    monkeypatch: pytest.MonkeyPatch, stage: str, device: str, precision: str, dimensions: int, reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(UserError, match=f"maxsim: fused .*{reason}.*; remove maxsim"):
        check_fused(stage, device, precision, dimensions)


@pytest.mark.parametrize("dimensions", [8, 128, 256])
def test_multiples_of_8_are_computed_from_the_first_gpu_that_multiplies_in_bf16_on(
    monkeypatch: pytest.MonkeyPatch, dimensions: int
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    check_fused("unsupervised", "cuda", "bf16", dimensions)
    check_fused("supervised", "cuda", "bf16", dimensions)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match="needs the package late-interaction-kernels"):
        check_fused("unsupervised", "cuda", "bf16", 128)


def test_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "T4")
    with pytest.raises(UserError, match="which T4 does not"):
        check_fused("unsupervised", "cuda", "bf16", 128)
