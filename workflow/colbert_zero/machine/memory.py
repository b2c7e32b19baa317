"""How much memory this machine can give to steps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Limit and usage of a control group, in version 2 and in version 1."""
CACHE_FIELDS = (("inactive_file", "active_file"), ("total_inactive_file", "total_active_file"))
"""What of a group's usage is cached files, which give way."""


def available_memory_mb(root: Path = Path("/")) -> int:
    """The memory that processes started now can have, in MB (10^6 bytes): what is free, within the limits set to us.

    Args:
        root: Where `proc` and `sys` are.
    """
    return min([_free_bytes(root), *_cgroup_bytes(root)]) // 10**6


def steps_beyond_memory(
    resources: Mapping[str, Mapping[str, Any]], steps: Iterable[str], memory_mb: int | None
) -> list[str]:
    """A line for each setting that asks for more memory than there is, of those that steps to run have.

    Args:
        resources: The section `resources` of the config.
        steps: The names of the steps to run.
        memory_mb: The memory that is there, in MB; None if it is not limited.
    """
    if memory_mb is None:
        return []
    asked = {step: settings.get("mem_mb", 0) for step, settings in resources.items() if step in {*steps, "default"}}
    return [
        f"resources.{step}.mem_mb is {mem_mb}, and this machine has {memory_mb} MB free: such a step runs alone here"
        for step, mem_mb in asked.items()
        if mem_mb > memory_mb
    ]


def _fields(path: Path) -> dict[str, int]:
    """The numbers in a file with a name and a number on each line."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _free_bytes(root: Path) -> int:
    """What the kernel estimates to be available without swapping; all memory where there is no such estimate."""
    try:
        return _fields(root / "proc/meminfo")["MemAvailable"] * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_bytes(root: Path) -> list[int]:
    """What is left in this process's control group and in each one above it, such as those of a SLURM job."""
    try:
        entries = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    fields = [entry.split(":", 2) for entry in entries if entry.count(":") >= 2]
    left = []
    for version, (controller, top) in enumerate((("", "sys/fs/cgroup"), ("memory", "sys/fs/cgroup/memory"))):
        names = [Path(name.lstrip("/")) for _, controllers, name in fields if controllers == controller]
        # The top counts as well: a container may see its own group there, whatever name the host has for it.
        for group in {root / top / part for name in names for part in (name, *name.parents)}:
            try:
                limit, usage = (int((group / file).read_text()) for file in CGROUP_FILES[version])
                cached = _fields(group / "memory.stat")
            except (OSError, ValueError):
                continue  # Not a group that we see, or one without a limit (`max`).
            left.append(limit - usage + sum(cached.get(field, 0) for field in CACHE_FIELDS[version]))
    return [max(bytes_left, 0) for bytes_left in left]
