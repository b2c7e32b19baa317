"""Laws of `prompts`: it follows the bytes of a recipe's prompts, and tells what is meant from what is not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from colbert_zero.audit.prompt_chain import recipe_places
from colbert_zero.audit.prompts import SavedTokenizer, configured_prompts
from colbert_zero.cli import main
from colbert_zero.graph.artifact import Artifact, file_digests
from colbert_zero.graph.config import read_config
from colbert_zero.graph.paths import REPOSITORY
from colbert_zero.graph.study import Study
from colbert_zero.models.colbert import EncodingSettings, load_colbert, tokenize
from finished_study import make

CONFIG = Path("config.yaml")


def mined(config: Any, recipe: str) -> list[Any]:
    study = Study(config, REPOSITORY, remember=False, resolve=lambda *_: None)
    (row,) = [row for row in study.rows if row.name == recipe]
    places = recipe_places(row.stages, [], study.specs, list(configured_prompts(study.config, recipe)))
    return [place for place in places if place.where.endswith("distillation: miner")]


def test_the_miners_of_an_ensemble_are_those_of_its_members() -> None:
    config, recipe = read_config(REPOSITORY / "config.yaml"), "supervised-distillation-remade"
    before = mined(config, recipe)
    entry = config["teachers"]["bge-reranker"]
    other = {**entry, "causal-lm": {**entry["causal-lm"], "answer": "No"}}
    config["teachers"].update(bge=entry, other=other)
    config["teachers"]["bge-reranker"] = {"ensemble": {"members": ["bge", "other"]}}
    assert before and mined(config, recipe) == before


def prompts(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    status = main(["prompts", *words, "--json"])
    return status, json.loads(capsys.readouterr().out)


def planned() -> Study:
    return Study(read_config(CONFIG), Path())


def change_config(change: Any) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    change(config)
    CONFIG.write_text(yaml.safe_dump(config))


def edit_json(path: Path, change: Any) -> None:
    """Change a file of an artifact, and its digest in the manifest."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["outputs"] = file_digests(path.parent)
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.usefixtures("study")
def test_equal_from_config_to_index(capsys: pytest.CaptureFixture[str]) -> None:
    status, (all_stages, distillation) = prompts(capsys)
    assert status == 0
    assert (all_stages["recipe"], distillation["recipe"]) == ("all", "distillation-only")
    assert len(all_stages["places"]) == 3 * 3 + 2 + 1
    for place in all_stages["places"] + distillation["places"]:
        assert place["prompts"] == {"query": "search_query: ", "document": "search_document: "}
        assert place["bytes"] == {"query": 14, "document": 17}
        assert place["verdict"] in ("equal", "begins")
    assert [place["verdict"] for place in all_stages["places"]].count("begins") == 1


@pytest.mark.usefixtures("study")
def test_without_recipes_they_are_those_of_every_baseline_with_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    change_config(lambda config: config.update(recipes={}))
    status, found = prompts(capsys)
    assert status == 0 and [row["recipe"] for row in found] == ["untrained"]


@pytest.mark.usefixtures("study")
def test_a_study_of_bm25_alone_has_none_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    change_config(lambda config: config.update(recipes={}, baselines={"bm25": {"bm25": {}}}))
    assert prompts(capsys) == (0, [])
    assert main(["prompts"]) == 0
    assert capsys.readouterr().out == "no row of this study has a model, and so none has prompts\n"


@pytest.mark.usefixtures("study")
def test_samples_are_the_inputs_of_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    """The ids are those that the model's own code makes, and the prompt's begin them."""
    _, (recipe,) = prompts(capsys, "all")
    (model,) = [row.stages[0] for row in planned().rows if row.name == "all"]
    encoding = EncodingSettings("search_query: ", "search_document: ", 40, 64)
    loaded = load_colbert(model.folder, encoding)
    assert len(recipe["samples"]) == 4
    for sample, is_query in zip(recipe["samples"][:2], (True, False), strict=True):
        prompt = encoding.query_prompt if is_query else encoding.document_prompt
        assert sample["text"].startswith(prompt)
        ids = tokenize(loaded, [sample["text"].removeprefix(prompt)], is_query, prompt).ids.tolist()
        assert sample["ids"] == ids and len(sample["tokens"]) == len(ids)
        assert sample["is_prefix"] and sample["prompt_tokens"] > 3


@pytest.mark.usefixtures("study")
def test_a_text_that_joins_its_prompt_is_told() -> None:
    (model,) = [row.stages[0] for row in planned().rows if row.name == "all"]
    tokenizer = SavedTokenizer(Artifact.open(model.name))
    texts = ["apart", *(chr(letter) for letter in range(ord("a"), ord("z") + 1))]
    samples = [tokenizer.sample("", "query", prompt, text, 40) for prompt in ("q ", "q") for text in texts]
    assert all(sample.is_prefix for sample in samples if sample.text.startswith("q "))
    assert tokenizer.sample("", "query", "", "x", 40).prompt_tokens == 0


@pytest.mark.parametrize("text", ["search_query:", "search_query:  ", "search_query:\u00a0", "Search_query: ", ""])
@pytest.mark.usefixtures("study")
def test_a_saved_model_with_other_bytes_is_found(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (model,) = [row.stages[-1] for row in planned().rows if row.name == "all"]
    edit_json(
        model.folder / "config_sentence_transformers.json", lambda value: value["prompts"].__setitem__("query", text)
    )
    status, (recipe,) = prompts(capsys, "all")
    assert status == 1
    (different,) = [place for place in recipe["places"] if place["verdict"] == "differs"]
    assert different["artifact"] == model.name and different["prompts"]["query"] == text
    assert main(["prompts", "all"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.endswith("  differs")]
    shown = json.dumps(text, ensure_ascii=False).replace("\u00a0", "\\xa0")
    assert f"{shown} {len(text.encode())} " in line


@pytest.mark.usefixtures("study")
def test_an_index_that_was_encoded_with_another_prompt_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    indexes = [spec for spec in planned().specs.values() if spec.kind == "indexes"]
    names = set()
    for index in indexes:
        path = index.folder / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["facts"]["encoding"]["query_prompt"] = "search_query:"
        path.write_text(json.dumps(manifest))
        names.add(index.name)
    status, recipes = prompts(capsys)
    found = {p["artifact"] for recipe in recipes for p in recipe["places"] if p["verdict"] == "differs"}
    assert status == 1 and found and found < names


@pytest.mark.usefixtures("study")
def test_a_token_more_than_was_encoded_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    for index in [spec for spec in planned().specs.values() if spec.kind == "indexes"]:
        path = index.folder / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["facts"]["query_tokens"] += 1
        path.write_text(json.dumps(manifest))
    status, (recipe,) = prompts(capsys, "all")
    assert status == 1
    assert [place["where"] for place in recipe["places"] if place["verdict"] == "differs"] == [
        "20 queries of dev: tokens"
    ]


@pytest.mark.usefixtures("study")
def test_a_mismatched_recipe_is_meant_and_what_is_not_made_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def mismatch(config: Any) -> None:
        config["recipes"]["mismatched"] = {
            "base": "small",
            "mismatch": "allowed",
            "stages": ["unsupervised", {"supervised": {"prompts": "none"}}, "distillation"],
            "evaluate_with": {"prompts": "none"},
        }

    change_config(mismatch)
    status, (recipe,) = prompts(capsys, "mismatched")
    assert status == 2
    verdicts = {place["where"]: place["verdict"] for place in recipe["places"]}
    meant = {where for where, verdict in verdicts.items() if verdict == "differs, as the config says"}
    assert meant == {
        "config.yaml: stage supervised of mismatched, prompts none",
        "config.yaml: stage distillation of mismatched, prompts search",
        "index of dev: spec",
    }
    unknown = {where for where, verdict in verdicts.items() if verdict == "not made yet"}
    assert unknown == {"stage supervised: saved model", "stage distillation: saved model", "index of dev: as encoded"}
    # The unsupervised stage is shared with another recipe, and there.
    assert verdicts["stage unsupervised: saved model"] == "equal"
    assert [sample["what"].split(" of ")[0] for sample in recipe["samples"]] == ["first query", "first document"]


def test_a_plan_alone_is_followed(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("results", "resources"):
        shutil.rmtree(study / folder)
    assert main(["prompts"]) == 2
    text = capsys.readouterr().out
    assert "not made yet" in text and '"search_document: " 17' in text
    assert text.rstrip().endswith("not all is made yet")
    assert not (study / "results").exists() and not (study / "resources").exists()


@pytest.mark.usefixtures("study")
def test_a_meant_mismatch_that_is_made_is_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    change = {"evaluate_with": {"prompts": "none"}, "mismatch": "allowed"}
    change_config(lambda config: config["recipes"]["distillation-only"].update(change))
    study = planned()
    (row,) = [row for row in study.rows if row.name == "distillation-only"]
    (run,) = [spec for spec in study.inputs_of(row.measures["dev"]) if spec.kind == "runs"]
    (index,) = [spec for spec in study.inputs_of(run) if spec.kind == "indexes"]
    make(study, index)
    status, (recipe,) = prompts(capsys, "distillation-only")
    assert status == 0
    assert [place["verdict"] for place in recipe["places"]].count("differs, as the config says") == 1
    assert recipe["samples"][2]["prompt_tokens"] == 0


@pytest.mark.usefixtures("study")
def test_an_encoder_that_mines_has_prompts_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def mine(config: Any) -> None:
        config["models"]["dense"] = {"hub": "someone/dense", "revision": "0" * 40}
        config["miners"]["encoder"] = {
            "encoder": {"model": "dense", "query_prompt": "query: ", "document_prompt": "", "maximum_length": 40},
            "depth": 10,
        }
        config["mining"]["fused"]["miners"] = ["bm25", "encoder"]

    change_config(mine)
    status, (recipe,) = prompts(capsys, "all")
    assert status == 2
    (miner,) = [place for place in recipe["places"] if place["where"] == "stage supervised: miner"]
    assert (miner["prompts"], miner["verdict"]) == ({"query": "query: ", "document": ""}, "equal")


@pytest.mark.usefixtures("study")
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "al"]) == 2
    error = capsys.readouterr().err
    assert "did you mean all?" in error and error.count("\n") == 1
    (model,) = [row.stages[-1] for row in planned().rows if row.name == "all"]
    (model.folder / "config_sentence_transformers.json").write_text("[]")
    assert main(["prompts", "all"]) == 2
    error = capsys.readouterr().err
    assert "config_sentence_transformers.json" in error and error.count("\n") == 1
