"""Look up names in `workflow/registry/`: pinned sources, collections and models; and package versions in the lock."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from colbert_zero.graph.config import Config, read_yaml, require_known
from colbert_zero.graph.console import UserError
from colbert_zero.graph.paths import REPOSITORY, WORKFLOW

REGISTRY = WORKFLOW / "registry"
COUNTS = ("documents", "queries", "positive_judgements")
"""What a collection of the Hub may say that it has, and is then refused without."""


@cache
def locked_version(package: str) -> str:
    """The version of `package` in `envs/local.txt`; the package need not be installed where this runs."""
    lock = REPOSITORY / "envs" / "local.txt"
    name = re.sub(r"[-_.]+", "-", package).lower()
    match = re.search(rf"^{re.escape(name)}==([^\s;\\]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    if not match:
        raise UserError(f"package {package} is not in {lock}: name one that is, or add it to envs/torch.in; make lock")
    return match[1]


def package_settings(entry: Config) -> dict[str, Any]:
    """The settings of a source or collection made of a package's docstrings, at the locked version."""
    return {
        "package": entry["package"],
        "version": locked_version(entry["package"]),
        "minimum_words": entry.get("minimum_words", 8),
        "minimum_query_words": entry.get("minimum_query_words", 3),
        "maximum_words": entry.get("maximum_words", 50),
    }


def sources(name: str, where: str) -> list[tuple[str, dict[str, Any]]]:
    """(label, settings) of each source of the registry's group `name`, or of one source, as GROUP/SOURCE."""
    groups = read_yaml(REGISTRY / "sources.yaml")["groups"]
    group_name, _, member = name.partition("/")
    group = groups[require_known(group_name, groups, where, "workflow/registry/sources.yaml")]
    shared = {field: value for field, value in group.items() if field not in ("sources", "files")}
    members = group["sources"]
    labels = [require_known(member, members, where, f"the registry's {group_name}")] if member else list(members)
    return [
        (label, {**shared, "files": _fill_in_source(group["files"], label), "rows": members[label]["rows"]})
        for label in labels
    ]


def _fill_in_source(files: Any, label: str) -> Any:
    """A group's globs with `{source}` replaced by the name of one source."""
    if isinstance(files, str):
        return files.replace("{source}", label)
    if isinstance(files, Mapping):
        return {role: _fill_in_source(globs, label) for role, globs in files.items()}
    return [_fill_in_source(glob, label) for glob in files]


def collections(name: str, alias: str, where: str) -> list[tuple[str, dict[str, Any], dict[str, int]]]:
    """(label, settings, minimum lengths) of the collection `name`, labelled `alias`, or of each member of a group.

    The minimum lengths are those of `query_length` and `document_length` that the registry has.
    """
    registry = read_yaml(REGISTRY / "collections.yaml")
    entries, groups = registry["collections"], registry["groups"]
    require_known(name, [*entries, *groups], where, "workflow/registry/collections.yaml")
    members = {member: member for member in groups[name]} if name in groups else {alias: name}
    fields = ("hub", "revision", "split", *COUNTS)
    lengths = ("query_length", "document_length")
    return [
        (
            label,
            {field: entries[member][field] for field in fields},
            {field: entries[member][field] for field in lengths if field in entries[member]},
        )
        for label, member in members.items()
    ]


def documents_of(hub: str, revision: str) -> dict[str, str] | None:
    """The collection whose documents nearly all are those of a collection of the registry.

    Args:
        hub: The collection's repository.
        revision: Its commit.

    Returns:
        The other one's `hub` and `revision`; None if the registry names none.
    """
    entries = read_yaml(REGISTRY / "collections.yaml")["collections"]
    for entry in entries.values():
        if (entry["hub"], entry["revision"]) == (hub, revision) and "documents_of" in entry:
            return {field: entries[entry["documents_of"]][field] for field in ("hub", "revision")}
    return None


def model(name: str, where: str) -> dict[str, Any]:
    """A model's name on the Hub and its revision."""
    models = read_yaml(REGISTRY / "models.yaml")["models"]
    entry = models[require_known(name, models, where, "workflow/registry/models.yaml")]
    return {"hub": entry["hub"], "revision": entry["revision"]}


def mteb_tasks() -> dict[tuple[str, ...], str]:
    """What MTEB calls the registry's collections, by repository, revision and split."""
    entries = read_yaml(REGISTRY / "collections.yaml")["collections"].values()
    return {(entry["hub"], entry["revision"], entry["split"]): entry["task"] for entry in entries}


def mteb_group_tasks() -> dict[str, tuple[str, list[str]]]:
    """The tasks of MTEB that are means over several others: their revision, and the names of those others."""
    registry = read_yaml(REGISTRY / "collections.yaml")
    return {
        group["task"]: (group["revision"], [registry["collections"][name]["task"] for name in registry["groups"][of]])
        for of, group in registry["group_tasks"].items()
    }
