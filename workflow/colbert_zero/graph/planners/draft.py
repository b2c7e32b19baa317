"""The state that all planners share: the config, and the specs planned so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import Config, require_known
from colbert_zero.graph.console import UserError
from colbert_zero.graph.local_files import DigestCache


class Draft:
    """A study while it is being planned.

    Attributes:
        config: The validated config, defaults filled in.
        folder: The study's folder; local paths in the config are relative to it.
        seed: The study's seed.
        specs: Every spec planned so far, by key.
        paths: The local file or folder that an artifact is fetched from, by the artifact's key.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        """Start without specs."""
        self.config = config
        self.folder = folder
        self.seed: int = config["seed"]
        self.specs: dict[str, Spec] = {}
        self.paths: dict[str, Path] = {}
        self._digest_cache = DigestCache(folder)

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

    def local_path(self, text: str, where: str) -> Path:
        """The path that the config gives as `text`.

        Raises:
            UserError: The path does not exist; `where` is the setting that names it.
        """
        path = self.folder / text
        if not path.exists():
            raise UserError(f"{where}: {path} does not exist")
        return path

    def digest(self, path: Path, compute: Callable[[Path], str]) -> str:
        """`compute(path)`, cached until the file or folder changes."""
        return self._digest_cache.get(path, compute)

    def save_digests(self) -> None:
        """Write the cache of digests to disk, for the next time the study is planned."""
        self._digest_cache.save()
