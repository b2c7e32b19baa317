"""What an evaluation asks for, and which evaluations are one job."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import yaml

from colbert_zero.graph.config import read_config
from colbert_zero.graph.evaluation_jobs import EvaluationJobs
from colbert_zero.graph.study import Study
from own_study import CONFIG, write_data

ROOT = Path(__file__).parents[3]
RESOURCES = {
    "default": {"mem_mb": 3000, "runtime": 30},
    "build_index": {"mem_mb": 64_000, "runtime": 480},
    "search_index": {"mem_mb": 16_000, "runtime": 240},
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study whose collections are planned, and not there."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write_data(Path("data"))
    collections = {name: {"folder": "data/mine"} for name in ("small", "medium", "large")}
    collections["unread"] = {"package": "numpy", "queries": 10}
    Path("config.yaml").write_text(
        yaml.safe_dump(json.loads(json.dumps(CONFIG | {"collections": collections, "resources": RESOURCES})))
    )
    return Study(read_config(Path("config.yaml")), Path())


def fetch(study, **documents):
    """Put collections there."""
    for spec in study.specs.values():
        count = documents.get(spec.label.removeprefix("folder."))
        if spec.kind == "collections" and count is not None:
            spec.folder.mkdir(parents=True)
            (spec.folder / "manifest.json").write_text(json.dumps({"outputs": {}, "facts": {"documents": count}}))


def evaluated(study, row, collection):
    """Index, run and measures of a row on a collection."""
    (planned,) = [each for each in study.rows if each.name == row]
    measures = planned.measures[collection]
    (run,) = [spec for spec in study.inputs_of(measures) if spec.kind == "runs"]
    return [*(spec for spec in study.inputs_of(run) if spec.kind == "indexes"), run, measures]


def test_a_models_small_collections_are_one_job_and_each_large_one_has_its_own(study):
    fetch(study, small=400, medium=99_999, large=100_000)
    groups = EvaluationJobs(study)
    (model,) = [row.stages[-1] for row in study.rows if row.stages]
    of_model = f"evaluation-{model.label}-{model.key}"
    for collection, expected in {"small": of_model, "medium": of_model, "large": None, "unread": None}.items():
        assert {groups.group(spec) for spec in evaluated(study, "all", collection)} == {expected}
    assert {groups.group(spec) for spec in evaluated(study, "bm25", "small")} == {"evaluation-bm25"}


def test_what_a_step_asks_for_goes_with_its_collection(study):
    fetch(study, small=400, medium=50_000, large=1_000_000)
    groups = EvaluationJobs(study)

    def asked(collection, attempt=1):
        index, run, measures = evaluated(study, "all", collection)
        steps = ((index, "build_index"), (run, "search_index"), (measures, "measure_run"))
        return [
            tuple(groups.resource(spec, step, name, attempt) for name in ("runtime", "mem_mb")) for spec, step in steps
        ]

    # Never more than the config says, nor less than five minutes and 16,000 MB.
    assert asked("small") == [(5, 16_000), (5, 16_000), (5, 3000)]
    assert asked("medium") == [(12, 16_000), (6, 16_000), (5, 3000)]
    assert asked("large") == [(240, 32_000), (120, 16_000), (15, 3000)]
    index, _, _ = evaluated(study, "all", "medium")
    assert groups.resource(index, "build_index", "runtime") == 12, "the first attempt"
    # Each attempt asks for twice as much as the one before.
    assert asked("medium", 2) == [(24, 32_000), (12, 16_000), (10, 3000)]
    assert asked("medium", 11) == [(480, 64_000), (240, 16_000), (30, 3000)]
    assert asked("unread") == [(480, 64_000), (240, 16_000), (30, 3000)]
    index = evaluated(study, "all", "small")[0]
    assert groups.resource(index, "build_index", "threads") == study.resource("build_index", "threads")


def test_what_is_no_evaluation_asks_for_what_the_config_says(study):
    fetch(study, small=400)
    (model,) = [row.stages[-1] for row in study.rows if row.stages]
    assert EvaluationJobs(study).resource(model, "distillation", "mem_mb") == 3000


@pytest.mark.parametrize(
    "manifest",
    [None, "{", '{"outputs": {}, "facts": {}}', '{"outputs": {}, "facts": {"documents": "3"}}'],
    ids=["none", "damaged", "other", "no number"],
)
@pytest.mark.parametrize(("bytes_there", "one_job"), [(99_999_999, True), (100_000_000, False)])
def test_a_folder_that_was_not_read_yet_counts_by_its_bytes(study, manifest, bytes_there, one_job):
    fetch(study, small=400)
    for path in Path().glob("resources/collections/*/manifest.json"):
        path.unlink() if manifest is None else path.write_text(manifest)
    os.truncate("data/mine/corpus.jsonl", bytes_there)
    index = evaluated(study, "all", "small")[0]
    assert (EvaluationJobs(study).group(index) is not None) is one_job


def test_of_the_papers_evaluations_those_on_17_collections_are_a_job_for_each_model(tmp_path):
    study = Study(read_config(ROOT / "config.yaml"), tmp_path, resolve=lambda *_: None)
    groups = EvaluationJobs(study)
    jobs = Counter(groups.group(spec) for spec in study.specs.values() if spec.kind in ("indexes", "runs", "measures"))
    alone = jobs.pop(None)
    rows = len(study.rows)
    # Index, run and measures of each; BM25 has no index, and one model is a second row, at other lengths.
    assert Counter(jobs.values()) == {17 * 3: rows - 3, 17 * 2: 1, 17 * 3 * 2: 1}
    assert alone == (rows - 1) * 9 * 3 + 9 * 2
