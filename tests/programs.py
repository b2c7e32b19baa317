"""Stand-ins for programs that a machine may not have: scripts in a folder that is first on the PATH."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

CLUSTER_PROGRAMS = ("apptainer", "sacct", "sacctmgr", "sbatch", "sinfo", "squeue", "srun")
"""Programs of a cluster that a laptop does not have."""
COMMON_PROGRAMS = ("awk", "bash", "cat", "git", "grep", "ls", "mkdir", "rm", "sed", "sh", "uname", "which")


def program(folder: Path, name: str, script: str) -> Path:
    """Write the program `name` into `folder`: a shell script, or a Python script if its first line is `#!python`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    first, _, rest = script.partition("\n")
    shebang, body = (f"#!{sys.executable}", rest) if first == "#!python" else ("#!/bin/sh", script)
    path.write_text(f"{shebang}\n{body}\n")
    path.chmod(0o755)
    return path


def says(text: str, status: int = 0) -> str:
    """A script that prints `text` and exits with `status`."""
    return f"cat <<'END'\n{text}\nEND\nexit {status}"


def laptop(folder: Path) -> str:
    """A PATH with the programs of every machine and none of a cluster, even if this machine belongs to one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COMMON_PROGRAMS:
        path = shutil.which(name)
        if path is not None:
            (folder / name).symlink_to(path)
    assert not any(shutil.which(name, path=folder) for name in CLUSTER_PROGRAMS)
    return os.fspath(folder)
