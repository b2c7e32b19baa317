"""The paper's study, tiny: every row of `config.yaml` is trained, evaluated, compared and released for real."""

import csv
import json
import os
import re
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest

from colbert_zero import cli
from colbert_zero.graph.artifact import MANIFEST_FILE, Artifact
from colbert_zero.graph.config import read_config
from colbert_zero.graph.paths import REPOSITORY, WORKFLOW
from colbert_zero.graph.study import Study
from paper_shape import COLLECTIONS, SEEDED, SEEDS, SWEEP, SWEPT

PAPER = read_config(REPOSITORY / "config.yaml")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "study"
    environment = os.environ | {"PYTHONPATH": str(WORKFLOW), "OMP_NUM_THREADS": "1"}
    program = REPOSITORY / "tests" / "paper_shape.py"
    subprocess.run([sys.executable, program, folder, "--run"], check=True, env=environment)
    with chdir(folder):
        yield Study(read_config(Path("config.yaml")), Path())


def answer(capsys, *words):
    status = cli.main(words)
    return status, capsys.readouterr().out


def test_every_artifact_is_made(study):
    assert [spec.name for spec in study.known.values() if not (spec.folder / MANIFEST_FILE).is_file()] == []


def test_the_table_has_every_row_of_the_papers_study(study):
    report = Artifact.open(study.report.name)
    with report.file("table.csv").open(encoding="utf-8") as file:
        lines = {line["name"]: line for line in csv.DictReader(file)}
    expected = {*PAPER["recipes"], *PAPER["baselines"]} - {SEEDED} | {f"{SEEDED}@{seed}" for seed in SEEDS}
    assert lines.keys() == expected
    table = report.file("table.md").read_text(encoding="utf-8")
    assert re.search(rf"\| {SEEDED} +\|.* ± ", table)
    assert f"A model of {SWEPT} was selected by its numbers on {', '.join(SWEEP['collections'])}" in table


def test_equal_stages_are_trained_once(study):
    models = [spec for spec in study.specs.values() if spec.kind == "models"]
    # Those of the paper and two whose data are made here; a second seed of two stages; a second value of one.
    assert len(models) == 26 + 2 + 2 + 1


def test_every_recipe_is_compared_with_the_reference(study):
    report = Artifact.open(study.report.name)
    text = report.file("statistics.json").read_text(encoding="utf-8")
    for name in PAPER["recipes"]:
        assert json.dumps(name) in text, name
    page = report.file("report.html").read_text(encoding="utf-8")
    for heading in ("Statistics", "Against the paper", "Ledger", "Selection", "Contamination"):
        assert f">{heading}</h2>" in page, heading


def test_the_papers_numbers_stand_beside_ours(study, capsys):
    status, text = answer(capsys, "compare")
    assert status == 0
    # Of two collections there is no mean to judge; FiQA and SciFact of (c), as published.
    assert "42.62" in text
    assert "76.50" in text
    assert "no verdict" in text


def test_nothing_is_left_to_do_and_it_cost_what_the_trainings_took(study, capsys):
    status, text = answer(capsys, "plan")
    assert status == 0, text
    status, text = answer(capsys, "ledger")
    assert status == 0, text


def test_the_audit_has_no_findings(study, capsys):
    status, text = answer(capsys, "verify")
    assert status == 0, text
    assert " 0 findings" in text


def test_each_recipe_is_released_with_its_numbers(study):
    released = sorted(Path("results/releases").iterdir())
    assert len(released) == len(PAPER["recipes"]) + 1
    for folder in released:
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert all(collection in card for collection in COLLECTIONS), folder


def test_the_models_that_are_not_trained_here_have_a_report_of_their_own(study):
    released = Artifact.open(study.released.name)
    with released.file("table.csv").open(encoding="utf-8") as file:
        assert {line["name"] for line in csv.DictReader(file)} == PAPER["baselines"].keys()
