"""The temperatures of a distillation: what they do to the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

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
