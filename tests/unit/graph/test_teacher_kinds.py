"""A teacher of each kind is planned with its own settings, and asks for what a re-ranker asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import read_config
from colbert_zero.graph.paths import REPOSITORY
from colbert_zero.graph.rules import rule_of
from colbert_zero.graph.study import Study

DEFAULTS: dict[str, dict[str, Any]] = {
    "cross-encoder": {"maximum_length": 512, "precision": "fp32"},
    "causal-lm": {"maximum_length": 512, "precision": "fp32", "instruction": None, "answer": "Yes"},
    "late-interaction": {"precision": "fp32"},
}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_a_neural_teacher_has_its_kinds_settings_and_its_model(kind: str, tmp_path: Path) -> None:
    config = read_config(REPOSITORY / "local" / "config.yaml")
    config["models"]["teacher"] = {"hub": "a/teacher", "revision": "0" * 40}
    teacher = {**config["teachers"]["bm25"], kind: {"model": "teacher", **DEFAULTS[kind]}}
    del teacher["bm25"]
    config["teachers"]["bm25"] = teacher
    scores = [spec for spec in Study(config, tmp_path).specs.values() if spec.kind == "scores"]
    assert scores
    for spec in scores:
        assert spec.settings["teacher"] == {"kind": kind, **DEFAULTS[kind]}
        assert list(spec.inputs) == ["shards", "candidates", "model"]
        assert spec.label.startswith("neural.") and rule_of(spec).parts == ("rows",)


def planned(tmp_path: Path, teachers: dict[str, Any], teacher: str) -> dict[str, Spec]:
    """The scores of the embedded study with further teachers, of which one teaches: specs by name."""
    config = read_config(REPOSITORY / "local" / "config.yaml")
    config["teachers"].update(teachers)
    config["stages"]["distillation"]["teacher"] = teacher
    return {spec.name: spec for spec in Study(config, tmp_path).specs.values() if spec.kind == "scores"}


OTHER = {"bm25": {"k1": 1.5}, "miners": ["lsa"], "documents": 6}


def ensemble_of(*members: str, **weights: float) -> dict[str, Any]:
    return {"other": OTHER, "both": {"ensemble": {"members": [*members], "weights": weights}}}


def test_an_ensemble_s_members_are_the_scores_of_whoever_uses_them_alone(tmp_path: Path) -> None:
    both = planned(tmp_path, ensemble_of("bm25", "other"), "both")
    alone = planned(tmp_path, {}, "bm25") | planned(tmp_path, ensemble_of("bm25", "other"), "other")
    averaged = [spec for name, spec in both.items() if name not in alone]
    assert both.keys() - {spec.name for spec in averaged} == alone.keys()
    assert len(averaged) == len(alone) / 2
    for spec in averaged:
        assert spec.settings == {"documents": 6} and rule_of(spec).name == "teach_ensemble"
        assert {spec.label.partition(".")[2] for spec in (alone[name] for name in spec.inputs["members"])} == {
            spec.label.partition(".")[2]
        }


def test_the_order_of_members_and_equal_weights_decide_nothing(tmp_path: Path) -> None:
    plain = planned(tmp_path, ensemble_of("bm25", "other"), "both")
    assert planned(tmp_path, ensemble_of("other", "bm25"), "both") == plain
    assert planned(tmp_path, ensemble_of("other", "bm25", bm25=2, other=2), "both") == plain
    weighted = planned(tmp_path, ensemble_of("bm25", "other", other=2), "both")
    assert planned(tmp_path, ensemble_of("other", "bm25", other=2), "both") == weighted != plain
    for spec in (weighted[name] for name in weighted.keys() - plain):
        by_member = dict(zip(spec.inputs["members"], spec.settings["weights"], strict=True))
        assert {plain[name].settings["k1"]: weight for name, weight in by_member.items()} == {0.9: 1, 1.5: 2}
