"""Plan recipes: the stages of each, and its evaluation."""

from __future__ import annotations

from itertools import product
from typing import Any

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import Config, stage_defaults
from colbert_zero.graph.console import UserError
from colbert_zero.graph.planners.bases import BasePlanner
from colbert_zero.graph.planners.collections import CollectionPlanner
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.evaluation import EvaluationPlanner, Row
from colbert_zero.graph.planners.negatives import NegativesPlanner
from colbert_zero.graph.planners.relations import (
    TEMPERATURES,
    check_alignment,
    check_at_most,
    check_batch,
    check_own_settings,
    check_room,
    check_rows,
    check_small,
)
from colbert_zero.graph.planners.sources import SourcePlanner
from colbert_zero.graph.planners.teaching import TeacherPlanner
from colbert_zero.graph.rules import STAGES

REQUIRED_SETTINGS = ("sources", "prompts", "query_length", "document_length", "batch_size", "learning_rate")
"""Settings that every stage must have once defaults, stage and recipe are merged."""
STAGE_SETTINGS = {
    "unsupervised": ("temperature", "learnable_temperature", "gradient"),
    "supervised": ("temperature", "learnable_temperature", "negatives"),
    "distillation": ("documents",),
}
"""Settings that only some stages have, and must have."""
TRAINING_SETTINGS = (
    "query_length",
    "document_length",
    "query_expansion",
    "dimensions",
    "learning_rate",
    "warmup_ratio",
    "weight_decay",
    "gradient_clip",
    "precision",
)
"""Settings of every stage that decide its training, but not its data."""
SWEPT = ("learning_rate", "temperature")
"""Settings that a stage may be trained with several values of, to go on with the best."""
ENCODING_SETTINGS = ("query_length", "document_length", "query_expansion")
"""Settings of a stage, besides its prompts, that say how texts become its model's input."""


def check_settings(stage: str, settings: Config, where: str) -> None:
    """Check that a stage has all settings that it needs."""
    for field in (*REQUIRED_SETTINGS, *STAGE_SETTINGS[stage]):
        if settings.get(field) is None and field not in settings.get("sweep", {}):
            raise UserError(f"{where}: {field} is not set; set it under stages.{stage} or in the recipe")


def _swept(name: str, settings: Config) -> list[Any]:
    """The values of a setting that a stage is trained with: those of its sweep, or its own."""
    values: list[Any] = settings["sweep"].get(name, [settings.get(name)])
    return values


class RecipePlanner:
    """Plans the entries of the section `recipes`.

    Attributes:
        evaluations: What a model is evaluated on during its training, by the model's key: `steps`, and `collections`,
            which maps a collection's artifact name to its `drop_self`, `query_length` and `document_length`.
    """

    def __init__(
        self,
        draft: Draft,
        sources: SourcePlanner,
        bases: BasePlanner,
        negatives: NegativesPlanner,
        teachers: TeacherPlanner,
        collections: CollectionPlanner,
        evaluation: EvaluationPlanner,
    ) -> None:
        """Plan for `draft`, with the help of the other planners."""
        self._draft, self._sources, self._bases = draft, sources, bases
        self._negatives, self._teachers = negatives, teachers
        self._collections, self._evaluation = collections, evaluation
        self.evaluations: dict[str, dict[str, Any]] = {}

    def rows(self, name: str, recipe: Config) -> list[Row]:
        """Plan a recipe: one row, or one for each of its seeds, called NAME@SEED.

        A seed of its own decides the order of batches and the training. Base, shards, negatives, teacher scores and
        indexes have the study's: they are the same for all.

        Raises:
            UserError: The stages are out of order; or one lacks a setting, has settings that contradict each other or
                what the model that it goes on from was trained with, or names something that is not in the config.
        """
        if "seeds" not in recipe:
            return [self._row(name, name, recipe, self._draft.seed)]
        return [self._row(f"{name}@{seed}", name, recipe, seed) for seed in recipe["seeds"]]

    def _row(self, label: str, name: str, recipe: Config, seed: int) -> Row:
        base = model = self._bases.base(recipe["base"], f"recipes.{name}.base")
        # What the model at hand was trained with, and the place in the config that says so.
        trained = self._bases.saved_encoding(base), f"models.{recipe['base']}"
        may_differ = "mismatch" in recipe
        models: list[Spec] = []
        settings: dict[str, Any] = {}
        last = -1
        for entry in recipe["stages"]:
            stage, stage_overrides = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
            where = f"recipes.{name}, stage {stage}"
            if STAGES.index(stage) <= last:
                raise UserError(f"{where}: stages go in the order {', '.join(STAGES)}, each at most once")
            last = STAGES.index(stage)
            common = self._draft.config["stages"].get(stage, {})
            check_own_settings(stage, common, f"stages.{stage}")
            check_own_settings(stage, stage_overrides, where)
            dimensions = settings.get("dimensions")
            settings = stage_defaults() | common | recipe.get("every_stage", {}) | stage_overrides
            if models and settings["dimensions"] != dimensions:
                raise UserError(
                    f"{where}: dimensions is {settings['dimensions']}, but {dimensions} in the stage "
                    "before, whose projection it trains further; give all stages the same"
                )
            check_settings(stage, settings, where)
            encoding = self._encoding(settings, where)
            if not may_differ:
                check_alignment(encoding, *trained, where)
            trained = encoding, f"the stage {stage}"
            if "sweep" in settings:
                model = self._selected(stage, settings, model, base, seed, where)
            else:
                model = self._model(stage, settings, model, seed, where)
            lengths = {length: settings[length] for length in ("query_length", "document_length")}
            self._bases.check(base, where, lengths, settings["dimensions"])
            models.append(model)
        changes = dict(recipe.get("evaluate_with", {}))
        if "prompts" in changes:
            changes |= self._draft.prompts(changes.pop("prompts"), f"recipes.{name}.evaluate_with")
        if not may_differ:
            check_alignment(encoding | changes, *trained, f"recipes.{name}.evaluate_with")
        measures = self._evaluation.late_interaction(model, encoding, f"recipes.{name}", base=base, changes=changes)
        return Row(label, "recipe", tuple(models), measures)

    def _selected(self, stage: str, settings: Config, start: Spec, base: Spec, seed: int, where: str) -> Spec:
        """The best of the models that a stage trains with each of some values, by its measure on some collections."""
        sweep = settings["sweep"]
        names = [member.name for name in sweep["collections"] for member in self._collections.named(name, where)]
        swept = [
            dict(zip(SWEPT, values, strict=True)) for values in product(*(_swept(name, settings) for name in SWEPT))
        ]
        values = [{name: value for name, value in of.items() if name in sweep} for of in swept]
        if len(values) < 2:
            raise UserError(f"{where}: sweep has one value only, so there is nothing to select; set it in the stage")
        encoding = self._encoding(settings, where)
        models, measures = [], []
        for of in values:
            model = self._model(stage, {**settings, **of}, start, seed, where)
            models.append(model)
            measured = self._evaluation.late_interaction(model, encoding, where, base=base, only=names)
            measures += [measured[name] for name in names]
        selection = {"stage": stage, "values": values, "measure": self._draft.config["evaluation"]["measures"][0]}
        return self._draft.add("selections", stage, selection, {"models": models, "measures": measures})

    def _encoding(self, settings: Config, where: str) -> dict[str, Any]:
        """How texts become the input of the model that a stage with these settings trains."""
        lengths = {field: settings[field] for field in ENCODING_SETTINGS}
        return lengths | self._draft.prompts(settings["prompts"], where)

    def _model(self, stage: str, settings: Config, start: Spec, seed: int, where: str) -> Spec:
        """The model that a stage trains, starting from the model `start`."""
        check_batch(stage, settings, where)
        encoding = self._encoding(settings, where)
        check_room(encoding, where)
        rows = self._rows(stage, settings, where)
        plan = {"batch_size": settings["batch_size"], "epochs": settings["epochs"], "seed": seed}
        if stage == "supervised" and settings["mining"] is None:
            plan["negatives"] = settings["negatives"]
        batches = self._draft.add("batches", stage, plan, {"rows": rows})
        training = {"stage": stage, "seed": seed, **self._draft.prompts(settings["prompts"], where)}
        training |= {field: settings[field] for field in (*TRAINING_SETTINGS, *STAGE_SETTINGS[stage])}
        if stage == "supervised" and settings["gradient_scale"] != 1:  # Left out of older specs, which meant 1.
            training["gradient_scale"] = settings["gradient_scale"]
        if stage == "distillation":
            training |= {name: settings[name] for name in TEMPERATURES if settings[name] != 1}  # As above.
        model = self._draft.add("models", stage, training, {"start": start, "rows": rows, "batches": batches})
        self._evaluate_during_training(model, encoding, settings.get("evaluate", {}), where)
        return model

    def _rows(self, stage: str, settings: Config, where: str) -> list[Spec]:
        """The training rows of a stage, by source: its shards, or the negatives or teacher scores made from them."""
        if not settings["sources"]:
            raise UserError(f"{where}: no data; name at least one source under sources")
        check_rows(stage, settings, self._sources.named(settings["sources"], where), where)
        rows = self._sources.shards(settings["sources"], where)
        if stage == "unsupervised" and settings["pairs"] is not None:
            made = self._draft.entry("mining", settings["pairs"], where)["negatives"]
            if made:
                raise UserError(
                    f"{where}: mining.{settings['pairs']} makes {made} negatives, which are no pairs; name an entry "
                    "with negatives: 0"
                )
            return [self._negatives.negatives(settings["pairs"], shards, where) for shards in rows]
        if stage == "supervised" and settings["mining"] is not None:
            made = self._draft.entry("mining", settings["mining"], where)["negatives"]
            check_at_most("negatives", settings["negatives"], f"mining.{settings['mining']}", made, where)
            return [self._negatives.negatives(settings["mining"], shards, where) for shards in rows]
        if stage == "distillation" and settings["teacher"] is not None:
            scores = [self._teachers.scores(settings["teacher"], shards, where) for shards in rows]
            made = scores[0].settings["documents"]
            check_at_most("documents", settings["documents"], f"teachers.{settings['teacher']}", made, where)
            return scores
        return rows

    def _evaluate_during_training(self, model: Spec, encoding: Config, evaluate: Config, where: str) -> None:
        """Add to the evaluations of a model; recipes that share its stage may ask for different ones, and get all."""
        if evaluate:
            planned = self.evaluations.setdefault(model.key, {"steps": [], "collections": {}})
            planned["steps"] = sorted({*planned["steps"], *evaluate["steps"]})
            for name in evaluate["collections"]:
                for collection in self._collections.named(name, f"{where}, evaluate"):
                    check_small(collection.name, collection.spec, f"{where}, evaluate")
                    used = collection.encoding(encoding)
                    planned["collections"][collection.spec.name] = {
                        "drop_self": collection.drop_self,
                        "query_length": used["query_length"],
                        "document_length": used["document_length"],
                    }
