"""What is done on an artifact that is not finished, by its lock and its state folder."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import ATTEMPTS_FILE, Spec
from colbert_zero.graph.json_values import read_json
from colbert_zero.graph.locks import look_at_lock
from colbert_zero.graph.rules import rule_of
from colbert_zero.machine.pieces import PLAN_FILE
from colbert_zero.report.columns import duration
from colbert_zero.report.costs import read_attempts
from colbert_zero.training.progress_file import read_progress

HOLDER = re.compile(r"process \d+ on (?P<host>[^,\s]+)(?:, SLURM job (?P<job>\S+))?")
QUIET_SECONDS = 900.0
"""How long a step on another node may write nothing before it is not said to run; checkpoints come every 600 s."""


def describe_begun(spec: Spec) -> str:
    """What is done on an artifact that has begun, or how far an attempt came that no longer runs."""
    held, text = look_at_lock(spec.state.with_name(f"{spec.state.name}.lock"))
    holder = HOLDER.match(text)
    attempts = read_attempts(spec.state / ATTEMPTS_FILE)
    last = attempts[-1] if attempts else {}
    changed = _last_change(spec)
    how_far = ", ".join(_how_far(spec))
    if held:
        return _running(holder, last) + (f": {how_far}" if how_far else "")
    elsewhere = holder is not None and holder["host"] != socket.gethostname()
    if elsewhere and attempts and "ended" not in last and time.time() - changed < QUIET_SECONDS:
        # The lock says nothing where locks do not reach other nodes.
        return f"seems to be {_running(holder, last)}" + (f": {how_far}" if how_far else "")
    if not attempts:
        # Jobs that share the work lock nothing, and keep records of their own.
        return f"last written to at {_clock(changed)}" + (f": {how_far}" if how_far else "")
    return _interrupted(spec, last, changed) + (f"; {how_far}" if how_far and spec.kind != "models" else "")


def _running(holder: re.Match[str] | None, last: Mapping[str, Any]) -> str:
    """Where a step runs, and for how long."""
    host = holder["host"] if holder else str(last.get("host", "this machine"))
    job = f", job {holder['job']}" if holder and holder["job"] else ""
    with suppress(ValueError, TypeError):
        since = time.time() - datetime.fromisoformat(str(last.get("started"))).timestamp()
        return f"running on {host}{job}, for {duration(max(0.0, since))}"
    return f"running on {host}{job}"


def _interrupted(spec: Spec, last: Mapping[str, Any], changed: float) -> str:
    """How an attempt ended that is no longer under way, and after which step the next one goes on."""
    when = last.get("ended")
    at = _clock(changed)
    with suppress(ValueError, TypeError):
        at = _clock(datetime.fromisoformat(str(when)).timestamp())
    why = "" if last.get("end", "killed") == "killed" else f": {str(last['end'])[:200]}"
    step = checkpoint_step(spec.state)
    if spec.kind != "models" or step is None:
        return f"interrupted at {at}{why}"
    progress = read_progress(spec.state)
    of = f" of {progress['steps']}" if "steps" in progress else ""
    return f"interrupted after step {progress.get('step', step)}{of} at {at}, resumes from step {step}{why}"


def checkpoint_step(state: Path) -> int | None:
    """The step of the last checkpoint in a training's state folder; None if there is none."""
    steps = [int(path.name[5:]) for path in (state / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
    return max(steps, default=None)


def _how_far(spec: Spec) -> Iterator[str]:
    """How far the work on an artifact is, as its state folder says."""
    if spec.kind == "models":
        yield from _training(read_progress(spec.state))
    yield from _pieces(spec)


def _training(progress: Mapping[str, Any]) -> Iterator[str]:
    with suppress(KeyError, TypeError, ValueError):
        step, steps, loss = int(progress["step"]), int(progress["steps"]), float(progress["loss"])
        rows, left = float(progress["rows_per_second"]), float(progress["seconds_left"])
        yield f"step {step} of {steps}, loss {loss:.4f}, {rows:.1f} rows/s, {duration(left)} left"


def _pieces(spec: Spec) -> Iterator[str]:
    """How many pieces of each part of the work are made, for a step that works in pieces."""
    for part in rule_of(spec).parts:
        folder = spec.state / part
        with suppress(OSError, ValueError, TypeError, KeyError):
            of = read_json(folder / PLAN_FILE)
            made = sum(path.name.isdecimal() for path in folder.iterdir())
            yield f"{made} of {int(of['count'])} {of['unit']}"


def _last_change(spec: Spec) -> float:
    """When something in a state folder was last written, in seconds since 1970."""
    times = [spec.state.stat().st_mtime]
    for path in spec.state.glob("*"):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def _clock(moment: float) -> str:
    """A time of this machine's clock, to the minute."""
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M")
