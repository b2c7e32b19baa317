"""What the registries know by name: pinned sources, collections, models, and the versions in the lock."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from colbert_zero.graph.config import WORKFLOW, Config, read_yaml, require_known
from colbert_zero.graph.console import UserError

REGISTRY = WORKFLOW / "registry"


@cache
def locked_version(package: str) -> str:
    """The version of `package` in the lock: an image or a login node need not have it installed."""
    lock = WORKFLOW.parent / "envs" / "local.txt"
    name = re.sub(r"[-_.]+", "-", package).lower()
    found = re.search(rf"^{re.escape(name)}==([^\s;\\]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise UserError(f"package {package} is not in {lock}: name one that is, or add it to envs/torch.in; make lock")
    return found[1]


def package(entry: Config) -> dict[str, Any]:
    """The settings of a package's documentation, at the version in the lock."""
    return {
        "package": entry["package"],
        "version": locked_version(entry["package"]),
        "minimum_words": entry.get("minimum_words", 8),
        "minimum_query_words": entry.get("minimum_query_words", 3),
        "maximum_words": entry.get("maximum_words", 50),
    }


def sources(name: str, where: str) -> list[tuple[str, dict[str, Any]]]:
    """(label, settings) of a group of the registry, or of one member given as GROUP/MEMBER."""
    groups = read_yaml(REGISTRY / "sources.yaml")["groups"]
    group_name, _, member = name.partition("/")
    group = groups[require_known(group_name, groups, where, "workflow/registry/sources.yaml")]
    shared = {field: value for field, value in group.items() if field not in ("sources", "files")}
    members = group["sources"]
    labels = [require_known(member, members, where, f"the registry's {group_name}")] if member else list(members)
    return [
        (label, {**shared, "files": _in_files(group["files"], label), "rows": members[label]["rows"]})
        for label in labels
    ]


def _in_files(files: Any, label: str) -> Any:
    """The globs of one source: `{source}` in a group's globs is the source's name."""
    if isinstance(files, str):
        return files.replace("{source}", label)
    if isinstance(files, Mapping):
        return {role: _in_files(globs, label) for role, globs in files.items()}
    return [_in_files(glob, label) for glob in files]


def collections(name: str, alias: str, where: str) -> list[tuple[str, dict[str, Any], bool]]:
    """(name, settings, drop_self) of a collection of the registry, or of each member of a group."""
    registry = read_yaml(REGISTRY / "collections.yaml")
    entries, groups = registry["collections"], registry["groups"]
    require_known(name, [*entries, *groups], where, "workflow/registry/collections.yaml")
    members = {member: member for member in groups[name]} if name in groups else {alias: name}
    fields = ("hub", "revision", "split", "documents", "queries", "positive_judgements")
    return [
        (label, {field: entries[member][field] for field in fields}, entries[member].get("drop_self", False))
        for label, member in members.items()
    ]


def model(name: str, where: str) -> dict[str, Any]:
    """The Hub's name and the revision of a model."""
    models = read_yaml(REGISTRY / "models.yaml")["models"]
    entry = models[require_known(name, models, where, "workflow/registry/models.yaml")]
    return {"hub": entry["hub"], "revision": entry["revision"]}
