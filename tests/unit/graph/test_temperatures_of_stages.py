"""The temperatures of a distillation: a spec without them is the one it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from colbert_zero.graph.config import read_config
from colbert_zero.graph.console import UserError
from colbert_zero.graph.paths import REPOSITORY
from colbert_zero.graph.study import Study


def study_with(**settings: Any) -> Study:
    config = read_config(REPOSITORY / "local" / "config.yaml")
    for stage, of_stage in settings.items():
        config["stages"][stage] |= of_stage
    return Study(config, Path())


def distillations(study: Study) -> dict[str, dict[str, Any]]:
    return {
        spec.key: dict(spec.settings)
        for spec in study.specs.values()
        if spec.kind == "models" and spec.label == "distillation"
    }


def test_a_spec_names_a_temperature_only_where_it_is_not_one() -> None:
    plain, ones = study_with(), study_with(distillation={"teacher_temperature": 1, "student_temperature": 1.0})
    assert distillations(plain) == distillations(ones)
    assert not any("teacher_temperature" in settings for settings in distillations(plain).values())
    sharp = study_with(distillation={"teacher_temperature": 0.25})
    found = distillations(sharp)
    assert found and not found.keys() & distillations(plain).keys()
    for settings in found.values():
        assert settings["teacher_temperature"] == 0.25 and "student_temperature" not in settings
    others = {key for key, spec in plain.specs.items() if spec.kind in ("shards", "scores", "batches")}
    assert others <= sharp.specs.keys(), "what is trained with them is what changes"


@pytest.mark.parametrize("stage", ["unsupervised", "supervised"])
def test_another_stage_has_no_such_temperature(stage: str) -> None:
    with pytest.raises(UserError, match=f"the {stage} stage does not use teacher_temperature"):
        study_with(**{stage: {"teacher_temperature": 0.25}})
