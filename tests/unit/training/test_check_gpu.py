"""What is to run on a GPU runs on a CPU at a tiny shape; the arithmetic that it counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from colbert_zero.graph.paths import REPOSITORY

BENCHMARKS = REPOSITORY / "tests" / "benchmarks"


def test_all_checks_run_on_a_cpu_at_a_tiny_shape(tmp_path: Path) -> None:
    # However busy the machine is, all of it is run.
    options = ["--tiny", "--seconds", "3600", "--threads", "1", "--folder", str(tmp_path)]
    command = [sys.executable, str(BENCHMARKS / "check_gpu.py"), *options]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = done.stdout[done.stdout.index("\nrun: ") :]
    for stage in ("unsupervised", "supervised", "distillation"):
        for precision in ("fp32", "bf16"):
            assert f"parity, {stage} in {precision}, attention sdpa, maxsim torch\n" in report
    for side in ("ours, maxsim torch", "PyLate", "sentence-transformers 6, packed by tokens"):
        assert f"\n  unsupervised, {side}\n" in report
        assert f" {side} |" in done.stdout
    assert "\n  resume after a kill\n" in report
    assert "flash_attention_2, maxsim fused: the package flash-attn" in report
    assert report.endswith("failed: 0\n")


def test_a_check_that_fails_or_has_no_time_is_said_and_the_next_one_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from check_gpu import LEAST_SECONDS, Checks, raise_out_of_time

    def fail() -> str:
        raise ValueError("too far\nfrom PyLate")

    previous = signal.signal(signal.SIGALRM, raise_out_of_time)
    checks = Checks(time.monotonic() + LEAST_SECONDS + 60)
    checks.attempt("first", fail)
    checks.attempt("second", lambda: "well")
    checks.skip("third", "no GPU")
    monkeypatch.setattr("check_gpu.LEAST_SECONDS", 0)
    checks.deadline = time.monotonic() + 0.1
    checks.attempt("fourth", lambda: str(time.sleep(60)))
    checks.deadline = time.monotonic()
    checks.attempt("fifth", lambda: "never")
    signal.signal(signal.SIGALRM, previous)
    assert "second: well" in capsys.readouterr().out
    assert checks.report() == (
        "run: 1\n  second\nnot run: 3\n  third: no GPU\n  fourth: the time was over before its end\n"
        "  fifth: no time left\nfailed: 1\n  first: from PyLate"
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 120GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA RTX A6000", None),
    ],
)
def test_the_peak_is_that_of_the_device(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from utilisation import peak_of

    assert peak_of(name) == peak


def test_the_operations_are_those_of_palm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from utilisation import operations

    config = {
        "hidden_size": 8,
        "num_hidden_layers": 4,
        "global_attn_every_n_layers": 3,
        "local_attention": 10,
        "vocab_size": 5,
    }
    # Two layers see all of the 100 tokens, two see 11; 60 of the 100 parameters compute.
    assert operations(config, 100, tokens=1000, length=100) == 1000 * (6 * 60 + 12 * 8 * (2 * 100 + 2 * 11))
    assert operations(config, 100, tokens=1, length=6) == 6 * 60 + 12 * 8 * 4 * 6
