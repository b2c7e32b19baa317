"""Commits of the Hugging Face Hub: what a name stands for is looked up once, and kept in a file beside the config.

A branch or a tag moves, and an artifact's key must not. So a spec has commits alone. Planning looks a name up only if
the lock file lacks it, and only through the function that it is given: nothing here uses the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from colbert_zero.graph.config import LOCK_FILE
from colbert_zero.graph.console import UserError
from colbert_zero.graph.local_files import problem_with_file
from colbert_zero.graph.strict_yaml import MAXIMUM_BYTES, dump, parse
from colbert_zero.graph.text_files import replace_text

COMMIT_PATTERN = re.compile(r"[0-9a-f]{40}")
UNKNOWN_COMMIT = "0" * 40
"""Stands in a plan for a commit that is not looked up; it is not written down."""
DEFAULT_REVISION = "main"
"""The branch that a repository shows, where no revision is asked for."""
HEADER = """\
# The commits that the names of the Hugging Face Hub in config.yaml stand for: kind of repository, its name, the
# revision that is asked for (main where none is), and the commit. Snakemake looks up what is not here, writes it here,
# and never changes it, so keep this file with config.yaml. Delete a line to look that name up again: what rests on it
# is made anew.
"""

Name = tuple[str, str, str]
"""The kind of a repository (`model` or `dataset`), its name (`OWNER/NAME`), and a revision."""
Resolve = Callable[[str, str, str], str | None]
"""Looks up the commit of a name, given its three parts; None leaves it open. It raises a UserError if it cannot."""


class LockedRevisions:
    """The commits of a study's names, as its lock file has them."""

    def __init__(self, folder: Path, resolve: Resolve | None = None) -> None:
        """Read the lock file in `folder` when it is first needed; look up what it lacks with `resolve`, if given."""
        self._path, self._resolve = folder / LOCK_FILE, resolve
        self._entries: dict[Name, str] | None = None

    def commit(self, kind: str, repository: str, revision: str | None) -> str:
        """The commit that a revision of a repository stands for, for good.

        Args:
            kind: `model` or `dataset`.
            repository: `OWNER/NAME`.
            revision: A commit, which stands for itself; or a branch or a tag, by default `main`.

        Returns:
            40 hex digits, in small letters.

        Raises:
            UserError: The name is not in the lock file and cannot be looked up here, or the file is damaged or cannot
                be written.
        """
        if revision is not None and COMMIT_PATTERN.fullmatch(revision.lower()):
            return revision.lower()
        name = kind, repository, revision or DEFAULT_REVISION
        if self._entries is None:
            self._entries = _read(self._path)
        if name not in self._entries:
            self._look_up(name)
        return self._entries[name]

    def _look_up(self, name: Name) -> None:
        if self._resolve is None:
            _, repository, revision = name
            raise UserError(
                f"{LOCK_FILE} does not say yet which commit {revision} of {repository} is: run snakemake -n once with "
                "the network, which writes it there, or give a revision of 40 hex digits"
            )
        commit = self._resolve(*name)
        # Whoever planned the same study meanwhile may have written other names, or this one.
        locked = _read(self._path)
        if commit is not None and name not in locked:
            locked[name] = commit
            _write(self._path, locked)
        self._entries = {**(self._entries or {}), name: UNKNOWN_COMMIT} | locked


def _read(path: Path) -> dict[Name, str]:
    problem = problem_with_file(path)
    if problem == "does not exist":
        return {}
    if problem:
        raise UserError(f"{LOCK_FILE}: {path.absolute()} {problem}")
    with path.open("rb") as file:
        data = file.read(MAXIMUM_BYTES + 1)
    try:
        locked = parse(data)
    except UserError as error:
        raise UserError(f"{LOCK_FILE}: {error}") from None
    return {
        (kind, repository, revision): _checked(commit, f"{kind}.{repository}.{revision}")
        for kind, repositories in _group(locked, "the file")
        for repository, revisions in _group(repositories, kind)
        for revision, commit in _group(revisions, f"{kind}.{repository}")
    }


def _group(value: Any, where: str) -> list[tuple[str, Any]]:
    """The names in a group of settings, which may be empty."""
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise UserError(f"{LOCK_FILE}: {where} is not a group of names: correct it, or delete it to look up anew")
    return list(value.items())


def _checked(commit: Any, where: str) -> str:
    if not isinstance(commit, str) or not COMMIT_PATTERN.fullmatch(commit):
        raise UserError(
            f"{LOCK_FILE}: {where} is {commit!r:.80}, no commit of 40 hex digits: correct it, or delete it to look it "
            "up again"
        )
    return commit


def _write(path: Path, entries: Mapping[Name, str]) -> None:
    nested: dict[str, dict[str, dict[str, str]]] = {}
    for (kind, repository, revision), commit in entries.items():
        nested.setdefault(kind, {}).setdefault(repository, {})[revision] = commit
    try:
        replace_text(path, HEADER + dump(nested))
    except OSError as error:
        raise UserError(
            f"{LOCK_FILE}: it cannot be written in {path.parent.absolute()} ({error.strerror}): make the folder "
            "writable, or give every name of the Hub a revision of 40 hex digits"
        ) from None
