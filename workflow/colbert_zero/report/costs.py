"""What artifacts cost, by their manifests and by the records of attempts: time, threads, GPUs and energy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import SHARE_DONE, Spec
from colbert_zero.graph.json_values import parse_json
from colbert_zero.graph.rules import rule_of
from colbert_zero.graph.text_files import read_file
from colbert_zero.report.sizes import Manifest, number

HOUR = 3600.0
NO_GPUS = frozenset({"", "-1", "NoDevFiles", "none", "void"})
"""Items of CUDA_VISIBLE_DEVICES that stand for no GPU."""


@dataclass(frozen=True)
class Cost:
    """What some attempts took.

    Attributes:
        attempts: How many there were.
        seconds: How long they took together.
        cpu_seconds: That, times the threads of each.
        gpu_seconds: That, times the GPUs of each.
        lost_seconds: How long those took that published nothing.
        lost_gpu_seconds: That, times the GPUs of each.
        untimed: How many of them ended without anybody writing down when, so that they count too little.
        watt_hours: The energy of the GPUs in trainings, as far as they count it.
    """

    attempts: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    lost_seconds: float = 0.0
    lost_gpu_seconds: float = 0.0
    untimed: int = 0
    watt_hours: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """The cost of both."""
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def gpu_hours(self) -> float:
        """GPU-hours."""
        return self.gpu_seconds / HOUR

    @property
    def cpu_hours(self) -> float:
        """CPU-hours."""
        return self.cpu_seconds / HOUR

    @property
    def lost_gpu_hours(self) -> float:
        """GPU-hours of attempts that published nothing."""
        return self.lost_gpu_seconds / HOUR


@dataclass(frozen=True)
class Entry:
    """What an artifact cost.

    Attributes:
        name: The artifact's name.
        rule: The rule that makes it.
        stage: The stage that it trains; empty for anything else.
        cost: What all attempts at it took.
    """

    name: str
    rule: str
    stage: str
    cost: Cost


def total(entries: Iterable[Entry]) -> Cost:
    """What some artifacts cost together, each of them once."""
    return sum((entry.cost for entry in {entry.name: entry for entry in entries}.values()), Cost())


def entry_of(spec: Spec, manifest: Manifest) -> Entry:
    """The entry of an artifact that is there, by its manifest alone."""
    facts, attempts = manifest["facts"], manifest["attempts"]
    threads = manifest.get("threads") or 1
    nodes = int(number(facts.get("nodes")) or 1) if spec.kind == "models" else 1
    used = _used_gpus(spec, manifest)
    costs = [
        _spent(attempt, attempt.get("threads", threads) * nodes, _allocated_gpus(spec, attempt, nodes, used))
        for attempt in [*manifest.get("shares", ()), *attempts[:-1]]
    ]
    gpus = _allocated_gpus(spec, attempts[-1], nodes, used)
    seconds = float(manifest["seconds"])
    made = Cost(
        1, seconds, seconds * threads * nodes, seconds * gpus, watt_hours=number(facts.get("gpu_watt_hours")) or 0.0
    )
    return _entry(spec, sum(costs, made))


def unfinished_entry(spec: Spec, attempts: Sequence[Mapping[str, Any]]) -> Entry:
    """The entry of an artifact that is not there, by the records of the attempts at it."""
    costs = (_spent(attempt, attempt.get("threads", 1), _allocated_gpus(spec, attempt, 1, 0)) for attempt in attempts)
    return _entry(spec, sum(costs, Cost()))


def _entry(spec: Spec, cost: Cost) -> Entry:
    stage = str(spec.settings.get("stage", spec.label)) if spec.kind == "models" else ""
    return Entry(spec.name, rule_of(spec).name, stage, cost)


def _spent(attempt: Mapping[str, Any], cpus: int, gpus: int) -> Cost:
    """What an attempt took that published nothing; one that was killed, until it was last heard of.

    It is lost, unless the attempt did its share of the work.
    """
    began, ended = _moment(attempt.get("started")), _moment(attempt.get("ended"))
    last = ended if ended is not None else _moment(attempt.get("seen"))
    seconds = max(0.0, last - began) if began is not None and last is not None else 0.0
    lost = 0.0 if attempt.get("end") == SHARE_DONE else seconds
    return Cost(1, seconds, seconds * cpus, seconds * gpus, lost, lost * gpus, untimed=int(ended is None))


def _moment(text: Any) -> float | None:
    """A time of a record in seconds since 1970; None if there is none, or it is not one."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _allocated_gpus(spec: Spec, attempt: Mapping[str, Any], nodes: int, used: int) -> int:
    """How many GPUs an attempt had: those that SLURM gave its job, else those that the step used."""
    if not rule_of(spec).may_use_gpu:
        return 0
    if "job" in attempt and "gpus" in attempt:
        return nodes * sum(name.strip() not in NO_GPUS for name in str(attempt["gpus"]).split(","))
    return used


def _used_gpus(spec: Spec, manifest: Manifest) -> int:
    """How many GPUs a step computed on, as its manifest says."""
    facts, arguments = manifest["facts"], manifest.get("arguments", ())
    asked = "cuda" in arguments[arguments.index("--device") + 1 :][:1] if "--device" in arguments else False
    on_gpu = facts["device"] != "cpu" if "device" in facts else asked
    return (int(number(facts.get("processes")) or 1) if spec.kind == "models" else 1) if on_gpu else 0


def read_attempts(path: Path) -> list[dict[str, Any]]:
    """The records of the attempts in a state folder; those that cannot be read are left out."""
    attempts = []
    with suppress(OSError):
        for line in read_file(path).splitlines():
            with suppress(ValueError):
                attempt = parse_json(line)
                attempts.append(attempt if isinstance(attempt, dict) else {})
    return attempts
