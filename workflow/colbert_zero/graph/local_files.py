"""Local files: hard links, and a cache of digests, so that planning a study does not read gigabytes each time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def link_or_copy(path: Path, target: Path) -> None:
    """Make `target` a hard link to the file at `path`; a copy where the file system has no hard links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


class DigestCache:
    """Digests of local files and folders, cached by path, size and modification time.

    The cache only saves time: without it, every digest is computed again.
    """

    def __init__(self, study: Path) -> None:
        """Read the cache of the study in the folder `study`."""
        self._path = study / "resources" / ".digests.json"
        try:
            self._entries: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            self._entries = {}
        self._changed = False

    def get(self, path: Path, compute: Callable[[Path], str]) -> str:
        """The digest of a file or folder; `compute` is called only if it is new or has changed."""
        files = [path] if path.is_file() else sorted(inner for inner in path.rglob("*") if inner.is_file())
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        state = [list(stat) for stat in stats]
        entry = self._entries.get(str(path.resolve()))
        if entry and entry["state"] == state:
            cached: str = entry["digest"]
            return cached
        digest = compute(path)
        self._entries[str(path.resolve())] = {"state": state, "digest": digest}
        self._changed = True
        return digest

    def save(self) -> None:
        """Write the cache to disk, if a digest was computed."""
        if self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._entries), encoding="utf-8")
