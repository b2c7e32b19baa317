"""Which indexes have documents in common: those of one corpus, encoded alike, and no others."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import read_config
from colbert_zero.graph.shared_documents import SharedDocuments, encoding_of_documents
from colbert_zero.graph.study import Study
from own_study import CONFIG, write_data

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Study:
    config = read_config(ROOT / "config.yaml")
    return Study(config, tmp_path_factory.mktemp("paper"), remember=False, resolve=lambda *_: None)


def pairs(study: Study) -> set[tuple[str, str]]:
    """The collections of each index and of those beside it."""
    shared = SharedDocuments(study)
    return {
        (spec.label, study.specs[name[-12:]].label)
        for spec in study.specs.values()
        if spec.kind == "indexes"
        for name in shared.beside(spec)
    }


def test_of_the_papers_collections_fever_and_climate_fever_have_documents_in_common(paper: Study) -> None:
    late = {pair for pair in pairs(paper) if not pair[0].startswith("dense.")}
    assert late == {("fever", "climate-fever"), ("climate-fever", "fever")}
    dense = pairs(paper) - late
    assert dense == {("dense.fever", "dense.climate-fever"), ("dense.climate-fever", "dense.fever")}
    shared = SharedDocuments(paper)
    for spec in paper.specs.values():
        if spec.kind == "indexes" and spec.label in ("fever", "climate-fever"):
            (other,) = (paper.specs[name[-12:]] for name in shared.beside(spec))
            assert other.inputs["model"] == spec.inputs["model"] and other.label != spec.label
            assert shared.beside(other) == [spec.name]


def own(folder: Path, **collections: dict[str, Any]) -> Study:
    (folder / "data").mkdir()
    write_data(folder / "data")
    qrels = folder / "data" / "mine" / "qrels"
    (qrels / "dev.tsv").write_bytes((qrels / "test.tsv").read_bytes())
    config = copy.deepcopy(CONFIG)
    config["collections"] = {"mine": {"folder": "data/mine"}, **collections}
    return Study(config, folder, remember=False)


def test_two_splits_of_a_folder_have_one_corpus(tmp_path: Path) -> None:
    study = own(tmp_path, dev={"folder": "data/mine", "split": "dev", "query_length": 20})
    assert pairs(study) == {("mine", "dev"), ("dev", "mine")}


def test_documents_of_another_length_are_others(tmp_path: Path) -> None:
    study = own(tmp_path, dev={"folder": "data/mine", "split": "dev", "document_length": 40})
    assert pairs(study) == set()


def test_what_decides_vectors_of_documents_is_all_that_is_not_of_queries() -> None:
    encoding = {"query_prompt": "q", "document_prompt": "d", "query_length": 8, "document_length": 9}
    settings = {"encoding": encoding, "index": {"kind": "auto"}, "minimum_lengths": {"query_length": 64}}

    def digest(**changes: Any) -> str:
        return encoding_of_documents(Spec("indexes", "a", settings | changes, {"model": ["models/a-0"]}))

    alike = [
        {"encoding": encoding | {"query_prompt": "other"}},
        {"encoding": encoding | {"query_length": 7, "query_expansion": True}},
        {"index": {"kind": "plaid"}},
        {"minimum_lengths": {}},
        {"changed": ["query_length"]},
    ]
    assert {digest(**changes) for changes in alike} == {digest()}
    others = [
        {"encoding": encoding | {"document_prompt": "other"}},
        {"encoding": encoding | {"document_length": 8}},
        {"minimum_lengths": {"document_length": 64}},
        {"precision": "bf16"},
        {"projection": {"dimensions": 16, "seed": 1}},
    ]
    digests = {digest(**changes) for changes in others}
    assert len(digests) == len(others) and digest() not in digests
    other_model = Spec("indexes", "a", settings, {"model": ["models/b-0"]})
    assert encoding_of_documents(other_model) != digest()
