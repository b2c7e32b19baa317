"""All that needs a GPU, on one card in under nine minutes: what our training computes there, and how fast.

    make check-gpu
    python tests/benchmarks/check_gpu.py [--seconds N] [--threads N] [--folder FOLDER]
    python tests/benchmarks/check_gpu.py --tiny        the same on a CPU, at a tiny shape

1. Losses and gradients of all stages against PyLate's, in fp32 and bf16, with and without flash attention and fused
   kernels (`parity.py`).
2. Samples per second, memory and model FLOP utilisation (`utilisation.py`) of a training of each stage at
   ModernBERT-base's shape with random weights, on drawn words: ours, PyLate with its kernels, and sentence-transformers
   6, which packs by tokens and, with flash attention, does not pad.
3. The same training killed in the middle: it resumes, and its losses are those of the one that was not.

What could not be run is listed at the end with the reason, and is no failure; so is what the time did not suffice for.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import is_flash_attn_2_available

sys.path.append(str(Path(__file__).resolve().parents[1]))
import parity
from bench_train import (
    OTHER_LOSSES,
    PEERS,
    Task,
    make_start,
    paper_settings,
    prepare,
    publish,
    run_script,
    speed_of,
)
from colbert_zero.graph.artifact import Artifact, Job, Spec
from colbert_zero.models.random_base import random_model, train_tokenizer
from colbert_zero.training.stages import Stage
from measured import table, work_folder
from tiny_models import SENTENCES, tiny_modernbert
from utilisation import operations, peak_of

SECONDS = 520
"""Within which all ends; what is not begun by then is not run."""
LEAST_SECONDS = 15
"""With fewer left, nothing more is begun."""
BASE_SHAPE = {"layers": 22, "hidden": 768, "heads": 12, "intermediate": 1152}
"""ModernBERT-base's (Warner et al. 2024, table 4); its vocabulary is larger, which costs memory and no time."""
TINY_SHAPE = {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 48}
SIZES = {"unsupervised": (1024, 8), "distillation": (4, 20), "supervised": (16, 10)}
"""Rows per step and steps, by stage: what PyLate has memory for, whose later stages keep all activations."""
TINY_SIZES = {"unsupervised": (8, 6)}
MEDIAN_WORDS, SPREAD, MOST_WORDS = 75, 0.5, 400
"""The lengths of documents are drawn from a log-normal distribution; their mean is then about 100 tokens."""
VOCABULARY, SEED = 2000, 7
GOALS = {"sentence-transformers 6": 1.2, "PyLate": 4.0}
"""How many times a peer's samples per second ours shall have; PyLate's on the short texts of the unsupervised stage."""
UTILISATION_GOAL = 0.2
SAME_LOSSES = {"cpu": 0.0, "cuda": 1e-2}
"""By how much the losses of a resumed training may differ, relative to their size: on a GPU, bf16 rounds otherwise."""


class OutOfTimeError(Exception):
    """The time for all checks is over."""


@dataclass
class Checks:
    """Does one check after the other, and keeps what became of each.

    Attributes:
        deadline: When all must have ended, on the monotonic clock.
        done: The checks that were run.
        failed: Those that failed, with the reason.
        not_run: Those that were not run, with the reason.
    """

    deadline: float
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)

    def attempt(self, name: str, check: Callable[[], str]) -> None:
        """Do a check, which returns a line to print, and raises where it fails."""
        left = self.deadline - time.monotonic()
        if left < LEAST_SECONDS:
            self.skip(name, "no time left")
            return
        signal.setitimer(signal.ITIMER_REAL, left)
        try:
            print(f"{name}: {check()}", flush=True)
            self.done.append(name)
        except OutOfTimeError:
            self.skip(name, "the time was over before its end")
        # A check that fails must not keep the others from being run.
        except (Exception, SystemExit) as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            self.failed.append(f"{name}: {lines[-1][:300]}")
            print(f"{name}: FAILED\n" + "\n".join(lines[-12:]), flush=True)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def skip(self, name: str, reason: str) -> None:
        """Note a check that cannot be done."""
        self.not_run.append(f"{name}: {reason}")

    def report(self) -> str:
        """What was run and what was not."""
        parts = {"run": self.done, "not run": self.not_run, "failed": self.failed}
        return "\n".join(
            f"{title}: {len(lines)}" + "".join(f"\n  {line}" for line in lines) for title, lines in parts.items()
        )


def raise_out_of_time(_number: int, _frame: object) -> None:
    """End what is being done."""
    raise OutOfTimeError


# Losses and gradients


def check_parity(checks: Checks, device: str) -> None:
    """Compare every case with PyLate."""
    with tempfile.TemporaryDirectory() as folder:
        base = tiny_modernbert(Path(folder), SENTENCES)
        for case in parity.cases():
            obstacle = case.obstacle(device)
            if obstacle:
                checks.skip(f"parity, {case}", obstacle)
                continue
            checks.attempt(f"parity, {case}", lambda case=case: parity_line(case, base, device))


def parity_line(case: parity.Case, base: Path, device: str) -> str:
    """How far ours is from PyLate.

    Raises:
        ValueError: Farther than rounding explains.
    """
    distance = parity.measure_distance(case, base, device)
    words = (
        f"loss {distance.loss:.1e}, gradient {distance.gradient:.1e} from PyLate's (at most {case.tolerance:.0e}); "
        f"again {'the same bits' if distance.repeated else 'other bits'}"
    )
    if not max(distance.loss, distance.gradient) <= case.tolerance:
        raise ValueError(words)
    return words


# Speed


def make_base(shape: Mapping[str, int], texts: Sequence[tuple[str, str]]) -> str:
    """Publish a model of a shape with random weights; its name."""

    def make(job: Job) -> Mapping[str, Any]:
        tokenizer = train_tokenizer((text for pair in texts[:500] for text in pair), 8 * VOCABULARY)
        tokenizer.save_pretrained(job.folder)
        random_model(tokenizer, {**shape, "seed": SEED}).save_pretrained(job.folder)
        return {}

    return publish(Spec("bases", "random.shape", {}), make)


def draw_texts(count: int) -> list[tuple[str, str]]:
    """Queries and documents of drawn words, most of which are a token."""
    generator = np.random.default_rng(SEED)
    words = np.array(["".join(generator.choice(list("abcdefghijklmnop"), 5)) for _ in range(VOCABULARY)])
    lengths = np.minimum(MOST_WORDS, generator.lognormal(np.log(MEDIAN_WORDS), SPREAD, count)).astype(int)
    return [
        (" ".join(generator.choice(words, generator.integers(3, 13))), " ".join(generator.choice(words, length)))
        for length in np.maximum(1, lengths)
    ]


@dataclass(frozen=True)
class Sides:
    """How ours and the peers are run.

    Attributes:
        device: `cpu` or `cuda`.
        threads: Of each side.
        attention: The implementation of attention of all sides; None lets each choose.
    """

    device: str
    threads: int
    attention: str | None

    def flags(self, spec: Spec, maxsim: str) -> list[str]:
        """The command line of our training."""
        chosen = [] if self.attention is None else ["--attention", self.attention]
        return [
            *("--spec", spec.text, "--threads", str(self.threads), "--device", self.device, "--maxsim", maxsim),
            *chosen,
        ]


@dataclass
class Table:
    """The lines of the table of speeds, and what the goals are about.

    Attributes:
        peak: Floating point operations per second that the device can do; None if unknown.
        lines: Of the table.
        speeds: Rows per second by stage and side.
        shares: Utilisation by stage, of our fastest.
    """

    peak: float | None
    lines: list[tuple[object, ...]] = field(default_factory=list)
    speeds: dict[str, dict[str, float]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    def add(self, task: Task, side: str, found: Mapping[str, Any], work: Mapping[str, float]) -> str:
        """Add what a side took; the line that is printed at once.

        Args:
            task: The stage's.
            side: Who trained.
            found: `seconds` of each step, `memory` in MiB.
            work: `operations` of a row, `tokens` of a document.
        """
        stage, speed = task.asked["settings"]["stage"], speed_of(found, task)
        of_stage = self.speeds.setdefault(stage, {})
        of_stage[side] = max(speed, of_stage.get(side, 0.0))
        share = None if self.peak is None else speed * work["operations"] / self.peak
        if side.startswith("ours") and share is not None:
            self.shares[stage] = max(share, self.shares.get(stage, 0.0))
        utilisation = "unknown" if share is None else f"{100 * share:.1f} %"
        shape = f"{task.asked['batch']} x {task.documents} x {work['tokens']:.0f}"
        self.lines.append((f"{stage}, {shape}", side, f"{speed:.1f}", found["memory"], utilisation))
        return f"{speed:.1f} rows/s, {found['memory']} MiB, utilisation {utilisation}"

    def text(self) -> str:
        """The table, and how it stands to the goals."""
        header = ("rows x documents x tokens", "trainer", "rows/s", "GPU, MiB", "utilisation")
        parts = [table(header, self.lines)] if self.lines else []
        for stage, speeds in self.speeds.items():
            ours = max((speed for side, speed in speeds.items() if side.startswith("ours")), default=None)
            for peer, goal in GOALS.items():
                theirs = max((speed for side, speed in speeds.items() if side.startswith(peer)), default=None)
                if ours and theirs and (peer != "PyLate" or stage == "unsupervised"):
                    parts.append(f"{stage}: {ours / theirs:.2f} times {peer}'s rows/s (goal: {goal})")
            if stage in self.shares:
                parts.append(
                    f"{stage}: {100 * self.shares[stage]:.1f} % utilisation (goal: {100 * UTILISATION_GOAL:.0f} %)"
                )
        return "\n".join([*parts, OTHER_LOSSES])


def train_ours(spec: Spec, sides: Sides, maxsim: str, *flags: str) -> Mapping[str, Any]:
    """Run our training; what it took."""
    command = [sys.executable, str(Path(__file__).with_name("timed_training.py")), *sides.flags(spec, maxsim), *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"said": done.stdout}


def work_of(task: Task, spec: Spec) -> dict[str, float]:
    """Operations that a row needs, and tokens of a document, as our training counted them."""
    facts = Artifact.open(spec.name).facts
    config = json.loads(Path(task.asked["start"], "config.json").read_text())
    rows = facts["samples"]
    texts = {"query_tokens": rows, "document_tokens": rows * task.documents}
    total = sum(
        operations(config, facts["parameters"], facts[tokens], facts[tokens] / count) for tokens, count in texts.items()
    )
    return {"operations": total / rows, "tokens": facts["document_tokens"] / texts["document_tokens"]}


@dataclass
class StageCheck:
    """Trains a stage with one side after the other.

    Attributes:
        task: The stage's.
        sides: How the sides are run.
        speeds: Where the table is made.
        work: What `work_of` says, once ours has trained.
    """

    task: Task
    sides: Sides
    speeds: Table
    work: dict[str, float] = field(default_factory=dict)

    def ours(self, maxsim: str) -> str:
        """Run our training; a line of what it took."""
        spec = our_spec(self.task, maxsim)
        found = train_ours(spec, self.sides, maxsim)
        self.work = work_of(self.task, spec)
        return self.speeds.add(self.task, f"ours, maxsim {maxsim}", found, self.work)

    def pylate(self) -> str:
        """Run PyLate's; a line of what it took."""
        _, found = run_script("train_pylate.py", self.task.asked)
        return self.speeds.add(self.task, "PyLate", found, self.work)

    def sentence_transformers(self, cached: bool) -> str:
        """Run sentence-transformers 6; a line of what it took."""
        asked = {**self.task.asked, "cached": cached}
        _, found = run_script("train_sentence_transformers.py", asked, PYTHONPATH=str(PEERS))
        side = "sentence-transformers 6" + ", packed by tokens" * cached
        return self.speeds.add(self.task, side, found, self.work)


def our_spec(task: Task, maxsim: str, name: str = "") -> Spec:
    """The spec of one of our trainings of a task: all are to make the same model."""
    return replace(task.spec, label=f"{task.spec.label}-{maxsim}{name}")


def check_speed(checks: Checks, task: Task, sides: Sides, speeds: Table, *, tiny: bool) -> None:
    """Train a stage with all sides."""
    stage = task.asked["settings"]["stage"]
    check = StageCheck(task, sides, speeds)
    for maxsim in ("fused", "torch") if sides.device == "cuda" and stage != "distillation" else ("torch",):
        checks.attempt(f"{stage}, ours, maxsim {maxsim}", lambda maxsim=maxsim: check.ours(maxsim))
    if not check.work:
        checks.skip(f"{stage}, peers", "without ours, how much work a row is has not been counted")
        return
    checks.attempt(f"{stage}, PyLate", check.pylate)
    if not PEERS.is_dir():
        checks.skip(f"{stage}, sentence-transformers 6", f"it is not in {PEERS}")
        return
    for cached in (True,) if tiny else (False,) if stage == "distillation" else (False, True):
        name = f"{stage}, sentence-transformers 6{', packed by tokens' * cached}"
        checks.attempt(name, lambda cached=cached: check.sentence_transformers(cached))


# Resume


def check_resume(task: Task, sides: Sides) -> str:
    """Kill a training after two steps and go on; how far its losses are from those of the training that went through.

    Raises:
        ValueError: It began anew, or its losses are others.
    """
    whole = our_spec(task, "torch")
    if not whole.folder.exists():
        train_ours(whole, sides, "torch")
    spec = our_spec(task, "torch", "-killed")
    flags = [*sides.flags(spec, "torch"), "--checkpoint-seconds", "0"]
    lines = spec.state / "losses.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "colbert_zero.training.train", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            while process.poll() is None and (not lines.exists() or lines.read_text().count("\n") < 2):
                time.sleep(0.005)
        finally:
            process.kill()
    if spec.folder.exists():
        raise ValueError("it had ended before it was killed: take more steps")
    said = train_ours(spec, sides, "torch", "--checkpoint-seconds", "0")["said"]
    resumed = [line for line in said.splitlines() if "resuming from the checkpoint of step" in line]
    if not resumed:
        raise ValueError(f"it did not resume\n{said}")
    before, after = (
        [json.loads(line)["loss"] for line in Artifact.open(found.name).file("losses.jsonl").read_text().splitlines()]
        for found in (whole, spec)
    )
    apart = max(abs(one - other) / abs(one) for one, other in zip(before, after, strict=True))
    most = SAME_LOSSES[sides.device]
    words = f"{resumed[0].strip()}; losses {apart:.1e} from those of the whole training (at most {most})"
    if apart > most:
        raise ValueError(words)
    return words


def main() -> int:
    """Do all checks; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="on a CPU, at a tiny shape, which tests this program")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"within which all ends ({SECONDS})")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (2)")
    parser.add_argument("--folder", type=work_folder, help="where to work; by default in TMPDIR")
    options = parser.parse_args()
    checks = Checks(time.monotonic() + options.seconds)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no GPU is visible; --tiny runs the same on a CPU at a tiny shape")
    device = "cpu" if options.tiny else "cuda"
    shape, sizes = (TINY_SHAPE, TINY_SIZES) if options.tiny else (BASE_SHAPE, SIZES)
    name = "a CPU" if options.tiny else torch.cuda.get_device_name()
    print(f"on {name}, PyTorch {torch.__version__}", flush=True)
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    # Read once, when the GPU's library starts; its sums have a fixed order then.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(options.threads)
    signal.signal(signal.SIGALRM, raise_out_of_time)
    attention = "flash_attention_2" if device == "cuda" and is_flash_attn_2_available() else None
    sides, speeds = Sides(device, options.threads, attention), Table(peak_of(name))
    check_parity(checks, device)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, chdir(folder):
        settings = paper_settings()
        texts = draw_texts(max(rows * steps for rows, steps in sizes.values()))
        start = make_start(make_base(shape, texts), Stage(**settings["unsupervised"]))
        tasks = {}
        for stage, size in sizes.items():
            task = prepare(settings[stage], size, start, texts, device)
            tasks[stage] = replace(task, asked={**task.asked, "attention": attention})
            check_speed(checks, tasks[stage], sides, speeds, tiny=options.tiny)
        checks.attempt("resume after a kill", lambda: check_resume(tasks["unsupervised"], sides))
    print(f"\n{speeds.text()}\n\n{checks.report()}")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
