"""The registries: laws that the entries for the paper's data, collections, models and tables must obey."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from colbert_zero.graph import registry
from colbert_zero.graph.paths import WORKFLOW

REGISTRY = Path(__file__).parents[3] / "workflow" / "registry"


def load(name: str) -> Any:
    return yaml.safe_load((REGISTRY / name).read_text(encoding="utf-8"))


COLLECTIONS, SOURCES, MODELS, PAPER = (load(f"{name}.yaml") for name in ("collections", "sources", "models", "paper"))
GROUPS = SOURCES["groups"]


def test_26_collections_are_the_15_columns_of_the_table() -> None:
    grouped = [member for members in COLLECTIONS["groups"].values() for member in members]
    assert len(COLLECTIONS["collections"]) == 26
    assert len(grouped) == len(set(grouped)) == 12
    alone = [name for name in COLLECTIONS["collections"] if name not in grouped]
    assert sorted([*alone, *COLLECTIONS["groups"]]) == sorted(PAPER["columns"])


def test_a_collection_with_the_documents_of_another_names_it() -> None:
    entries = COLLECTIONS["collections"]
    named = {name: entry["documents_of"] for name, entry in entries.items() if "documents_of" in entry}
    assert named == {"climate-fever": "fever"}
    for name, of in named.items():
        found = registry.documents_of(entries[name]["hub"], entries[name]["revision"])
        assert found == {field: entries[of][field] for field in ("hub", "revision")}
        assert abs(entries[name]["documents"] - entries[of]["documents"]) < 100
        assert registry.documents_of(entries[of]["hub"], entries[of]["revision"]) is None
        assert registry.documents_of(entries[name]["hub"], "0" * 40) is None


def test_special_collections_are_marked() -> None:
    entries = COLLECTIONS["collections"]
    in_domain = {name for name in entries if entries[name].get("in_domain")}
    assert in_domain == {"fever", "msmarco", "nq", "hotpotqa", "quora"}
    assert {name: entries[name]["split"] for name in entries if entries[name]["split"] != "test"} == {"msmarco": "dev"}


def test_query_lengths_are_those_of_the_authors_evaluation_script() -> None:
    lengths = {name: entry.get("query_length", 32) for name, entry in COLLECTIONS["collections"].items()}
    assert {name for name, length in lengths.items() if length == 64} == {"arguana", "climate-fever"}
    assert {name for name, length in lengths.items() if length == 48} == {"scifact", "trec-covid", "scidocs"}
    assert set(lengths.values()) == {32, 48, 64}


def test_counts_and_scores_are_plausible() -> None:
    for name, entry in COLLECTIONS["collections"].items():
        assert 0 < entry["queries"] <= entry["positive_judgements"] <= entry["queries"] * entry["documents"], name
        assert all(0 < score < 1 for score in entry.get("bm25", {}).values()), name
    forums = [COLLECTIONS["collections"][name] for name in COLLECTIONS["groups"]["cqadupstack"]]
    totals = [sum(forum[field] for forum in forums) for field in ("documents", "queries", "positive_judgements")]
    assert totals == [457_199, 13_145, 23_703]


@pytest.mark.parametrize(
    ("group", "sources", "rows"),
    [("nomic-unsupervised", 29, 238_998_494), ("nomic-supervised", 10, 1_695_819), ("lightonai-bge-gemma", 1, 640_000)],
)
def test_sources_and_rows_add_up_to_the_papers(group: str, sources: int, rows: int) -> None:
    members = GROUPS[group]["sources"]
    assert (len(members), sum(member["rows"] for member in members.values())) == (sources, rows)


@pytest.mark.parametrize(
    ("group", "batch_size", "steps"), [("nomic-unsupervised", 16_384, 14_571), ("nomic-supervised", 64, 26_492)]
)
def test_whole_batches_of_one_source_each_make_the_papers_steps(group: str, batch_size: int, steps: int) -> None:
    assert sum(member["rows"] // batch_size for member in GROUPS[group]["sources"].values()) == steps


def test_every_revision_is_a_commit_or_main() -> None:
    entries = [*COLLECTIONS["collections"].values(), *GROUPS.values(), *MODELS["models"].values()]
    assert all(re.fullmatch(r"[0-9a-f]{40}|main", str(entry["revision"])) for entry in entries)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", entry["hub"]) for entry in entries)
    # Collections are pinned without exception.
    assert all(entry["revision"] != "main" for entry in COLLECTIONS["collections"].values())
    hubs = [(entry["hub"], entry["revision"]) for entry in entries]
    assert len(set(hubs)) == len(hubs)


def test_each_source_of_a_group_has_its_own_glob() -> None:
    for name in ("nomic-unsupervised", "nomic-supervised"):
        settings = dict(registry.sources(name, "sources.x"))
        globs = [glob for source in settings.values() for glob in source["files"]]
        assert len(globs) == len(set(globs)) == len(GROUPS[name]["sources"])
        assert not any("{" in glob for glob in globs)
        assert all({"query", "document"} <= set(source["columns"]) for source in settings.values())


def test_the_settings_of_a_scored_source_name_its_three_roles() -> None:
    ((label, settings),) = registry.sources("lightonai-bge-gemma", "sources.x")
    assert label == "ms-marco-en-bge-gemma"
    assert settings["format"] == "scored"
    assert set(settings["files"]) == {"train", "queries", "documents"}


def test_docstrings_are_chosen_by_their_numbers_of_words() -> None:
    by_default = {"minimum_words": 8, "minimum_query_words": 3, "maximum_words": 50}
    pinned = {"package": "scipy", "version": registry.locked_version("scipy")}
    assert registry.package_settings({"package": "scipy"}) == pinned | by_default
    given = dict.fromkeys(by_default, 9)
    assert registry.package_settings({"package": "scipy", "queries": 5} | given) == pinned | given


def test_mteb_calls_each_collection_by_one_name_and_a_group_by_another() -> None:
    tasks = registry.mteb_tasks()
    assert len(tasks) == len(set(tasks.values())) == 26
    ((group, (_, members)),) = registry.mteb_group_tasks().items()
    assert group == "CQADupstackRetrieval"
    assert len(members) == 12
    assert set(members) < set(tasks.values())


def test_the_registry_is_looked_up_where_jsonschema_is_not_installed() -> None:
    """As in the images."""
    code = (
        "import sys; sys.modules['jsonschema'] = None; from colbert_zero.graph import registry;"
        "print(registry.model('gte-base', 'here')['hub'])"
    )
    environment = os.environ | {"PYTHONPATH": str(WORKFLOW)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == MODELS["models"]["gte-base"]["hub"]


def test_no_registry_says_the_same_key_twice() -> None:
    class StrictLoader(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: {json.dumps(keys)}"
        return loader.construct_mapping(node, deep=True)

    StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    for path in sorted(REGISTRY.glob("*.yaml")):
        assert yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
