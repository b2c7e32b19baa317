"""Plan baselines: the rows of the table that are not trained here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import Config, only_key
from colbert_zero.graph.console import UserError
from colbert_zero.graph.dense_folder import contradicted, read_dense_encoding, refuse_other_settings
from colbert_zero.graph.limits import DEFAULT_DIMENSIONS
from colbert_zero.graph.model_folder import projection_size
from colbert_zero.graph.planners.bases import BasePlanner
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.evaluation import EvaluationPlanner, Row
from colbert_zero.graph.saved_encoding import SAVED_SETTINGS, read_saved_encoding

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
            UserError: The baseline names something that is not in the config, or contradicts its model's folder.
        """
        kind = only_key(baseline, tuple(KINDS), f"baselines.{name}")
        return Row(name, "baseline", (), KINDS[kind](self._draft, self._bases, self._evaluation, name, baseline))


def _bm25(_draft: Draft, _bases: BasePlanner, evaluation: EvaluationPlanner, _name: str, baseline: Config) -> Measures:
    """BM25."""
    return evaluation.bm25(baseline["bm25"])


def _late_interaction(
    draft: Draft, bases: BasePlanner, evaluation: EvaluationPlanner, name: str, baseline: Config
) -> Measures:
    """A late-interaction model without further training, with the prompts and lengths that it was saved with."""
    where = f"baselines.{name}"
    given = dict(baseline["late_interaction"])
    model = bases.base(given.pop("model"), where)
    folder = draft.paths.get(model.key)
    # A model without a projection is given one, as the first stage of a recipe would give it.
    brought = projection_size(folder) if folder else None
    projection = {"dimensions": given.pop("dimensions", brought or DEFAULT_DIMENSIONS), "seed": draft.seed}
    meant = given.pop("override")
    if "prompts" in given:
        given |= draft.prompts(given.pop("prompts"), where)
    if model.label.startswith("hub."):  # The step reads what it was saved with, once it is fetched.
        meant_names = given if meant else ()
        return evaluation.late_interaction(model, given, where, base=model, meant=meant_names, projection=projection)
    saved = read_saved_encoding(folder) if folder else None
    saved = saved or {"query_expansion": given.get("query_expansion", False)}
    differing = [setting for setting, value in given.items() if value != saved.get(setting, value)]
    if differing and not meant:
        others = "; ".join(f"{setting} is {given[setting]!r} here, {saved[setting]!r} there" for setting in differing)
        raise UserError(
            f"{where}: the model was saved with other settings: {others}; leave them out, "
            "or say that they are meant with override: true"
        )
    encoding = saved | given
    for setting in SAVED_SETTINGS:
        if setting not in encoding:
            named = "prompts" if setting.endswith("prompt") else setting
            raise UserError(f"{where}: the model's folder does not say its {named}; give {named}")
    lengths = {length: encoding[length] for length in ("query_length", "document_length")}
    bases.check(model, where, lengths, projection["dimensions"])
    return evaluation.late_interaction(model, encoding, where, base=model, meant=differing, projection=projection)


def _dense(draft: Draft, bases: BasePlanner, evaluation: EvaluationPlanner, name: str, baseline: Config) -> Measures:
    """A dense model as it is, with the prompts that it was saved with."""
    where = f"baselines.{name}"
    given = dict(baseline["dense"])
    model = bases.base(given.pop("model"), where)
    search, meant = given.pop("search"), given.pop("override")
    if "prompts" in given:
        given |= draft.prompts(given.pop("prompts"), where)
    bases.check(model, where, {length: given[length] for length in ("maximum_length",) if length in given})
    bases.check_dense(model, where)
    folder = draft.paths.get(model.key)
    if folder is None:  # The step reads what it was saved with, once it is fetched.
        if not meant:
            refuse_other_settings(given, bases.saved_encoding(model), where)
        return evaluation.dense(model, given, search, list(given) if meant else ())
    saved = read_dense_encoding(folder)
    if not meant:
        refuse_other_settings(given, saved, where)
    encoding = {"query_prompt": "", "document_prompt": "", **saved, **given}
    return evaluation.dense(model, encoding, search, contradicted(given, saved))


KINDS: Mapping[str, Callable[[Draft, BasePlanner, EvaluationPlanner, str, Config], Measures]] = {
    "bm25": _bm25,
    "late_interaction": _late_interaction,
    "dense": _dense,
}
"""Kinds of baselines: the config's key, and the function that plans the measures."""
