"""Laws of loading, saving and tokenising: the same as PyLate's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pylate import models
from pylate.utils import ColBERTCollator
from sentence_transformers import SentenceTransformer

from colbert_zero.graph.console import UserError
from colbert_zero.graph.saved_encoding import CONFIG_FILE
from colbert_zero.models.colbert import (
    EncodingSettings,
    embed,
    load_colbert,
    save_colbert,
    scoring_mask,
    tokenize,
)

ENCODING = EncodingSettings("search_query: ", "search_document: ", 14, 20)
TEXTS = [
    "the lazy dog",
    "",
    "   ",
    "?!",
    "quick fox " * 30,
    " a model, again ",
    "ÀÉ 漢字 dog",
    "fox dog fox dog fox dog",
]


@pytest.fixture(params=["modernbert", "bert"])
def base(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.mark.parametrize("expansion", [False, True])
@pytest.mark.parametrize("column", ["query", "document"])
def test_tokens_are_those_of_the_collator_padded_to_the_longest(base: Path, column: str, expansion: bool) -> None:
    model = load_colbert(base, replace(ENCODING, query_expansion=expansion))
    prompt = ENCODING.query_prompt if column == "query" else ENCODING.document_prompt
    for texts in (TEXTS, TEXTS[:2]):
        batch = ColBERTCollator(tokenize_fn=model.tokenize, prompts={column: prompt})(
            [{column: text} for text in texts]
        )
        features = tokenize(model, texts, column == "query", prompt).pad()
        width = features["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask"):
            assert torch.equal(features[name], batch[f"{column}_{name}"][:, :width])
        assert not batch[f"{column}_attention_mask"][:, width:].any()
        assert expansion or features["attention_mask"][:, -1].any()


def test_tokenising_does_not_change_the_model(modernbert: Path) -> None:
    model = load_colbert(modernbert, ENCODING)
    before = model.tokenize(TEXTS, is_query=False)["input_ids"]
    tokenize(model, TEXTS, True, "search_query: ")
    assert torch.equal(model.tokenize(TEXTS, is_query=False)["input_ids"], before)


def test_a_selection_of_rows_is_padded_to_its_own_longest_text(modernbert: Path) -> None:
    tokens = tokenize(load_colbert(modernbert, ENCODING), TEXTS, False, "")
    rows = np.array([3, 0])
    input_ids = tokens.pad(rows)["input_ids"]
    assert input_ids.shape == (2, tokens.lengths[rows].max())
    assert torch.equal(input_ids, tokens.pad()["input_ids"][torch.from_numpy(rows), : input_ids.shape[1]])


def test_padding_and_a_documents_punctuation_do_not_count_in_maxsim(modernbert: Path) -> None:
    model = load_colbert(modernbert, ENCODING)
    features = tokenize(model, ["dog!", "quick brown fox"], False, "").pad()
    words = [model.tokenizer.convert_ids_to_tokens(row) for row in features["input_ids"]]
    assert words[0][3] == "!"
    assert scoring_mask(model, features, is_query=False)[0].tolist()[:5] == [True, True, True, False, True]
    assert not scoring_mask(model, features, is_query=False)[0, 5:].any()
    assert scoring_mask(model, features, is_query=True)[0, 3]


def test_the_encoding_is_saved_and_read_by_pylate(base: Path, tmp_path: Path) -> None:
    model = load_colbert(base, ENCODING)
    save_colbert(model, tmp_path / "saved", ENCODING)
    loaded = models.ColBERT(str(tmp_path / "saved"), device="cpu")
    assert loaded.prompts == {"query": "search_query: ", "document": "search_document: "}
    assert (loaded.query_length, loaded.document_length, loaded.do_query_expansion) == (14, 20, False)
    features = tokenize(model, TEXTS, True, ENCODING.query_prompt).pad()
    with torch.no_grad():
        expected = embed(model, features)
        assert torch.equal(embed(loaded, features), expected)
    encoded = loaded.encode(TEXTS, prompt_name="query")
    for text, vectors, mask in zip(encoded, expected, features["attention_mask"], strict=True):
        torch.testing.assert_close(torch.from_numpy(text), vectors[mask.bool()], atol=1e-5, rtol=1e-4)


def test_the_same_model_is_saved_as_the_same_bytes(base: Path, tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    save_colbert(load_colbert(base, ENCODING, seed=5), tmp_path / "first", ENCODING)
    torch.rand(3)
    again = load_colbert(base, replace(ENCODING, document_length=9), seed=5)
    tokenize(again, TEXTS, True, "")
    save_colbert(again, tmp_path / "second", ENCODING)
    save_colbert(load_colbert(tmp_path / "first", ENCODING), tmp_path / "third", ENCODING)
    assert contents(tmp_path / "first") == contents(tmp_path / "second") == contents(tmp_path / "third")
    save_colbert(load_colbert(base, ENCODING, seed=6), tmp_path / "other", ENCODING)
    assert contents(tmp_path / "first") != contents(tmp_path / "other")
    assert not [name for name in contents(tmp_path / "first") if not name.endswith((".json", ".safetensors"))]


def test_loading_leaves_the_global_generator_alone(modernbert: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    load_colbert(modernbert, ENCODING)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_prompt": ""}, "query_prompt is 'search_query: ' there, '' was requested"),
        ({"document_prompt": "passage: "}, "document_prompt"),
        ({"query_length": 15}, "query_length is 14 there, 15"),
        ({"document_length": 200}, "document_length"),
        ({"query_expansion": True}, "query_expansion"),
    ],
)
def test_other_encoding_settings_are_refused_unless_loading_is_not_strict(
    modernbert: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    save_colbert(load_colbert(modernbert, ENCODING), tmp_path / "saved", ENCODING)
    other = replace(ENCODING, **change)
    with pytest.raises(UserError, match=message):
        load_colbert(tmp_path / "saved", other)
    model = load_colbert(tmp_path / "saved", other, strict=False)
    assert model.prompts == {"query": other.query_prompt, "document": other.document_prompt}
    assert (model.query_length, model.document_length) == (other.query_length, other.document_length)
    assert model.do_query_expansion == other.query_expansion


def test_a_projection_is_added_only_where_there_is_none(modernbert: Path, tmp_path: Path) -> None:
    model = load_colbert(modernbert, ENCODING, dimensions=16)
    assert embed(model, tokenize(model, TEXTS, True, "").pad()).shape[2] == 16
    save_colbert(model, tmp_path / "saved", ENCODING)
    for dimensions in (None, 16):
        loaded = load_colbert(tmp_path / "saved", ENCODING, dimensions=dimensions)
        assert len(loaded) == 2
        assert embed(loaded, tokenize(loaded, TEXTS, True, "").pad()).shape[2] == 16
    with pytest.raises(UserError, match="a projection to 16 dimensions, but dimensions is 128; set it to 16"):
        load_colbert(tmp_path / "saved", ENCODING, dimensions=128)


def test_a_sentence_transformers_folder_keeps_its_weights_and_not_its_prompts(base: Path, tmp_path: Path) -> None:
    dense = SentenceTransformer(str(base), device="cpu", prompts={"query": "q: "}, default_prompt_name="query")
    dense.save(str(tmp_path / "dense"), create_model_card=False)
    model = load_colbert(tmp_path / "dense", ENCODING)
    assert (model.prompts["query"], model.default_prompt_name) == ("search_query: ", None)
    weights = dict(load_colbert(base, ENCODING).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    save_colbert(model, tmp_path / "saved", ENCODING)
    loaded = load_colbert(tmp_path / "saved", ENCODING)
    features = tokenize(loaded, TEXTS, True, "").pad()
    assert torch.equal(embed(loaded, features), embed(model, features))


def test_half_precision_weights_are_loaded_in_fp32(modernbert: Path, tmp_path: Path) -> None:
    model = load_colbert(modernbert, ENCODING)
    model.half()
    save_colbert(model, tmp_path / "half", ENCODING)
    loaded = load_colbert(tmp_path / "half", ENCODING)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of"}))


def _emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _left(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "left"}))


@pytest.mark.parametrize("damage", [_without_weights, _cut_weights, _unknown_architecture, _emptied, _left])
def test_a_folder_that_cannot_be_loaded_is_named_in_one_line(
    modernbert: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(modernbert, folder)
    damage(folder)
    with pytest.raises(UserError) as caught:
        load_colbert(folder, ENCODING)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_file_with_the_encoding_is_the_one_pylate_writes(modernbert: Path, tmp_path: Path) -> None:
    save_colbert(load_colbert(modernbert, ENCODING), tmp_path, ENCODING)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["model_type"] == "ColBERT"


@pytest.mark.parametrize("side", ["query", "document"])
def test_a_prompt_that_leaves_no_room_for_a_text_is_refused(modernbert: Path, side: str) -> None:
    model = load_colbert(modernbert, ENCODING)
    prompt = ENCODING.query_prompt if side == "query" else ENCODING.document_prompt
    taken = len(model.tokenizer(prompt)["input_ids"]) + 1
    load_colbert(modernbert, replace(ENCODING, **{f"{side}_length": taken + 2}))
    with pytest.raises(
        UserError, match=rf"^{side}_length is {taken + 1}, but .* are {taken} tokens; set it well above"
    ):
        load_colbert(modernbert, replace(ENCODING, **{f"{side}_length": taken + 1}))
