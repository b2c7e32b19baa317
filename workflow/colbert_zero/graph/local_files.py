"""Local files: a second name for one; and digests, kept so that planning a study does not read gigabytes each time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def link(path: Path, target: Path) -> None:
    """Give a file another name; a copy where the file system has no hard links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


class Digests:
    """Digests of local files and folders, remembered by path, size and modification time.

    The memory only saves time: without it, every digest is computed again.
    """

    def __init__(self, study: Path) -> None:
        """Take up what `study` (its folder) remembers."""
        self._path = study / "resources" / ".digests.json"
        try:
            self._known: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            self._known = {}
        self._changed = False

    def of(self, path: Path, compute: Callable[[Path], str]) -> str:
        """The digest of a file or folder, computed only where it is new or was written to."""
        files = [path] if path.is_file() else sorted(inner for inner in path.rglob("*") if inner.is_file())
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        state = [list(stat) for stat in stats]
        known = self._known.get(str(path.resolve()))
        if known and known["state"] == state:
            remembered: str = known["digest"]
            return remembered
        digest = compute(path)
        self._known[str(path.resolve())] = {"state": state, "digest": digest}
        self._changed = True
        return digest

    def save(self) -> None:
        """Remember what was computed."""
        if self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._known), encoding="utf-8")
