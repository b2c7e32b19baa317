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
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.study import Study
from own_study import CONFIG as OWN

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "cluster" / "cluster.sh"
STEPS = 2400
IMAGES = Path("/opt/colbert-zero-cluster/images")
"""Kept from clone to clone: an image that is there already is not built again."""

Config = dict[str, Any]


def mirror() -> str:
    """The Debian mirror that this machine installs from."""
    sites = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True, check=True
    )
    return sorted(set(sites.stdout.split()))[0]


def images() -> Config:
    """How a config says that images are built here: there may be no container registry."""
    build = {"bootstrap": "debootstrap", "mirror": mirror(), "certificates": os.environ.get("SSL_CERT_FILE")}
    return {"folder": str(IMAGES), "build": build}


def wait_for(what: Callable[[], Any], seconds: float, why: str) -> Any:
    """What a condition gives as soon as it gives anything true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds:.0f} s for {why}")


class Cluster:
    """The commands of a person at a cluster, in the folder of one study."""

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
        """Snakemake in the background; its words go to a file."""
        with self.output.open("wb") as file:
            process = subprocess.Popen(
                self.command(*arguments), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.processes.append(process)
        return process

    def clean_up(self) -> None:
        """End what a failed test has left running."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        jobs = self.jobs("pending,running")
        if jobs:
            slurm("scancel", *jobs)

    def run(self, *arguments: str, seconds: float = 900) -> tuple[int, str]:
        """Snakemake to its end: exit status and words."""
        status = self.start(*arguments).wait(timeout=seconds)
        return status, self.said()

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def jobs(self, state: str = "running") -> list[str]:
        """The numbers of this study's jobs that are in a state."""
        lines = slurm("squeue", "--noheader", f"--states={state}", "--format=%A %Z").splitlines()
        return [line.split()[0] for line in lines if line.split()[1] == str(self.folder)]


def slurm(*command: str) -> str:
    """What a command of SLURM's writes."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def short_study(steps: int = STEPS, **resources: Any) -> Config:
    """A study of one stage that trains for a minute, or for fewer steps; `resources` are those of its training."""
    config: Config = deepcopy(OWN) | {"images": images(), "baselines": {}}
    config["stages"]["unsupervised"] |= {"epochs": steps // 14, "learning_rate": 3.0e-4}
    config["recipes"]["all"]["stages"] = ["unsupervised"]
    config["collections"] = {"mine": {"folder": "data/mine"}}
    training = {"runtime": 30, "mem_mb": 1500, "checkpoint_seconds": 5} | resources
    config["resources"] = {"default": {"mem_mb": 1500, "runtime": 10}, "unsupervised": training}
    return config


def model(folder: Path) -> Spec:
    """The spec of the only model."""
    study = Study(yaml.safe_load((folder / "config.yaml").read_text()), folder)
    (row,) = [row for row in study.rows if row.name == "all"]
    return row.stages[-1]


def copy_of(training: Training, folder: Path) -> Training:
    """A study with all that another has but its model."""
    return Training(Path(shutil.copytree(training.folder, folder, ignore=shutil.ignore_patterns("models", "*.out"))))


class Training(Cluster):
    """A study in which all is there but the model."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._look_up()

    def write(self, config: Config) -> None:
        super().write(config)
        self._look_up()

    def _look_up(self) -> None:
        self.spec = model(self.folder)
        self.target = str(self.spec.folder / "spec.json")
        self.state = self.folder / self.spec.state
        self.published = self.folder / self.spec.folder

    def begin(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start; come back when the training has saved a checkpoint beyond its first."""
        process = self.start(*arguments, "--", self.target)
        wait_for(lambda: process.poll() is not None or len(self.checkpoints()) > 1, 240, f"a checkpoint\n{self.said()}")
        assert process.poll() is None, self.said()
        return process

    def checkpoints(self) -> list[Path]:
        return sorted((self.state / "checkpoints").glob("step-*"))

    def job(self) -> str:
        (job,) = self.jobs()
        return job

    def end(self, process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
        """Wait until the run has ended well, and give what the manifest says of the attempts."""
        status = process.wait(timeout=900)
        assert status == 0, self.said()[-6000:]
        attempts: list[dict[str, Any]] = json.loads((self.published / "manifest.json").read_text())["attempts"]
        return attempts

    def digests(self) -> dict[str, str]:
        """Of the model's files, its history of losses among them."""
        files = (path for path in self.published.rglob("*") if path.is_file())
        return {
            path.relative_to(self.published).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.name not in ("spec.json", "manifest.json")
        }
