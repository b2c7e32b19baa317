"""Which rule of the workflow makes an artifact, and which entry of `resources` says what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.console import UserError


@dataclass(frozen=True)
class Rule:
    """A rule of `workflow/rules/`.

    Attributes:
        name: The rule's name.
        step: Its entry in the config's `resources`; None for a rule that runs where Snakemake does, and asks for
            nothing.
        may_use_gpu: Whether its step computes on a GPU where it has one.
        module: The step's module, if its work has parts that jobs can share, or its files can be let go.
        parts: These parts, in the order in which they are done.
        image: The image that it runs in.
    """

    name: str
    step: str | None
    may_use_gpu: bool = False
    module: str | None = None
    parts: tuple[str, ...] = ()
    image: str = "torch"


RULES: dict[tuple[str, str], Rule] = {
    ("sources", "package"): Rule("read_docstrings_source", "read_docstrings"),
    ("sources", ""): Rule("fetch_source", None),
    ("collections", "package"): Rule("read_docstrings_collection", "read_docstrings"),
    ("collections", ""): Rule("fetch_collection", None),
    ("bases", "random"): Rule("build_base", "build_base"),
    ("bases", ""): Rule("fetch_base", None),
    ("shards", ""): Rule("build_shards", "build_shards", module="data.shards", parts=("files", "shards")),
    ("batches", ""): Rule("plan_batches", "plan_batches"),
    ("candidates", "bm25"): Rule(
        "mine_bm25", "mine_bm25", module="mining.bm25", parts=("documents", "queries"), image="lucene"
    ),
    ("candidates", "dense"): Rule(
        "mine_dense", "mine_dense", may_use_gpu=True, module="mining.dense", parts=("documents", "queries")
    ),
    ("negatives", ""): Rule("filter_negatives", "filter_negatives", module="mining.negatives", parts=("rows",)),
    ("scores", "bm25"): Rule("teach_bm25", "teach_bm25"),
    ("scores", "neural"): Rule(
        "teach_neural", "teach_neural", may_use_gpu=True, module="teaching.neural", parts=("rows",)
    ),
    ("scores", "ensemble"): Rule("teach_ensemble", "teach_ensemble"),
    ("selections", ""): Rule("select_model", None),
    ("indexes", "dense"): Rule(
        "embed_documents",
        "embed_documents",
        may_use_gpu=True,
        module="evaluation.dense_index",
        parts=("documents",),
    ),
    ("indexes", ""): Rule(
        "build_index", "build_index", may_use_gpu=True, module="evaluation.index", parts=("documents",)
    ),
    ("runs", "dense"): Rule("search_embeddings", "search_embeddings", may_use_gpu=True),
    ("runs", "colbert"): Rule(
        "search_index", "search_index", may_use_gpu=True, module="evaluation.search", parts=("queries",)
    ),
    ("runs", "bm25"): Rule("search_bm25", "search_bm25"),
    ("measures", ""): Rule("measure_run", "measure_run"),
    ("contamination", ""): Rule("find_contamination", "find_contamination"),
    ("audits", ""): Rule("audit_study", "audit_study"),
    ("reports", ""): Rule("write_report", None),
    ("releases", ""): Rule("release_model", None),
}
"""By kind, and by the word that the label begins with before a point; an empty word stands for all others."""


SHARING_RULES = {"torch": "share_work", "lucene": "share_lucene_work"}
"""The rule of the jobs that share the work of another rule, by the image that both run in."""
AGAIN_RULE = "make_again"
"""The rule that makes files again that were let go."""


STAGES = ("unsupervised", "supervised", "distillation")
"""The stages of a training, in their order."""
TRAINING_RESOURCES = ("nodes", "checkpoint_seconds", "attention", "maxsim", "loader_workers", "tensorboard")
GPU_RESOURCES = ("gpu", "gpu_model", "device")


def check_resources(resources: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what means nothing for the step that it is given for; `default` may hold anything.

    Raises:
        UserError: A step has a resource that its rule does not look at.
    """
    on_gpus = {*STAGES, *(rule.step for rule in RULES.values() if rule.step and rule.may_use_gpu)}
    steps_with = {
        **{name: {*STAGES} for name in TRAINING_RESOURCES},
        **{name: on_gpus for name in GPU_RESOURCES},
        "jobs": {rule.step for rule in RULES.values() if rule.step and rule.parts},
        "scratch": {"search_index"},
    }
    for step, values in resources.items():
        for name in values:
            steps = steps_with.get(name)
            if steps and step not in steps and step != "default":
                others = ", ".join(sorted(steps))
                raise UserError(f"resources.{step}.{name} means nothing for this step; give it to {others}")


def rule_of(spec: Spec) -> Rule:
    """The rule that makes an artifact. That of a model names its stage as its step, whether on one node or on more."""
    if spec.kind == "models":
        return Rule("train_stage", spec.label, may_use_gpu=True)
    word = spec.label.partition(".")[0]
    return RULES.get((spec.kind, word)) or RULES[spec.kind, ""]
