"""What of a study is there: finished, begun, missing, and what a run of Snakemake would make."""

import copy
import shutil

import pytest

from colbert_zero.graph.artifact import LET_GO_FILE
from colbert_zero.graph.inventory import Inventory
from colbert_zero.graph.study import Study
from own_study import CONFIG, write_data


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data")
    config = copy.deepcopy(CONFIG)
    config["stages"]["supervised"]["evaluate"] = {"steps": [2], "collections": ["mine"]}
    return Study(config, tmp_path)


def publish(study, *leave_out):
    for spec in study.specs.values():
        if spec not in leave_out:
            spec.folder.mkdir(parents=True, exist_ok=True)
            for name in ("spec.json", "manifest.json"):
                (spec.folder / name).write_text("{}")


def of_kind(study, kind, label=""):
    (spec,) = [spec for spec in study.specs.values() if spec.kind == kind and spec.label.startswith(label)]
    return spec


def names(specs):
    found = [spec.name for spec in specs]
    assert len(found) == len(set(found))
    return set(found)


def using(study, *specs):
    """The names of some artifacts, and of all that are made from them or evaluated on them."""
    found = {spec.name for spec in specs}
    while True:
        more = {
            user.name
            for user in study.specs.values()
            for used in (*user.input_names, *study.evaluations.get(user.key, {}).get("collections", ()))
            if used in found
        }
        if more <= found:
            return found
        found |= more


def test_of_a_new_study_everything_is_made(study):
    inventory = Inventory(study)
    assert (inventory.done, inventory.begun) == (set(), set())
    assert names(inventory.to_make) == names(study.specs.values())


def test_of_a_finished_study_nothing_is_made(study):
    publish(study)
    inventory = Inventory(study)
    assert inventory.done == names(study.specs.values())
    assert inventory.to_make == inventory.missing_before(study.report) == []


def measured(study, row_name):
    """The measures of a row, their run, and what the run is made from."""
    (row,) = [row for row in study.rows if row.name == row_name]
    (measures,) = row.measures.values()
    (run,) = [spec for spec in study.inputs_of(measures) if spec.kind == "runs"]
    return measures, run, study.inputs_of(run)[0]


def test_what_is_there_is_not_made_again_for_what_is_made_from_it(study):
    measures, run, _ = measured(study, "all")
    publish(study)
    for spec in (study.report, measures, run):
        shutil.rmtree(spec.folder)
    assert names(Inventory(study).to_make) == names([study.report, measures, run])


def test_what_only_finished_artifacts_were_made_from_is_not_made_again(study):
    measures, run, index = measured(study, "all")
    publish(study)
    shutil.rmtree(index.folder)
    assert Inventory(study).done == names(study.specs.values()) - {index.name}
    assert Inventory(study).to_make == []
    shutil.rmtree(study.report.folder)
    assert Inventory(study).to_make == [study.report]
    shutil.rmtree(measures.folder)
    assert names(Inventory(study).to_make) == names([study.report, measures])
    (run.folder / "spec.json").unlink()
    assert names(Inventory(study).to_make) == names([study.report, measures, run, index])
    assert run.name in Inventory(study).done, "its step finds it, and ends"


def test_an_index_that_was_let_go_is_made_for_a_run_that_is_not_there(study):
    measures, run, index = measured(study, "all")
    publish(study)
    (index.folder / LET_GO_FILE).write_text("{}")
    assert Inventory(study).let_go == {index.name}
    assert Inventory(study).to_make == []
    for spec in (study.report, measures, run):
        shutil.rmtree(spec.folder)
    assert names(Inventory(study).to_make) == names([study.report, measures, run, index])
    assert Inventory(study).missing_before(run) == [index]


def test_what_is_made_again_has_all_that_is_made_from_it_made_again(study):
    measures, run, collection = measured(study, "bm25")
    publish(study)
    for spec in (study.report, measures, run, collection):
        shutil.rmtree(spec.folder)
    assert names(Inventory(study).to_make) == using(study, collection)
    assert using(study, collection) >= names([of_kind(study, "models", "supervised"), study.report])
    assert of_kind(study, "models", "unsupervised").name not in using(study, collection)


def test_begun_is_what_a_step_has_worked_on_and_not_published(study):
    begun, done = of_kind(study, "models", "unsupervised"), of_kind(study, "models", "supervised")
    for spec in (begun, done):
        spec.state.mkdir(parents=True)
    (begun.state.parent / "another-0123456789ab").mkdir()
    done.folder.mkdir(parents=True)
    (done.folder / "manifest.json").write_text("{}")
    begun.folder.mkdir(parents=True)
    inventory = Inventory(study)
    assert (inventory.done, inventory.begun) == ({done.name}, {begun.name})


def test_what_is_missing_before_an_artifact_is_told_the_nearest_first(study):
    negatives = of_kind(study, "negatives", "lines")
    kinds = [spec.kind for spec in Inventory(study).missing_before(negatives)]
    assert kinds == ["shards", "candidates", "candidates", "scores", "sources"]
    shards = of_kind(study, "shards", "lines")
    shards.folder.mkdir(parents=True)
    (shards.folder / "manifest.json").write_text("{}")
    assert [spec.kind for spec in Inventory(study).missing_before(negatives)] == ["candidates", "candidates", "scores"]
    # A training needs what it is evaluated on.
    assert "collections" in {spec.kind for spec in Inventory(study).missing_before(of_kind(study, "models", "superv"))}
