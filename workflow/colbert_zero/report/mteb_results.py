"""What a study found in the form of MTEB's result files, for the collections of the registry that are tasks of MTEB.

The folder `mteb` of a report is what `mteb.ResultCache` reads: `results/STUDY__ROW/REVISION/TASK.json`, and a
`model_meta.json` beside them. A row's revision is the key of its model, or the parameters of BM25. No version of MTEB
is named, since none of it ran. All rows drop a retrieved document whose id is the query's, as the paper's evaluation
does; MTEB does so for some tasks alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from colbert_zero.evaluation.values import VALUES_FILE, mean_value, read_values
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.measures import canonical_name
from colbert_zero.graph.registry import mteb_group_tasks, mteb_tasks
from colbert_zero.report.results import Lineage, Replicate

FOLDER = "mteb/results"
MAIN_SCORE = "ndcg_at_10"
"""The main score of all these tasks; without it there is no result."""
SCORES = {
    "nDCG": "ndcg_at",
    "AP": "map_at",
    "R": "recall_at",
    "P": "precision_at",
    "RR": "mrr_at",
    "Success": "hit_rate_at",
}
"""MTEB's names for measures; it has no others of ours."""
LANGUAGES = ["eng-Latn"]
SUBSET = "default"

Scores = dict[str, float]


def mteb_files(study: str, replicates: Sequence[Replicate], lineage: Lineage) -> Iterator[tuple[str, str]]:
    """The path and the text of each file, sorted by row; none where no collection is a task of MTEB.

    Args:
        study: The study's name.
        replicates: The rows of the table, each of its seeds by itself.
        lineage: The artifacts behind their measures.
    """
    tasks = mteb_tasks()
    for replicate in sorted(replicates, key=lambda replicate: replicate.name):
        results: dict[str, dict[str, Any]] = {}
        for measures in replicate.measures.values():
            collection = lineage.artifacts[measures.spec.inputs["collection"][0]].spec.settings
            pins = tuple(str(collection.get(field)) for field in ("hub", "revision", "split"))
            task = tasks.get(pins)
            scores = _scores(measures) if task is not None else {}
            if task is not None and MAIN_SCORE in scores:
                seconds = _seconds(measures, lineage)
                results[task] = _result(task, collection["revision"], collection["split"], scores, seconds)
        if not results:
            continue
        results |= _group_results(results)
        meta = _model_meta(f"{study}/{replicate.name}", next(iter(replicate.measures.values())), lineage)
        folder = f"{FOLDER}/{_folder_name(meta['name'])}/{_folder_name(meta['revision'])}"
        yield f"{folder}/model_meta.json", _json(meta)
        for task, result in sorted(results.items()):
            yield f"{folder}/{task}.json", _json(result)


def _folder_name(name: str) -> str:
    """What MTEB calls the folder of a model or of a revision; whatever is in a name, it is one folder."""
    return re.sub(r"[^\w.@-]", "_", name.replace("/", "__"))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def _scores(measures: Artifact) -> Scores:
    """The means over queries, as MTEB names them."""
    scores = {}
    for name, values in sorted(read_values(measures.file(VALUES_FILE)).items()):
        found = re.fullmatch(r"(\w+)@(\d+)", canonical_name(name))
        if found and found[1] in SCORES:
            scores[f"{SCORES[found[1]]}_{found[2]}"] = mean_value(values)
    return scores


def _seconds(measures: Artifact, lineage: Lineage) -> float:
    """What it took to index, search and measure."""
    run = lineage.artifacts[measures.spec.inputs["run"][0]]
    steps = [measures, run, *(lineage.artifacts[name] for name in run.spec.inputs.get("index", ()))]
    return round(math.fsum(step.manifest["seconds"] for step in steps), 3)


def _result(task: str, revision: str, split: str, scores: Scores, seconds: float) -> dict[str, Any]:
    """A `TaskResult` of MTEB."""
    entry = {**scores, "main_score": scores[MAIN_SCORE], "hf_subset": SUBSET, "languages": LANGUAGES}
    return {
        "dataset_revision": revision,
        "task_name": task,
        "mteb_version": None,
        "scores": {split: [entry]},
        "evaluation_time": seconds,
        "kg_co2_emissions": None,
    }


def _group_results(results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The results of the tasks that are means over others, where all of these are there."""
    of_groups = {}
    for task, (revision, members) in mteb_group_tasks().items():
        of_members = [results[member] for member in members if member in results]
        if len(of_members) < len(members):
            continue
        (split,) = of_members[0]["scores"]
        score = fmean(result["scores"][split][0]["main_score"] for result in of_members)
        seconds = round(math.fsum(result["evaluation_time"] for result in of_members), 3)
        of_groups[task] = _result(task, revision, split, {MAIN_SCORE: score}, seconds)
    return of_groups


def _model_meta(name: str, measures: Artifact, lineage: Lineage) -> dict[str, Any]:
    """A `ModelMeta` of MTEB; null is what is not known here."""
    run = lineage.artifacts[measures.spec.inputs["run"][0]]
    known: dict[str, Any]
    if "index" not in run.spec.inputs:
        parameters = "-".join(f"{name}-{run.spec.settings[name]}" for name in ("k1", "b"))
        known = {"revision": parameters, "model_type": ["sparse"], "framework": [], "use_instructions": False}
    else:
        index = lineage.artifacts[run.spec.inputs["index"][0]]
        model = lineage.artifacts[index.spec.inputs["model"][0]]
        encoding = index.facts.get("encoding") or index.spec.settings["encoding"]
        dense = "similarity" in index.facts
        known = {
            "revision": model.spec.key,
            "model_type": ["dense" if dense else "late-interaction"],
            "framework": ["Sentence Transformers" if dense else "PyLate"],
            "similarity_fn_name": index.facts["similarity"] if dense else "MaxSim",
            "embed_dim": index.facts["dimensions"],
            "max_tokens": encoding.get("maximum_length" if dense else "document_length"),
            "use_instructions": bool(encoding.get("query_prompt") or encoding.get("document_prompt")),
            "adapted_from": _base(model, lineage).spec.settings.get("hub"),
        }
    return {
        "loader": None,
        "name": name,
        "release_date": None,
        "languages": None,
        "n_parameters": None,
        "memory_usage_mb": None,
        "max_tokens": None,
        "embed_dim": None,
        "license": None,
        "open_weights": None,
        "public_training_code": None,
        "public_training_data": None,
        "similarity_fn_name": None,
        "training_datasets": None,
        **known,
    }


def _base(model: Artifact, lineage: Lineage) -> Artifact:
    """What a model was trained from, by however many stages; a base itself."""
    while model.spec.kind != "bases":
        model = lineage.artifacts[(model.spec.inputs.get("start") or model.spec.inputs["models"])[0]]
    return model
