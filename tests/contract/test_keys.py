"""Keys are a promise: what was trained for hundreds of GPU-hours keeps its name."""

import copy

import pytest
from keys import CONFIGS, ROOT, as_text, keys_digest, moved, planned, recorded

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import read_config
from colbert_zero.graph.study import Study


@pytest.mark.parametrize("name", CONFIGS)
def test_no_key_moves(name):
    before, after = recorded(name), planned(name)
    assert moved(before, after) == []
    assert as_text(before) == as_text(after)


def test_every_recorded_name_is_its_specs():
    for name in CONFIGS:
        for artifact, spec in recorded(name).items():
            assert artifact == spec.name


def test_changed_keys_have_a_line_in_the_changelog():
    lines = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if f"Keys {keys_digest()}:" in line]
    assert len(lines) == 1, f"say in CHANGELOG.md, after «Keys {keys_digest()}:», why they moved and what to make again"


def replanned(change):
    """What moved in the embedded study after `change` was made to its config."""
    config = copy.deepcopy(dict(read_config(CONFIGS["embedded"])))
    change(config)
    study = Study(config, CONFIGS["embedded"].parent)
    return moved(recorded("embedded"), {spec.name: spec for spec in study.specs.values()})


def test_the_leaf_that_moved_is_named_once_and_not_what_follows_from_it():
    def other_prompt(config):
        config["prompts"]["search"] = {"query": "query: ", "document": "search_document: "}

    findings = replanned(other_prompt)
    assert all(
        'settings.query_prompt was "search_query: ", is "query: "' in line or "encoding" in line for line in findings
    )
    models = [line for line in findings if line.startswith("models/")]
    # One for each stage whose own prompt moved, none for a stage that only has another start.
    names = {
        name for name, spec in recorded("embedded").items() if spec.settings.get("query_prompt") == "search_query: "
    }
    assert {line.partition(":")[0] for line in models} == names


def test_artifacts_that_come_and_go_are_named():
    gone = replanned(lambda config: config["baselines"].pop("bm25"))
    assert sorted(line for line in gone if line.startswith(("runs/", "measures/"))) == sorted(
        f"{name} is no longer planned"
        for name, spec in recorded("embedded").items()
        if (spec.kind == "runs" and spec.label.startswith("bm25."))
        or (spec.kind == "measures" and any(run.startswith("runs/bm25.") for run in spec.inputs["run"]))
    )
    spec = Spec("models", "supervised", {"seed": 1})
    assert moved({}, {spec.name: spec}) == [f"{spec.name} is new"]
