"""The card of a released model: Markdown with the front matter of the Hugging Face Hub.

All of it comes from the records of a report's row, and of what that is made from. Hosts, users and paths of machines
are left out: a card is for everyone. https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import yaml

from colbert_zero import __version__
from colbert_zero.graph.artifact import KEY_DIGITS, MANIFEST_FILE, SPEC_FILE, Artifact, Spec
from colbert_zero.graph.digests import file_digest
from colbert_zero.report.chain import leaves, origin, show
from colbert_zero.report.columns import duration
from colbert_zero.report.costs import entry_of, total
from colbert_zero.report.markdown import code, plain, quoted
from colbert_zero.report.overlaps import EXPLANATION, PARTS, collection_name, overlaps
from colbert_zero.report.page import LOADING, MODEL_FOLDER, Report
from colbert_zero.report.results import Row
from colbert_zero.report.sections import ABSENT, format_cell, stage_name
from colbert_zero.report.statistics.resampling import RESAMPLES, Sample, resampled_means, whole
from colbert_zero.report.statistics.significance import CONFIDENCE
from colbert_zero.report.text_tables import markdown_table

CARD_FILE, SUMS_FILE = "README.md", "SHA256SUMS"
RECORDS_FOLDER = "provenance"
"""Where a release keeps the specs and manifests behind it, each under its artifact's name."""
SIGNATURES_FOLDER = f"{RECORDS_FOLDER}/signatures"
PROJECT = "ColBERT-Zero as one graph"
LOADED_FOLDER = "FOLDER"
"""The model's folder in the code of a card."""
TAGS = ("ColBERT", "PyLate", "sentence-transformers", "multi-vector", "sentence-similarity", "feature-extraction")
"""Tags by which the Hub finds late-interaction models; the first ones are those that PyLate gives its own."""
MEAN = "mean"
NUMBER = re.compile(r"-?\d+\.\d+")
NAMES_SHOWN = 4
ENCODING = ("query_prompt", "document_prompt", "query_length", "document_length", "query_expansion", "dimensions")
"""Settings of a training that say how texts become vectors."""


def only_row(report: Spec, name: str) -> Spec:
    """The spec of a report that has nothing but one row, or one seed of a row, of another."""
    settings = {key: value for key, value in report.settings.items() if key != "seeds"}
    settings["rows"] = {name: report.settings["rows"][name]}
    return Spec(report.kind, report.label, settings, {name: report.inputs[name]})


def trained(stage: Artifact, artifacts: Mapping[str, Artifact]) -> Artifact:
    """The model that a stage gave: of a sweep, the one that was selected."""
    return artifacts[stage.facts["model"]] if stage.spec.kind == "selections" else stage


@dataclass
class ModelCard:
    """The card of a release.

    Attributes:
        spec: The release's spec.
        report: The report that has its row.
        alone: A report of this row alone.
    """

    spec: Spec
    report: Artifact
    alone: Report

    @classmethod
    def open(cls, spec: Spec) -> ModelCard:
        """Open what a release's spec names, and all that the row is made from.

        Raises:
            UserError: An artifact is missing or damaged.
        """
        report = Artifact.open(spec.inputs["report"][0])
        return cls(spec, report, Report.open(only_row(report.spec, spec.settings["row"])))

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """The row's measures, and all artifacts that they are made from, by name."""
        return self.alone.lineage.artifacts

    @cached_property
    def row(self) -> Row:
        """The row."""
        (row,) = self.alone.rows
        return row

    @cached_property
    def stages(self) -> list[Artifact]:
        """The models that its stages gave, in order."""
        return [trained(stage, self.artifacts) for stage in self.row.stages]

    @property
    def model(self) -> Artifact:
        """The artifact whose files are released: the model of the last stage."""
        return self.row.stages[-1]

    @cached_property
    def ancestors(self) -> set[str]:
        """The names of the model and of all that it is made from."""
        return self.alone.lineage.with_ancestors([self.model.name])

    @cached_property
    def base(self) -> Artifact:
        """What the first stage started from."""
        return self.artifacts[self.stages[0].spec.inputs["start"][0]]

    @cached_property
    def audit(self) -> Artifact | None:
        """The audit that the study ended with, if it did."""
        names = (name for names in self.report.spec.inputs.values() for name in names)
        return next((Artifact.open(name) for name in names if name.startswith("audits/")), None)

    @cached_property
    def values(self) -> dict[str, float]:
        """The row's value in each column, and the mean of these: between 0 and 1."""
        names = [*(column.name for column in self.alone.columns), MEAN]
        return dict(zip(names, self.alone.values(self.row), strict=True))

    @cached_property
    def text(self) -> str:
        """The card."""
        parts = [self._front_matter(), *self._introduction()]
        for title, section in (
            ("Use", self._use()),
            ("Results", self._results()),
            ("Training data", self._data()),
            ("Training", self._training()),
            ("Texts of the test in the training rows", self._contamination()),
            ("Cost", self._cost()),
            ("Where it comes from, and how to verify it", self._provenance()),
        ):
            parts += [f"## {title}\n", *section]
        return "\n".join(part.rstrip("\n") + "\n" for part in parts)

    def _front_matter(self) -> str:
        sources = (self.artifacts[name] for name in self.ancestors if name.startswith("sources/"))
        datasets = sorted({source.spec.settings["hub"] for source in sources if "hub" in source.spec.settings})
        base = self.base.spec.settings.get("hub")
        said = self.spec.settings
        data = {
            "library_name": "PyLate",
            "pipeline_tag": "sentence-similarity",
            "tags": list(TAGS),
            **({"license": said["license"]} if "license" in said else {}),
            **({"language": said["language"]} if "language" in said else {}),
            **({"base_model": base, "base_model_relation": "finetune"} if base else {}),
            **({"datasets": datasets} if datasets else {}),
            "model-index": [
                {"name": said["row"], "results": [self._result(name, value) for name, value in self.values.items()]}
            ],
        }
        return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10_000)}---\n"

    def _result(self, name: str, value: float) -> Mapping[str, Any]:
        collections = [artifact for artifact in self._collections.values() if collection_name(artifact.name) == name]
        dataset = {"type": next((artifact.spec.settings.get("hub") for artifact in collections), None) or name}
        return {
            "task": {"type": "information-retrieval", "name": "Information Retrieval"},
            "dataset": {**dataset, "name": name},
            "metrics": [{"type": self.row.measure, "name": self.row.measure, "value": value}],
        }

    @cached_property
    def _collections(self) -> Mapping[str, Artifact]:
        """The collection that each of the row's measures is on, by the name of the collection in tables."""
        return {
            name: self.artifacts[measure.spec.inputs["collection"][0]]
            for name, measure in self.row.replicates[0].measures.items()
        }

    def _introduction(self) -> Iterator[str]:
        settings = self.stages[-1].spec.settings
        said = self.spec.settings
        yield f"# {plain(said['row'])}\n"
        yield (
            f"A late-interaction (ColBERT) retriever: each token of a text becomes a vector of "
            f"{settings.get('dimensions', 128)} dimensions, and the score of a document is MaxSim: for each token of "
            "the query the greatest similarity to any token of the document, summed over the query's tokens. It was "
            f"trained by the recipe {code(said['row'])} of the study {code(self.report.spec.settings['study'])} with "
            f"{PROJECT}, version {__version__}.\n"
        )
        license_note = (
            code(said["license"])
            if "license" in said
            else "not given: what whoever publishes this may give depends on the licenses of base and data"
        )
        rows = [
            ["stages", " → ".join(plain(stage_name(stage)) for stage in self.stages)],
            ["base", _origin(self.base)],
            ["parameters", _shown(self.stages[-1].facts.get("parameters"))],
            *([name.replace("_", " "), _setting(name, settings.get(name))] for name in ENCODING),
            ["seed", plain(str(settings.get("seed", ABSENT)))],
            ["license", license_note],
        ]
        yield _table(["", ""], rows)

    def _use(self) -> Iterator[str]:
        yield (
            f"{code(LOADED_FOLDER)} is this folder, or its name on the Hub; `queries` and `documents` are lists of "
            "texts. Prompts and lengths are saved with the model, so they need not be given, and retrieval is worse "
            "with others.\n"
        )
        for library, recipe in LOADING.items():
            yield f"### {library}\n"
            yield f"```python\n{recipe.replace(MODEL_FOLDER, LOADED_FOLDER)}```\n"

    def _results(self) -> Iterator[str]:
        measure = self.row.measure
        rows = []
        for column, resampled in zip(self.alone.columns, self._resampled, strict=True):
            measures = [self.row.replicates[0].measures[name] for name in column.collections]
            collections = [self._collections[name] for name in column.collections]
            rows.append(
                [
                    plain(column.name),
                    _names([_origin(artifact) for artifact in collections]),
                    " ".join(sorted({self._searched(artifact) for artifact in measures})),
                    *(_sum(collections, name) for name in ("documents", "queries")),
                    *_points(self.row.value(column), resampled),
                ]
            )
        rows.append([MEAN, "", "", "", "", *_points(self.alone.mean(self.row), np.mean(self._resampled, axis=0))])
        header = ["collection", "from", "searched", "documents", "queries", f"{plain(measure)} × 100", "95 % interval"]
        yield _table(header, rows, numeric=4)
        yield self._legend()
        yield from self._selections()

    def _searched(self, measure: Artifact) -> str:
        """How the index of a collection was made, where it is otherwise than the model says."""
        run = self.artifacts[measure.spec.inputs["run"][0]]
        index = self.artifacts[run.spec.inputs["index"][0]]
        encoding = index.facts.get("encoding") or index.spec.settings.get("encoding", {})
        settings = self.stages[-1].spec.settings
        changed = [name for name, value in encoding.items() if name in settings and value != settings[name]]
        said = [f"{name.replace('_', ' ')} {_setting(name, encoding[name])}" for name in changed]
        return ", ".join([plain(f"{index.facts.get('kind', 'exact')} index"), *said])

    def _legend(self) -> str:
        grouped = [column.name for column in self.alone.columns if column.collections != (column.name,)]
        notes = [
            f"{plain(self.row.measure)} is the mean over all judged queries; the mean is over "
            f"{len(self.alone.columns)} column(s)"
            + (f", and {', '.join(map(plain, grouped))} counts once" if grouped else ""),
            f"The intervals are percentiles of {RESAMPLES} resamples of the queries: they do not cover the variation "
            "between training seeds",
        ]
        return ". ".join(notes) + ".\n"

    def _selections(self) -> Iterator[str]:
        """What was used to select a model of the chain, and so is not held out."""
        for name in sorted(name for name in self.ancestors if name.startswith("selections/")):
            selection = self.artifacts[name]
            facts = selection.facts
            chosen = ", ".join(f"{plain(key)} {plain(str(value))}" for key, value in facts["selected"].items())
            tried = [
                f"{', '.join(plain(str(value)) for value in values.values())}: {100 * mean:.2f}"
                for values, mean in zip(facts["values"], facts["means"], strict=True)
            ]
            yield (
                f"**Not held out:** {', '.join(map(plain, facts['collections']))}. By its "
                f"{plain(selection.spec.settings['measure'])} there, the model of the stage "
                f"{plain(selection.spec.settings['stage'])} was selected ({chosen}) among {len(tried)}: "
                f"{'; '.join(tried)}.\n"
            )

    def _data(self) -> Iterator[str]:
        rows = []
        for stage in self.stages:
            batches = self._batches(stage)
            steps: Mapping[str, int] = batches.facts.get("steps_by_source", {}) if batches else {}
            total = sum(steps.values())
            for name in stage.spec.inputs.get("rows", ()):
                used = self.artifacts[name]
                shards = used if used.spec.kind == "shards" else self.artifacts[used.spec.inputs["shards"][0]]
                source = self.artifacts[shards.spec.inputs["source"][0]]
                share = shards.spec.settings.get("share", 1)
                drawn = "" if share == 1 else f", the first {plain(f'{100 * share:g}')} % in the shuffled order"
                taken = steps.get(used.spec.label)
                rows.append(
                    [
                        plain(stage_name(stage)),
                        plain(shards.spec.label),
                        _origin(source) + drawn,
                        _shown(source.facts.get("rows")),
                        _shown(used.facts.get("rows")),
                        ABSENT if taken is None else _shown(taken),
                        ABSENT if not (taken and total) else f"{100 * taken / total:.1f} %",
                    ]
                )
        yield _table(["stage", "source", "from", "its rows", "rows used", "batches", "share of batches"], rows, 4)
        yield from self._prepared()
        others = sorted(name for name in self.ancestors if name.startswith("bases/") and name != self.base.name)
        if others:
            named = "; ".join(f"{plain(_label(name))} ({_origin(self.artifacts[name])})" for name in others)
            yield f"Other models had a part in making these rows: {named}.\n"
        yield (
            "Licenses and personal data of the sources are not recorded here: see the cards of the data sets at the "
            "revisions above.\n"
        )

    def _prepared(self) -> Iterator[str]:
        """How candidates, negatives and scores were made: what is made alike stands in one line."""
        alike: dict[tuple[str, str], list[str]] = {}
        for kind in ("shards", "candidates", "negatives", "scores"):
            for name in sorted(name for name in self.ancestors if name.startswith(f"{kind}/")):
                settings = self.artifacts[name].spec.settings
                words = ", ".join(f"{path.replace('_', ' ')} {show(path, value)}" for path, value in leaves(settings))
                how = _label(name).partition(".")[0] if kind in ("candidates", "scores") else ""
                alike.setdefault((f"{kind} {how}".strip(), words), []).append(_label(name).rpartition(".")[2])
        rows = [[plain(kind), _names(list(map(plain, of))), plain(words)] for (kind, words), of in alike.items()]
        if rows:
            yield _table(["made", "of", "with"], rows)

    def _training(self) -> Iterator[str]:
        names = list(dict.fromkeys(name for stage in self.stages for name in stage.spec.settings if name != "stage"))
        rows = [
            [plain(name.replace("_", " ")), *(_setting(name, stage.spec.settings.get(name)) for stage in self.stages)]
            for name in names
        ]
        for name in ("batch_size", "epochs", "steps", "samples", "final_loss"):
            cells = [_shown(stage.facts.get(name)) for stage in self.stages]
            rows.append([plain(name.replace("_", " ")), *cells])
        yield _table(["", *(plain(stage_name(stage)) for stage in self.stages)], rows, len(self.stages))

    def _batches(self, stage: Artifact) -> Artifact | None:
        names = stage.spec.inputs.get("batches", ())
        return self.artifacts[names[0]] if names else None

    def _contamination(self) -> Iterator[str]:
        names = self.audit.spec.settings["rows"][self.spec.settings["row"]]["contamination"] if self.audit else ()
        if not names:
            yield "Not counted: the study ended without an audit.\n"
            return
        yield f"{plain(EXPLANATION)}\n"
        counts = overlaps([Artifact.open(name) for name in names])
        rows = [
            [
                plain(collection_name(name)),
                *(str(number) for part in PARTS for number in astuple(parts[part])),
            ]
            for name, parts in counts.items()
        ]
        header = ["collection", *(title for part in PARTS.values() for title in (part, "exact", "13-gram"))]
        yield _table(header, rows, numeric=3 * len(PARTS))

    def _cost(self) -> Iterator[str]:
        rows = []
        for stage in self.row.stages:
            models = [self.artifacts[name] for name in stage.spec.inputs.get("models", (stage.name,))]
            cost = total(entry_of(model.spec, model.manifest) for model in models)
            made = trained(stage, self.artifacts)
            rows.append(
                [
                    plain(stage_name(made))
                    + (f", {len(models)} trainings to select from" if stage is not made else ""),
                    plain(f"{made.facts.get('processes', 1)} × {made.facts.get('device', 'cpu')}"),
                    plain(duration(stage.facts["seconds"])),
                    f"{cost.gpu_hours:.2f}",
                    f"{cost.cpu_hours:.2f}",
                ]
            )
        for title, names in (
            ("**all that the model rests on**", self.ancestors),
            ("its evaluation", self.artifacts.keys() - self.ancestors),
        ):
            made_of = (self.artifacts[name] for name in sorted(names))
            cost = total(entry_of(artifact.spec, artifact.manifest) for artifact in made_of)
            row = [title, "", plain(duration(cost.seconds)), f"{cost.gpu_hours:.2f}", f"{cost.cpu_hours:.2f}"]
            rows.append(row)
        yield _table(["", "on", "time", "GPU-hours", "CPU-hours"], rows, numeric=3)
        yield (
            "A stage's time is that of its training; hours count all attempts, failed ones included. What several "
            "recipes share counts in full.\n"
        )

    def _provenance(self) -> Iterator[str]:
        name, model = self.report.name, self.model
        manifest = model.manifest
        digest, commit = manifest["code"]["digest"], manifest["code"].get("commit")
        packages = manifest["packages"]
        libraries = ", ".join(
            f"{library} {packages[library]}"
            for library in ("pylate", "sentence-transformers", "transformers", "torch")
            if library in packages
        )
        rows = [
            ["model", code(model.name)],
            ["its key", f"{code(model.spec.key)}: the first {KEY_DIGITS} hex digits of the SHA-256 of its spec"],
            ["report", code(name)],
            ["SHA-256 of the report's manifest", code(file_digest(self.report.folder / MANIFEST_FILE))],
            *self._audited(),
            ["code", code(digest[:KEY_DIGITS]) + (f", at commit {code(commit)}" if commit else "")],
            ["libraries", plain(libraries)],
            ["Python", plain(manifest["python"])],
        ]
        yield _table(["", ""], rows)
        yield (
            f"{code(f'{RECORDS_FOLDER}/')} has the spec of every artifact behind the numbers above, and the manifests "
            "from the report down to the weights. A manifest has the digests of its artifact's files and of its "
            "inputs' manifests: the digest of the report's manifest stands for them all, and so for the weights.\n"
        )
        yield (
            f"```sh\nsha256sum -c {SUMS_FILE}   # the files are those that were released\n"
            f"sha256sum {RECORDS_FOLDER}/{model.name}/{SPEC_FILE}   # begins with the key\n"
            f"sha256sum {RECORDS_FOLDER}/{name}/{MANIFEST_FILE}   # as above\n"
            "colbert-zero verify --directory STUDY   # with the study at hand: all of it, numbers included\n```\n"
        )
        signatures = [file for file in self.spec.settings.get("signatures", {}) if file.endswith(".sig")]
        if signatures:
            file = f"{SIGNATURES_FOLDER}/{signatures[0]}"
            yield (
                "The report is signed. With a file of the signers whom you trust (`ssh-keygen`, ALLOWED SIGNERS):\n\n"
                f"```sh\nssh-keygen -Y verify -f SIGNERS -I NAME -n colbert-zero-report -s {file} "
                f"< {file.removesuffix('.sig')}\n```\n"
            )
        else:
            yield "The report is not signed.\n"
        yield (
            "To compute the numbers again from this folder alone, evaluate it as a row of a study of its own:\n\n"
            "```yaml\nmodels: { released: { folder: FOLDER } }\n"
            "baselines: { released: { late_interaction: { model: released } } }\n```\n\n"
            "and the collections above under `collections`.\n"
        )

    def _audited(self) -> Iterator[list[str]]:
        if self.audit is not None:
            artifacts, found = (_shown(self.audit.facts[name]) for name in ("artifacts", "findings"))
            yield ["audit", f"{code(self.audit.name)}: {artifacts} artifacts verified, {found} findings"]

    @cached_property
    def _resampled(self) -> list[Any]:
        """Of each column, its mean in each resample of the queries."""
        seed = self.report.spec.settings["seed"]
        return [
            resampled_means([self._sample(name, 1 / len(column.collections)) for name in column.collections], seed)[0]
            for column in self.alone.columns
        ]

    def _sample(self, collection: str, weight: float) -> Sample:
        values = np.array(list(self.row.values_per_query[collection].values()))
        return Sample(collection, whole(values[:, None]), weight)


def card_numbers(text: str) -> tuple[dict[str, float], dict[str, float]]:
    """What a card says that the model is worth: by collection or group, and as their mean.

    Returns:
        The exact values of the front matter, between 0 and 1, and those of the table of results, in points.

    Raises:
        ValueError, KeyError, TypeError: It is no such card.
    """
    _, front, body = text.split("---\n", 2)
    (index,) = yaml.safe_load(front)["model-index"]
    exact = {result["dataset"]["name"]: float(result["metrics"][0]["value"]) for result in index["results"]}
    _, _, results = body.partition("\n## Results\n")
    printed = {}
    for line in results.partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 7 and NUMBER.fullmatch(cells[5]):
            printed[re.sub(r"\\(.)", r"\1", cells[0])] = float(cells[5])
    return exact, printed


def _points(value: float, resampled: Any) -> list[str]:
    """A value and the percentile interval of its resamples, in points."""
    tail = (1 - CONFIDENCE) / 2
    low, high = 100 * np.quantile(resampled, [tail, 1 - tail])
    return [f"{100 * value:.2f}", f"{low:.2f} to {high:.2f}"]


def _label(name: str) -> str:
    return name.partition("/")[2][: -KEY_DIGITS - 1]


def _origin(artifact: Artifact) -> str:
    """Where an artifact's bytes came from, in Markdown."""
    settings = artifact.spec.settings
    if "hub" in settings:
        folder = "" if artifact.spec.kind == "bases" else "datasets/"
        at = f" at revision {code(str(settings.get('revision')))}"
        split = f", split {code(settings['split'])}" if "split" in settings else ""
        return f"[{plain(settings['hub'])}](https://huggingface.co/{folder}{settings['hub']}){at}{split}"
    found = origin(settings)
    if found:
        return plain(found)
    return f"random weights, {code(artifact.name)}" if artifact.spec.kind == "bases" else code(artifact.name)


def _setting(name: str, value: Any) -> str:
    """A setting's value; prompts are quoted, so that a space at their end is visible."""
    return quoted(value) if name.endswith("prompt") else _shown(value)


def _shown(value: Any) -> str:
    """A fact or a setting; digits of large numbers are grouped by commas, since a card is read in any font."""
    return plain(format_cell(value).text.replace("\u202f", ","))


def _names(texts: Sequence[str]) -> str:
    """Some names; of many the first ones and a count."""
    more = len(texts) - NAMES_SHOWN
    return ", ".join(texts[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _sum(artifacts: Sequence[Artifact], fact: str) -> str:
    counts = [artifact.facts.get(fact) for artifact in artifacts]
    return _shown(sum(counts)) if all(isinstance(count, int) for count in counts) else ABSENT


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: int = 0) -> str:
    """A table whose last `numeric` columns are numbers."""
    return "\n".join(markdown_table([header, *rows], range(len(header) - numeric))) + "\n"
