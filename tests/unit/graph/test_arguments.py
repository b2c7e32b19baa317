"""Arguments of steps in files: written before a run, found by the steps, deleted once their artifacts are there."""

import json

import pytest
import yaml

from colbert_zero.graph.arguments import delete_used_arguments, write_arguments
from colbert_zero.graph.artifact import STATE_FOLDER, Spec, run_step
from colbert_zero.graph.study import Study
from own_study import CONFIG, write_data


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    config["stages"]["supervised"]["evaluate"] = {"steps": [2], "collections": ["mine"]}
    return Study(config, tmp_path)


def files():
    return {path for path in STATE_FOLDER.rglob("*") if path.suffix == ".json"}


def test_each_artifact_has_the_file_of_its_spec(study):
    write_arguments(study, study.specs)
    evaluations = {study.specs[key].argument_file("evaluate"): value for key, value in study.evaluations.items()}
    assert len(evaluations) == 1
    specs = {spec.argument_file("spec"): spec for spec in study.specs.values()}
    assert files() == specs.keys() | evaluations.keys()
    for path, spec in specs.items():
        assert Spec.from_argument(str(path)) == Spec.from_argument(spec.text)
    for path, evaluation in evaluations.items():
        assert json.loads(path.read_text()) == evaluation


def test_keys_of_others_are_left_alone(study):
    """Images have keys as well."""
    write_arguments(study, ["0123456789ab", study.report.key])
    assert files() == {study.report.argument_file("spec")}


def test_a_damaged_file_is_written_again_and_an_intact_one_is_not(study):
    path, other = (spec.argument_file("spec") for spec in list(study.specs.values())[:2])
    write_arguments(study, study.specs)
    path.write_bytes(bytes(path.stat().st_size))
    before = other.stat().st_ino, other.stat().st_mtime_ns  # Reading may change the time of access.
    write_arguments(study, study.specs)
    assert Spec.from_argument(str(path)).text in {spec.text for spec in study.specs.values()}
    assert (other.stat().st_ino, other.stat().st_mtime_ns) == before


def test_files_of_published_artifacts_are_deleted(study):
    (source,) = [spec for spec in study.specs.values() if spec.name.startswith("sources/file.lines")]
    write_arguments(study, study.specs)
    everything = files()
    (STATE_FOLDER / "shards" / "notes.json").write_text("mine")
    assert run_step(lambda job: {}, "", ["--spec", str(source.argument_file("spec"))]) == 0
    delete_used_arguments()
    assert files() == everything - {source.argument_file("spec")} | {STATE_FOLDER / "shards" / "notes.json"}
