"""What SLURM is asked: by a run before it starts, of its jobs' states, and by a job for the end of its time."""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from colbert_zero.graph.console import UserError
from colbert_zero.graph.provenance import Attempts

RESTARTED = ("NODE_FAIL", "PREEMPTED")
"""What the executor leaves to SLURM to start again."""
DEADLINE = "COLBERT_ZERO_DEADLINE"
"""Tells the steps of a job when SLURM will end it, in seconds since 1970."""
RESERVE_SECONDS = 120.0
"""How long before that a training writes a checkpoint and ends."""


def check(resources: Iterable[Mapping[str, Any]]) -> None:
    """Look whether SLURM is there, and knows the partitions and accounts that jobs name.

    Args:
        resources: Of each job.

    Raises:
        UserError: It is not, or does not.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "no sbatch on the PATH: run this where the site has jobs submitted (a login node), "
            "or take --profile local for this machine"
        )
    where = "slurm_{0} in slurm/profile.yaml: {1} is not {2} here; there {3}"
    partitions = _output_lines("sinfo", "--all", "--noheader", "--format=%R")
    own = f"user={getpass.getuser()}"
    accounts = _output_lines("sacctmgr", "--noheader", "--parsable2", "list", "associations", own, "format=account")
    asked = [(given.get("slurm_partition"), given.get("slurm_account")) for given in resources]
    for partition in sorted({str(partition) for partition, _ in asked if partition}):
        for name in partition.split(","):
            if partitions and name not in partitions:
                raise UserError(where.format("partition", name, "a partition", _listed(partitions)))
    for account in sorted({str(account) for _, account in asked if account}):
        # SLURM keeps the names of accounts in lower case. Without its accounting it knows none, and asks for none.
        if accounts and account.lower() not in accounts:
            raise UserError(where.format("account", account, "an account of yours", _listed(accounts)))


def _listed(names: Iterable[str]) -> str:
    return "are " + ", ".join(sorted(names))


def _output_lines(*command: str) -> set[str] | None:
    """The lines that a command of SLURM's writes; None if it fails, as it does on sites without accounting."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return {line.strip() for line in done.stdout.splitlines() if line.strip()}


@cache
def _jobs() -> tuple[tuple[str, str], ...]:
    """Number and comment of each job that this user has waiting or running for the study in this folder."""
    lines = _output_lines("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%A|%k|%Z")
    # A comment that someone gave a job by hand may have lines.
    found = (line.split("|", 2) for line in sorted(lines or ()) if line.count("|") >= 2)
    return tuple((number, comment) for number, comment, folder in found if folder == os.getcwd())


def running_jobs(key: str) -> list[str]:
    """Jobs that an earlier, killed Snakemake left making this study's artifact of this key: their numbers.

    SLURM is asked once, before this run has submitted anything: this run's own jobs are not among them.
    """
    if shutil.which("squeue") is None:
        return []
    return [number for number, comment in _jobs() if comment.endswith(f"_{key}")]


def final_states(states: Mapping[str, str]) -> dict[str, str]:
    """What became of jobs, in words that Snakemake's executor (2.8.0) knows; others it takes for "still running".

    sacct says `CANCELLED by 0` of a job that a person has cancelled. And a job that was preempted, or whose node has
    failed, has ended for good where SLURM does not queue it again: so have sites set it that cancel what they preempt.

    Args:
        states: By job number, as sacct or squeue says it.
    """
    words = {number: state.split()[0] for number, state in states.items() if state}
    if any(word in RESTARTED for word in words.values()):
        queued = _output_lines("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%A")
        gone = {number for number, word in words.items() if word in RESTARTED} - queued if queued is not None else ()
        words |= dict.fromkeys(gone, "CANCELLED")
    return words


def failed_by_user_error(spec_file: str) -> bool:
    """Whether the last attempt at the artifact with this `spec.json` ended, in this run, by a mistake to be mended."""
    kind, name = Path(spec_file).parent.parts[-2:]
    return Attempts(Path("results/state") / kind / name / "attempts.jsonl").unrecoverable_error is not None


def patch_executor() -> None:
    """Mend two ways of Snakemake's executor (2.8.0).

    It sees `final_states` states, lest it waits without end for jobs that are gone. And what ended by a person's mistake is
    not submitted again, which would end the same way.
    """
    import snakemake_executor_plugin_slurm as executor

    query = executor.query_job_status

    async def query_settled(command: str, logger: Any) -> tuple[dict[str, str] | None, float | None]:
        states, seconds = await query(command, logger)
        return (None if states is None else await asyncio.to_thread(final_states, states)), seconds

    executor.query_job_status = query_settled
    handle_job_error = executor.Executor.handle_job_error

    def handle_mistake(self: Any, job: Any) -> None:
        if any(failed_by_user_error(output) for output in job.output):
            job.attempt = max(job.attempt, job.restart_times + 1)
        handle_job_error(self, job)

    executor.Executor.handle_job_error = handle_mistake


def deadline() -> str:
    """When SLURM will end the job that this process belongs to, for `DEADLINE`; empty where there is no limit or job.

    A signal before the limit (sbatch's `--signal`) would not do: it reaches every process of the job, and so ends the
    one that mounts the image, from under the training.
    """
    job = os.environ.get("SLURM_JOB_ID")
    said = _output_lines("squeue", "--noheader", f"--job={job}", "--format=%e") if job else None
    try:
        return str(int(datetime.fromisoformat(next(iter(said or ("",)))).timestamp()))
    except ValueError:
        return ""


def time_is_up() -> bool:
    """Whether the job's time is about to end."""
    end = os.environ.get(DEADLINE)
    return bool(end) and time.time() >= float(end or 0) - RESERVE_SECONDS
