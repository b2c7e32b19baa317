"""A training that is ended too soon in every way a cluster knows: it goes on, and gives the model of one that was not.

Byte for byte, since all of it is on a CPU with the same number of threads.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from copy import deepcopy
from pathlib import Path

import pytest

from colbert_zero.config import read_config
from colbert_zero.study import Study
from own_study import CONFIG as OWN
from own_study import write_data
from slurm_cluster import ROOT, Cluster, images, slurm, wait_for

SCRIPT = ROOT / "tests" / "cluster" / "cluster.sh"
STEPS = 3000


def config(**resources):
    """A study of one stage that trains for a minute; `resources` are those of its training."""
    config = deepcopy(OWN) | {"images": images(), "baselines": {}}
    config["stages"]["unsupervised"] |= {"epochs": STEPS // 14, "learning_rate": 3.0e-4}
    config["recipes"]["all"]["stages"] = ["unsupervised"]
    config["collections"] = {"mine": {"folder": "data/mine"}}
    training = {"runtime": 30, "mem_mb": 1500, "checkpoint_seconds": 5} | resources
    config["resources"] = {"default": {"mem_mb": 1500, "runtime": 10}, "unsupervised": training}
    return config


def model(folder):
    """The spec of the only model."""
    study = Study(read_config(folder / "config.yaml"), folder)
    (row,) = [row for row in study.rows if row.name == "all"]
    return row.stages[-1]


class Training(Cluster):
    """A study in which all is there but the model."""

    def __init__(self, folder):
        super().__init__(folder)
        self.spec = model(folder)
        self.target = str(self.spec.folder / "spec.json")
        self.state = folder / self.spec.state
        self.published = folder / self.spec.folder

    def begin(self, least=1):
        """Start; come back when the training has saved a checkpoint beyond its first."""
        process = self.start(self.target)
        wait_for(
            lambda: process.poll() is not None or len(self.checkpoints()) > least, 240, f"a checkpoint\n{self.said()}"
        )
        assert process.poll() is None, self.said()
        return process

    def checkpoints(self):
        return sorted((self.state / "checkpoints").glob("step-*"))

    def job(self):
        (job,) = self.jobs()
        return job

    def end(self, process):
        """Wait until the run has ended well, and give what the manifest says of the attempts."""
        status = process.wait(timeout=900)
        assert status == 0, self.said()[-6000:]
        return json.loads((self.published / "manifest.json").read_text())["attempts"]

    def digests(self):
        """Of the model's files, its history of losses among them."""
        files = (path for path in self.published.rglob("*") if path.is_file())
        return {
            path.relative_to(self.published).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.name not in ("spec.json", "manifest.json")
        }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A study with everything made that the training needs, and its model, trained without interruption."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "data").mkdir()
    write_data(folder / "data")
    Cluster(folder).write(config())
    training = Training(folder)
    attempts = training.end(training.start(training.target))
    assert len(attempts) == 1
    return training


@pytest.fixture
def training(prepared, tmp_path):
    """The same study, not yet trained."""
    copy = Path(shutil.copytree(prepared.folder, tmp_path / "study", ignore=shutil.ignore_patterns("models", "*.out")))
    return Training(copy)


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
    """The signal comes before the limit, up to a minute too early: a checkpoint is written, a retry resumes."""
    training.write(config(runtime=3, checkpoint_seconds=600))
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
    training.write(config(slurm_extra="--exclude=n1,n2"))
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
    training.write(config(slurm_extra="--nodelist=n1", checkpoint_seconds=2))
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
    process = training.begin(least=2)
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


def test_two_nodes_four_processes(training, prepared):
    """The same model as one process's, up to rounding."""
    from safetensors.numpy import load_file

    training.write(config(nodes=2, gpu=2, device="cpu", threads=2))
    attempts = training.end(training.start(training.target))
    assert attempts[-1]["node"] == "n[1-2]"
    assert attempts[-1]["gpus"].count(",") == 1
    manifest = json.loads((training.published / "manifest.json").read_text())
    assert manifest["facts"]["processes"] == 4
    here, there = (
        load_file(next(folder.glob("model.safetensors"))) for folder in (training.published, prepared.published)
    )
    assert here.keys() == there.keys()
    assert max(abs(here[name] - there[name]).max() for name in here) < 1e-3


def test_no_job_reaches_the_network(training):
    """Compute nodes here have no way out, so whatever a test's jobs did, they did without one."""
    script = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=3)"
    said = subprocess.run(["srun", "python3", "-c", script], capture_output=True, text=True).stderr
    assert "Network is unreachable" in said
    assert "default" not in slurm("srun", "ip", "route")
    assert time.monotonic() > 0
