"""Query SLURM: names before a run starts, states of its jobs during the run, and the deadline inside of a job."""

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

from colbert_zero.graph.artifact import AGAIN_SUFFIX, ATTEMPTS_FILE, SPEC_FILE, STATE_FOLDER
from colbert_zero.graph.console import UserError
from colbert_zero.graph.provenance import Attempts

REQUEUED_STATES = ("NODE_FAIL", "PREEMPTED")
"""States after which the executor expects SLURM to requeue the job."""
DEADLINE_VARIABLE = "COLBERT_ZERO_DEADLINE"
"""Environment variable: when SLURM will end this job, in seconds since 1970."""
DEADLINE_MARGIN_SECONDS = 120.0
"""How long before the deadline a training writes a checkpoint and ends."""


def check_partitions_and_accounts(resources: Iterable[Mapping[str, Any]]) -> None:
    """Check that SLURM is there and knows the partitions and accounts of the jobs.

    Args:
        resources: The resources of each job.

    Raises:
        UserError: There is no `sbatch`, or SLURM does not know a partition or an account.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "no sbatch on the PATH: run this where the site has jobs submitted (a login node), "
            "or take --profile local for this machine"
        )
    message = "slurm_{0} in slurm/profile.yaml: {1} is not {2} here; there are {3}"
    known_partitions = _output_lines("sinfo", "--all", "--noheader", "--format=%R")
    user = f"user={getpass.getuser()}"
    known_accounts = _output_lines(
        "sacctmgr", "--noheader", "--parsable2", "list", "associations", user, "format=account"
    )
    requested = [(of_job.get("slurm_partition"), of_job.get("slurm_account")) for of_job in resources]
    for partitions in sorted({str(partitions) for partitions, _ in requested if partitions}):
        for name in partitions.split(","):
            if known_partitions and name not in known_partitions:
                raise UserError(message.format("partition", name, "a partition", ", ".join(sorted(known_partitions))))
    for account in sorted({str(account) for _, account in requested if account}):
        # SLURM stores account names in lower case. Without accounting it knows no account and requires none.
        if known_accounts and account.lower() not in known_accounts:
            raise UserError(
                message.format("account", account, "an account of yours", ", ".join(sorted(known_accounts)))
            )


def _output_lines(*command: str) -> set[str] | None:
    """The lines that a SLURM command prints; None if the command fails, as some do on sites without accounting."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return {line.strip() for line in done.stdout.splitlines() if line.strip()}


@cache
def _queued_jobs() -> tuple[tuple[str, str], ...]:
    """Number and comment of each job that this user has pending or running for the study in the current folder."""
    lines = _output_lines("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%A|%k|%Z")
    # A comment that a person wrote may contain line breaks, so not every line is a job.
    jobs = (line.split("|", 2) for line in sorted(lines or ()) if line.count("|") >= 2)
    return tuple((number, comment) for number, comment, folder in jobs if folder == os.getcwd())


def leftover_jobs(key: str) -> list[str]:
    """Numbers of the jobs that a killed Snakemake left behind, and that still make this study's artifact with `key`.

    SLURM is queried once, before this run submits anything, so that this run's own jobs are not among them.
    """
    if shutil.which("squeue") is None:
        return []
    return [number for number, comment in _queued_jobs() if comment.endswith(f"_{key}")]


def executor_states(states: Mapping[str, str]) -> dict[str, str]:
    """Translate job states into those that Snakemake's executor (2.8.0) knows; it takes any other for "still running".

    sacct reports `CANCELLED by 0` for a job that a person cancelled. A job that was preempted, or whose node failed,
    has ended for good if SLURM does not requeue it: some sites configure SLURM to cancel the jobs that it preempts. If
    it does, the failure of a node is not told: the executor would never use that node again, even once it is back; and
    all that it submits would fail if sacct says by then that the job, which waits for another, is on `None assigned`.

    Args:
        states: The state by job number, as sacct or squeue prints it.
    """
    known = {number: state.split()[0] for number, state in states.items() if state}
    if any(state in REQUEUED_STATES for state in known.values()):
        queued = _output_lines("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%A")
        gone = (
            {number for number, state in known.items() if state in REQUEUED_STATES} - queued
            if queued is not None
            else ()
        )
        known |= dict.fromkeys(gone, "CANCELLED")
    return {number: "PENDING" if state == "NODE_FAIL" else state for number, state in known.items()}


def failed_by_user_error(output: str) -> bool:
    """Whether the last attempt of this run at what a job makes failed by an error of the user.

    Args:
        output: The `spec.json` of an artifact, or the file that stands for a share of the work on one, or for its files
            made again.
    """
    path = Path(output)
    if path.name == SPEC_FILE:
        attempts = STATE_FOLDER / path.parent.parent.name / path.parent.name / ATTEMPTS_FILE
    else:
        name, _, share = path.name.rpartition(".")
        again = path.name.endswith(AGAIN_SUFFIX)
        attempts = path.parent / name / (ATTEMPTS_FILE if again else f"{share}.{ATTEMPTS_FILE}")
    return Attempts(attempts).unrecoverable_error is not None


def failed_parts(job: Any) -> list[Any]:
    """What a failed job of Snakemake's could not make: itself, or of a group the jobs that were or could be tried."""
    members = job.jobs if job.is_group() else [job]
    return [member for member in members if not _are_there(member.output) and _are_there(member.input)]


def is_hopeless(job: Any) -> bool:
    """Whether a failed job of Snakemake's would fail again in the same way: all that it could not make, by the user."""
    failed = failed_parts(job)
    return bool(failed) and all(any(map(failed_by_user_error, member.output)) for member in failed)


def _are_there(files: Iterable[str]) -> bool:
    return all(Path(file).exists() for file in files)


def patch_executor() -> None:
    """Patch Snakemake (9.27) and its executor (2.8.0) in three places.

    The executor gets states from `executor_states`: it would otherwise wait for ever for jobs that are gone. It does
    not resubmit a job that failed by a user's error, since the job would fail again in the same way. And of a job that
    has several artifacts to make, what failed is told as of any other job: Snakemake leaves out what SLURM said.
    """
    import snakemake_executor_plugin_slurm as executor
    from snakemake.jobs import GroupJob

    query_job_status = executor.query_job_status

    async def query_known_states(command: str, logger: Any) -> tuple[dict[str, str] | None, float | None]:
        states, seconds = await query_job_status(command, logger)
        return (None if states is None else await asyncio.to_thread(executor_states, states)), seconds

    executor.query_job_status = query_known_states
    handle_job_error = executor.Executor.handle_job_error

    def handle_user_error(self: Any, job: Any) -> None:
        if is_hopeless(job):
            job.attempt = max(job.attempt, job.restart_times + 1)
        handle_job_error(self, job)

    executor.Executor.handle_job_error = handle_user_error

    def log_error(self: Any, msg: str | None = None, **fields: Any) -> None:
        for job in sorted(failed_parts(self), key=lambda job: str(job.output)):
            job.log_error(msg, **fields)

    GroupJob.log_error = log_error


def job_deadline() -> str:
    """When SLURM will end this process's job, as a value of `DEADLINE_VARIABLE`; empty without a time limit or a job.

    A signal before the limit (sbatch's `--signal`) would not do. It reaches every process of the job, and so also ends
    the process that mounts the image under the training.
    """
    job = os.environ.get("SLURM_JOB_ID")
    lines = _output_lines("squeue", "--noheader", f"--job={job}", "--format=%e") if job else None
    try:
        return str(int(datetime.fromisoformat(next(iter(lines or ("",)))).timestamp()))
    except ValueError:
        return ""


def deadline_is_near() -> bool:
    """Whether the job will reach its deadline within `DEADLINE_MARGIN_SECONDS`."""
    deadline = os.environ.get(DEADLINE_VARIABLE)
    return bool(deadline) and time.time() >= float(deadline or 0) - DEADLINE_MARGIN_SECONDS
