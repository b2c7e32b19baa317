"""The result files in MTEB's form: MTEB itself reads from them what the table has."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from colbert_zero.evaluation.values import VALUES_FILE, write_values
from colbert_zero.graph import registry
from colbert_zero.graph.artifact import Artifact, Spec
from colbert_zero.graph.config import read_yaml
from colbert_zero.report.mteb_results import mteb_files
from colbert_zero.report.results import Lineage, Replicate

PEERS = Path(sys.prefix) / "peers"
LOCK = Path(__file__).parents[3] / "envs" / "peers.txt"
READER = Path(__file__).parents[2] / "read_mteb.py"
COLLECTIONS = read_yaml(registry.REGISTRY / "collections.yaml")
FORUMS = COLLECTIONS["groups"]["cqadupstack"]
NAMED = ["scifact", "msmarco", "touche2020", *FORUMS]
PINS = ("hub", "revision", "split")
MEASURES = {"nDCG@10": 0.0, "AP@100": 0.125, "R@100": 0.25, "RR@10": 0.375, "AP(rel=2)@100": 0.5}
"""What each measure adds to a row's value."""
ROWS = {"bm25": 0.25, "minilm": 0.3125, "colbert-zero@42": 0.375, "colbert-zero@43": 0.4375}


class Artifacts:
    """Artifacts as a report opens them, without the time that it takes to publish some hundred."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lineage = Lineage([])

    def add(self, spec: Spec, **facts: Any) -> str:
        manifest = {"facts": facts, "outputs": {}, "seconds": 1.5}
        self.lineage.artifacts[spec.name] = Artifact(spec, manifest, self.folder / spec.name, {VALUES_FILE})
        return spec.name

    def row(self, name: str, value: float, collections: Mapping[str, str], base: str = "") -> Replicate:
        """A row with this value on every collection: the mean of two queries."""
        model = base
        if "@" in name:
            settings = {"stage": "supervised", "seed": int(name.partition("@")[2])}
            model = self.add(Spec("models", "supervised", settings, {"start": [base]}))
        values = self.folder / name
        values.mkdir()
        write_values(
            values,
            (
                (query, measure, value + added + difference)
                for query, difference in (("p", -0.1), ("q", 0.1))
                for measure, added in MEASURES.items()
            ),
        )
        measures = {}
        for label, collection in collections.items():
            inputs = {"collection": [collection]}
            if name != "bm25":
                encoding = {"query_prompt": "query: ", "document_prompt": "", "document_length": 519}
                facts: dict[str, Any] = {"encoding": encoding, "dimensions": 128, "kind": "exact"}
                if name == "minilm":
                    facts |= {"encoding": {"maximum_length": 256, "query_prompt": ""}, "similarity": "cosine"}
                inputs["index"] = [self.add(Spec("indexes", label, {}, {"model": [model], **inputs}), **facts)]
            run = self.add(Spec("runs", f"{name}.{label}", {"k1": 0.9, "b": 0.4}, inputs), queries=2)
            spec = Spec("measures", label, {"row": name}, {"run": [run], "collection": [collection]})
            measures[label] = Artifact(spec, {"facts": {}, "outputs": {}, "seconds": 1.5}, values, {VALUES_FILE})
        return Replicate(name, [], measures, "nDCG@10")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    artifacts = Artifacts(tmp_path_factory.mktemp("study"))
    specs = {name: {of: COLLECTIONS["collections"][name][of] for of in PINS} for name in NAMED}
    specs |= {"own": {"split": "test"}, "moved": specs["scifact"] | {"revision": "0" * 40}}
    collections = {name: artifacts.add(Spec("collections", f"hub.{name}", pins)) for name, pins in specs.items()}
    base = artifacts.add(Spec("bases", "hub.base", {"hub": "ORG/NAME", "revision": "1" * 40}))
    rows = [artifacts.row(name, value, collections, base) for name, value in ROWS.items()]
    return dict(mteb_files("paper", rows, artifacts.lineage))


@pytest.fixture(scope="module")
def read(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the locked MTEB reads, in a process of its own, and what it knows of the tasks."""
    (version,) = re.findall(r"^mteb==(\S+)", LOCK.read_text(), re.MULTILINE)
    if not (PEERS / f"mteb-{version}.dist-info").is_dir():
        pytest.fail(f"no mteb {version} in {PEERS}: `make test` installs it", pytrace=False)
    folder = tmp_path_factory.mktemp("report")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(PEERS), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    tasks = [*registry.mteb_tasks().values(), *registry.mteb_group_tasks()]
    command = [sys.executable, READER, folder / "mteb", *tasks]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_mteb_reads_the_tables_values_of_all_its_tasks_and_their_mean_over_the_forums(read: Any) -> None:
    tasks = {COLLECTIONS["collections"][name]["task"] for name in NAMED} | {"CQADupstackRetrieval"}
    assert {name.split()[0]: set(results) for name, results in read["results"].items()} == {
        f"paper/{row}": tasks for row in ROWS
    }
    for name, results in read["results"].items():
        row = name.split()[0].removeprefix("paper/")
        assert all(value == pytest.approx(ROWS[row]) for value in results.values()), name
    assert "paper/bm25 k1-0.9-b-0.4" in read["results"]
    assert sum("task_name" in column for column in read["frame"]) == 1


def test_mteb_accepts_what_is_said_of_each_model(read: Any) -> None:
    kinds = {"bm25": "sparse", "minilm": "dense"}
    assert read["types"] == {f"paper/{row}": [kinds.get(row, "late-interaction")] for row in ROWS}


def test_the_registry_has_mtebs_repository_revision_and_split_of_every_task(read: Any) -> None:
    tasks = registry.mteb_tasks()
    assert len(set(tasks.values())) == len(tasks) == 26
    for (hub, revision, split), task in tasks.items():
        assert read["tasks"][task] == [hub, revision, [split], "ndcg_at_10"], task
    for task, (revision, members) in registry.mteb_group_tasks().items():
        assert read["tasks"][task][1:] == [revision, ["test"], "ndcg_at_10"]
        assert set(members) <= set(tasks.values())


def test_a_result_has_every_measure_that_mteb_has_a_name_for(files: dict[str, str]) -> None:
    (name,) = (name for name in files if "@43" in name and name.endswith("/SciFact.json"))
    result = json.loads(files[name])
    (entry,) = result["scores"]["test"]
    expected = {
        "ndcg_at_10": 0.4375, "main_score": 0.4375, "map_at_100": 0.5625, "recall_at_100": 0.6875, "mrr_at_10": 0.8125,
    }  # fmt: skip
    assert {name: value for name, value in entry.items() if isinstance(value, float)} == pytest.approx(expected)
    assert result["dataset_revision"] == COLLECTIONS["collections"]["scifact"]["revision"]
    assert result["evaluation_time"] > 0
    meta = json.loads(files[name.replace("SciFact", "model_meta")])
    assert (meta["adapted_from"], meta["max_tokens"], meta["use_instructions"]) == ("ORG/NAME", 519, True)


def test_other_collections_and_other_revisions_are_no_tasks(files: dict[str, str]) -> None:
    assert len(files) == len(ROWS) * (len(NAMED) + 1 + 1)
    assert {len(name.split("/")) for name in files} == {5}, "mteb/results/MODEL/REVISION/FILE"


def test_no_name_leaves_the_folder(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    pins = {of: COLLECTIONS["collections"]["scifact"][of] for of in PINS}
    row = artifacts.row("bm25", 0.5, {"scifact": artifacts.add(Spec("collections", "hub.scifact", pins))})
    paths = [path for path, _ in mteb_files("../../<a>", [row], artifacts.lineage)]
    assert {path.split("/")[2] for path in paths} == {"..__..___a___bm25"}


def test_a_study_without_such_collections_has_no_such_file(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    row = artifacts.row("bm25", 0.5, {"own": artifacts.add(Spec("collections", "folder.own", {"split": "test"}))})
    assert list(mteb_files("own", [row], artifacts.lineage)) == []
