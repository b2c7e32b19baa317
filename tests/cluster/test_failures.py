"""A training that is ended too soon in every way a cluster knows: it goes on, and gives the model of one that was not.

Byte for byte, since all of it is on a CPU with the same number of threads.
"""

import json
import os
import signal
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file

from slurm_cluster import SCRIPT, STEPS, copy_of, short_study, slurm, wait_for


def ends(attempts):
    return [attempt["end"] for attempt in attempts]


def assert_resumed(training, prepared, attempts):
    """It was interrupted, went on from where it was, and nothing shows in the model."""
    assert len(attempts) >= 2, attempts
    assert ends(attempts)[-1] == "published"
    assert attempts[-1]["start_step"] > 0
    assert attempts[-1]["job"] and attempts[-1]["node"]
    assert training.digests() == prepared.digests()


def test_scancel(training, prepared):
    process = training.begin()
    slurm("scancel", training.job())
    attempts = training.end(process)
    assert_resumed(training, prepared, attempts)
    assert attempts[0]["job"] != attempts[-1]["job"]


def test_time_limit(training, prepared):
    """Two minutes before the limit a checkpoint is written, and a retry goes on from there."""
    # Not on the node that another test takes down.
    config = short_study(runtime=3, checkpoint_seconds=600, slurm_extra="--exclude=n3")
    # They change no byte, and take long enough for more than one attempt.
    config["stages"]["unsupervised"]["evaluate"] = {"steps": list(range(32, STEPS, 32)), "collections": ["mine"]}
    training.write(config)
    attempts = training.end(training.start(training.target))
    assert_resumed(training, prepared, attempts)
    assert "stopped at step" in ends(attempts)[0]
    # Not a step is done twice.
    assert attempts[0]["end_step"] == attempts[1]["start_step"]


def test_requeue(training, prepared):
    process = training.begin()
    job = training.job()
    slurm("scontrol", "requeue", job)
    attempts = training.end(process)
    assert_resumed(training, prepared, attempts)
    assert {attempt["job"] for attempt in attempts} == {job}


def test_node_down(training, prepared):
    """The node dies without a word; SLURM starts the job elsewhere."""
    training.write(short_study(slurm_extra="--exclude=n1,n2"))
    process = training.begin()
    try:
        subprocess.run([SCRIPT, "down", "n3"], check=True)
        job = slurm("squeue", "--noheader", "--states=all", "--format=%A %Z")
        job = next(line.split()[0] for line in job.splitlines() if line.split()[1] == str(training.folder))
        wait_for(lambda: "PENDING" in slurm("scontrol", "show", "job", job), 120, "the job to be requeued")
        slurm("scontrol", "update", f"JobId={job}", "ExcNodeList=")
        attempts = training.end(process)
    finally:
        subprocess.run([SCRIPT, "up", "n3"], check=True)
    assert_resumed(training, prepared, attempts)
    assert ends(attempts)[0] == "killed"


def test_snakemake_killed(training, prepared):
    """The job lives on; the new run has another one wait for it, and trains nothing."""
    process = training.begin()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    orphan = training.job()
    again = training.start(training.target)
    waiting = wait_for(lambda: training.jobs("pending"), 60, "a job that waits for the other")
    assert f"afterany:{orphan}" in slurm("scontrol", "show", "job", waiting[0])
    attempts = training.end(again)
    assert ends(attempts) == ["published"]
    assert attempts[0]["job"] == orphan
    assert training.digests() == prepared.digests()


def test_full_disk(training, prepared):
    """The state folder's disk is full in mid-training: one line, the checkpoint before is kept, the retry goes on."""
    training.write(short_study(slurm_extra="--nodelist=n1", checkpoint_seconds=2))
    (training.folder / "results" / "state").mkdir(parents=True, exist_ok=True)
    state = training.folder / "results" / "state"
    # The node's own view of the file systems is where the disk must fill up.
    (slurmd,) = subprocess.run(["pgrep", "-f", "slurmd .*-N n1( |$)"], capture_output=True, text=True).stdout.split()
    mount = ["nsenter", "-t", slurmd, "-m", "mount"]
    subprocess.run([*mount, "-t", "tmpfs", "-o", "size=900k", "tmpfs", state], check=True)
    try:
        process = training.start(training.target)
        log = training.folder / "logs" / "models" / f"{training.published.name}.log"
        wait_for(lambda: "no space left while writing" in training.said(), 240, f"a full disk\n{training.said()}")
        assert "Traceback" not in training.said()
        subprocess.run([*mount, "-o", "remount,size=50m", state], check=True)
        attempts = training.end(process)
        assert log.is_file()
    finally:
        subprocess.run(["nsenter", "-t", slurmd, "-m", "umount", "-l", state], check=True)
    assert training.digests() == prepared.digests()
    assert any("No space left" in end for end in ends(attempts))
    assert attempts[-1]["start_step"] > 0


def test_truncated_checkpoint(training, prepared):
    process = training.begin()
    slurm("scancel", training.job())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not training.jobs("running,completing"), 60, "the job to end")
    last = training.checkpoints()[-1]
    tensors = last / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    attempts = training.end(training.start(training.target))
    log = (training.folder / "logs" / "models" / f"{training.published.name}.log").read_text()
    assert f"{last.name} is damaged" in log
    assert attempts[-1]["start_step"] < int(last.name.rpartition("-")[2])
    assert training.digests() == prepared.digests()


def test_two_nodes_four_processes(training, prepared, tmp_path):
    """The same model as one process's, up to rounding; ended in the middle, they end together and go on together."""
    # Rounding grows with the steps, the more so where there is nothing left to learn: so not too many.
    training.write(
        short_study(
            140, nodes=2, gpu=2, device="cpu", threads=2, mem_mb=6000, checkpoint_seconds=2, slurm_extra="--exclude=n3"
        )
    )
    alone = copy_of(prepared, tmp_path / "alone")
    alone.write(short_study(140))
    process = training.begin()
    slurm("scancel", training.job())
    attempts = training.end(process)
    assert "stopped at step" in ends(attempts)[0]
    assert attempts[1]["start_step"] == attempts[0]["end_step"] > 0
    assert attempts[-1]["node"] == "n[1-2]"
    assert attempts[-1]["gpus"].count(",") == 1
    manifest = json.loads((training.published / "manifest.json").read_text())
    assert manifest["facts"]["processes"] == 4
    alone.end(alone.start(alone.target))
    here, there = (losses(folder) for folder in (training.published, alone.published))
    assert max(abs(mine - other) for mine, other in zip(here, there, strict=True)) < 1e-3
    assert weights(training.published) == pytest.approx(weights(alone.published), abs=1e-3)


def losses(folder):
    """The loss of every step."""
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def weights(folder):
    """Every parameter of a model, in one row."""
    tensors = [load_file(path) for path in sorted(folder.rglob("*.safetensors"))]
    return np.concatenate([tensor[name].ravel() for tensor in tensors for name in sorted(tensor)])


def test_preemption(training, prepared):
    """A job of higher priority takes the node: SLURM queues the training again."""
    training.write(short_study(slurm_extra="--nodelist=n3"))
    process = training.begin("--set-resources", "train_stage:slurm_partition=scavenge")
    job = training.job()
    taker = slurm(
        *("sbatch", "--parsable", "--output=/dev/null"),
        *("--partition=main", "--nodelist=n3", "--exclusive", "--wrap=sleep 1"),
    ).strip()
    attempts = training.end(process)
    assert taker not in training.jobs()
    assert_resumed(training, prepared, attempts)
    assert {attempt["job"] for attempt in attempts} == {job}


def test_a_mistake_is_not_tried_again(training):
    """However many retries there are, one job is submitted."""
    config = short_study()
    config["stages"]["unsupervised"]["learning_rate"] = 1.0e30
    training.write(config)
    status, said = training.run("--", training.target)
    assert status == 1
    assert said.count("has been submitted with SLURM jobid") == 1
    (line,) = [line for line in said.splitlines() if line.startswith(f"colbert-zero: {training.spec.name}")]
    assert "lower the learning rate" in line
    (attempt,) = (training.state / "attempts.jsonl").read_text().splitlines()
    assert json.loads(attempt)["mistake"]
