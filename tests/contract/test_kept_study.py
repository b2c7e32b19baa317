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
from colbert_zero.data import batches
from colbert_zero.evaluation import index, measure, search
from colbert_zero.graph.artifact import Artifact, Spec, run_step
from colbert_zero.graph.config import read_config
from colbert_zero.graph.planners.recipes import STAGES
from colbert_zero.graph.study import Study
from colbert_zero.machine.devices import add_device_option
from colbert_zero.mining import negatives
from colbert_zero.report import page
from colbert_zero.training import train

KEPT = Path(__file__).parents[1] / "fixtures" / "study-0.1.0"
ARTIFACTS = 31
MADE_ANEW = ("negatives",)
"""Kinds that later versions make otherwise, under other keys, and with them what follows.

Negatives of several miners: version 0.1.0 compared fused scores with the positive's, and later ones compare each
miner's own.
"""
STEPS = {
    "negatives": (negatives.make, None),
    "batches": (batches.make, None),
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


def specs_in(folder):
    """The specs of all artifacts that are there."""
    return [Spec.parse(path.read_text()) for path in sorted(folder.glob("re*/*/*/spec.json"))]


def made_anew(study):
    """The names of the planned artifacts that later versions make otherwise, and of all that are made from these."""
    names = {spec.name for spec in study.specs.values() if spec.kind in MADE_ANEW}
    while more := {
        spec.name
        for spec in study.specs.values()
        if spec.name not in names and any(names.intersection(inputs) for inputs in spec.inputs.values())
    }:
        names |= more
    return names


def missing(study):
    """The planned artifacts that are not there, inputs first."""
    found = [spec for spec in study.specs.values() if not (spec.folder / "spec.json").is_file()]
    return sorted(found, key=order)


def order(spec):
    """Inputs first."""
    return list(STEPS).index(spec.kind), STAGES.index(spec.label) if spec.kind == "models" else 0


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
    *notes, summary = capsys.readouterr().out.splitlines()
    assert summary == f"{ARTIFACTS} artifacts, 0 findings; {ARTIFACTS} of an older record"
    assert any(f"{ARTIFACTS} artifacts have an older record: these checks cannot be made" in note for note in notes)


def test_all_that_is_planned_is_there_but_what_is_made_otherwise_now(kept):
    study = planned(kept)
    found = specs_in(kept)
    assert len(found) == ARTIFACTS == len(study.specs)
    assert {spec.name for spec in missing(study)} == made_anew(study)
    assert [spec.kind for spec in missing(study)] == [
        "negatives", "batches", "models", "models", "indexes", "runs", "measures", "reports",
    ]  # fmt: skip
    there = [spec for spec in study.specs.values() if spec.name not in made_anew(study)]
    for spec in there:
        assert (spec.folder / "spec.json").read_text() == spec.text


def test_every_artifact_opens_with_all_its_files(kept):
    for spec in specs_in(kept):
        artifact = Artifact.open(spec.name)
        assert artifact.spec == spec
        assert all(artifact.problem_with(name) is None for name in artifact.files())
        assert artifact.facts == json.loads((spec.folder / "manifest.json").read_text())["facts"]


def test_its_models_evaluate_as_they_did(kept):
    """The models of the recipe whose negatives are made otherwise now among them."""
    specs = [spec for spec in specs_in(kept) if spec.kind in ("indexes", "runs", "measures")]
    made = sorted((spec for spec in specs if "bm25" not in " ".join(spec.inputs.get("run", [spec.label]))), key=order)
    assert [spec.kind for spec in made] == ["indexes"] * 3 + ["runs"] * 3 + ["measures"] * 3
    before = {spec.name: Artifact.open(spec.name).facts["means"] for spec in made if spec.kind == "measures"}
    for spec in made:
        shutil.rmtree(spec.folder)
    make(made)
    for name, means in before.items():
        assert Artifact.open(name).facts["means"] == pytest.approx(means, abs=1e-6)


def test_what_is_made_otherwise_now_is_made_from_its_candidates(kept):
    study = planned(kept)
    (spec,) = [spec for spec in missing(study) if spec.kind == "negatives"]
    (before,) = [spec for spec in specs_in(kept) if spec.kind == "negatives"]
    assert spec.inputs == before.inputs
    assert spec.settings == {**before.settings, "filter": [0, 1]}
    make([spec])
    old, new = Artifact.open(before.name).facts["mining"], Artifact.open(spec.name).facts
    assert new["candidates"] == old["candidates"]
    assert 0 < new["kept"] < old["kept"]
    assert new["above_the_positive"]["bm25"] == new["above_the_positive"]["dense"] == 0


def test_a_recipe_is_added_to_it_and_trains_on_its_models(kept, capsys):
    anew = made_anew(planned(kept))
    config = yaml.safe_load((kept / "config.yaml").read_text())
    config["recipes"]["added"] = {
        "base": "small",
        "stages": ["unsupervised", {"supervised": {"learning_rate": 2.0e-3}}],
    }
    (kept / "config.yaml").write_text(yaml.safe_dump(config))
    study = planned(kept)
    added = missing(study)
    # The unsupervised stage is that of the recipe that was there.
    kinds = [spec.kind for spec in added if spec.name not in anew]
    assert kinds == ["models", "indexes", "runs", "measures", "reports"]
    make(added)
    assert values(study, "added")["dev"]["nDCG@10"] > 0.3
    assert cli.main(["table", "--directory", str(kept)]) == 0
    table = capsys.readouterr().out
    assert "| added " in table and "| all " in table
    assert cli.main(["verify", "--directory", str(kept)]) == 0
