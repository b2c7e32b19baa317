"""The job that makes an artifact of a study: its rule, and the GPUs that it asks for."""

from __future__ import annotations

from typing import Any

from colbert_zero.graph.artifact import Spec, is_let_go
from colbert_zero.graph.let_go import LET_GO_KIND
from colbert_zero.graph.rules import AGAIN_RULE, rule_of
from colbert_zero.graph.study import Study


def planned_rule(study: Study, spec: Spec) -> str:
    """The name of the rule that makes an artifact of a study.

    That of a training depends on how many nodes it has, that of an index on whether its files were let go.
    """
    rule = rule_of(spec)
    if spec.kind == LET_GO_KIND and is_let_go(spec.folder):
        return AGAIN_RULE
    if spec.kind == "models" and study.resource(spec.label, "nodes") > 1:
        return "train_stage_on_nodes"
    return rule.name


def planned_gpus(study: Study, spec: Spec) -> int:
    """How many GPUs the job that makes an artifact asks for, on all its nodes."""
    rule = rule_of(spec)
    if rule.step is None or not rule.may_use_gpu or _is_without_gpu(spec.settings):
        return 0
    if study.resource(rule.step, "device") == "cpu":
        return 0
    gpus: int = study.resource(rule.step, "gpu")
    return gpus * (study.resource(rule.step, "nodes") if spec.kind == "models" else 1)


def _is_without_gpu(settings: Any) -> bool:
    """Whether an encoder computes without a model: latent semantic analysis is plain linear algebra."""
    return bool(settings.get("encoder", {}).get("kind") == "lsa")
