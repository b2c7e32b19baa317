"""Plan sources and their shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from colbert_zero.graph import registry
from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import Config, only_key, require_known
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.planners.draft import Draft

Labelled = tuple[str, Spec]
"""A source's label, and its spec."""


class SourcePlanner:
    """Plans the entries of the section `sources`, and their shards."""

    def __init__(self, draft: Draft) -> None:
        """Plan every source."""
        self._draft = draft
        self._by_name: dict[str, list[Labelled]] = {}
        for name, source in draft.config["sources"].items():
            kind = only_key(source, tuple(KINDS), f"sources.{name}")
            self._by_name[name] = KINDS[kind](draft, name, source)

    def named(self, names: Iterable[str], where: str) -> list[Labelled]:
        """The sources called `names`: entries of the config (all members, if a group), or single members of groups.

        Raises:
            UserError: A name is unknown; `where` is the place in the config that names it.
        """
        members = {label: [(label, spec)] for group in self._by_name.values() for label, spec in group}
        known = members | self._by_name
        return [source for name in names for source in known[require_known(name, known, where, "sources")]]

    def shards(self, names: Iterable[str], where: str) -> list[Spec]:
        """The shards of each of the sources called `names`."""
        settings = {**self._draft.config["shards"], "seed": self._draft.seed}
        return [
            self._draft.add("shards", label, settings, {"source": source}) for label, source in self.named(names, where)
        ]


def _from_registry(draft: Draft, name: str, source: Config) -> list[Labelled]:
    """A source of the registry, or all sources of one of its groups."""
    members = registry.sources(source["registry"], f"sources.{name}")
    return [(label, draft.add("sources", f"hub.{label}", settings)) for label, settings in members]


def _from_package(draft: Draft, name: str, source: Config) -> list[Labelled]:
    """The docstrings of an installed package."""
    return [(name, draft.add("sources", f"package.{name}", registry.package_settings(source)))]


def _from_file(draft: Draft, name: str, source: Config) -> list[Labelled]:
    """A local file of rows."""
    path = draft.local_path(source["file"], f"sources.{name}")
    columns = {"query": "query", "document": "document", "negatives": "negatives"} | source.get("columns", {})
    settings = {"file": path.name, "sha256": draft.digest(path, file_digest), "columns": columns}
    return [(name, draft.add("sources", f"file.{name}", settings, path=path))]


KINDS: Mapping[str, Callable[[Draft, str, Config], list[Labelled]]] = {
    "registry": _from_registry,
    "package": _from_package,
    "file": _from_file,
}
"""Where a source can come from: the config's key, and the function that plans it."""
