"""What the paper's trainings cost, in GPU-hours of its GH200s (Table 1), and what that says of others."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.published import paper
from colbert_zero.graph.registry import REGISTRY
from colbert_zero.graph.yaml_files import read_yaml
from colbert_zero.report.sizes import Sizes, known_size

PAPER_DATA = {
    "unsupervised": ("nomic-unsupervised", 1),
    "supervised": ("nomic-supervised", 12),
    "distillation": ("lightonai-bge-gemma", 32),
}
"""By stage, the data of the registry that the paper trains on, and how many documents it encodes of each row: its own;
and eleven negatives; or 32."""
SAME = 0.01
"""A stage counts as the paper's if its work differs by no more than this share."""


@cache
def paper_stages() -> dict[str, tuple[float, float]]:
    """By stage, the paper's GPU-hours and how many documents it encoded in them."""
    hours, groups = paper().gpu_hours, read_yaml(REGISTRY / "sources.yaml")["groups"]
    return {
        stage: (float(hours[stage]), sum(source["rows"] for source in groups[data]["sources"].values()) * documents)
        for stage, (data, documents) in PAPER_DATA.items()
    }


def paper_gpu_hours(model: Spec, sizes: Sizes) -> float | None:
    """The GPU-hours of a training at the paper's speed: its hours, by the documents that are encoded.

    None for a model of another size than the paper's, or one whose rows nobody has counted. Lengths are taken to be the
    paper's.
    """
    base = sizes.base(model)
    if base is None or not known_size("models", base, "paper"):
        return None
    texts = sizes.training_texts(model)
    if texts is None:
        return None
    hours, paper_texts = paper_stages()[model.settings["stage"]]
    return hours * texts / paper_texts


def counterpart_hours(stages: Iterable[Spec], sizes: Sizes) -> float | None:
    """The paper's GPU-hours for a row with these stages; None if one of them is not as large as the paper's."""
    total = 0.0
    for model in stages:
        hours = paper_gpu_hours(model, sizes) if model.kind == "models" else None
        paper = paper_stages().get(str(model.settings.get("stage")), (0.0, 0.0))[0]
        if hours is None or abs(hours - paper) > SAME * paper:
            return None
        total += paper
    return total or None
