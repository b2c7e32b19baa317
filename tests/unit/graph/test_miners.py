"""What a plan knows of the models that mine: of which kind they are, and with which prompts they were saved."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.console import UserError
from colbert_zero.graph.study import Study

ROOT = Path(__file__).parents[3]
EMBEDDED = yaml.safe_load((ROOT / "local" / "config.yaml").read_text())
TRANSFORMER = {"type": "sentence_transformers.models.Transformer", "path": ""}
POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
DENSE = {"type": "pylate.models.Dense.Dense", "path": "1_Dense"}
IDENTITY = "torch.nn.modules.linear.Identity"
PROMPTS = {"query": "query: ", "document": "passage: "}
LENGTHS = {"query_length": 32, "document_length": 180}


def write_model(folder: Path, *modules: dict[str, str], **saved: Any) -> dict[str, str]:
    """What a plan reads of a model's folder; the entry of `models` that names it."""
    folder.mkdir()
    files = {
        "modules.json": [TRANSFORMER, *modules],
        "config.json": {"model_type": "bert", "max_position_embeddings": 512},
        "config_sentence_transformers.json": saved,
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    if DENSE in modules:
        (folder / "1_Dense").mkdir()
        (folder / "1_Dense" / "model.safetensors").touch()
        projection = {"in_features": 32, "out_features": 16, "activation_function": IDENTITY}
        (folder / "1_Dense" / "config.json").write_text(json.dumps(projection))
    return {"folder": str(folder)}


def candidates(tmp_path: Path, miner: dict[str, Any], model: dict[str, Any]) -> list[Spec]:
    """The candidates of the embedded study, if `miner` mines in the place of latent semantic analysis."""
    config = copy.deepcopy(EMBEDDED)
    config["models"]["miner"] = model
    config["miners"]["lsa"] = {**miner, "depth": 50}
    config["mining"]["fused"]["miners"] = ["lsa"]
    study = Study(config, ROOT / "local", remember=False)
    return [spec for spec in study.specs.values() if spec.kind == "candidates" and spec.label.startswith("dense.")]


def error(tmp_path: Path, miner: dict[str, Any], model: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        candidates(tmp_path, miner, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_encoder_without_prompts_has_none_in_its_spec_beside_those_it_may_have(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", POOLING, prompts={"query": "", "document": ""})
    (encoder,) = {
        json.dumps(spec.settings["encoder"]) for spec in candidates(tmp_path, {"encoder": {"model": "miner"}}, model)
    }
    expected = {"kind": "sentence-transformers", "query_prompt": "", "document_prompt": "", "maximum_length": 512}
    assert json.loads(encoder) == expected


@pytest.mark.parametrize(
    "given", [{}, {"query_prompt": "query: "}, {"query_prompt": "q: ", "document_prompt": "passage: "}]
)
def test_an_encoder_that_was_saved_with_prompts_is_given_those(tmp_path: Path, given: dict[str, str]) -> None:
    model = write_model(tmp_path / "model", POOLING, prompts=PROMPTS)
    message = error(tmp_path, {"encoder": {"model": "miner", **given}}, model)
    assert "miners.lsa: the model was saved with other settings: " in message
    assert "there; give those, or say that they are meant with override: true" in message
    meant = candidates(tmp_path, {"encoder": {"model": "miner", "override": True, **given}}, model)
    assert all(spec.settings["encoder"]["override"] for spec in meant)
    own = {"query_prompt": "query: ", "document_prompt": "passage: "}
    planned = candidates(tmp_path, {"encoder": {"model": "miner", **own}}, model)
    assert planned and all("override" not in spec.settings["encoder"] for spec in planned)


def test_a_late_interaction_model_mines_as_it_was_saved(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", DENSE, prompts=PROMPTS, **LENGTHS)
    settings = {"model": "miner", "search": "approximate", "pool": 1000}
    for spec in candidates(tmp_path, {"late-interaction": settings}, model):
        assert spec.settings["encoder"] == {"kind": "late-interaction", "precision": "fp32"}
        assert spec.settings["approximate"] == {"recall": 0.95, "seed": EMBEDDED["seed"]}
        assert spec.settings["pool"] == {"documents": 1000, "seed": EMBEDDED["seed"]}


def test_a_model_of_another_kind_is_one_line(tmp_path: Path) -> None:
    late = write_model(tmp_path / "late", DENSE, prompts=PROMPTS, **LENGTHS)
    message = error(tmp_path, {"encoder": {"model": "miner"}}, late)
    assert "late is a ColBERT model; an encoder needs a SentenceTransformer, with one vector per text; " in message
    assert message.endswith("a miner or a teacher can use it under late-interaction")
    dense = write_model(tmp_path / "dense", POOLING)
    message = error(tmp_path, {"late-interaction": {"model": "miner"}}, dense)
    assert "dense cannot be used as a late-interaction model: its folder does not say its query_prompt" in message
    teacher = {"late-interaction": {"model": "dense"}, "miners": ["bm25"], "documents": 6}
    config = copy.deepcopy(EMBEDDED) | {"teachers": {name: teacher for name in EMBEDDED["teachers"]}}
    config["models"]["dense"] = dense
    with pytest.raises(UserError, match=r"^config.yaml: teachers.*dense cannot be used as a late-interaction model"):
        Study(config, ROOT / "local", remember=False)
    random = {"random": {"sources": ["torch"]}}
    assert "has no pooling" in error(tmp_path, {"encoder": {"model": "miner"}}, random)
    assert "says no prompts and lengths to encode with" in error(
        tmp_path, {"late-interaction": {"model": "miner"}}, random
    )
    other = write_model(tmp_path / "other", POOLING, similarity_fn_name="euclidean")
    assert "names the similarity 'euclidean'; a search needs cosine or dot" in error(
        tmp_path, {"encoder": {"model": "miner"}}, other
    )
