"""Loading, saving and tokenising against PyLate's own."""

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
from colbert_zero.models.colbert import CONFIG, Encoding, embed, load_colbert, save_colbert, scored, tokenize

ENCODING = Encoding("search_query: ", "search_document: ", 14, 20)
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
def test_tokens_are_those_of_the_collator_cut_at_the_longest(base: Path, column: str, expansion: bool) -> None:
    model = load_colbert(base, replace(ENCODING, query_expansion=expansion))
    prompt = ENCODING.query_prompt if column == "query" else ENCODING.document_prompt
    for texts in (TEXTS, TEXTS[:2]):
        batch = ColBERTCollator(tokenize_fn=model.tokenize, prompts={column: prompt})(
            [{column: text} for text in texts]
        )
        found = tokenize(model, texts, column == "query", prompt).padded()
        width = found["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask"):
            assert torch.equal(found[name], batch[f"{column}_{name}"][:, :width])
        rest = batch[f"{column}_attention_mask"][:, width:]
        assert not rest.any()
        assert expansion or found["attention_mask"][:, -1].any()


def test_tokenising_leaves_no_trace_in_the_model(modernbert: Path) -> None:
    model = load_colbert(modernbert, ENCODING)
    before = model.tokenize(TEXTS, is_query=False)["input_ids"]
    tokenize(model, TEXTS, True, "search_query: ")
    assert torch.equal(model.tokenize(TEXTS, is_query=False)["input_ids"], before)


def test_some_rows_are_padded_as_if_they_were_all(modernbert: Path) -> None:
    tokens = tokenize(load_colbert(modernbert, ENCODING), TEXTS, False, "")
    rows = np.array([3, 0])
    found = tokens.padded(rows)["input_ids"]
    assert found.shape == (2, tokens.lengths[rows].max())
    assert torch.equal(found, tokens.padded()["input_ids"][torch.from_numpy(rows), : found.shape[1]])


def test_the_documents_punctuation_and_the_padding_do_not_count(modernbert: Path) -> None:
    model = load_colbert(modernbert, ENCODING)
    features = tokenize(model, ["dog!", "quick brown fox"], False, "").padded()
    words = [model.tokenizer.convert_ids_to_tokens(row) for row in features["input_ids"]]
    assert words[0][3] == "!"
    assert scored(model, features, is_query=False)[0].tolist()[:5] == [True, True, True, False, True]
    assert not scored(model, features, is_query=False)[0, 5:].any()
    assert scored(model, features, is_query=True)[0, 3]


def test_the_encoding_is_saved_and_read_by_pylate(base: Path, tmp_path: Path) -> None:
    model = load_colbert(base, ENCODING)
    save_colbert(model, tmp_path / "saved", ENCODING)
    loaded = models.ColBERT(str(tmp_path / "saved"), device="cpu")
    assert loaded.prompts == {"query": "search_query: ", "document": "search_document: "}
    assert (loaded.query_length, loaded.document_length, loaded.do_query_expansion) == (14, 20, False)
    features = tokenize(model, TEXTS, True, ENCODING.query_prompt).padded()
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


def test_loading_does_not_disturb_other_draws(modernbert: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    load_colbert(modernbert, ENCODING)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"query_prompt": ""}, "query_prompt is 'search_query: ' there, '' was asked for"),
        ({"document_prompt": "passage: "}, "document_prompt"),
        ({"query_length": 15}, "query_length is 14 there, 15"),
        ({"document_length": 519}, "document_length"),
        ({"query_expansion": True}, "query_expansion"),
    ],
)
def test_another_encoding_is_refused_unless_it_is_meant(
    modernbert: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    save_colbert(load_colbert(modernbert, ENCODING), tmp_path / "saved", ENCODING)
    other = replace(ENCODING, **change)
    with pytest.raises(UserError, match=named):
        load_colbert(tmp_path / "saved", other)
    model = load_colbert(tmp_path / "saved", other, strict=False)
    assert model.prompts == {"query": other.query_prompt, "document": other.document_prompt}
    assert (model.query_length, model.document_length) == (other.query_length, other.document_length)
    assert model.do_query_expansion == other.query_expansion


def test_a_projection_is_added_only_where_there_is_none(modernbert: Path, tmp_path: Path) -> None:
    model = load_colbert(modernbert, ENCODING, dimensions=16)
    assert embed(model, tokenize(model, TEXTS, True, "").padded()).shape[2] == 16
    save_colbert(model, tmp_path / "saved", ENCODING)
    loaded = load_colbert(tmp_path / "saved", ENCODING, dimensions=128)
    assert len(loaded) == 2
    assert embed(loaded, tokenize(loaded, TEXTS, True, "").padded()).shape[2] == 16


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
    features = tokenize(loaded, TEXTS, True, "").padded()
    assert torch.equal(embed(loaded, features), embed(model, features))


def test_half_precision_weights_are_trained_in_full(modernbert: Path, tmp_path: Path) -> None:
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
    assert json.loads((tmp_path / CONFIG).read_text())["model_type"] == "ColBERT"
