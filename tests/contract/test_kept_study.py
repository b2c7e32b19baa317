"""A finished study that version 0.1.0 made: later code opens, verifies, evaluates and extends it.

`tests/fixtures/study-0.1.0` is never made again. A change that these tests refuse would leave people with artifacts
that their new version cannot read.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from colbert_zero import cli
from colbert_zero.evaluation import index, measure, search
from colbert_zero.graph.artifact import Artifact, run_step
from colbert_zero.graph.config import read_config
from colbert_zero.graph.study import Study
from colbert_zero.machine.devices import add_device_option
from colbert_zero.report import page
from colbert_zero.training import train

KEPT = Path(__file__).parents[1] / "fixtures" / "study-0.1.0"
ARTIFACTS = 31
STEPS = {
    "models": (train.make, train.add_options),
    "indexes": (index.make, add_device_option),
    "runs": (search.make, add_device_option),
    "measures": (measure.make, None),
    "reports": (page.make, None),
}
"""What makes the kinds of artifacts that the tests make: for `run_step`."""


@pytest.fixture
def kept(study):
    """A copy of the kept study, which is the current folder."""
    shutil.copytree(KEPT, study, dirs_exist_ok=True)
    return study


def planned(folder):
    return Study(read_config(folder / "config.yaml"), folder)


def missing(study):
    """The planned artifacts that are not there, inputs first."""
    found = [spec for spec in study.specs.values() if not (spec.folder / "spec.json").is_file()]
    return sorted(found, key=lambda spec: list(STEPS).index(spec.kind))


def make(specs):
    for spec in specs:
        step, add_options = STEPS[spec.kind]
        assert run_step(step, None, ["--spec", spec.text], add_options) == 0


def values(study, row):
    """The per-query values of a row of the table."""
    (found,) = [found for found in study.rows if found.name == row]
    return {name: Artifact.open(spec.name).facts["means"] for name, spec in found.measures.items()}


def test_it_verifies(kept, capsys):
    assert cli.main(["verify", "--directory", str(kept)]) == 0
    assert capsys.readouterr().out == f"{ARTIFACTS} artifacts, 0 findings\n"


def test_all_that_is_planned_is_there_and_nothing_else(kept):
    study = planned(kept)
    assert missing(study) == []
    found = sorted(kept.glob("re*/*/*/spec.json"))
    assert len(found) == ARTIFACTS == len(study.specs)
    for path in found:
        assert path.read_text() == study.spec_of(path.parent.name[-12:]).text


def test_every_artifact_opens_with_all_its_files(kept):
    for spec in planned(kept).specs.values():
        artifact = Artifact.open(spec.name)
        assert all(artifact.problem_with(name) is None for name in artifact.files())
        assert artifact.facts == json.loads((spec.folder / "manifest.json").read_text())["facts"]


def test_its_models_evaluate_as_they_did(kept):
    study = planned(kept)
    rows = ("all", "untrained")
    before = {row: values(study, row) for row in rows}
    for spec in study.specs.values():
        if spec.kind in ("indexes", "runs", "measures") and study.used_by.get(spec.key, set()) & set(rows):
            shutil.rmtree(spec.folder)
    made = missing(study)
    assert [spec.kind for spec in made] == ["indexes"] * 2 + ["runs"] * 2 + ["measures"] * 2
    make(made)
    for row in rows:
        for name, means in values(study, row).items():
            assert means == pytest.approx(before[row][name], abs=1e-6)


def test_a_recipe_is_added_to_it_and_trains_on_its_models(kept, capsys):
    config = yaml.safe_load((kept / "config.yaml").read_text())
    config["recipes"]["added"] = {
        "base": "small",
        "stages": ["unsupervised", {"supervised": {"learning_rate": 2.0e-3}}],
    }
    (kept / "config.yaml").write_text(yaml.safe_dump(config))
    study = planned(kept)
    added = missing(study)
    # The unsupervised stage, the negatives and the batches are those of the recipe that was there.
    assert [spec.kind for spec in added] == ["models", "indexes", "runs", "measures", "reports"]
    make(added)
    assert values(study, "added")["dev"]["nDCG@10"] > 0.3
    assert cli.main(["table", "--directory", str(kept)]) == 0
    table = capsys.readouterr().out
    assert "| added " in table and "| all " in table
    assert cli.main(["verify", "--directory", str(kept)]) == 0
