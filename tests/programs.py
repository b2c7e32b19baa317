"""Stand-ins for programs that a machine may not have: a script first on the PATH."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

SITES = ("apptainer", "sacct", "sacctmgr", "sbatch", "sinfo", "squeue", "srun")
"""What a cluster has, and a laptop has not."""
EVERYWHERE = ("awk", "bash", "cat", "git", "grep", "ls", "mkdir", "rm", "sed", "sh", "uname", "which")


def program(folder: Path, name: str, script: str) -> Path:
    """Put the program `name` into `folder`: a shell script, or with `#!python` in front one in Python."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    first, _, rest = script.partition("\n")
    shebang, body = (f"#!{sys.executable}", rest) if first == "#!python" else ("#!/bin/sh", script)
    path.write_text(f"{shebang}\n{body}\n")
    path.chmod(0o755)
    return path


def says(text: str, status: int = 0) -> str:
    """The script that writes `text` and ends with `status`."""
    return f"cat <<'END'\n{text}\nEND\nexit {status}"


def laptop(folder: Path) -> str:
    """A PATH with what every machine has, and nothing of a cluster, even where this machine is one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in EVERYWHERE:
        found = shutil.which(name)
        if found is not None:
            (folder / name).symlink_to(found)
    assert not any(shutil.which(name, path=folder) for name in SITES)
    return os.fspath(folder)
