"""Which rule of the workflow makes an artifact, and which entry of `resources` says what it asks for."""

from __future__ import annotations

from dataclasses import dataclass

from colbert_zero.graph.artifact import Spec


@dataclass(frozen=True)
class Rule:
    """A rule of `workflow/rules/`.

    Attributes:
        name: The rule's name.
        step: Its entry in the config's `resources`; None for a rule that runs where Snakemake does, and asks for
            nothing.
        may_use_gpu: Whether its step computes on a GPU where it has one.
    """

    name: str
    step: str | None
    may_use_gpu: bool = False


RULES: dict[tuple[str, str], Rule] = {
    ("sources", "package"): Rule("read_docstrings_source", "read_docstrings"),
    ("sources", ""): Rule("fetch_source", None),
    ("collections", "package"): Rule("read_docstrings_collection", "read_docstrings"),
    ("collections", ""): Rule("fetch_collection", None),
    ("bases", "random"): Rule("build_base", "build_base"),
    ("bases", ""): Rule("fetch_base", None),
    ("shards", ""): Rule("build_shards", "build_shards"),
    ("batches", ""): Rule("plan_batches", "plan_batches"),
    ("candidates", "bm25"): Rule("mine_bm25", "mine_bm25"),
    ("candidates", "dense"): Rule("mine_dense", "mine_dense", may_use_gpu=True),
    ("negatives", ""): Rule("filter_negatives", "filter_negatives"),
    ("scores", "bm25"): Rule("teach_bm25", "teach_bm25"),
    ("scores", "neural"): Rule("teach_neural", "teach_neural", may_use_gpu=True),
    ("selections", ""): Rule("select_model", None),
    ("indexes", "dense"): Rule("embed_documents", "embed_documents", may_use_gpu=True),
    ("indexes", ""): Rule("build_index", "build_index", may_use_gpu=True),
    ("runs", "dense"): Rule("search_embeddings", "search_embeddings", may_use_gpu=True),
    ("runs", "colbert"): Rule("search_index", "search_index", may_use_gpu=True),
    ("runs", "bm25"): Rule("search_bm25", "search_bm25"),
    ("measures", ""): Rule("measure_run", "measure_run"),
    ("contamination", ""): Rule("find_contamination", "find_contamination"),
    ("audits", ""): Rule("audit_study", "audit_study"),
    ("reports", ""): Rule("write_report", None),
    ("releases", ""): Rule("release_model", None),
}
"""By kind, and by the word that the label begins with before a point; an empty word stands for all others."""


def rule_of(spec: Spec) -> Rule:
    """The rule that makes an artifact. That of a model names its stage as its step, whether on one node or on more."""
    if spec.kind == "models":
        return Rule("train_stage", spec.label, may_use_gpu=True)
    word = spec.label.partition(".")[0]
    return RULES.get((spec.kind, word)) or RULES[spec.kind, ""]
