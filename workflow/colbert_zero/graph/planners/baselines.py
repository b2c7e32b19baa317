"""Plan baselines: the rows of the table that are not trained here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import Config, only_key
from colbert_zero.graph.planners.bases import BasePlanner
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.evaluation import EvaluationPlanner, Row

Measures = dict[str, Spec]
"""Measures by collection."""


class BaselinePlanner:
    """Plans what the section `baselines` names."""

    def __init__(self, draft: Draft, bases: BasePlanner, evaluation: EvaluationPlanner) -> None:
        """Plan for `draft`, with the help of the other planners."""
        self._draft, self._bases, self._evaluation = draft, bases, evaluation

    def row(self, name: str, baseline: Config) -> Row:
        """Plan a baseline.

        Raises:
            UserError: The baseline names something that is not in the config.
        """
        kind = only_key(baseline, tuple(KINDS), f"baselines.{name}")
        return Row(name, "baseline", (), KINDS[kind](self._draft, self._bases, self._evaluation, name, baseline))


def _bm25(_draft: Draft, _bases: BasePlanner, evaluation: EvaluationPlanner, _name: str, baseline: Config) -> Measures:
    """BM25."""
    return evaluation.bm25(baseline["bm25"])


def _late_interaction(
    draft: Draft, bases: BasePlanner, evaluation: EvaluationPlanner, name: str, baseline: Config
) -> Measures:
    """A late-interaction model without further training."""
    encoding = dict(baseline["late_interaction"])
    where = f"baselines.{name}"
    model = bases.base(encoding.pop("model"), where)
    encoding |= draft.prompts(encoding.pop("prompts"), where)
    # A model without a projection is given one, as the first stage of a recipe would give it.
    projection = {"dimensions": encoding.pop("dimensions"), "seed": draft.seed}
    return evaluation.late_interaction(model, encoding, projection=projection)


KINDS: Mapping[str, Callable[[Draft, BasePlanner, EvaluationPlanner, str, Config], Measures]] = {
    "bm25": _bm25,
    "late_interaction": _late_interaction,
}
"""Kinds of baselines: the config's key, and the function that plans the measures."""
