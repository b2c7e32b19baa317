"""The state that all planners share: the config, and the specs planned so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import Spec, folder_digest
from colbert_zero.graph.config import LOCK_FILE, Config, require_known
from colbert_zero.graph.console import UserError
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.local_files import DigestCache, absolute_or_in, problem_with_file, problem_with_folder
from colbert_zero.graph.revisions import LockedRevisions, Resolve


class Draft:
    """A study while it is being planned.

    Attributes:
        config: The validated config, defaults filled in.
        folder: The study's folder; local paths in the config are relative to it.
        seed: The study's seed.
        specs: Every spec planned so far, by key.
        paths: The local file or folder that an artifact is fetched from, by the artifact's key.
    """

    def __init__(self, config: Config, folder: Path, *, remember: bool, resolve: Resolve | None = None) -> None:
        """Start without specs; `remember` digests of local files from one plan to the next.

        `resolve` looks up names of the Hub that the study's lock file lacks; without it they are errors.
        """
        self.config = config
        self.folder = folder
        self.seed: int = config["seed"]
        self.specs: dict[str, Spec] = {}
        self.paths: dict[str, Path] = {}
        self._digest_cache = DigestCache(folder) if remember else None
        self._revisions = LockedRevisions(folder, resolve)

    def add(
        self,
        kind: str,
        label: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Spec | Sequence[Spec]] | None = None,
        path: Path | None = None,
    ) -> Spec:
        """Plan an artifact.

        Args:
            kind: The artifact's kind, in the plural.
            label: The artifact's label, for people.
            settings: Every setting that decides the artifact.
            inputs: The artifacts it is made from, by role.
            path: The local file or folder it is fetched from, if any.

        Returns:
            The artifact's spec. Planning the same artifact twice gives equal specs.
        """
        names = {
            role: [spec.name for spec in ([specs] if isinstance(specs, Spec) else specs)]
            for role, specs in (inputs or {}).items()
        }
        spec = Spec(kind, label, settings, names)
        self.specs[spec.key] = spec
        if path is not None:
            self.paths[spec.key] = path
        return spec

    def entry(self, section: str, name: str, where: str) -> Config:
        """The entry `name` of a section of the config, such as `miners`.

        Raises:
            UserError: The section has no such entry; `where` is the place in the config that names it.
        """
        entries = self.config[section]
        entry: Config = entries[require_known(name, entries, where, section)]
        return entry

    def prompts(self, name: str, where: str) -> dict[str, str]:
        """The settings `query_prompt` and `document_prompt` of the entry `name` of `prompts`."""
        prompts = self.entry("prompts", name, where)
        return {"query_prompt": prompts["query"], "document_prompt": prompts["document"]}

    def pinned(self, kind: str, entry: Config, where: str) -> dict[str, str]:
        """The settings `hub` and `revision` of a repository of the Hub, whose revision is a commit.

        Args:
            kind: `model` or `dataset`.
            entry: An entry of the config or of a registry, with `hub` and perhaps `revision`.
            where: The entry's place in the config.

        Raises:
            UserError: The commit is not known yet, and cannot be looked up.
        """
        try:
            commit = self._revisions.commit(kind, entry["hub"], entry.get("revision"))
        except UserError as error:
            message = str(error)
            raise UserError(message if message.startswith(f"{LOCK_FILE}: ") else f"{where}: {message}") from None
        return {"hub": entry["hub"], "revision": commit}

    def local_path(self, text: str) -> Path:
        """The path that the config gives as `text`: relative to the study, absolute, or below a home (`~`)."""
        return absolute_or_in(self.folder, text)

    def local_file(self, path: Path, where: str) -> str:
        """The digest of a file of the user's own.

        Raises:
            UserError: There is no file at `path`, or it cannot be read; `where` is the setting that names it.
        """
        return self._digest(path, problem_with_file, file_digest, where)

    def local_folder(self, path: Path, where: str) -> str:
        """The digest of a folder of the user's own.

        Raises:
            UserError: There is no folder at `path`, it is not one that can be copied, or this study is in it; `where`
                is the setting that names it.
        """
        if self.folder.resolve().is_relative_to(path.resolve()):
            raise UserError(
                f"{where}: {path} holds this study, so it changes as the study runs: name a folder beside it"
            )
        return self._digest(path, problem_with_folder, folder_digest, where)

    def _digest(
        self, path: Path, problem_with: Callable[[Path], str | None], compute: Callable[[Path], str], where: str
    ) -> str:
        """`compute(path)`, cached until the file or folder changes."""
        problem = problem_with(path)
        if problem:
            variable = "; write the path out: variables such as $HOME mean nothing here" if "$" in str(path) else ""
            raise UserError(f"{where}: {path} {problem}{variable}")
        try:
            return self._digest_cache.get(path, compute) if self._digest_cache else compute(path)
        except OSError as error:
            raise UserError(f"{where}: {error.filename or path} cannot be read: {error.strerror}") from None

    def save_digests(self) -> None:
        """Write the cache of digests to disk, for the next time the study is planned."""
        if self._digest_cache:
            self._digest_cache.save()
