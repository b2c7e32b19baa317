"""Find the files that a source's `file` means: one file, all files of a folder, or all that a glob matches."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from glob import has_magic
from itertools import takewhile
from pathlib import Path

from colbert_zero.graph.console import UserError
from colbert_zero.graph.local_files import absolute_or_in

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
"""The kinds of files that hold rows."""
SCORES_ROLES = ("train", "queries", "documents")
"""The tables of a teacher's scores: ids with scores, and the texts of the ids."""
OWN_FOLDERS = ("results", "resources", "logs", "benchmarks", ".snakemake")
"""What a study writes beside its config."""


def find(study: Path, text: str) -> Path | tuple[Path, list[str]]:
    """The files that `text` means in the study's folder.

    Args:
        study: The study's folder.
        text: A path or a glob, as people write it. A path that is there is no glob, whatever characters it has.

    Returns:
        The path of one file, which may not be there; or a folder, and the sorted names of its files relative to it. Of
        a folder those directly in it, of a glob those that it matches; hidden files are left out.

    Raises:
        UserError: There is no file that holds rows, or there are several kinds of them.
    """
    path = absolute_or_in(study, text)
    if os.path.isdir(path):
        names = [name for name in _list(path) if name.endswith(SUFFIXES)]
        hint = "name a folder that has some, or a glob such as parts/**/*.parquet"
        return path, _checked(names, path, f"no {_either(SUFFIXES)} file is directly in {path}; {hint}")
    if os.path.lexists(path) or not has_magic(text):
        return path
    parts = Path(text).parts
    plain = list(takewhile(lambda part: not has_magic(part), parts))
    folder = absolute_or_in(study, str(Path(*plain)))
    if os.path.isdir(folder):
        _list(folder)  # In a folder that cannot be read, a glob matches nothing, and does not say why.
    names = _matching(folder, "/".join(parts[len(plain) :]))
    own = [study.absolute() / name for name in OWN_FOLDERS]
    for name in names:
        if any((folder.absolute() / name).is_relative_to(own_folder) for own_folder in own):
            raise UserError(f"{text} matches what the study itself writes, {name}: keep the data in a folder of theirs")
        if not name.endswith(SUFFIXES):
            raise UserError(f"{text} matches {name} too, which is no {_either(SUFFIXES)} file")
    return folder, _checked(names, folder, f"no file matches {text}")


def role_of(name: str) -> str | None:
    """Which table of a teacher's scores a file holds, or a part of, by its name; None if it is no such file."""
    role = re.split("[.-]", name, maxsplit=1)[0]
    return role if role in SCORES_ROLES and name.endswith(".parquet") else None


def _list(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None


def _matching(folder: Path, pattern: str) -> list[str]:
    """The files in `folder` that match a pattern, by their relative names; `**` follows no links to folders."""
    if ".." in pattern.split("/"):
        raise UserError(f"{pattern}: .. cannot follow a * or another wildcard: name the folder")
    try:
        found = [path.relative_to(folder) for path in folder.glob(pattern) if not path.is_dir()]
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{pattern} is not a glob that works in {folder}: {error}") from None
    return [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]


def _checked(names: Iterable[str], folder: Path, nothing: str) -> list[str]:
    """The names, sorted, if they are there and of one kind."""
    names = sorted(names)
    if not names:
        raise UserError(nothing)
    kinds = {suffix: name for name in names for suffix in SUFFIXES if name.endswith(suffix)}
    if len(kinds) > 1:
        raise UserError(
            f"{folder} has files of several kinds, such as {' and '.join(sorted(kinds.values()))}: a source has one "
            "kind; name a glob such as *.parquet"
        )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{folder} has a file whose name is not UTF-8, {name!r}: rename it") from None
    return names


def _either(words: Iterable[str]) -> str:
    return " or ".join(words)
