"""The embedded study in real images on a real SLURM: its results are those of the host.

    make test-cluster ALL_ROWS=1

runs all of it, 122 steps, and answers what docs/audit.md asks; without, the rows of the cheapest training, and one
collection: 30 steps, of every kind.
"""

import json
import os
import shutil
import time

import pyarrow.parquet as pq
import pytest

import documented_audit
from colbert_zero.cli import main
from colbert_zero.graph.config import read_config
from colbert_zero.graph.study import Study
from slurm_cluster import ROOT, Cluster, image_settings

HOST_STUDY = ROOT / "local"
"""`make demo` ran the study in this folder, without SLURM and images."""
TOLERANCE = 1e-6
ALL_ROWS = bool(os.environ.get("ALL_ROWS"))
ROWS = {"recipes": ["supervised-distillation"], "baselines": ["bm25", "untrained"], "collections": ["numpy"]}
JOBS = 100 if ALL_ROWS else 20
"""There are more: a job for each step but the report's."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The study after a run on the cluster, the run's output, and its seconds."""
    cluster = Cluster(tmp_path_factory.mktemp("embedded"))
    config = read_config(ROOT / "local" / "config.yaml") | {"images": image_settings()}
    if not ALL_ROWS:
        config |= {section: {name: config[section][name] for name in names} for section, names in ROWS.items()}
    cluster.write(config)
    started = time.monotonic()
    status, output = cluster.run(seconds=3600)
    assert status == 0, output[-5000:]
    return cluster, output, time.monotonic() - started


def scores(run):
    """The score by query and document, from a run in TREC format."""
    lines = (line.split() for line in run.read_text(encoding="utf-8").splitlines())
    return {(query, document): float(score) for query, _, document, _, score, _ in lines}


def on_both(cluster, kind):
    """The folders of the artifacts of a kind, on the cluster and on the host."""
    planned = Study(read_config(cluster.folder / "config.yaml"), cluster.folder).specs.values()
    folders = [spec.folder for spec in planned if spec.kind == kind]
    assert len(folders) >= len(ROWS["recipes"]) + len(ROWS["baselines"])
    return [(cluster.folder / folder, HOST_STUDY / folder) for folder in folders]


def test_runs_are_equal_to_those_of_the_host(study):
    cluster, _, _ = study
    for ours, hosts in on_both(cluster, "runs"):
        here, there = scores(ours / "run.trec"), scores(hosts / "run.trec")
        assert here.keys() == there.keys()
        assert all(abs(here[pair] - there[pair]) <= TOLERANCE * max(1, abs(there[pair])) for pair in here)


def test_measures_are_equal_to_those_of_the_host(study):
    cluster, _, _ = study
    for ours, hosts in on_both(cluster, "measures"):
        here, there = (pq.read_table(folder / "measures.parquet").to_pylist() for folder in (ours, hosts))
        assert len(here) == len(there)
        for mine, other in zip(here, there, strict=True):
            assert mine.keys() == other.keys()
            for name, value in mine.items():
                same = abs(value - other[name]) <= TOLERANCE if isinstance(value, float) else value == other[name]
                assert same, (ours, mine, other)


def test_every_step_ran_in_its_image_in_a_job_of_its_own(study):
    cluster, _, _ = study
    jobs = []
    for path in [*cluster.folder.glob("res*/*/*/manifest.json")]:
        manifest = json.loads(path.read_text())
        if "/audits/" in str(path):  # It needs the plan's packages, which the images lack.
            assert manifest["image"] is None
        else:
            assert manifest["image"]["colbert-zero.image"] in ("torch", "lucene"), path
        if "/reports/" not in str(path):
            jobs.append(manifest["attempts"][-1]["job"])
            assert manifest["attempts"][-1]["node"] in ("n1", "n2", "n3")
    assert len(jobs) == len(set(jobs)) > JOBS


def test_every_artifact_is_intact(study, monkeypatch, capsys):
    cluster, _, _ = study
    monkeypatch.chdir(cluster.folder)
    assert main(["verify"]) == 0, capsys.readouterr().out


if ALL_ROWS:

    @pytest.mark.parametrize("command", documented_audit.COMMANDS, ids=lambda command: command.words[1])
    def test_its_audit_answers(study, command, tmp_path):
        """As on the host; the images' libraries are those of other locks, which is no difference either."""
        cluster, _, _ = study
        status, output = documented_audit.run(command, cluster.folder, tmp_path)
        assert status == documented_audit.status_of(command), output


def test_a_second_run_does_nothing(study):
    cluster, _, _ = study
    status, output = cluster.run()
    assert status == 0
    assert "Nothing to be done" in output


def test_overhead_is_stored(study):
    """Not a check of time: it stores the numbers that docs/cluster.md quotes, beside the benchmarks of every step."""
    cluster, output, seconds = study
    jobs = output.count("has been submitted with SLURM jobid")
    target = ROOT / "benchmarks" / "cluster"
    shutil.copytree(cluster.folder / "benchmarks", target, dirs_exist_ok=True)
    (target / "wall.json").write_text(json.dumps({"seconds": round(seconds, 1), "jobs": jobs}) + "\n")
    assert len(list(target.rglob("*.tsv"))) >= jobs > JOBS
