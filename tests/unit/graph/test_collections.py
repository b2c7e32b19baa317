"""Planning collections: lengths that only grow, groups of several members, and what each place gives by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from colbert_zero.graph import registry
from colbert_zero.graph.config import validate
from colbert_zero.graph.console import UserError
from colbert_zero.graph.planners.bases import BasePlanner
from colbert_zero.graph.planners.collections import Collection, CollectionPlanner
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.mining import MiningPlanner
from colbert_zero.graph.planners.sources import SourcePlanner
from colbert_zero.graph.study import Study
from own_study import CONFIG, write_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data")
    return tmp_path


def draft_of(folder: Path, remember: bool = False, **collections: Any) -> Draft:
    config = validate(CONFIG | {"collections": collections or CONFIG["collections"]})
    return Draft(config, folder, remember=remember, resolve=lambda *_: "0" * 40)


def planned(folder: Path, **collections: Any) -> CollectionPlanner:
    return CollectionPlanner(draft_of(folder, **collections))


def test_lengths_of_the_registry_only_lengthen_and_those_of_the_config_hold() -> None:
    trained = {"query_prompt": "q", "query_length": 32, "document_length": 512}

    def encoding(lengths: dict[str, int], minimum: dict[str, int]) -> dict[str, Any]:
        return Collection("a", draft_of(Path()).add("collections", "a", {}), True, lengths, minimum).encoding(trained)

    assert encoding({}, {}) == trained
    assert encoding({}, {"query_length": 64}) == trained | {"query_length": 64}
    assert encoding({}, {"query_length": 16}) == trained
    assert encoding({}, {"length_of_nothing": 64}) == trained
    assert encoding({"query_length": 20}, {"query_length": 64}) == trained | {"query_length": 20}


def test_only_several_collections_are_a_group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forums = planned(folder, forums={"registry": "cqadupstack"}, fiqa={"registry": "fiqa"})
    assert list(forums.groups) == ["forums"] and len(forums.groups["forums"]) == 12
    assert [each.name for each in forums.named("forums", "here")] == forums.groups["forums"]
    assert [each.name for each in forums.named("fiqa", "here")] == ["fiqa"]
    both = [(name, {"hub": f"a/{name}", "revision": "0" * 40, "split": "test"}, {}) for name in ("one", "other")]
    monkeypatch.setattr(registry, "collections", lambda *_: both)
    assert planned(folder, two={"registry": "two"}).groups == {"two": ["one", "other"]}


def test_a_document_that_is_its_query_is_dropped_from_collections_of_the_registry_and_the_hub(folder: Path) -> None:
    hub = {"hub": "mteb/fiqa", "revision": "0" * 40}
    entries: dict[str, dict[str, Any]] = {
        "of-registry": {"registry": "fiqa"}, "of-hub": hub, "mine": {"folder": "data/mine"},
        "docs": {"package": "scipy"},
    }  # fmt: skip
    found = {name: each.drop_self for name, each in planned(folder, **entries).by_name.items()}
    assert found == {"of-registry": True, "of-hub": True, "mine": False, "docs": False}
    others = {name: entry | {"drop_self": not found[name]} for name, entry in entries.items() if name != "docs"}
    assert {name: each.drop_self for name, each in planned(folder, **others).by_name.items()} == {
        "of-registry": False, "of-hub": False, "mine": True,
    }  # fmt: skip


def test_the_docstrings_of_a_package_are_drawn_by_the_seed(folder: Path) -> None:
    (collection,) = planned(folder, scipy={"package": "scipy", "queries": 50}).by_name.values()
    package = registry.package_settings({"package": "scipy"})
    assert collection.spec.settings == package | {"queries": 50, "seed": CONFIG["seed"]}


@pytest.mark.parametrize("remember", [True, False])
def test_digests_are_kept_if_they_are_to_be(folder: Path, remember: bool) -> None:
    draft = draft_of(folder, remember=remember)
    CollectionPlanner(draft)
    draft.save_digests()
    (folder / "resources").mkdir(exist_ok=True)
    draft.save_digests()
    assert (folder / "resources" / ".digests.json").exists() == remember


def test_a_variable_in_a_path_is_said_to_mean_nothing(folder: Path) -> None:
    for path, said in (("$HOME/data", True), ("nowhere", False)):
        with pytest.raises(UserError, match="does not exist") as caught:
            planned(folder, mine={"folder": path})
        assert ("variables such as $HOME mean nothing here" in str(caught.value)) == said


def test_two_corpora_are_several(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(name, {"hub": f"a/{name}", "revision": "0" * 40, "split": "test"}, {}) for name in ("one", "other")]
    monkeypatch.setattr(registry, "collections", lambda *_: both)
    draft = draft_of(folder, two={"registry": "two"})
    draft.config["miners"]["bm25"]["corpus"] = "two"
    planner = MiningPlanner(draft, BasePlanner(draft, SourcePlanner(draft)), CollectionPlanner(draft))
    with pytest.raises(UserError, match="two has several corpora: name one of one, other"):
        planner.corpus(["bm25"], "here")
    draft.config["miners"]["bm25"]["corpus"] = "one"
    assert [spec.label for spec in planner.corpus(["bm25"], "here").values()] == ["hub.one"]


@pytest.mark.parametrize(("precision", "in_spec"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_the_precision_is_in_an_indexs_spec_where_it_is_not_the_default(
    folder: Path, precision: str, in_spec: bool
) -> None:
    study = Study(CONFIG | {"evaluation": {"precision": precision}}, folder, remember=False)
    found = {spec.settings.get("precision") for spec in study.specs.values() if spec.kind == "indexes"}
    assert found == {precision if in_spec else None}
