"""A study on the test cluster (`make cluster`), through the literal `snakemake --profile slurm`, in real images."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
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

    def write(self, config: Config) -> None:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def command(self, *arguments: str) -> list[str]:
        profile = ["--profile", "slurm", "--directory", str(self.folder)]
        return [sys.executable, "-m", "snakemake", *profile, *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Snakemake in the background; its words go to a file."""
        with self.output.open("wb") as file:
            return subprocess.Popen(
                self.command(*arguments), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

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
