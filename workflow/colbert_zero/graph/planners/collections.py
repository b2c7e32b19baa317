"""Plan collections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from colbert_zero.graph import registry
from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import Config, only_key, refuse_clashes, require_known
from colbert_zero.graph.console import UserError
from colbert_zero.graph.planners.draft import Draft


class Collection(NamedTuple):
    """A planned collection.

    Attributes:
        name: Its name in tables.
        spec: Its spec.
        drop_self: Whether to drop a retrieved document whose id is the query's.
        lengths: `query_length` and `document_length` to encode it with, those that the config gives.
        minimum_lengths: What its texts need at least, as the registry says.
    """

    name: str
    spec: Spec
    drop_self: bool
    lengths: Mapping[str, int]
    minimum_lengths: Mapping[str, int]

    def encoding(self, trained: Config) -> dict[str, Any]:
        """The prompts and lengths to encode it with, for a model that was trained with `trained`.

        A length of the registry is for models with shorter ones: it never shortens what a model was trained with.
        """
        longer = {name: max(trained[name], length) for name, length in self.minimum_lengths.items() if name in trained}
        return {**trained, **longer, **self.lengths}


class CollectionPlanner:
    """Plans the entries of the section `collections`.

    Attributes:
        by_name: Every collection, members of groups included.
        evaluated: Those that rows of the table are evaluated on.
        groups: The names of the members of each group that rows are evaluated on; a group is averaged into one column.
    """

    def __init__(self, draft: Draft) -> None:
        """Plan every collection.

        Raises:
            UserError: An entry has a mistake, two collections have one name, or there is none to evaluate on.
        """
        planned: dict[str, dict[str, Collection]] = {}
        self.by_name: dict[str, Collection] = {}
        self.evaluated: dict[str, Collection] = {}
        self.groups: dict[str, list[str]] = {}
        for name, collection in draft.config["collections"].items():
            kind = only_key(collection, tuple(KINDS), f"collections.{name}", OPTIONS)
            planned[name] = {member.name: member for member in KINDS[kind](draft, name, collection)}
            self.by_name |= planned[name]
            if collection.get("evaluate", True):
                self.evaluated |= planned[name]
                if len(planned[name]) > 1:
                    self.groups[name] = list(planned[name])
        refuse_clashes("collections", planned)
        if not self.evaluated:
            raise UserError("collections: each of them says evaluate: false; leave it out of one at least")
        self._members = {name: list(members) for name, members in planned.items()}

    def named(self, name: str, where: str) -> list[Collection]:
        """The collection called `name`, or the members of the group of that name.

        Raises:
            UserError: There is no such collection; `where` is the place in the config that names it.
        """
        members = self._members.get(name, [name])
        return [self.by_name[require_known(member, self.by_name, where, "collections")] for member in members]


def _from_registry(draft: Draft, name: str, collection: Config) -> list[Collection]:
    """A collection of the registry, or all members of one of its groups."""
    members = registry.collections(collection["registry"], name, f"collections.{name}")
    return [
        Collection(
            member,
            draft.add("collections", f"hub.{member}", settings),
            collection.get("drop_self", True),
            _lengths(collection),
            minimum_lengths,
        )
        for member, settings, minimum_lengths in members
    ]


def _from_hub(draft: Draft, name: str, collection: Config) -> list[Collection]:
    """A collection of the Hub that the config names, in MTEB's or BEIR's layout."""
    where = f"collections.{name}"
    settings: dict[str, Any] = {
        **draft.pinned("dataset", collection, where),
        "split": collection.get("split", "test"),
        **{count: collection[count] for count in registry.COUNTS if count in collection},
    }
    if "qrels" in collection:
        settings["qrels"] = draft.pinned("dataset", collection["qrels"], f"{where}.qrels")
    spec = draft.add("collections", f"hub.{name}", settings)
    return [Collection(name, spec, collection.get("drop_self", True), _lengths(collection), {})]


def _from_package(draft: Draft, name: str, collection: Config) -> list[Collection]:
    """The docstrings of an installed package."""
    settings = registry.package_settings(collection) | {"queries": collection.get("queries"), "seed": draft.seed}
    spec = draft.add("collections", f"package.{name}", settings)
    return [Collection(name, spec, False, _lengths(collection), {})]


def _from_folder(draft: Draft, name: str, collection: Config) -> list[Collection]:
    """A local folder in BEIR format."""
    path = draft.local_path(collection["folder"])
    sha256 = draft.local_folder(path, f"collections.{name}.folder")
    settings = {"split": collection.get("split", "test"), "sha256": sha256}
    spec = draft.add("collections", f"folder.{name}", settings, path=path)
    return [Collection(name, spec, collection.get("drop_self", False), _lengths(collection), {})]


def _lengths(collection: Config) -> dict[str, int]:
    """The lengths that the config gives for a collection."""
    return {name: collection[name] for name in ("query_length", "document_length") if name in collection}


KINDS: Mapping[str, Callable[[Draft, str, Config], list[Collection]]] = {
    "registry": _from_registry,
    "hub": _from_hub,
    "package": _from_package,
    "folder": _from_folder,
}
"""Where a collection can come from: the config's key, and the function that plans it."""
OPTIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("minimum_words", "minimum_query_words", "maximum_words"), ("package",)),
    **dict.fromkeys(("revision", "qrels", "documents", "positive_judgements"), ("hub",)),
    "queries": ("package", "hub"),
    "split": ("hub", "folder"),
    "drop_self": ("registry", "hub", "folder"),
}
"""Settings that only collections from some places have."""
