"""Ask SLURM what jobs took: `sacct` keeps elapsed time, allocated devices and energy of each."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

FIELDS = ("JobIDRaw", "State", "ElapsedRaw", "AllocCPUS", "AllocTRES", "ConsumedEnergyRaw")
LOGS = Path(".snakemake/slurm_logs")
"""Where Snakemake's executor has SLURM write the logs of jobs; it deletes those of jobs that succeeded."""
LARGEST_ENERGY = 2**63
"""SLURM writes a number near 2^64 for energy that it could not measure."""
SECONDS_TO_WAIT = 120


@dataclass(frozen=True)
class JobAccount:
    """What a job took: its last state, seconds, CPU-seconds, GPU-seconds, and joules if its node measures them."""

    state: str
    seconds: float
    cpu_seconds: float
    gpu_seconds: float
    joules: float


@dataclass(frozen=True)
class Accounts:
    """The answer to one question about some jobs.

    Attributes:
        jobs: What each took, by number.
        unknown: The numbers of those that SLURM does not know.
        problem: Why there is no answer; empty if there is.
    """

    jobs: Mapping[str, JobAccount] = field(default_factory=dict)
    unknown: Collection[str] = ()
    problem: str = ""


def describe(jobs: Collection[JobAccount]) -> str:
    """What some jobs took together, in words."""
    seconds, cpu, gpu, joules = (
        sum(getattr(job, name) for job in jobs) for name in ("seconds", "cpu_seconds", "gpu_seconds", "joules")
    )
    energy = f", {joules / 3.6e6:.2f} kWh of energy" if joules else ""
    return (
        f"{len(jobs)} jobs, {seconds / 3600:.2f} hours elapsed, {cpu / 3600:.2f} CPU-hours and "
        f"{gpu / 3600:.2f} GPU-hours allocated{energy}"
    )


def logged_jobs(folder: Path) -> set[str]:
    """The numbers of the jobs whose logs Snakemake's executor kept in the study in `folder`: jobs that failed."""
    return {path.stem for path in (folder / LOGS).glob("**/*.log") if path.stem.isdecimal()}


def ask_sacct(jobs: Collection[str]) -> Accounts | None:
    """What SLURM has on its books of these jobs, by one call of sacct; None where there is no sacct."""
    if shutil.which("sacct") is None:
        return None
    numbers = sorted(number for number in jobs if re.fullmatch(r"[0-9]+", number))
    asked = f"--format={','.join(FIELDS)}", f"--jobs={','.join(numbers)}"
    command = ["sacct", "--noheader", "--parsable2", "--duplicates", *asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_WAIT)
    except (OSError, subprocess.SubprocessError) as error:
        return Accounts(problem=f"{error}"[:200])
    if done.returncode:
        return Accounts(problem=" ".join(done.stderr.split())[:200] or f"exit status {done.returncode}")
    found = _read(done.stdout.splitlines())
    return Accounts(found, [number for number in numbers if number not in found])


def _read(lines: Collection[str]) -> dict[str, JobAccount]:
    """The accounts in lines of sacct: of each run of a job one line, and one for each of its steps.

    The steps know the energy where the job's own line does not.
    """
    jobs: dict[str, JobAccount] = {}
    step_joules: dict[str, float] = {}
    for line in lines:
        values = line.split("|")
        if len(values) != len(FIELDS):
            continue
        number, _, step = values[0].partition(".")
        joules = _joules(values[5])
        if step:
            step_joules[number] = step_joules.get(number, 0.0) + joules
            continue
        seconds, cpus, gpus = float(values[2] or 0), int(values[3] or 0), _gpus(values[4])
        # A job that was requeued has run more than once.
        before = jobs.get(number, JobAccount("", 0.0, 0.0, 0.0, 0.0))
        jobs[number] = JobAccount(
            values[1].partition(" ")[0],
            before.seconds + seconds,
            before.cpu_seconds + seconds * cpus,
            before.gpu_seconds + seconds * gpus,
            before.joules + joules,
        )
    return {
        number: job if job.joules else replace(job, joules=step_joules.get(number, 0.0)) for number, job in jobs.items()
    }


def _joules(text: str) -> float:
    """Joules, as sacct prints them; 0 if it knows none."""
    joules = float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else 0.0
    return joules if joules < LARGEST_ENERGY else 0.0


def _gpus(resources: str) -> int:
    """The number of GPUs in a job's `AllocTRES`: `cpu=8,gres/gpu=4,gres/gpu:a100=4,node=1`.

    Where a site counts models alone, the sum over them.
    """
    counts: dict[str, int] = {}
    for entry in resources.split(","):
        name, _, count = entry.partition("=")
        if name.startswith("gres/gpu") and count.isdecimal():
            counts[name] = int(count)
    return counts.get("gres/gpu", sum(counts.values()))
