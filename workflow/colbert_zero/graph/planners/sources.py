"""Plan sources and their shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from colbert_zero.graph import data_files, registry
from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import Config, only_key, refuse_clashes, require_known
from colbert_zero.graph.console import UserError
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.relations import check_shards

Labelled = tuple[str, Spec]
"""A source's label, and its spec."""


class SourcePlanner:
    """Plans the entries of the section `sources`, and their shards."""

    def __init__(self, draft: Draft) -> None:
        """Plan every source.

        Raises:
            UserError: An entry has a mistake, or two sources have one name.
        """
        check_shards(draft.config["shards"])
        self._draft = draft
        self._by_name: dict[str, list[Labelled]] = {}
        for name, source in draft.config["sources"].items():
            kind = only_key(source, tuple(KINDS), f"sources.{name}", OPTIONS)
            self._by_name[name] = KINDS[kind](draft, name, source)
        refuse_clashes("sources", {name: dict(planned) for name, planned in self._by_name.items()})

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
        if settings["deduplicate"]:
            del settings["deduplicate"]  # Left out of older specs, which meant true.
        if settings["share"] == 1:
            del settings["share"]  # Left out of older specs, which meant all rows.
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


def _from_hub(draft: Draft, name: str, source: Config) -> list[Labelled]:
    """Files of a dataset of the Hub that the config names: rows, or, by role, ids with a teacher's scores."""
    where, files = f"sources.{name}", source.get("files")
    if files is None:
        raise UserError(
            f"{where}: files is missing: which of {source['hub']} hold the rows, such as data/train-*.parquet"
        )
    if isinstance(files, Mapping):
        if "columns" in source:
            raise UserError(
                f"{where}: columns means nothing where files have roles: scores have columns of fixed names"
            )
        if "documents" not in source:
            raise UserError(f"{where}: documents is missing: how many scored documents each query has, such as 32")
        by_role = {role: _listed(globs) for role, globs in files.items()}
        settings = {"format": "scored", "documents": source["documents"], "files": by_role}
    else:
        if "documents" in source:
            raise UserError(
                f"{where}: documents means nothing where files have no roles: scores need files: "
                "{ train: GLOB, queries: GLOB, documents: GLOB }"
            )
        settings = {"format": "rows", "columns": _columns(source), "files": _listed(files)}
    if "rows" in source:
        settings["rows"] = source["rows"]
    return [(name, draft.add("sources", f"hub.{name}", {**draft.pinned("dataset", source, where), **settings}))]


def _listed(globs: str | list[str]) -> list[str]:
    return [globs] if isinstance(globs, str) else globs


def _columns(source: Config) -> dict[str, Any]:
    """The files' columns, by what they hold; without `negatives` if the config says that there are none."""
    columns = {"query": "query", "document": "document", "negatives": "negatives"} | source.get("columns", {})
    return {held: names for held, names in columns.items() if names is not None}


def _from_file(draft: Draft, name: str, source: Config) -> list[Labelled]:
    """A local file of rows, or all files of a folder or a glob."""
    where = f"sources.{name}.file"
    columns = _columns(source)
    found = _found(draft, source["file"], where)
    if isinstance(found, Path):
        settings = {"file": found.name, "sha256": draft.local_file(found, where), "columns": columns}
        return [(name, draft.add("sources", f"file.{name}", settings, path=_of_a_kind(found, where)))]
    folder, names = found
    files = [{"name": inner, "sha256": draft.local_file(folder / inner, where)} for inner in names]
    return [(name, draft.add("sources", f"file.{name}", {"files": files, "columns": columns}, path=folder))]


def _from_scores(draft: Draft, name: str, source: Config) -> list[Labelled]:
    """A local folder of a teacher's scores, in the layout that `colbert-zero export` writes."""
    where = f"sources.{name}.scores"
    if "documents" not in source:
        raise UserError(f"sources.{name}: documents is missing: how many scored documents each query has, such as 32")
    found = _found(draft, source["scores"], where)
    folder, names = (found.parent, []) if isinstance(found, Path) else found
    for role in data_files.SCORES_ROLES:
        if role not in map(data_files.role_of, names):
            raise UserError(
                f"{where}: {found if isinstance(found, Path) else folder} has no {role}.parquet or {role}-*.parquet; "
                "name a folder that colbert-zero export has written"
            )
    used = [inner for inner in names if data_files.role_of(inner)]
    files = [{"name": inner, "sha256": draft.local_file(folder / inner, where)} for inner in used]
    settings = {"format": "scored", "documents": source["documents"], "files": files}
    return [(name, draft.add("sources", f"folder.{name}", settings, path=folder))]


def _found(draft: Draft, text: str, where: str) -> Path | tuple[Path, list[str]]:
    """What `data_files.find` finds; `where` is the setting that gives `text`."""
    try:
        return data_files.find(draft.folder, text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _of_a_kind(path: Path, where: str) -> Path:
    """`path`, if it is a file that can hold rows."""
    if not path.name.endswith(data_files.SUFFIXES):
        raise UserError(f"{where}: {path} is neither Parquet nor JSONL: name a .parquet, .jsonl or .jsonl.gz file")
    if not path.stat().st_size:
        raise UserError(f"{where}: {path} is empty")
    return path


KINDS: Mapping[str, Callable[[Draft, str, Config], list[Labelled]]] = {
    "registry": _from_registry,
    "hub": _from_hub,
    "package": _from_package,
    "file": _from_file,
    "scores": _from_scores,
}
"""Where a source can come from: the config's key, and the function that plans it."""
OPTIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("minimum_words", "minimum_query_words", "maximum_words"), ("package",)),
    "columns": ("file", "hub"),
    **dict.fromkeys(("revision", "files", "rows"), ("hub",)),
    "documents": ("hub", "scores"),
}
"""Settings that only sources from some places have."""
