"""Exported scores have the published dataset's layout: the project's reader and `datasets` read them as they were."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pytest import CaptureFixture, MonkeyPatch

from colbert_zero.cli import main
from colbert_zero.data import fetch, shards
from colbert_zero.graph.artifact import Artifact, Job, Spec, run_step
from colbert_zero.graph.console import UserError
from colbert_zero.graph.study import Study
from colbert_zero.teaching.scoring import ScoredRow, write_rows
from mined import publish_shards, publish_step, rows_in
from own_study import CONFIG, LENGTHS, write_data
from publishing import publish

QUERIES = ["red apple", "blue sky", "red apple", "été"]
DOCUMENTS = [["an apple", "a sky"], ["a sky", "a sea"], ["a tree", "an apple"], ["l'hiver", "an apple"]]
RAW = [[3.5, -1.25], [0.125, 7.0], [1e-3, 2e-3], [-4.0, -5.0]]
CONFIGS = ("train", "queries", "documents")


@pytest.fixture
def scores(tmp_path: Path, monkeypatch: MonkeyPatch) -> Artifact:
    monkeypatch.chdir(tmp_path)
    source = publish_shards([(query, texts[0]) for query, texts in zip(QUERIES, DOCUMENTS, strict=True)], 3)

    def make(job: Job) -> Any:
        rows = zip(range(4), QUERIES, DOCUMENTS, RAW, strict=True)
        return write_rows(
            job, (ScoredRow(row, query, texts, np.array(raw, np.float32)) for row, query, texts, raw in rows), 0
        )

    return publish_step(make, Spec("scores", "x.mine", {"documents": 2}, {"shards": [source.name]}))


def export(scores: Artifact, output: Path) -> Path:
    assert main(["export", scores.name, "--output", str(output)]) == 0
    return output


def test_the_projects_reader_finds_the_same_rows_and_scores(scores: Artifact, tmp_path: Path) -> None:
    folder = export(scores, tmp_path / "out")
    roles = {role: [f"{role}.parquet"] for role in CONFIGS}
    settings = {"format": "scored", "documents": 2}

    def write(target: Path) -> None:
        for role in CONFIGS:
            (target / f"{role}.parquet").write_bytes((folder / f"{role}.parquet").read_bytes())

    source = publish(Spec("sources", "hub.mine", settings), write, {"files": roles, "rows": 4})
    spec = Spec(
        "shards",
        "mine",
        {"seed": 0, "rows_per_shard": 10, "minimum_characters": 1, "maximum_characters": None},
        {"source": [source.name]},
    )
    read = rows_in(publish_step(shards.make, spec))
    found, expected = (sorted(rows, key=lambda row: row["documents"]) for rows in (read, rows_in(scores)))
    assert [(row["query"], row["documents"]) for row in found] == [(row["query"], row["documents"]) for row in expected]
    # Where a query's scores span 0.001, the 1e-8 in the normalisation is a hundred thousandth of it.
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["scores"] == pytest.approx(theirs["scores"], abs=2e-5)


def test_a_study_trains_on_the_folder_as_it_is(scores: Artifact, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    write_data(tmp_path / "data")
    folder = export(scores, tmp_path / "data" / "scores")
    config: dict[str, Any] = copy.deepcopy(CONFIG)
    config["sources"] = {"lines": config["sources"]["lines"], "ours": {"scores": "data/scores", "documents": 2}}
    config["models"]["small"]["random"]["sources"] = ["lines"]
    distillation = {"sources": ["ours"], "prompts": "search", **LENGTHS, "teacher": None, "documents": 2}
    config["recipes"] = {"all": {"base": "small", "stages": [{"distillation": distillation}]}}
    study = Study(config, tmp_path)
    (source,) = (spec for spec in study.specs.values() if spec.label == "folder.ours")
    (made,) = (spec for spec in study.specs.values() if spec.kind == "shards")
    assert [file["name"] for file in source.settings["files"]] == sorted(f"{role}.parquet" for role in CONFIGS)
    path = str(study.paths[source.key])
    fetched = publish_step(fetch.make, source, "--path", path, add_options=fetch.add_options)
    assert fetched.facts["rows_by_role"] == {"train": 4, "queries": 3, "documents": 5} and fetched.facts["rows"] == 4
    read = rows_in(publish_step(shards.make, made))
    assert {tuple(row["documents"]) for row in read} == {tuple(row["documents"]) for row in rows_in(scores)}
    (folder / "train.parquet").write_bytes((folder / "queries.parquet").read_bytes())
    shutil.rmtree(source.folder)
    words = ["--spec", source.text, "--path", path]
    assert run_step(fetch.make, None, words, fetch.add_options) == 1
    assert "train.parquet changed since the workflow was planned" in capsys.readouterr().err
    (folder / "train.parquet").unlink()
    with pytest.raises(UserError, match=r"sources.ours.scores: .*data/scores has no train.parquet or train-\*.parquet"):
        Study(config, tmp_path)


def test_each_text_is_in_its_table_once(scores: Artifact, tmp_path: Path) -> None:
    folder = export(scores, tmp_path / "out")
    queries, documents, train = (
        pq.read_table(folder / f"{table}.parquet") for table in ("queries", "documents", "train")
    )
    assert queries.to_pydict() == {"query_id": [0, 1, 2], "text": ["red apple", "blue sky", "été"]}
    assert documents["text"].to_pylist() == ["an apple", "a sky", "a sea", "a tree", "l'hiver"]
    assert train.column_names == ["query_id", "document_ids", "scores"]
    assert train["query_id"].to_pylist() == [0, 1, 0, 2]
    assert train["document_ids"].to_pylist() == [[0, 1], [1, 2], [3, 0], [4, 0]]
    assert train["scores"].to_pylist() == [row["scores"] for row in rows_in(scores)]


def test_datasets_loads_each_table_by_its_name(scores: Artifact, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    from datasets import load_dataset

    folder = export(scores, tmp_path / "out")
    for table, rows in zip(CONFIGS, (4, 3, 5), strict=True):
        loaded = load_dataset(str(folder), table, split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded.to_list() == pq.read_table(folder / f"{table}.parquet").to_pylist() and len(loaded) == rows


def test_another_folder_is_not_overwritten_and_a_failure_leaves_none(
    scores: Artifact, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    assert main(["export", scores.name, "--output", str(other)]) == 1
    assert f"{other} is there: name a new folder" in capsys.readouterr().err
    (scores.folder / "rows-00001.parquet").write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    assert main(["export", scores.name, "--output", str(tmp_path / "out")]) == 1
    assert sorted(tmp_path.iterdir()) == before and [path.name for path in other.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "words"), [("bm25", "is no teacher's scores: give the name"), ("scores/x-0123456789ab", "is missing")]
)
def test_what_is_no_teachers_scores_is_one_line(
    name: str, words: str, tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", name, "--output", "out"]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_an_export_is_as_private_as_its_scores(scores: Artifact, tmp_path: Path) -> None:
    scores.folder.chmod(0o700)
    assert export(scores, tmp_path / "out").stat().st_mode & 0o077 == 0
