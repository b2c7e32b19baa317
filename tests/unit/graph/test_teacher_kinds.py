"""A teacher of each kind is planned with its own settings, and asks for what a re-ranker asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
    (model,) = (name for name, entry in config["models"].items() if "random" in entry)
    teacher = {**config["teachers"]["bm25"], kind: {"model": model, **DEFAULTS[kind]}}
    del teacher["bm25"]
    config["teachers"]["bm25"] = teacher
    scores = [spec for spec in Study(config, tmp_path).specs.values() if spec.kind == "scores"]
    assert scores
    for spec in scores:
        assert spec.settings["teacher"] == {"kind": kind, **DEFAULTS[kind]}
        assert list(spec.inputs) == ["shards", "candidates", "model"]
        assert spec.label.startswith("neural.") and rule_of(spec).parts == ("rows",)
