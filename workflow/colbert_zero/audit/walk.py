"""What lies in a study's folders, by lstat: artifacts, and what does not belong there."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from colbert_zero.audit.findings import Check, Finding
from colbert_zero.graph.artifact import EXTERNAL_KINDS, KINDS, MANIFEST_FILE, SPEC_FILE

KINDS_IN = {"resources": EXTERNAL_KINDS, "results": frozenset(KINDS) - EXTERNAL_KINDS}
"""The kinds of artifacts by the folder that they live in."""
FILE_SYSTEM_NAMES = re.compile(r"\.snapshot|\.nfs[0-9a-f]+")
"""Names that file systems make in any folder: snapshots, and files that were deleted while in use."""
ARTIFACT_NAME = re.compile(r".+-[0-9a-f]{12}")
KINDS_OF_FILES = {
    stat.S_IFLNK: "is a link",
    stat.S_IFIFO: "is a pipe",
    stat.S_IFSOCK: "is a socket",
    stat.S_IFBLK: "is a device",
    stat.S_IFCHR: "is a device",
}


@dataclass
class Contents:
    """What is in an artifact's folder.

    Attributes:
        files: What lstat says of each file, by its path relative to the folder.
        problems: What is neither a file nor a folder with files, in words.
    """

    files: dict[str, os.stat_result] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def find_artifacts(root: Path) -> tuple[list[Path], list[Finding]]:
    """The folders of all published artifacts of the study in `root`, sorted, and what lies between them wrongly.

    Hidden names are no artifacts: steps write into hidden folders before they publish. A folder that is empty is one
    that Snakemake made for a job. `results` and `resources` may be links to where there is more room.
    """
    folders: list[Path] = []
    findings: list[Finding] = []
    for parent, kinds in KINDS_IN.items():
        for kind in _entries(root / parent, findings):
            if kind.name in kinds:
                if kind.is_symlink():
                    findings.append(_misplaced(kind, "is a link: only results and resources as a whole may be one"))
                folders += _in_kind(kind, findings)
            elif _holds_artifacts(kind):
                findings.append(_misplaced(kind, f"holds artifacts, but {parent} has no such kind"))
    return folders, findings


def _in_kind(kind: Path, findings: list[Finding]) -> Iterator[Path]:
    for path in _entries(kind, findings):
        name = f"{kind.name}/{path.name}"
        if path.is_dir():
            if path.is_symlink():
                findings.append(_misplaced(path, "is a link, where a step made a folder", name))
            if not _is_empty(path):
                yield path
        elif path.is_symlink() or not path.is_file() or ARTIFACT_NAME.fullmatch(path.name):
            findings.append(_misplaced(path, f"{_describe(path)}, where a step made a folder", name))


def _entries(folder: Path, findings: list[Finding]) -> list[Path]:
    """What is in `folder`, sorted, but for hidden names and those of file systems; nothing if it is no folder."""
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.name != "lost+found")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        findings.append(_misplaced(folder, f"cannot be read: {error.strerror}"))
        return []


def _is_empty(folder: Path) -> bool:
    try:
        return not os.listdir(folder)
    except OSError:
        return False


def _holds_artifacts(folder: Path) -> bool:
    try:
        return any((path / file).is_file() for path in folder.iterdir() for file in (SPEC_FILE, MANIFEST_FILE))
    except OSError:
        return False


def _misplaced(path: Path, problem: str, name: str | None = None) -> Finding:
    return Finding(name or path.as_posix(), Check.ARTIFACT, f"{path} {problem}")


def _describe(path: Path) -> str:
    return KINDS_OF_FILES.get(stat.S_IFMT(path.lstat().st_mode), "is a file")


def contents(folder: Path) -> Contents:
    """What is in the folder of an artifact, at any depth; links are not followed."""
    found = Contents()
    _scan(folder, "", found)
    return found


def _scan(folder: Path, prefix: str, found: Contents) -> bool:
    """Add what is in `folder` to `found`; return whether there was anything."""
    try:
        with os.scandir(folder) as entries:
            inner = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        found.problems.append(f"{folder} cannot be read: {error.strerror}")
        return True
    something = False
    for entry in inner:
        if FILE_SYSTEM_NAMES.fullmatch(entry.name):
            continue
        something = True
        name = prefix + entry.name
        entry_stat = entry.stat(follow_symlinks=False)
        mode = entry_stat.st_mode
        if stat.S_ISREG(mode):
            found.files[name] = entry_stat
        elif not stat.S_ISDIR(mode):
            kind = KINDS_OF_FILES.get(stat.S_IFMT(mode), "is no file")
            target = f" to {os.readlink(entry.path)}" if stat.S_ISLNK(mode) else ""
            found.problems.append(f"{folder / entry.name} {kind}{target}, where steps write files alone")
        elif not _scan(folder / entry.name, f"{name}/", found):
            found.problems.append(f"{folder / entry.name} is an empty folder, which no step makes")
    return something


def problem_with_path(name: str) -> str | None:
    """Why `name` cannot be the path of an artifact's file relative to its folder, in words; None if it can."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        return "leads out of its folder"
    if name in (SPEC_FILE, MANIFEST_FILE):
        return "is no output"
    return None if str(path) == name and name != "." else "is no plain path"
