"""Dense baselines when planning: what decides them, and which mistakes are one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.console import UserError
from colbert_zero.graph.dense_folder import read_similarity
from colbert_zero.graph.study import Study

ROOT = Path(__file__).parents[3]
EMBEDDED = yaml.safe_load((ROOT / "local" / "config.yaml").read_text())
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def write_model(folder: Path, **saved: Any) -> Path:
    """What a plan reads of a dense model of 512 positions that cuts after 256 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "modules.json": MODULES,
        "config.json": {"model_type": "bert", "max_position_embeddings": 512},
        "sentence_bert_config.json": {"max_seq_length": 256},
        "config_sentence_transformers.json": {"prompts": {"query": "", "document": ""}} | saved,
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def plan(folder: Path, **dense: Any) -> Study:
    """The embedded study with a row of a dense model in `folder`."""
    config = copy.deepcopy(EMBEDDED)
    config["models"]["dense"] = {"folder": str(folder)}
    config["baselines"] = {"dense": {"dense": {"model": "dense", **dense}}}
    return Study(config, ROOT / "local", remember=False)


def chain(study: Study, collection: str = "numpy") -> tuple[Spec, Spec]:
    """The run and the index of the dense row on a collection."""
    (row,) = [row for row in study.rows if row.name == "dense"]
    (run,) = [spec for spec in study.inputs_of(row.measures[collection]) if spec.kind == "runs"]
    (index,) = [spec for spec in study.inputs_of(run) if spec.kind == "indexes"]
    return run, index


def test_a_dense_row_has_an_index_and_a_run_of_its_own_on_each_collection(tmp_path: Path) -> None:
    study = plan(write_model(tmp_path / "model"))
    (row,) = [row for row in study.rows if row.name == "dense"]
    assert (row.kind, row.stages) == ("baseline", ())
    assert set(row.measures) == {"numpy", "networkx", "fonttools", "sqlalchemy"}
    run, index = chain(study)
    assert (run.label, index.label) == ("dense.numpy", "dense.numpy")
    assert run.settings == {"depth": 100, "drop_self": False}
    assert index.settings == {
        "encoding": {"query_prompt": "", "document_prompt": "", "maximum_length": 256},
        "index": {"kind": "exact"},
    }
    assert [name.partition("/")[0] for name in index.input_names] == ["bases", "collections"]


def test_what_the_model_was_saved_with_is_what_is_given_in_the_same_words(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", prompts={"query": "search_query: ", "passage": "search_document: "})
    silent = plan(folder)
    assert chain(silent)[1].settings["encoding"] == {
        "query_prompt": "search_query: ", "document_prompt": "search_document: ", "maximum_length": 256,
    }  # fmt: skip
    assert plan(folder, prompts="search", maximum_length=256, search="exact").report.key == silent.report.key
    assert plan(folder, maximum_length=128).report.key != silent.report.key
    lists = plan(folder, search="faiss")
    assert chain(lists)[1].settings["index"] == {"kind": "faiss", "seed": 42}
    assert lists.report.key != silent.report.key


@pytest.mark.parametrize(
    ("saved", "similarity"),
    [({}, "cosine"), ({"similarity_fn_name": None}, "cosine"), ({"similarity_fn_name": "dot"}, "dot")],
)
def test_vectors_are_compared_as_the_model_says_or_by_their_angle(
    saved: dict[str, Any], similarity: str, tmp_path: Path
) -> None:
    assert read_similarity(write_model(tmp_path / "model", **saved), "here") == similarity


def test_a_model_that_says_no_prompts_takes_any(tmp_path: Path) -> None:
    index = chain(plan(write_model(tmp_path / "model"), prompts="search"))[1]
    assert index.settings["encoding"]["query_prompt"] == "search_query: "
    assert "changed" not in index.settings


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompts": "none"}, "query_prompt is '' here, 'q: ' there; document_prompt is '' here, 'd: ' there"),
        ({"prompts": "search"}, "query_prompt is 'search_query: ' here, 'q: ' there"),
        ({"maximum_length": 300}, "maximum_length is 300 here, 256 there"),
    ],
)
def test_other_settings_than_the_saved_ones_are_refused_unless_they_are_meant(
    given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", prompts={"query": "q: ", "document": "d: "})
    with pytest.raises(UserError, match=r"^config.yaml: baselines.dense: the model was saved with other") as caught:
        plan(folder, **given)
    assert words in str(caught.value) and "override: true" in str(caught.value)
    index = chain(plan(folder, **given, override=True))[1]
    assert index.settings["changed"]
    # Where nothing differs, the word changes nothing.
    assert plan(folder, override=True).report.key == plan(folder).report.key


MISTAKES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "more tokens than positions": ({}, {"maximum_length": 513, "override": True}, "takes at most 512 tokens, but maxi"),
    "unknown prompts": ({}, {"prompts": "serch"}, "did you mean search?"),
    "unknown search": ({}, {"search": "hnsw"}, "baselines.dense.dense.search"),
    "too short": ({}, {"maximum_length": 4}, "baselines.dense.dense.maximum_length"),
    "mistyped": ({}, {"maximum_lenght": 40}, "did you mean maximum_length?"),
    "a distance": ({"similarity_fn_name": "manhattan"}, {}, "a search needs cosine or dot"),
    "late interaction": ({"query_length": 39, "document_length": 519}, {}, "is a ColBERT model"),
    "sparse": ({"model_type": "SparseEncoder"}, {}, "is a SparseEncoder model"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case: str, tmp_path: Path) -> None:
    saved, given, message = MISTAKES[case]
    folder = write_model(tmp_path / "model", **saved)
    with pytest.raises(UserError) as caught:
        plan(folder, **given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_pooling_is_one_line(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "modules.json").unlink()
    with pytest.raises(UserError, match=r"baselines.dense: .*no modules.json says how to pool"):
        plan(folder)


def test_random_weights_have_no_pooling() -> None:
    config = copy.deepcopy(EMBEDDED)
    config["baselines"]["dense"] = {"dense": {"model": "tiny"}}
    with pytest.raises(UserError, match=r"baselines.dense: a model with random weights has no pooling"):
        Study(config, ROOT / "local")


def test_what_a_model_of_the_hub_was_saved_with_is_compared_once_it_is_there(tmp_path: Path) -> None:
    config = copy.deepcopy(EMBEDDED)
    config["models"]["hub"] = {"registry": "modernbert-base"}

    planned: list[Study] = []

    def index(**dense: Any) -> Spec:
        config["baselines"] = {"dense": {"dense": {"model": "hub", **dense}}}
        planned.append(Study(config, tmp_path, remember=False))
        return chain(planned[-1])[1]

    assert index().settings["encoding"] == {}
    given = {"query_prompt": "search_query: ", "document_prompt": "search_document: "}
    assert index(prompts="search").settings == {"encoding": given, "index": {"kind": "exact"}}
    meant = index(prompts="search", maximum_length=512, override=True)
    assert meant.settings["changed"] == ["document_prompt", "maximum_length", "query_prompt"]
    base = next(spec for spec in planned[-1].specs.values() if spec.label == "hub.hub")
    write_model(tmp_path / base.folder, prompts={"query": "q: "})
    (tmp_path / base.folder / "spec.json").write_text(base.text)
    with pytest.raises(UserError, match="query_prompt is 'search_query: ' here, 'q: ' there"):
        index(prompts="search")
    # What is planned does not depend on what is there.
    assert index().settings["encoding"] == {}
    assert index(prompts="search", maximum_length=512, override=True) == meant


def test_no_collection_has_the_name_of_a_dense_models_index() -> None:
    config = copy.deepcopy(EMBEDDED)
    config["collections"]["dense.numpy"] = {"package": "numpy"}
    with pytest.raises(UserError, match=r"^config.yaml: collections.dense.numpy: only the indexes of dense"):
        Study(config, ROOT / "local")


def test_other_rows_do_not_move(tmp_path: Path) -> None:
    with_dense = {spec.name for spec in plan(write_model(tmp_path / "model")).specs.values()}
    config = copy.deepcopy(EMBEDDED)
    config["baselines"] = {}
    without = {spec.name for spec in Study(config, ROOT / "local").specs.values()}
    moved = {name.partition("/")[0] for name in without - with_dense}
    assert moved <= {"reports", "audits"}
