"""The audit of a dense row: its numbers are counted again, its chain is told, and its steps are made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from colbert_zero.audit.tolerance import Verdict, compare_files
from colbert_zero.cli import main
from colbert_zero.graph.artifact import Artifact, Spec, file_digests
from colbert_zero.graph.config import read_config
from colbert_zero.graph.study import Study
from finished_study import make
from tiny_models import dense_model

CONFIG = Path("config.yaml")
PROMPTS = {"query": "search_query: ", "document": "search_document: "}


def planned() -> Study:
    return Study(read_config(CONFIG), Path())


@pytest.fixture(scope="module")
def with_dense_rows(finished_study: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished study with two dense rows, one of them searched with faiss."""
    folder = shutil.copytree(finished_study, tmp_path_factory.mktemp("dense") / "study", symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        dense_model(Path("models/dense"), bert, prompts=PROMPTS)
        config = yaml.safe_load(CONFIG.read_text())
        config["models"]["dense"] = {"folder": "models/dense"}
        config["prompts"]["none"] = {"query": "", "document": ""}
        row = {"model": "dense"}
        config["baselines"] |= {"dense": {"dense": row}, "lists": {"dense": row | {"search": "faiss"}}}
        config["baselines"]["unprompted"] = {"dense": row | {"prompts": "none", "override": True}}
        CONFIG.write_text(yaml.safe_dump(config))
        study = planned()
        names = {"dense", "lists", "unprompted"}
        for row_name in sorted(names):
            (measures,) = [row.measures["dev"] for row in study.rows if row.name == row_name]
            (run,) = [spec for spec in study.inputs_of(measures) if spec.kind == "runs"]
            (index,) = [spec for spec in study.inputs_of(run) if spec.kind == "indexes"]
            (base,) = [spec for spec in study.inputs_of(index) if spec.kind == "bases"]
            for spec in (base, index, run, measures):
                make(study, spec)
        for spec in study.inputs_of(study.report):
            if spec.kind == "audits":
                make(study, spec)
        make(study, study.report)
    return folder


@pytest.fixture
def study(with_dense_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = shutil.copytree(with_dense_rows, tmp_path / "study", symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def specs_of(row_name: str) -> dict[str, Spec]:
    """The specs of a row's run and index, by kind."""
    study = planned()
    (measures,) = [row.measures["dev"] for row in study.rows if row.name == row_name]
    (run,) = [spec for spec in study.inputs_of(measures) if spec.kind == "runs"]
    (index,) = [spec for spec in study.inputs_of(run) if spec.kind == "indexes"]
    return {"runs": run, "indexes": index, "measures": measures}


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest, which then says that the files are as they are."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"] = file_digests(folder)
    change(manifest)
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


@pytest.mark.usefixtures("study")
def test_a_whole_study_has_no_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0, capsys.readouterr().out
    assert "0 findings" in capsys.readouterr().out


def set_fact(name: str, value: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder, lambda manifest: manifest["facts"].__setitem__(name, value))


def set_query_prompt(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["facts"]["encoding"].__setitem__("query_prompt", "q"))


def drop_similarity(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["facts"].pop("similarity"))


def drop_a_vector(folder: Path) -> None:
    np.save(folder / "documents.npy", np.load(folder / "documents.npy")[:-1])
    edit(folder, lambda _: None)


def empty(name: str) -> Callable[[Path], object]:
    def forge(folder: Path) -> None:
        (folder / name).write_bytes(b"")
        edit(folder, lambda _: None)

    return forge


FORGERIES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "documents": ("dense", set_fact("documents", 7), "says documents 7"),
    "queries": ("dense", set_fact("queries", 1), "says queries 1"),
    "dimensions": ("dense", set_fact("dimensions", 9), "says dimensions 9"),
    "lists": ("lists", set_fact("lists", 99), "says lists 99"),
    "kind": ("dense", set_fact("kind", "faiss"), 'says kind "faiss"'),
    "prompt": ("dense", set_query_prompt, 'says that it encoded with query_prompt "q"'),
    "no similarity": ("dense", drop_similarity, "has no fact similarity, which every step of its kind records"),
    "no vectors": ("dense", empty("queries.npy"), "cannot be counted again"),
    "no lists at all": ("lists", empty("documents.faiss"), "documents.faiss is no inverted file"),
    "fewer vectors": ("dense", drop_a_vector, "documents.npy has"),
}


@pytest.mark.parametrize("case", FORGERIES)
@pytest.mark.usefixtures("study")
def test_a_forged_index_is_found(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    row, forge, message = FORGERIES[case]
    forge(specs_of(row)["indexes"].folder)
    assert main(["verify"]) == 1
    assert message in capsys.readouterr().out


@pytest.mark.usefixtures("study")
def test_the_steps_of_a_dense_row_are_made_again(capsys: pytest.CaptureFixture[str]) -> None:
    index, run = (specs_of("lists")[kind].name for kind in ("indexes", "runs"))
    assert main(["replay", index, run]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[0] for line in lines[:-1]] == [f"identical: {name}" for name in (index, run)]


@pytest.mark.usefixtures("study")
def test_a_number_is_traced_to_the_model_it_is_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "dense/dev"]) == 0
    text = capsys.readouterr().out
    for part in ("runs/dense.dev-", "indexes/dense.dev-", "bases/folder.dense-", "search_document: "):
        assert part in text


@pytest.mark.usefixtures("study")
def test_prompts_of_a_baseline_are_followed_from_its_model(capsys: pytest.CaptureFixture[str]) -> None:
    def places(row: str) -> tuple[int, list[dict[str, Any]]]:
        status = main(["prompts", row, "--json"])
        ((found,),) = (json.loads(capsys.readouterr().out),)
        return status, found["places"]

    status, found = places("dense")
    assert status == 0
    assert [place["where"] for place in found] == [
        "saved model",
        "index of dense.dev: spec",
        "index of dense.dev: as encoded",
    ]
    assert [place["prompts"] for place in found] == [PROMPTS] * 3
    assert [place["verdict"] for place in found] == ["begins", "equal", "equal"]
    status, found = places("unprompted")
    assert status == 0
    assert [place["verdict"] for place in found] == ["begins", "differs, as the config says", "equal"]
    edit(
        specs_of("dense")["indexes"].folder,
        lambda manifest: manifest["facts"]["encoding"].__setitem__("document_prompt", "search_document:"),
    )
    status, found = places("dense")
    assert (status, found[-1]["verdict"]) == (1, "differs")
    assert places("untrained")[0] == 0, "a late-interaction model has prompts as well"
    assert main(["prompts", "bm25"]) == 2
    assert "bm25 is not in recipes and baselines with a model" in capsys.readouterr().err


def test_vectors_that_are_rounded_otherwise_are_within_tolerance(study: Path, tmp_path: Path) -> None:
    index = Artifact.open(specs_of("lists")["indexes"].name)
    other = shutil.copytree(index.folder, tmp_path / "other")
    vectors = np.load(other / "documents.npy")
    np.save(other / "documents.npy", vectors * np.float32(1 + 1e-6))

    def verdict(name: str) -> Verdict:
        return compare_files(index.folder / name, other / name, name, "indexes").verdict

    assert verdict("documents.npy") == Verdict.WITHIN
    assert verdict("documents.faiss") == Verdict.IDENTICAL
    lists = other / "documents.faiss"
    lists.write_bytes(lists.read_bytes()[:-1] + b"\x01")
    assert verdict("documents.faiss") == Verdict.UNKNOWN
    shutil.copy(index.folder / "documents.npy", other)
    assert verdict("documents.faiss") == Verdict.DIFFERENT
    vectors[3, 1] += 0.5
    np.save(other / "documents.npy", vectors)
    comparison = compare_files(index.folder / "documents.npy", other / "documents.npy", "documents.npy", "indexes")
    assert comparison.verdict == Verdict.DIFFERENT and "[3, 1]" in comparison.detail
    # Whole numbers, such as the codes of a PLAID index, are the same or others.
    np.save(tmp_path / "a.npy", np.array([1000, 1001]))
    np.save(tmp_path / "b.npy", np.array([1000, 1000]))
    assert compare_files(tmp_path / "a.npy", tmp_path / "b.npy", "a.npy", "indexes").verdict == Verdict.DIFFERENT
