"""A part of the paper's study, tiny, in real images on a real SLURM: rows that between them use every rule.

    make test-cluster-paper ALL_ROWS=1

runs all of it, 28 recipes and 14 baselines: some 400 jobs.
"""

import csv
import json
import os

import pytest

import paper_shape
from colbert_zero.cli import main
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.config import read_config
from colbert_zero.graph.study import Study
from slurm_cluster import Cluster, image_settings

ROWS = {
    "recipes": (paper_shape.SEEDED, paper_shape.SWEPT, "supervised-distillation-remade"),
    "baselines": ("bm25", "released-colbert-zero", "modernbert-embed-base"),
    "collections": ("scifact",),
}
"""Seeds; a sweep and its selection; negatives and scores made here; a model of each kind that is only evaluated."""
ALL_ROWS = bool(os.environ.get("ALL_ROWS"))
SHARED = {"teach_neural": "scores", "mine_dense": "candidates"} | ({} if ALL_ROWS else {"build_index": "indexes"})
"""Steps whose work two jobs share, and what they make. Not all rows' indexes: that would be two jobs more for each."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "study"
    paper_shape.write(folder)
    config = read_config(folder / "config.yaml")
    if not ALL_ROWS:
        for section, names in ROWS.items():
            config[section] = {name: config[section][name] for name in names}
    cluster = Cluster(folder)
    shared = {step: {"jobs": 2} for step in SHARED}
    cluster.write(config | {"images": image_settings(), "resources": shared})
    status, output = cluster.run("all", "release", "released", seconds=7200)
    assert status == 0, output[-5000:]
    return cluster


@pytest.fixture
def study(cluster, monkeypatch):
    monkeypatch.chdir(cluster.folder)
    return Study(read_config(cluster.folder / "config.yaml"), cluster.folder)


def test_every_artifact_is_made_in_an_image_by_a_job(study):
    for spec in study.known.values():
        manifest = Artifact.open(spec.name).manifest
        if spec.kind not in ("audits", "reports", "releases", "selections") and not spec.folder.match("resources/*/*"):
            assert manifest["image"]["colbert-zero.image"] in ("torch", "lucene"), spec.name
            assert manifest["attempts"][-1]["node"] in ("n1", "n2", "n3"), spec.name


def test_two_jobs_shared_the_work(study):
    shared = [spec for spec in study.known.values() if "shares" in Artifact.open(spec.name).manifest]
    assert {spec.kind for spec in shared} == {*SHARED.values()}
    for spec in shared:
        shares = Artifact.open(spec.name).manifest["shares"]
        assert len({share["job"] for share in shares}) == len(shares) >= 2, spec.name


def test_the_table_has_every_row(study):
    with Artifact.open(study.report.name).file("table.csv").open(encoding="utf-8") as file:
        names = {line["name"] for line in csv.DictReader(file)}
    seeded = {f"{paper_shape.SEEDED}@{seed}" for seed in paper_shape.SEEDS}
    assert names == {*study.config["recipes"], *study.config["baselines"]} - {paper_shape.SEEDED} | seeded


def test_each_model_is_released(study):
    assert len(study.releases) == len(study.config["recipes"]) + 1
    for spec in study.releases.values():
        assert json.loads((spec.folder / "config.json").read_text())["hidden_size"] == 32


def test_its_audit_has_no_findings(study, capsys):
    status = main(["verify"])
    output = capsys.readouterr().out
    assert status == 0 and " 0 findings" in output, output


def test_a_second_run_does_nothing(cluster):
    status, output = cluster.run("all", "release", "released")
    assert status == 0
    assert "Nothing to be done" in output
