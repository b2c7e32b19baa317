"""Plan the evaluation of a row of the table on every collection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import Config
from colbert_zero.graph.console import UserError
from colbert_zero.graph.limits import DEFAULT_PRECISION
from colbert_zero.graph.measures import check_measures
from colbert_zero.graph.planners.bases import BasePlanner
from colbert_zero.graph.planners.collections import Collection, CollectionPlanner
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.relations import check_room

DENSE_PREFIX = "dense."
"""Begins the labels of the indexes and runs of dense models. The label of another index is its collection's name."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: The recipe's or baseline's name in the config.
        kind: `recipe` or `baseline`.
        stages: The models of its stages, in order; none for a baseline.
        measures: Its measures by collection.
    """

    name: str
    kind: str
    stages: tuple[Spec, ...]
    measures: Mapping[str, Spec]


class EvaluationPlanner:
    """Plans indexes, runs and measures, as the section `evaluation` says."""

    def __init__(self, draft: Draft, bases: BasePlanner, collections: CollectionPlanner) -> None:
        """Plan for `draft`, on `collections`; `bases` knows what a model can take.

        Raises:
            UserError: A measure is none, or is named twice; or a collection has a name that makes its indexes those of
                dense models.
        """
        self._draft, self._bases, self._collections = draft, bases, collections
        self._settings = draft.config["evaluation"]
        check_measures(self._settings["measures"], self._settings["depth"])
        for name in collections.by_name:
            if name.startswith(DENSE_PREFIX):
                raise UserError(
                    f"collections.{name}: only the indexes of dense models begin with {DENSE_PREFIX}; rename it"
                )

    def late_interaction(
        self,
        model: Spec,
        trained: Config,
        where: str,
        *,
        base: Spec,
        changes: Config | None = None,
        meant: Iterable[str] = (),
        only: Iterable[str] | None = None,
        **settings: Any,
    ) -> dict[str, Spec]:
        """The measures of a late-interaction model, by collection.

        Args:
            model: The model.
            trained: The prompts and lengths that the model was trained with; the step reads from the model's folder
                those that are not known yet.
            where: The place in the config that names the model.
            base: What the model was trained from, or the model itself.
            changes: Prompts and lengths that its evaluation has instead, on every collection.
            meant: The names of those in `trained` that may be others than the model's folder says.
            only: The names of the collections; by default those that rows are evaluated on.
            settings: Further settings of the model's indexes.

        Raises:
            UserError: A prompt leaves no room for texts, or a length is above what the base can take.
        """

        def plan_run(collection: Collection) -> Spec:
            encoding = {**collection.encoding(trained), **(changes or {})}
            place = f"{where}, on {collection.name}"
            check_room(encoding, place)
            self._bases.check(
                base, place, {name: value for name, value in encoding.items() if name.endswith("_length")}
            )
            index: dict[str, Any] = {
                "encoding": encoding,
                "index": {"kind": self._settings["index"], "seed": self._draft.seed},
            }
            # The step refuses a model that was trained with other settings, these excepted. Left out where none is.
            changed = {name for name, value in encoding.items() if value != trained.get(name)}.union(meant)
            if changed:
                index["changed"] = sorted(changed)
            if self._settings["precision"] != DEFAULT_PRECISION:
                index["precision"] = self._settings["precision"]
            if unknown := {k: v for k, v in collection.minimum_lengths.items() if k not in encoding}:
                index["minimum_lengths"] = unknown
            inputs = {"model": model, "collection": collection.spec}
            planned = self._draft.add("indexes", collection.name, index | settings, inputs)
            inputs = {"index": planned, "collection": collection.spec}
            return self._draft.add("runs", f"colbert.{collection.name}", self._run_settings(collection), inputs)

        return self._measures(plan_run, only)

    def dense(self, model: Spec, encoding: Config, search: str, meant: Sequence[str] = ()) -> dict[str, Spec]:
        """The measures of a dense model, by collection.

        Args:
            model: The model.
            encoding: Its prompts and its length; the step reads from the model's folder those that are not known yet.
            search: `exact` or `faiss`.
            meant: The names of those in `encoding` that may be others than the model's folder says.
        """
        kind = {"kind": search} | ({"seed": self._draft.seed} if search == "faiss" else {})
        changed = {"changed": sorted(meant)} if meant else {}

        def plan_run(collection: Collection) -> Spec:
            settings = {"encoding": encoding, "index": kind, **changed}
            inputs = {"model": model, "collection": collection.spec}
            planned = self._draft.add("indexes", f"{DENSE_PREFIX}{collection.name}", settings, inputs)
            inputs = {"index": planned, "collection": collection.spec}
            label = f"{DENSE_PREFIX}{collection.name}"
            return self._draft.add("runs", label, self._run_settings(collection), inputs)

        return self._measures(plan_run)

    def bm25(self, parameters: Config) -> dict[str, Spec]:
        """The measures of BM25 with these parameters, by collection."""

        def plan_run(collection: Collection) -> Spec:
            settings = {**parameters, **self._run_settings(collection)}
            return self._draft.add("runs", f"bm25.{collection.name}", settings, {"collection": collection.spec})

        return self._measures(plan_run)

    def _run_settings(self, collection: Collection) -> Config:
        return {"depth": self._settings["depth"], "drop_self": collection.drop_self}

    def _measures(self, plan_run: Callable[[Collection], Spec], only: Iterable[str] | None = None) -> dict[str, Spec]:
        """Measure the run that `plan_run` plans for each collection to evaluate on, or for some."""
        settings = {"measures": self._settings["measures"]}
        by_name = self._collections.by_name
        return {
            name: self._draft.add(
                "measures", name, settings, {"run": plan_run(by_name[name]), "collection": by_name[name].spec}
            )
            for name in (self._collections.evaluated if only is None else only)
        }
