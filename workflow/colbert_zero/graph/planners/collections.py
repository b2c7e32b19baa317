"""Plan collections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from colbert_zero.graph import registry
from colbert_zero.graph.artifact import Spec, folder_digest
from colbert_zero.graph.config import Config, only_key, require_known
from colbert_zero.graph.planners.draft import Draft


class Collection(NamedTuple):
    """A planned collection.

    Attributes:
        name: Its name in tables.
        spec: Its spec.
        drop_self: Whether to drop a retrieved document whose id is the query's.
    """

    name: str
    spec: Spec
    drop_self: bool


class CollectionPlanner:
    """Plans the entries of the section `collections`.

    Attributes:
        by_name: Every collection, members of groups included.
        groups: The names of the members of each group; a group is averaged into one column.
    """

    def __init__(self, draft: Draft) -> None:
        """Plan every collection."""
        self.by_name: dict[str, Collection] = {}
        self.groups: dict[str, list[str]] = {}
        for name, collection in draft.config["collections"].items():
            kind = only_key(collection, tuple(KINDS), f"collections.{name}")
            members = KINDS[kind](draft, name, collection)
            self.by_name |= {member.name: member for member in members}
            if len(members) > 1:
                self.groups[name] = [member.name for member in members]

    def named(self, name: str, where: str) -> list[Collection]:
        """The collection called `name`, or the members of the group of that name.

        Raises:
            UserError: There is no such collection; `where` is the place in the config that names it.
        """
        members = self.groups.get(name, [name])
        return [self.by_name[require_known(member, self.by_name, where, "collections")] for member in members]


def _from_registry(draft: Draft, name: str, collection: Config) -> list[Collection]:
    """A collection of the registry, or all members of one of its groups."""
    return [
        Collection(member, draft.add("collections", f"hub.{member}", settings), drop_self)
        for member, settings, drop_self in registry.collections(collection["registry"], name, f"collections.{name}")
    ]


def _from_package(draft: Draft, name: str, collection: Config) -> list[Collection]:
    """The docstrings of an installed package."""
    settings = registry.package_settings(collection) | {"queries": collection.get("queries"), "seed": draft.seed}
    return [Collection(name, draft.add("collections", f"package.{name}", settings), drop_self=False)]


def _from_folder(draft: Draft, name: str, collection: Config) -> list[Collection]:
    """A local folder in BEIR format."""
    path = draft.local_path(collection["folder"], f"collections.{name}")
    settings = {"split": collection.get("split", "test"), "sha256": draft.digest(path, folder_digest)}
    spec = draft.add("collections", f"folder.{name}", settings, path=path)
    return [Collection(name, spec, collection.get("drop_self", False))]


KINDS: Mapping[str, Callable[[Draft, str, Config], list[Collection]]] = {
    "registry": _from_registry,
    "package": _from_package,
    "folder": _from_folder,
}
"""Where a collection can come from: the config's key, and the function that plans it."""
