"""The temperatures of a distillation: what they do to the loss, and that a spec without them is the one it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from colbert_zero.graph.config import read_config
from colbert_zero.graph.console import UserError
from colbert_zero.graph.paths import REPOSITORY
from colbert_zero.graph.study import Study
from colbert_zero.training.losses import distillation

GENERATOR = np.random.default_rng(3)
STUDENT, TEACHER = GENERATOR.normal(5, 3, (6, 8)), GENERATOR.uniform(0, 1, (6, 8))


@pytest.mark.parametrize(("of_student", "of_teacher"), [(1.0, 1.0), (0.25, 0.25), (0.5, 1.0), (1.0, 0.1), (2.0, 3.0)])
def test_each_sides_scores_are_divided_by_its_temperature(of_student: float, of_teacher: float) -> None:
    low, high = STUDENT.min(axis=1, keepdims=True), STUDENT.max(axis=1, keepdims=True)
    normalised = (STUDENT - low) / (high - low)
    targets = softmax(TEACHER / of_teacher, axis=1)
    apart = np.log(targets) - log_softmax(normalised / of_student, axis=1)
    expected = of_student**2 * (targets * apart).sum(axis=1).mean()
    found = distillation(torch.tensor(STUDENT), torch.tensor(TEACHER), of_student, of_teacher)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_a_temperature_of_one_changes_no_bit() -> None:
    student, teacher = torch.tensor(STUDENT, dtype=torch.float32), torch.tensor(TEACHER, dtype=torch.float32)
    low, high = student.min(dim=1, keepdim=True).values, student.max(dim=1, keepdim=True).values
    normalised = (student - low) / (high - low + 1e-8)
    plain = torch.nn.functional.kl_div(
        normalised.log_softmax(dim=-1), teacher.log_softmax(dim=-1), reduction="batchmean", log_target=True
    )
    assert distillation(student, teacher).item() == plain.item()


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
