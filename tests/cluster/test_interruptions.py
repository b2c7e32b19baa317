"""A training that is interrupted in each way that a cluster has: it resumes, and the model is the uninterrupted one.

The models are equal byte for byte, since all training runs on a CPU with the same number of threads.
"""

import json
import os
import signal
import subprocess
import time
from datetime import datetime

import numpy as np
import pytest
from safetensors.numpy import load_file

from colbert_zero.machine.slurm import DEADLINE_MARGIN_SECONDS
from slurm_cluster import SCRIPT, copy_without_model, paused, short_study, slurm, wait_for


def outcomes(attempts):
    return [attempt["end"] for attempt in attempts]


def assert_resumed(training, prepared, attempts):
    """Check that the training was interrupted, resumed from a checkpoint, and gave the uninterrupted model."""
    assert len(attempts) >= 2, attempts
    assert outcomes(attempts)[-1] == "published"
    assert attempts[-1]["start_step"] > 0
    assert attempts[-1]["job"] and attempts[-1]["node"]
    assert training.digests() == prepared.digests()


def test_scancel(training, prepared):
    process = training.start_until_checkpoint()
    slurm("scancel", training.running_job())
    attempts = training.wait_until_published(process)
    assert_resumed(training, prepared, attempts)
    assert attempts[0]["job"] != attempts[-1]["job"]


def test_time_limit(training, prepared):
    """Two minutes before the limit, the training writes a checkpoint; a retry resumes from there."""
    # Avoid the node that another test takes down.
    training.write(short_study(runtime=4, slurm_extra="--exclude=n3"))
    process = training.start_until_checkpoint()
    job = training.running_job()
    (end,) = slurm("squeue", "--noheader", f"--jobs={job}", "--format=%e").split()
    deadline = datetime.fromisoformat(end).timestamp() - DEADLINE_MARGIN_SECONDS
    with paused(job):
        wait_for(lambda: time.time() > deadline, 240, "two minutes before the limit")
    attempts = training.wait_until_published(process)
    assert_resumed(training, prepared, attempts)
    assert "stopped at step" in outcomes(attempts)[0]
    # No step is done twice.
    assert attempts[0]["end_step"] == attempts[1]["start_step"]


def test_requeue(training, prepared):
    process = training.start_until_checkpoint()
    job = training.running_job()
    slurm("scontrol", "requeue", job)
    attempts = training.wait_until_published(process)
    assert_resumed(training, prepared, attempts)
    assert {attempt["job"] for attempt in attempts} == {job}


def test_node_down(training, prepared):
    """The node dies without notice; SLURM requeues the job on another node."""
    training.write(short_study(slurm_extra="--exclude=n1,n2"))
    process = training.start_until_checkpoint()
    try:
        subprocess.run([SCRIPT, "down", "n3"], check=True)
        jobs = slurm("squeue", "--noheader", "--states=all", "--format=%A %Z")
        job = next(line.split()[0] for line in jobs.splitlines() if line.split()[1] == str(training.folder))
        wait_for(lambda: "PENDING" in slurm("scontrol", "show", "job", job), 120, "the job to be requeued")
        slurm("scontrol", "update", f"JobId={job}", "ExcNodeList=")
        attempts = training.wait_until_published(process)
    finally:
        subprocess.run([SCRIPT, "up", "n3"], check=True)
    assert_resumed(training, prepared, attempts)
    assert outcomes(attempts)[0] == "killed"


def test_snakemake_killed(training, prepared):
    """The job survives; the new run submits a job that waits for it, and trains nothing."""
    process = training.start_until_checkpoint()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    orphan = training.running_job()
    with paused(orphan):
        second_run = training.start(training.target)
        pending = wait_for(lambda: training.jobs("pending"), 120, "a job that waits for the orphaned one")
    assert f"afterany:{orphan}" in slurm("scontrol", "show", "job", pending[0])
    attempts = training.wait_until_published(second_run)
    assert outcomes(attempts) == ["published"]
    assert attempts[0]["job"] == orphan
    assert training.digests() == prepared.digests()


def test_full_disk(training, prepared):
    """The state folder's disk fills up during training: an error of one line, and a retry resumes from a checkpoint.

    Only the training's own folder has a disk of its own: beside it is the file by which Snakemake passes its spec.
    """
    training.write(short_study(slurm_extra="--nodelist=n1"))
    state = training.folder / "results" / "state" / "models" / training.published.name
    state.mkdir(parents=True, exist_ok=True)
    # The disk must fill up in the node's own mount namespace.
    (slurmd,) = subprocess.run(["pgrep", "-f", "slurmd .*-N n1( |$)"], capture_output=True, text=True).stdout.split()
    mount = ["nsenter", "-t", slurmd, "-m", "mount"]
    subprocess.run([*mount, "-t", "tmpfs", "-o", "size=900k", "tmpfs", state], check=True)
    try:
        process = training.start(training.target)
        log = training.folder / "logs" / "models" / f"{training.published.name}.log"
        wait_for(
            lambda: "no space left while writing" in training.read_output(),
            240,
            f"a full disk\n{training.read_output()}",
        )
        assert "Traceback" not in training.read_output()
        subprocess.run([*mount, "-o", "remount,size=50m", state], check=True)
        attempts = training.wait_until_published(process)
        assert log.is_file()
    finally:
        subprocess.run(["nsenter", "-t", slurmd, "-m", "umount", "-l", state], check=True)
    assert training.digests() == prepared.digests()
    assert any("No space left" in outcome for outcome in outcomes(attempts))
    assert attempts[-1]["start_step"] > 0


def test_truncated_checkpoint(training, prepared):
    process = training.start_until_checkpoint()
    slurm("scancel", training.running_job())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not training.jobs("running,completing"), 60, "the job to end")
    last = training.checkpoints()[-1]
    tensors = last / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    attempts = training.wait_until_published(training.start(training.target))
    log = (training.folder / "logs" / "models" / f"{training.published.name}.log").read_text()
    assert f"{last.name} is damaged" in log
    assert attempts[-1]["start_step"] < int(last.name.rpartition("-")[2])
    assert training.digests() == prepared.digests()


def test_two_nodes_four_processes(training, prepared, tmp_path):
    """Four processes train the model of one, up to rounding; after an interruption all stop, and all resume."""
    # Few steps: rounding differences grow with the steps, and faster once there is nothing left to learn.
    training.write(short_study(140, nodes=2, gpu=2, device="cpu", threads=2, mem_mb=6000, slurm_extra="--exclude=n3"))
    alone = copy_without_model(prepared, tmp_path / "alone")
    alone.write(short_study(140))
    process = training.start_until_checkpoint()
    slurm("scancel", training.running_job())
    attempts = training.wait_until_published(process)
    assert "stopped at step" in outcomes(attempts)[0]
    assert attempts[1]["start_step"] == attempts[0]["end_step"] > 0
    assert attempts[-1]["node"] == "n[1-2]"
    assert attempts[-1]["gpus"].count(",") == 1
    manifest = json.loads((training.published / "manifest.json").read_text())
    assert manifest["facts"]["processes"] == 4
    alone.wait_until_published(alone.start(alone.target))
    here, there = (losses(folder) for folder in (training.published, alone.published))
    assert max(abs(mine - other) for mine, other in zip(here, there, strict=True)) < 1e-3
    assert weights(training.published) == pytest.approx(weights(alone.published), abs=1e-3)


def losses(folder):
    """The loss of every step."""
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def weights(folder):
    """All parameters of a model in one vector."""
    tensors = [load_file(path) for path in sorted(folder.rglob("*.safetensors"))]
    return np.concatenate([tensor[name].ravel() for tensor in tensors for name in sorted(tensor)])


def test_preemption(training, prepared):
    """A job of higher priority takes the node's memory; SLURM requeues the training."""
    # Most of the node's memory: other tests' jobs may stay beside, but not both of these.
    training.write(short_study(mem_mb=12000, slurm_extra="--nodelist=n3"))
    process = training.start_until_checkpoint("--set-resources", "train_stage:slurm_partition=scavenge")
    job = training.running_job()
    preempting_job = slurm(
        *("sbatch", "--parsable", "--output=/dev/null"),
        *("--partition=main", "--nodelist=n3", "--mem=12000", "--wrap=sleep 1"),
    ).strip()
    attempts = training.wait_until_published(process)
    assert preempting_job not in training.jobs()
    assert_resumed(training, prepared, attempts)
    assert {attempt["job"] for attempt in attempts} == {job}


def test_a_users_error_is_not_retried(training):
    """One job is submitted, whatever the number of retries."""
    config = short_study()
    config["stages"]["unsupervised"]["learning_rate"] = 2.0e9
    training.write(config)
    status, output = training.run("--", training.target)
    assert status == 1
    assert output.count("has been submitted with SLURM jobid") == 1
    (line,) = [line for line in output.splitlines() if line.startswith(f"colbert-zero: {training.spec.name}")]
    assert "lower the learning rate" in line
    (attempt,) = (training.state / "attempts.jsonl").read_text().splitlines()
    assert json.loads(attempt)["mistake"]
