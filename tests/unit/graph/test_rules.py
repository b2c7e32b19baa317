"""The rule that makes each kind of artifact is one of the workflow's, and asks for what the config says."""

import importlib
import re
from pathlib import Path

import pytest

from colbert_zero.graph.artifact import KINDS, LET_GO_FILE, Spec
from colbert_zero.graph.config import read_config
from colbert_zero.graph.console import UserError
from colbert_zero.graph.paths import REPOSITORY, WORKFLOW
from colbert_zero.graph.planned_jobs import planned_gpus, planned_rule
from colbert_zero.graph.rules import RULES, rule_of
from colbert_zero.graph.study import Study
from colbert_zero.report.ledger_section import GROUPS

TEXT = "".join(path.read_text() for path in sorted((WORKFLOW / "rules").glob("*.smk")))
BODIES = {name: body for name, body in re.findall(r"^rule (\w+):\n((?:(?:[ #].*)?\n)*)", TEXT, re.MULTILINE)}


def test_every_kind_has_a_rule_and_a_place_in_the_ledger():
    assert {kind for kind, _ in RULES} | {"models"} == set(KINDS)
    assert sorted(kind for kinds in GROUPS.values() for kind in kinds) == sorted(set(KINDS) - {"reports", "releases"})


@pytest.mark.parametrize("place", RULES, ids="/".join)
def test_a_rule_is_the_workflows_and_makes_this_kind(place):
    kind, word = place
    rule = RULES[place]
    output = re.search(r'output:\n +"(?:results|resources)/(.*)/spec\.json"', BODIES[rule.name])
    assert output and output[1].startswith(f"{kind}/{word}")
    assert ('resource("' in BODIES[rule.name]) == (rule.step is not None)
    assert rule.step is None or f'resource("{rule.step}", "threads")' in BODIES[rule.name]
    assert ("gpu=gpu(" in BODIES[rule.name]) == rule.may_use_gpu


@pytest.mark.parametrize("rule", [rule for rule in RULES.values() if rule.parts], ids=lambda rule: rule.name)
def test_work_that_jobs_share_has_the_parts_of_its_module(rule):
    assert tuple(importlib.import_module(f"colbert_zero.{rule.module}").PARTS) == rule.parts
    assert "        shares,\n" in BODIES[rule.name] and "retries: RESUMING_RETRIES\n" in BODIES[rule.name]
    assert f"python -m colbert_zero.{rule.module} " in BODIES[rule.name]


@pytest.mark.parametrize(
    ("step", "name", "value"),
    [
        ("measure_run", "jobs", 4),
        ("build_index", "nodes", 2),
        ("plan_batches", "gpu", 1),
        ("mine_bm25", "device", "cpu"),
    ],
)
def test_a_resource_that_a_step_does_not_look_at_is_refused(tmp_path, monkeypatch, step, name, value):
    monkeypatch.chdir(tmp_path)
    config = read_config(REPOSITORY / "local" / "config.yaml")
    with pytest.raises(UserError, match=rf"resources\.{step}\.{name} means nothing for this step; give it to \w+"):
        Study({**config, "resources": {step: {name: value}}}, Path())


def test_what_a_job_asks_for_is_what_the_config_gives_its_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read_config(REPOSITORY / "local" / "config.yaml")
    asked = {
        "unsupervised": {"gpu": 4, "nodes": 2},
        "build_index": {"gpu": 1},
        "search_index": {"gpu": 1, "device": "cpu"},
    }
    study = Study({**config, "resources": {"default": {"gpu": 0}, **asked, "mine_dense": {"gpu": 1}}}, Path())
    found = {rule_of(spec).name: planned_gpus(study, spec) for spec in study.specs.values() if spec.kind != "models"}
    assert found["build_index"] == 1 and found["search_index"] == found["build_shards"] == 0
    assert found["mine_dense"] == 0, "latent semantic analysis computes on no GPU"
    stages = {spec.label: spec for spec in study.specs.values() if spec.kind == "models"}
    assert {label: planned_gpus(study, spec) for label, spec in stages.items()} == {
        "unsupervised": 8,
        "supervised": 0,
        "distillation": 0,
    }
    assert planned_rule(study, stages["unsupervised"]) == "train_stage_on_nodes"
    assert planned_rule(study, stages["supervised"]) == rule_of(stages["supervised"]).name == "train_stage"
    assert rule_of(Spec("runs", "bm25.dense.x", {})).name == "search_bm25"


def test_an_index_whose_files_were_let_go_is_made_by_another_rule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(read_config(REPOSITORY / "local" / "config.yaml"), REPOSITORY / "local", remember=False)
    for kind, usual, again in (("indexes", "build_index", "make_again"), ("measures", "measure_run", "measure_run")):
        spec = next(spec for spec in study.specs.values() if spec.kind == kind)
        assert planned_rule(study, spec) == usual
        spec.folder.mkdir(parents=True)
        (spec.folder / LET_GO_FILE).write_text("{}")
        assert planned_rule(study, spec) == again
