"""Files that the last full audit found intact, so that the next one need not read them again.

A change of a file's bytes changes its size, its number (inode) or the time of the last change to its entry (ctime),
which no ordinary program can set back. What is noted here is used on request only: whoever can write into the study can
forge this file as well.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import STATE_FOLDER
from colbert_zero.graph.digests import canonical_json, digest
from colbert_zero.graph.json_values import read_json
from colbert_zero.graph.text_files import replace_text

VOUCHED_FILE = STATE_FOLDER / "verified.json"
SETTLED_SECONDS = 2.0
"""A file that changed so recently may change again without another time of change: it is read again."""


@dataclass
class Vouched:
    """What an audit vouches for.

    Attributes:
        files: Of each file, by its path, its size, inode, ctime in nanoseconds, and SHA-256.
        records: SHA-256 of the manifest of each artifact whose numbers were counted again, by the artifact's name.
    """

    files: dict[str, list[Any]] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path = VOUCHED_FILE) -> Vouched:
        """What the last full audit vouched for; nothing if what it wrote is not there, or damaged."""
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            noted = read_json(path)
            content = noted["content"]
            if digest(canonical_json(content)) == noted["sha256"]:
                return cls(dict(content["files"]), dict(content["records"]))
        return cls()

    def write(self, path: Path = VOUCHED_FILE) -> None:
        """Write it for the next audit, where the study can be written to."""
        content = {"files": self.files, "records": self.records}
        with suppress(OSError):
            replace_text(path, canonical_json({"content": content, "sha256": digest(canonical_json(content))}))

    def covers(self, path: Path, sha256: str) -> bool:
        """Whether the file at `path` had this digest when it was last read, and has not changed since."""
        noted = self.files.get(path.as_posix())
        try:
            return noted is not None and noted == [*state_of(path.lstat()), sha256]
        except OSError:
            return False


def forget(path: Path = VOUCHED_FILE) -> None:
    """Vouch for nothing."""
    with suppress(OSError):
        path.unlink()


def state_of(entry: os.stat_result) -> list[int]:
    """What changes whenever a file's bytes do."""
    return [entry.st_size, entry.st_ino, entry.st_ctime_ns]


def is_settled(entry: os.stat_result) -> bool:
    """Whether a file changed so long ago that a further change would be seen."""
    return time.time() - entry.st_ctime > SETTLED_SECONDS
