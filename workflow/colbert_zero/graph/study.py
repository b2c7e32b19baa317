"""A study: what one config describes, checked, as the artifacts it needs.

`Study` turns recipes, stages and collections into specs. Nothing here reads data or imports anything heavy, since the
Snakefile imports it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import KEY_DIGITS, Spec
from colbert_zero.graph.config import Config, errors_in_config, require_known, validate
from colbert_zero.graph.console import UserError
from colbert_zero.graph.planners.audit import AUDIT_ROLE, AuditPlanner
from colbert_zero.graph.planners.baselines import BaselinePlanner
from colbert_zero.graph.planners.bases import BasePlanner
from colbert_zero.graph.planners.collections import CollectionPlanner
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.evaluation import EvaluationPlanner, Row
from colbert_zero.graph.planners.mining import MiningPlanner
from colbert_zero.graph.planners.negatives import NegativesPlanner
from colbert_zero.graph.planners.recipes import RecipePlanner
from colbert_zero.graph.planners.relations import check_processes
from colbert_zero.graph.planners.releases import plan_releases
from colbert_zero.graph.planners.sources import SourcePlanner
from colbert_zero.graph.planners.teaching import TeacherPlanner
from colbert_zero.graph.published import check_published
from colbert_zero.graph.revisions import Resolve
from colbert_zero.graph.rules import check_resources

DEFAULT_RESOURCES = {
    "threads": 1,
    "mem_mb": 2000,
    "runtime": 60,
    "gpu": 0,
    "nodes": 1,
    "checkpoint_seconds": 600,
    "jobs": 1,
}
"""The resources of a step for which the config gives none."""

ROWS_IN_MESSAGES = 8
"""How many rows of the table a message names."""


class Study:
    """A checked config, and every artifact that its report needs.

    Attributes:
        config: The config, defaults filled in.
        folder: The study's folder.
        name: The study's name.
        rows: The table's rows, baselines first; a recipe with seeds has one for each of them, called NAME@SEED.
        seeds: The names of these rows, by recipe.
        published: The id of the published row that a recipe or baseline is compared with, of those that name one.
        reference: The recipe or baseline that others are compared with in the report; None: the report's choice.
        contamination: By recipe, the specs of what says which test texts stand in its training rows; only of a study
            that ends with an audit.
        audit: The spec of the audit; None if the study ends without one.
        report: The spec of the report.
        released: The spec of a report of the rows alone that are not trained here.
        releases: By row that is trained, the spec of the folder that can be published.
        specs: Every spec that the report depends on, itself included, by key.
        known: These, and what else a rule can be asked for, by key.
        paths: The local file or folder that an artifact is fetched from, by the artifact's key.
        used_by: The names of the rows that an artifact is needed for, by the artifact's key.
        evaluations: What a model is evaluated on during its training, by the model's key; see `RecipePlanner`.
    """

    @errors_in_config()
    def __init__(self, config: Config, folder: Path, *, remember: bool = True, resolve: Resolve | None = None) -> None:
        """Check `config` and plan its artifacts.

        Args:
            config: The parsed config.yaml.
            folder: The study's folder; local paths in the config are relative to it.
            remember: Whether digests of local files are those of the last plan where the files have not changed since,
                and are kept for the next one.
            resolve: Looks up names of the Hub that the study's lock file lacks; without it they are errors.

        Raises:
            UserError: The config has a mistake; the message describes the first one.
        """
        self.config = validate(config)
        check_resources(self.config["resources"])
        self.folder = folder
        self.name: str = self.config["study"]
        draft = Draft(self.config, folder, remember=remember, resolve=resolve)
        sources = SourcePlanner(draft)
        bases = BasePlanner(draft, sources)
        collections = CollectionPlanner(draft)
        mining = MiningPlanner(draft, bases, collections)
        teachers = TeacherPlanner(draft, bases, mining)
        negatives = NegativesPlanner(draft, mining, teachers)
        evaluation = EvaluationPlanner(draft, bases, collections)
        recipes = RecipePlanner(draft, sources, bases, negatives, teachers, collections, evaluation)
        baselines = BaselinePlanner(draft, bases, evaluation)
        if not self.config["recipes"] and not self.config["baselines"]:
            raise UserError("recipes: there is nothing in it, nor in baselines; give the table a row at least")
        for name in self.config["recipes"].keys() & self.config["baselines"].keys():
            raise UserError(f"baselines.{name}: a recipe is called {name} too: rename one of them")
        planned_rows = {name: recipes.rows(name, recipe) for name, recipe in self.config["recipes"].items()}
        recipe_rows = [row for rows in planned_rows.values() for row in rows]
        self.seeds = {name: [row.name for row in rows] for name, rows in planned_rows.items() if rows[0].name != name}
        baseline_rows = [baselines.row(name, baseline) for name, baseline in self.config["baselines"].items()]
        self.rows = baseline_rows + recipe_rows
        self.published = self._published()
        self.reference = self._reference()
        self.paths = draft.paths
        self.evaluations = recipes.evaluations
        self.contamination: dict[str, list[Spec]] = {}
        self.audit: Spec | None = None
        if self.config["audit"]:
            auditing = AuditPlanner(draft, (collection.spec for collection in collections.evaluated.values()))
            planned = {row.name: auditing.contamination(row) for row in self.rows}
            self.contamination = {name: specs for name, specs in planned.items() if specs}
            self.audit = auditing.audit(self.name, self.rows, planned)
        self.report = self._plan_report(draft, collections.groups, self.name, self.rows)
        self.released = self._plan_report(draft, collections.groups, f"{self.name}.released", baseline_rows)
        self.releases = plan_releases(draft, self.report, recipe_rows)
        draft.save_digests()
        self.specs = draft.specs
        self.specs = {spec.key: spec for spec in self._with_ancestors(self.report)}
        self.known = {**self.specs, **{spec.key: spec for spec in (self.released, *self.releases.values())}}
        for model in (spec for spec in self.specs.values() if spec.kind == "models"):
            (batches,) = (spec for spec in self.inputs_of(model) if spec.kind == "batches")
            processes = max(1, self.resource(model.label, "gpu")) * self.resource(model.label, "nodes")
            check_processes(batches.settings["batch_size"], processes, f"resources.{model.label}")
        self.used_by: dict[str, set[str]] = {}
        for row in self.rows:
            for spec in self._with_ancestors(*row.measures.values()):
                self.used_by.setdefault(spec.key, set()).add(row.name)

    def spec_of(self, key: str) -> Spec:
        """The spec with this key.

        Raises:
            UserError: This study has no artifact of that key.
        """
        try:
            return self.known[key]
        except KeyError:
            raise UserError(f"no artifact of study {self.name} has the key {key}: the config has changed") from None

    def inputs_of(self, spec: Spec) -> list[Spec]:
        """The specs of an artifact's inputs, in the order of its spec."""
        return [self.specs[name[-KEY_DIGITS:]] for names in spec.inputs.values() for name in names]

    def rows_using(self, key: str) -> str:
        """The names of the rows that the artifact with `key` is needed for; at most `ROWS_IN_MESSAGES` of them."""
        names = sorted(self.used_by.get(key, ()))
        more = len(names) - ROWS_IN_MESSAGES
        return ", ".join(names[:ROWS_IN_MESSAGES]) + (f" and {more} more" if more > 0 else "")

    def resource(self, step: str, name: str) -> Any:
        """The value of a step's resource: threads, mem_mb, runtime (minutes), gpu, ...

        Returns:
            The step's own value in the config, else that of `resources.default`, else that of `DEFAULT_RESOURCES`, else
            None.
        """
        resources = self.config["resources"]
        return (DEFAULT_RESOURCES | resources.get("default", {}) | resources.get(step, {})).get(name)

    def _with_ancestors(self, *specs: Spec) -> Iterator[Spec]:
        """Each of `specs` and everything they are made from, directly or indirectly, once."""
        seen: set[str] = set()
        pending = list(specs)
        while pending:
            spec = pending.pop()
            if spec.key not in seen:
                seen.add(spec.key)
                pending += self.inputs_of(spec)
                yield spec

    def _published(self) -> dict[str, str]:
        measure = self.config["evaluation"]["measures"][0]
        return {
            name: check_published(entry["published"], f"{section}.{name}", measure, bm25="bm25" in entry)
            for section in ("recipes", "baselines")
            for name, entry in self.config[section].items()
            if "published" in entry
        }

    def _reference(self) -> str | None:
        name: str | None = self.config["evaluation"].get("reference")
        if name is None:
            return None
        rows = [*self.config["baselines"], *self.config["recipes"]]
        return require_known(name, rows, "evaluation.reference", "baselines or recipes")

    def _plan_report(self, draft: Draft, groups: dict[str, list[str]], label: str, planned: Sequence[Row]) -> Spec:
        # Sorted, so that the order of the config's keys decides nothing.
        rows = sorted(planned, key=lambda row: row.name)
        settings = {
            "study": self.name,
            "seed": draft.seed,
            "measure": self.config["evaluation"]["measures"][0],
            "groups": groups,
            "rows": {row.name: {"kind": row.kind, "stages": [spec.name for spec in row.stages]} for row in rows},
        }
        trained = any(row.stages for row in rows)
        if trained and self.seeds:
            settings["seeds"] = self.seeds
        shown = {row.name.partition("@")[0] for row in rows}
        if published := {name: entry for name, entry in self.published.items() if name in shown}:
            settings["published"] = published
        if self.reference in shown:
            settings["reference"] = self.reference
        inputs: dict[str, Spec | list[Spec]] = {
            row.name: sorted(row.measures.values(), key=lambda spec: spec.name) for row in rows
        }
        if trained and self.audit is not None:
            inputs[AUDIT_ROLE] = self.audit
        return draft.add("reports", label, settings, inputs)
