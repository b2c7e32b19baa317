"""A study: what one config describes, checked, as the artifacts it needs.

`Study` turns recipes, stages and collections into specs; nothing here reads data or imports anything heavy, since the
Snakefile imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colbert_zero.graph import registry
from colbert_zero.graph.artifact import KEY_DIGITS, Spec, content_digest, file_digests
from colbert_zero.graph.config import Config, check, only_key, require_known, stage_defaults
from colbert_zero.graph.console import UserError
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.local_files import Digests

STAGES = ("unsupervised", "supervised", "distillation")
REQUIRED = ("sources", "prompts", "query_length", "document_length", "batch_size", "learning_rate")
"""Settings that every stage of every recipe must have in the end."""
OF_STAGE = {
    "unsupervised": ("temperature", "learnable_temperature", "gradient"),
    "supervised": ("temperature", "learnable_temperature", "negatives"),
    "distillation": ("documents",),
}
"""Settings that only some stages have, and must have."""
OF_TRAINING = (
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
"""Settings of every stage that its training alone reads."""

DEFAULT_RESOURCES = {
    "threads": 1,
    "mem_mb": 2000,
    "runtime": 60,
    "gpu": 0,
    "nodes": 1,
    "checkpoint_seconds": 600,
    "jobs": 1,
}
"""What a step asks for where the config is silent."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: As in the config.
        kind: `recipe` or `baseline`.
        stages: The models of its stages, in order; none for a baseline.
        measures: Its measures by collection.
    """

    name: str
    kind: str
    stages: tuple[Spec, ...]
    measures: Mapping[str, Spec]


class Study:
    """A checked config, and every artifact that its report needs.

    Attributes:
        name: The study's name.
        seed: Its seed.
        rows: The table's rows, baselines first.
        groups: Members of each collection that is averaged into one column.
        report: The spec of the report.
        specs: Every spec the report depends on, itself included, by key.
        paths: By key, the local file or folder that an artifact is fetched from.
        used_by: By key, the names of the rows an artifact serves.
        evaluations: By key of a model, what it is evaluated on in the middle of its training: `steps`, and
            `collections`, whether a document that is the query is dropped by artifact name.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        """Check `config` and plan its artifacts.

        Args:
            config: The parsed config.yaml.
            folder: The study's folder; local paths in the config are relative to it.

        Raises:
            UserError: The first thing that is wrong with the config, in one line.
        """
        self.config = check(config)
        self.folder = folder
        self.name: str = self.config["study"]
        self.seed: int = self.config["seed"]
        self.specs: dict[str, Spec] = {}
        self.paths: dict[str, Path] = {}
        self.used_by: dict[str, set[str]] = {}
        self.evaluations: dict[str, dict[str, Any]] = {}
        self._digests = Digests(folder)
        self._sources = self._plan_sources()
        self.groups: dict[str, list[str]] = {}
        self._collections = self._plan_collections()
        recipes = [self._plan_recipe(name, recipe) for name, recipe in self.config["recipes"].items()]
        baselines = [self._plan_baseline(name, kind) for name, kind in self.config["baselines"].items()]
        self.rows = baselines + recipes
        self.report = self._plan_report()
        self._digests.save()
        needed = {spec.key: spec for spec in self._walk(self.report)}
        self.specs = needed
        for row in self.rows:
            for spec in self._walk(*row.measures.values()):
                self.used_by.setdefault(spec.key, set()).add(row.name)

    def spec_of(self, key: str) -> Spec:
        """The spec with this key.

        Raises:
            UserError: This study has no artifact of that key.
        """
        try:
            return self.specs[key]
        except KeyError:
            raise UserError(f"no artifact of study {self.name} has the key {key}: the config has changed") from None

    def inputs_of(self, spec: Spec) -> list[Spec]:
        """What a spec is made from, in order."""
        return [self.specs[name[-KEY_DIGITS:]] for names in spec.inputs.values() for name in names]

    def resource(self, step: str, resource: str) -> Any:
        """What the config asks for a step: threads, mem_mb, runtime (minutes), gpu ...; None where it is silent."""
        given = self.config["resources"]
        return (DEFAULT_RESOURCES | given.get("default", {}) | given.get(step, {})).get(resource)

    def _walk(self, *specs: Spec) -> Iterator[Spec]:
        seen: set[str] = set()
        todo = list(specs)
        while todo:
            spec = todo.pop()
            if spec.key not in seen:
                seen.add(spec.key)
                todo += self.inputs_of(spec)
                yield spec

    def _spec(
        self,
        kind: str,
        label: str,
        settings: Mapping[str, Any],
        path: Path | None = None,
        **inputs: Spec | Sequence[Spec],
    ) -> Spec:
        names = {
            role: [spec.name for spec in ([given] if isinstance(given, Spec) else given)]
            for role, given in inputs.items()
        }
        spec = Spec(kind, label, settings, names)
        self.specs[spec.key] = spec
        if path is not None:
            self.paths[spec.key] = path
        return spec

    # Sources and shards

    def _plan_sources(self) -> dict[str, list[tuple[str, Spec]]]:
        """By name in the config, the (label, source) pairs behind it: several for a group."""
        planned: dict[str, list[tuple[str, Spec]]] = {}
        for name, source in self.config["sources"].items():
            where = f"sources.{name}"
            origin = only_key(source, ("registry", "package", "file"), where)
            if origin == "registry":
                planned[name] = [
                    (label, self._spec("sources", f"hub.{label}", settings))
                    for label, settings in registry.sources(source["registry"], where)
                ]
            elif origin == "package":
                planned[name] = [(name, self._spec("sources", f"package.{name}", registry.package(source)))]
            else:
                path = self._local(source["file"], where)
                settings = {
                    "file": path.name,
                    "sha256": self._digests.of(path, file_digest),
                    "columns": {"query": "query", "document": "document", "negatives": "negatives"}
                    | source.get("columns", {}),
                }
                planned[name] = [(name, self._spec("sources", f"file.{name}", settings, path))]
        return planned

    def _local(self, text: str, where: str) -> Path:
        path = self.folder / text
        if not path.exists():
            raise UserError(f"{where}: {path} does not exist")
        return path

    def _sources_named(self, names: Iterable[str], where: str) -> list[tuple[str, Spec]]:
        members = {label: [(label, spec)] for found in self._sources.values() for label, spec in found}
        all_sources = members | self._sources
        return [pair for name in names for pair in all_sources[require_known(name, all_sources, where, "sources")]]

    def _shards(self, names: Iterable[str], where: str) -> list[Spec]:
        settings = {**self.config["shards"], "seed": self.seed}
        return [
            self._spec("shards", label, settings, source=source) for label, source in self._sources_named(names, where)
        ]

    # Models that are not trained here

    def _base(self, name: str, where: str) -> Spec:
        models = self.config["models"]
        model = models[require_known(name, models, where, "models")]
        if "registry" in model:
            return self._spec("bases", f"hub.{name}", registry.model(model["registry"], f"models.{name}"))
        if "folder" in model:
            path = self._local(model["folder"], f"models.{name}")
            digest = self._digests.of(path, lambda folder: content_digest(file_digests(folder)))
            return self._spec("bases", f"folder.{name}", {"sha256": digest}, path)
        random = dict(model["random"])
        sources = [spec for _, spec in self._sources_named(random.pop("sources"), f"models.{name}")]
        settings = {**random, "architecture": "modernbert", "seed": self.seed}
        return self._spec("bases", f"random.{name}", settings, sources=sources)

    # Mining and teaching

    def _candidates(self, miner_names: Sequence[str], shards: Spec, where: str) -> list[Spec]:
        found = []
        for name in miner_names:
            miner = self.config["miners"][require_known(name, self.config["miners"], where, "miners")]
            depth = miner["depth"]
            if "bm25" in miner:
                spec = self._spec(
                    "candidates", f"bm25.{shards.label}", {**miner["bm25"], "depth": depth}, shards=shards
                )
            elif "lsa" in miner:
                encoder = {"kind": "lsa", **miner["lsa"], "seed": self.seed}
                spec = self._spec(
                    "candidates", f"dense.{shards.label}", {"encoder": encoder, "depth": depth}, shards=shards
                )
            else:
                encoder = {"kind": "sentence-transformers", **miner["encoder"]}
                model = self._base(encoder.pop("model"), f"miners.{name}")
                settings = {"encoder": encoder, "depth": depth}
                spec = self._spec("candidates", f"dense.{shards.label}", settings, shards=shards, model=model)
            found.append(spec)
        return found

    def _negatives(self, mining_name: str, shards: Spec, where: str) -> Spec:
        mining = dict(self.config["mining"][require_known(mining_name, self.config["mining"], where, "mining")])
        candidates = self._candidates(mining.pop("miners"), shards, f"mining.{mining_name}")
        settings = {**mining, "seed": self.seed}
        return self._spec("negatives", shards.label, settings, shards=shards, candidates=candidates)

    def _scores(self, teacher_name: str, shards: Spec, where: str) -> Spec:
        teacher = self.config["teachers"][require_known(teacher_name, self.config["teachers"], where, "teachers")]
        candidates = self._candidates(teacher["miners"], shards, f"teachers.{teacher_name}")
        if "bm25" in teacher:
            settings = {"documents": teacher["documents"], **teacher["bm25"]}
            return self._spec("scores", f"bm25.{shards.label}", settings, shards=shards, candidates=candidates)
        kind = "cross-encoder" if "cross-encoder" in teacher else "causal-lm"
        neural = dict(teacher[kind])
        model = self._base(neural.pop("model"), f"teachers.{teacher_name}")
        settings = {"documents": teacher["documents"], "teacher": {"kind": kind, **neural}}
        return self._spec(
            "scores", f"neural.{shards.label}", settings, shards=shards, candidates=candidates, model=model
        )

    # Recipes

    def _plan_recipe(self, name: str, recipe: Config) -> Row:
        model = self._base(recipe["base"], f"recipes.{name}.base")
        models: list[Spec] = []
        last = -1
        for entry in recipe["stages"]:
            stage, own = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
            where = f"recipes.{name}, stage {stage}"
            if STAGES.index(stage) <= last:
                raise UserError(f"{where}: stages go in the order {', '.join(STAGES)}, each at most once")
            last = STAGES.index(stage)
            defaults = stage_defaults()
            settings = defaults | self.config["stages"].get(stage, {}) | recipe.get("every_stage", {}) | own
            model = self._plan_stage(stage, settings, model, where)
            models.append(model)
        encoding = {field: settings[field] for field in ("query_length", "document_length", "query_expansion")}
        encoding |= self._prompts(settings["prompts"], f"recipes.{name}")
        return Row(name, "recipe", tuple(models), self._evaluate(model, encoding))

    def _plan_stage(self, stage: str, settings: Config, start: Spec, where: str) -> Spec:
        for field in (*REQUIRED, *OF_STAGE[stage]):
            if settings.get(field) is None:
                raise UserError(f"{where}: {field} is not set; set it under stages.{stage} or in the recipe")
        if not settings["sources"]:
            raise UserError(f"{where}: no data; name at least one source under sources")
        rows = self._shards(settings["sources"], where)
        if stage == "supervised" and settings["mining"] is not None:
            rows = [self._negatives(settings["mining"], shards, where) for shards in rows]
        if stage == "distillation" and settings["teacher"] is not None:
            rows = [self._scores(settings["teacher"], shards, where) for shards in rows]
        plan = {"batch_size": settings["batch_size"], "epochs": settings["epochs"], "seed": self.seed}
        batches = self._spec("batches", stage, plan, rows=rows)
        training = {"stage": stage, "seed": self.seed, **self._prompts(settings["prompts"], where)}
        training |= {field: settings[field] for field in (*OF_TRAINING, *OF_STAGE[stage])}
        spec = self._spec("models", stage, training, start=start, rows=rows, batches=batches)
        self._evaluate_while_training(spec, settings.get("evaluate", {}), where)
        return spec

    def _evaluate_while_training(self, model: Spec, asked: Config, where: str) -> None:
        """Recipes that share a stage may ask for different things: all of them are done."""
        if asked:
            planned = self.evaluations.setdefault(model.key, {"steps": [], "collections": {}})
            planned["steps"] = sorted({*planned["steps"], *asked["steps"]})
            for name in asked["collections"]:
                for member in self.groups.get(name, [name]):
                    require_known(member, self._collections, f"{where}, evaluate", "collections")
                    spec, drop_self = self._collections[member]
                    planned["collections"][spec.name] = drop_self

    def _prompts(self, name: str, where: str) -> dict[str, str]:
        prompts = self.config["prompts"][require_known(name, self.config["prompts"], where, "prompts")]
        return {"query_prompt": prompts["query"], "document_prompt": prompts["document"]}

    # Evaluation

    def _plan_collections(self) -> dict[str, tuple[Spec, bool]]:
        """By name, the collection and whether a document that is the query is dropped."""
        planned: dict[str, tuple[Spec, bool]] = {}
        for name, collection in self.config["collections"].items():
            where = f"collections.{name}"
            origin = only_key(collection, ("registry", "package", "folder"), where)
            if origin == "registry":
                members = registry.collections(collection["registry"], name, where)
                if len(members) > 1:
                    self.groups[name] = [member for member, _, _ in members]
                for member, settings, drop_self in members:
                    planned[member] = (self._spec("collections", f"hub.{member}", settings), drop_self)
            elif origin == "package":
                settings = registry.package(collection) | {"queries": collection.get("queries"), "seed": self.seed}
                planned[name] = (self._spec("collections", f"package.{name}", settings), False)
            else:
                path = self._local(collection["folder"], where)
                digest = self._digests.of(path, lambda folder: content_digest(file_digests(folder)))
                settings = {"split": collection.get("split", "test"), "sha256": digest}
                spec = self._spec("collections", f"folder.{name}", settings, path)
                planned[name] = (spec, collection.get("drop_self", False))
        return planned

    def _evaluate(self, model: Spec, encoding: Config, **settings_of_model: Config) -> dict[str, Spec]:
        evaluation = self.config["evaluation"]
        measures = {}
        for name, (collection, drop_self) in self._collections.items():
            settings = {"encoding": encoding, "index": {"kind": evaluation["index"], "seed": self.seed}}
            settings |= settings_of_model
            index = self._spec("indexes", name, settings, model=model, collection=collection)
            depth = {"depth": evaluation["depth"], "drop_self": drop_self}
            run = self._spec("runs", f"colbert.{name}", depth, index=index, collection=collection)
            measures[name] = self._measure(name, run, collection)
        return measures

    def _measure(self, name: str, run: Spec, collection: Spec) -> Spec:
        settings = {"measures": self.config["evaluation"]["measures"]}
        return self._spec("measures", name, settings, run=run, collection=collection)

    def _plan_baseline(self, name: str, baseline: Config) -> Row:
        if "bm25" in baseline:
            measures = {}
            for label, (collection, drop_self) in self._collections.items():
                settings = {**baseline["bm25"], "depth": self.config["evaluation"]["depth"], "drop_self": drop_self}
                run = self._spec("runs", f"bm25.{label}", settings, collection=collection)
                measures[label] = self._measure(label, run, collection)
            return Row(name, "baseline", (), measures)
        encoding = dict(baseline["late_interaction"])
        where = f"baselines.{name}"
        model = self._base(encoding.pop("model"), where)
        encoding |= self._prompts(encoding.pop("prompts"), where)
        # What a model that has no projection yet is given, as the first stage of a recipe would.
        projection = {"dimensions": encoding.pop("dimensions"), "seed": self.seed}
        return Row(name, "baseline", (), self._evaluate(model, encoding, projection=projection))

    def _plan_report(self) -> Spec:
        # Sorted, so that the order of the config's keys decides nothing.
        rows = sorted(self.rows, key=lambda row: row.name)
        settings = {
            "study": self.name,
            "seed": self.seed,
            "measure": self.config["evaluation"]["measures"][0],
            "groups": self.groups,
            "rows": {row.name: {"kind": row.kind, "stages": [spec.name for spec in row.stages]} for row in rows},
        }
        measures = {row.name: sorted(spec.name for spec in row.measures.values()) for row in rows}
        report = Spec("reports", self.name, settings, measures)
        self.specs[report.key] = report
        return report
