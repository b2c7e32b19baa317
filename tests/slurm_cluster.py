"""A study on the test cluster (`make cluster`), through the literal `snakemake --profile slurm`, in real images."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.study import Study
from own_study import CONFIG

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "cluster" / "cluster.sh"
STEPS = 800
"""Twenty seconds of training, and a multiple where several jobs share a core."""
IMAGES = Path("/opt/colbert-zero-cluster/images")
"""All clones share this folder: an image that exists is not built again."""

Config = dict[str, Any]


@cache
def mirror() -> str:
    """The Debian mirror that this machine installs from."""
    sites = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True, check=True
    )
    return sorted(set(sites.stdout.split()))[0]


def image_settings() -> Config:
    """The config's section `images` that builds them on this machine: there may be no container registry."""
    build = {"bootstrap": "debootstrap", "mirror": mirror(), "certificates": os.environ.get("SSL_CERT_FILE")}
    return {"folder": str(IMAGES), "build": build}


def wait_for(condition: Callable[[], Any], seconds: float, description: str) -> Any:
    """Call `condition` until its result is true, and return that result."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds:.0f} s for {description}")


class Cluster:
    """A study's folder, and the commands that a user of the cluster runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "snakemake.out"
        self.processes: list[subprocess.Popen[bytes]] = []

    def write(self, config: Config) -> None:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def command(self, *arguments: str) -> list[str]:
        profile = ["--profile", "slurm", "--directory", str(self.folder)]
        return [sys.executable, "-m", "snakemake", *profile, *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start Snakemake in the background; its output goes to a file."""
        with self.output.open("wb") as file:
            process = subprocess.Popen(
                self.command(*arguments), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.processes.append(process)
        return process

    def clean_up(self) -> None:
        """End the processes and jobs that a failed test left running."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        jobs = self.jobs("pending,running")
        if jobs:
            slurm("scancel", *jobs)

    def run(self, *arguments: str, seconds: float = 900) -> tuple[int, str]:
        """Run Snakemake to its end; return exit status and output."""
        status = self.start(*arguments).wait(timeout=seconds)
        return status, self.read_output()

    def read_output(self) -> str:
        return self.output.read_text(errors="replace")

    def jobs(self, state: str = "running") -> list[str]:
        """The numbers of this study's jobs that are in a state."""
        lines = slurm("squeue", "--noheader", f"--states={state}", "--format=%A %Z").splitlines()
        return [line.split()[0] for line in lines if line.split()[1] == str(self.folder)]


def slurm(*command: str) -> str:
    """The output of a SLURM command."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def paused(job: str) -> Iterator[None]:
    """Stop the processes of a job's steps, so that it cannot end in the meantime, however fast this machine is."""
    slurm("scancel", "--signal=STOP", job)
    try:
        yield
    finally:
        slurm("scancel", "--signal=CONT", job)


def short_study(steps: int = STEPS, **resources: Any) -> Config:
    """A study of one stage; `resources` are those of its training."""
    config: Config = deepcopy(CONFIG) | {"images": image_settings(), "baselines": {}}
    config["stages"]["unsupervised"] |= {"epochs": steps // 14, "learning_rate": 3.0e-4}
    config["recipes"]["all"]["stages"] = ["unsupervised"]
    config["collections"] = {"mine": {"folder": "data/mine"}}
    training = {"runtime": 30, "mem_mb": 1500, "checkpoint_seconds": 1} | resources
    config["resources"] = {"default": {"mem_mb": 1500, "runtime": 10}, "unsupervised": training}
    return config


def model_spec(folder: Path) -> Spec:
    """The spec of the study's only model."""
    (row,) = [row for row in read_study(folder).rows if row.name == "all"]
    return row.stages[-1]


def read_study(folder: Path) -> Study:
    """The study in a folder."""
    return Study(yaml.safe_load((folder / "config.yaml").read_text()), folder)


def copy_without_model(training: Training, folder: Path) -> Training:
    """Copy a study without its model."""
    return Training(Path(shutil.copytree(training.folder, folder, ignore=shutil.ignore_patterns("models", "*.out"))))


class Training(Cluster):
    """A study in which only the model is missing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._read_spec()

    def write(self, config: Config) -> None:
        super().write(config)
        self._read_spec()

    def _read_spec(self) -> None:
        self.spec = model_spec(self.folder)
        self.target = str(self.spec.folder / "spec.json")
        self.state = self.folder / self.spec.state
        self.published = self.folder / self.spec.folder

    def start_until_checkpoint(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start Snakemake, and return when the training has saved its second checkpoint."""
        process = self.start(*arguments, "--", self.target)
        wait_for(
            lambda: process.poll() is not None or len(self.checkpoints()) > 1,
            240,
            f"a checkpoint\n{self.read_output()}",
        )
        assert process.poll() is None, self.read_output()
        return process

    def checkpoints(self) -> list[Path]:
        return sorted((self.state / "checkpoints").glob("step-*"))

    def running_job(self) -> str:
        (job,) = self.jobs()
        return job

    def wait_until_published(self, process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
        """Wait until the run has succeeded; return the attempts from the manifest."""
        status = process.wait(timeout=900)
        assert status == 0, self.read_output()[-6000:]
        attempts: list[dict[str, Any]] = json.loads((self.published / "manifest.json").read_text())["attempts"]
        return attempts

    def digests(self) -> dict[str, str]:
        """SHA-256 of each of the model's files, the history of losses included."""
        files = (path for path in self.published.rglob("*") if path.is_file())
        return {
            path.relative_to(self.published).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.name not in ("spec.json", "manifest.json")
        }
