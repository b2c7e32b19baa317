"""Local files: paths as people write them, links and copies, and a cache of digests: planning reads no file twice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from colbert_zero.graph.console import UserError
from colbert_zero.graph.json_values import read_json
from colbert_zero.graph.text_files import replace_text


def absolute_or_in(folder: Path, text: str) -> Path:
    """The path that people mean by `text`: relative to `folder`, absolute, or below a home (`~/data`, `~name/data`)."""
    path = folder / text
    if text.startswith("~") and not os.path.lexists(path):
        with contextlib.suppress(RuntimeError):  # There is no such home: the path as it is written does not exist.
            return Path(text).expanduser()
    return path


def problem_with_file(path: Path) -> str | None:
    """Why `path` is no regular file that can be read, such as `is a folder`; None if it is one. Nothing is opened."""
    return _problem(path, stat.S_ISREG, os.R_OK)


def problem_with_folder(path: Path) -> str | None:
    """Why `path` is no folder whose files can all be read and copied, such as `is a file`; None if it is one."""
    problem = _problem(path, stat.S_ISDIR, os.R_OK | os.X_OK)
    if problem:
        return problem
    root = path.resolve()
    for parent, folders, files in os.walk(path):
        for inner in (Path(parent, name) for name in sorted([*folders, *files])):
            if inner.is_symlink() and not inner.resolve().is_relative_to(root):
                return f"has a link out of it, {inner}: give a copy with the links resolved (cp -rL)"
            problem = _problem(inner, lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode), os.R_OK)
            if problem:
                return f"cannot be copied: {inner} {problem}"
    return None


def _problem(path: Path, is_right: Callable[[int], bool], access: int) -> str | None:
    """Why `path` is not of the kind that `is_right` tells from its mode, or not accessible; None if all is well."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return f"is a link to {os.readlink(path)}, which does not exist" if path.is_symlink() else "does not exist"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not is_right(mode):
        return KINDS_OF_FILES.get(stat.S_IFMT(mode), "is a device")
    return None if os.access(path, access) else "cannot be read: Permission denied"


KINDS_OF_FILES = {
    stat.S_IFREG: "is a file, not a folder",
    stat.S_IFDIR: "is a folder, not a file",
    stat.S_IFIFO: "is a pipe, not a file",
    stat.S_IFSOCK: "is a socket, not a file",
}
"""What a path is that should be something else, by the kind in its mode."""


def absolute_path(text: str) -> Path:
    """A path from where a command was started: the command changes into the study's folder before it runs."""
    return Path(text).expanduser().absolute()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write in, which takes the name `path` when it is complete, and is deleted if that fails.

    Raises:
        UserError: Something is at `path` already, other than an empty folder, or there is no folder to make it in.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is there: name a new folder")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path.absolute().parent} is not a folder: make it first")
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
    try:
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)
        yield partial
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_links(folder: Path) -> None:
    """Refuse symbolic links in a folder in which files are written under names that anybody knows.

    Who writes to a link changes the file that it points to, which may be any file of this user.

    Raises:
        UserError: There is one, at any depth.
    """
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in [*folders, *files]):
            if path.is_symlink():
                raise UserError(
                    f"{path} is a link to {os.readlink(path)}, which would be written to: remove it, then run the same "
                    "command again"
                )


def link_or_copy(path: Path, target: Path) -> None:
    """Make `target` a hard link to the file at `path`; a copy where the file system has no hard links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def keep_private(folder: Path, original: Path) -> None:
    """Take from group and others in `folder` what they may not read of `original`, of which it holds a copy.

    Args:
        folder: The folder that will hold the copy; what it forbids, it forbids for all files in it.
        original: A file or folder. Its group counts only if `folder` has the same.
    """
    copied, here = original.stat(), folder.stat()
    mode = stat.S_IMODE(here.st_mode)
    if not copied.st_mode & stat.S_IROTH:
        mode &= ~stat.S_IRWXO
        if copied.st_gid != here.st_gid or not copied.st_mode & stat.S_IRGRP:
            mode &= ~stat.S_IRWXG
    if mode != stat.S_IMODE(here.st_mode):
        folder.chmod(mode)


class DigestCache:
    """Digests of local files and folders, cached by all that the file system says of each file.

    Size and modification time can be set to what they were; the time of the last change to the file's entry (ctime) and
    its number (inode) cannot. The cache only saves time: without it, every digest is computed again.
    """

    def __init__(self, study: Path) -> None:
        """Read the cache of the study in the folder `study`."""
        self._path = study / "resources" / ".digests.json"
        self._entries: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            entries = read_json(self._path)
            if isinstance(entries, dict):
                self._entries = entries
        self._changed = False

    def get(self, path: Path, compute: Callable[[Path], str]) -> str:
        """The digest of a file or folder; `compute` is called only if it is new or has changed."""
        files = [path] if path.is_file() else sorted(inner for inner in path.rglob("*") if inner.is_file())
        state = [_state(file) for file in files]
        name = str(path.resolve())
        entry = self._entries.get(name)
        if isinstance(entry, dict) and entry.get("state") == state and isinstance(entry.get("digest"), str):
            cached: str = entry["digest"]
            return cached
        digest = compute(path)
        self._entries[name] = {"state": state, "digest": digest}
        self._changed = True
        return digest

    def forget(self, paths: Iterable[Path]) -> None:
        """Let the next plan compute the digests of these files and folders anew, and write that to disk."""
        for path in paths:
            self._changed |= self._entries.pop(str(path.resolve()), None) is not None
        self.save()

    def save(self) -> None:
        """Write the cache to disk, if it has changed and there is a place for it."""
        if self._changed:
            with contextlib.suppress(OSError):
                replace_text(self._path, json.dumps(self._entries))


def _state(file: Path) -> list[Any]:
    """What the file system says of a file: any change to its bytes changes this."""
    entry = file.stat()
    return [str(file), entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns, entry.st_ino]
