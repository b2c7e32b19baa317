"""A model is loaded whole, as PyLate loads it, or one line says what its folder lacks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pylate import models
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    MPNetConfig,
    MPNetForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from colbert_zero.graph.console import UserError
from colbert_zero.graph.model_folder import maximum_length
from colbert_zero.graph.saved_encoding import CONFIG_FILE, read_saved_encoding
from colbert_zero.models.colbert import EncodingSettings, drawn_parts, embed, load_colbert, save_colbert, tokenize
from colbert_zero.models.encoders import SentenceTransformerEncoder
from colbert_zero.models.loading import whole_model
from colbert_zero.teaching.rerankers import INSTRUCTION, CausalLMTeacher, CrossEncoderTeacher
from tiny_models import tiny_cross_encoder, tiny_dense

ENCODING = EncodingSettings("q: ", "d: ", 14, 20)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
PUBLISHED: dict[str, tuple[Any, Any, dict[str, Any], int | None]] = {
    "BERT with its pooler": (BertModel, BertConfig, SIZES, 40),
    "BERT of masked language": (BertForMaskedLM, BertConfig, SIZES, 40),
    "BERT of pre-training": (BertForPreTraining, BertConfig, SIZES, 40),
    "RoBERTa": (RobertaForMaskedLM, RobertaConfig, SIZES, 38),
    "MPNet": (MPNetForMaskedLM, MPNetConfig, SIZES, 38),
    "ModernBERT": (ModernBertForMaskedLM, ModernBertConfig, SIZES | {"pad_token_id": 0}, 40),
    "DistilBERT": (
        DistilBertForMaskedLM,
        DistilBertConfig,
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 40},
        40,
    ),
    "GPT-2": (GPT2LMHeadModel, GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40}, 40),
    "T5": (T5ForConditionalGeneration, T5Config, {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2}, None),
}
"""How bases are published: class, config, sizes, and how many tokens they take."""
Damage = Callable[[Path], None]


def published(folder: Path, kind: str, bert: Path) -> Path:
    """Save a model of a kind, with the tokenizer of the tiny BERT."""
    model, config, sizes, _ = PUBLISHED[kind]
    tokenizer: Any = AutoTokenizer.from_pretrained(bert)
    torch.manual_seed(1)
    model(config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_base_loads_as_it_is_published(kind: str, bert: Path, tmp_path: Path) -> None:
    folder = published(tmp_path, kind, bert)
    if kind.startswith("BERT of"):
        edit_weights(lambda weights: weights | {"bert.embeddings.position_ids": torch.arange(40)[None]})(folder)
    model = load_colbert(folder, ENCODING)
    assert drawn_parts(model) == ["[D] ", "[Q] ", "projection"]
    again = load_colbert(folder, ENCODING)
    for first, second in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_model_takes_just_so_many_tokens(kind: str, bert: Path, tmp_path: Path) -> None:
    folder, limit = published(tmp_path, kind, bert), PUBLISHED[kind][3]
    assert maximum_length(folder) == limit
    encoding = EncodingSettings("", "", 14, limit or 500)
    model = load_colbert(folder, encoding)
    texts = tokenize(model, ["fox " * 600], False, "").pad()
    assert texts["input_ids"].shape == (1, limit or 500)
    assert torch.isfinite(embed(model, texts)).all()
    if limit is not None:
        longer = EncodingSettings("", "", limit + 1, 14)
        with pytest.raises(UserError, match=f"{folder} takes at most {limit} tokens, but query_length is {limit + 1}"):
            load_colbert(folder, longer)


def test_the_parts_that_a_stage_adds_are_named_once(modernbert: Path, tmp_path: Path) -> None:
    model = load_colbert(modernbert, ENCODING)
    save_colbert(model, tmp_path, ENCODING)
    assert drawn_parts(load_colbert(tmp_path, ENCODING)) == []


def edit_weights(edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(edit(load_file(file)), file, {"format": "pt"})

    return damage


def edit_json(name: str, **changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | changes))

    return damage


def with_nan(weights: dict[str, Any]) -> dict[str, Any]:
    weights["embeddings.word_embeddings.weight"][7, 3] = float("nan")
    return weights


def tokenizer_of_no_words(folder: Path) -> None:
    for path in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        path.unlink()


WEIGHTS: dict[str, tuple[Damage, str]] = {
    "other names": (
        edit_weights(lambda weights: {f"tower.{key}": value for key, value in weights.items()}),
        "not whole: it has no weights for embeddings.LayerNorm.bias",
    ),
    "half of them": (
        edit_weights(lambda weights: {key: value for key, value in weights.items() if "layer.1." not in key}),
        "not whole: it has no weights for encoder.layer.1.attention.output.LayerNorm.bias, .* and 13 more of BertModel",
    ),
    "one too many": (
        edit_weights(lambda weights: weights | {"adapter.weight": torch.zeros(3)}),
        "no place for its weights adapter.weight",
    ),
    "a layer more than the config says": (
        edit_json("config.json", num_hidden_layers=1),
        "no place for its weights encoder.layer.1.attention.output.LayerNorm.bias",
    ),
    "other shapes": (
        edit_json("config.json", intermediate_size=64),
        r"other shapes than its config says: encoder.layer.0.intermediate.dense.bias \(48 for 64\)",
    ),
    "no numbers": (edit_weights(with_nan), "embeddings.word_embeddings.weight hold NaN"),
    "fewer tokens than the tokenizer": (
        lambda folder: (
            edit_json("config.json", vocab_size=50)(folder),
            edit_weights(
                lambda weights: (
                    weights
                    | {"embeddings.word_embeddings.weight": weights["embeddings.word_embeddings.weight"][:50].clone()}
                )
            )(folder),
        )[0],
        "tokens, its model embeddings for 50: none for",
    ),
    "no tokenizer": (tokenizer_of_no_words, "tokenizer|cannot be loaded"),
}
"""Ways to damage the weights of a BERT, and what the line says."""


@pytest.mark.parametrize("case", WEIGHTS)
def test_a_base_that_is_not_whole_is_refused(case: str, bert: Path, tmp_path: Path) -> None:
    damage, message = WEIGHTS[case]
    shutil.copytree(bert, tmp_path / "base")
    damage(tmp_path / "base")
    with pytest.raises(UserError, match=message) as caught:
        load_colbert(tmp_path / "base", ENCODING, name="my/base")
    assert str(caught.value).startswith("my/base")
    # A dense encoder is loaded by the same rule.
    dense = tiny_dense(tmp_path / "dense", bert)
    damage(dense)
    with pytest.raises(UserError, match=message):
        SentenceTransformerEncoder(dense, "", "", 32, "cpu")


def test_a_projection_that_is_not_whole_is_refused(bert: Path, tmp_path: Path) -> None:
    save_colbert(load_colbert(bert, ENCODING, dimensions=16), tmp_path, ENCODING)
    file = tmp_path / "1_Dense" / "model.safetensors"
    (weights,) = load_file(file).values()
    for name, values, message in (
        ("linear.weight", torch.full_like(weights, float("inf")), "hold NaN or infinity"),
        ("linear.weight", weights[:8].clone(), "cannot be loaded as a late-interaction model"),
        ("other.weight", weights, "cannot be loaded as a late-interaction model"),
    ):
        save_file({name: values}, file)
        with pytest.raises(UserError, match=message):
            load_colbert(tmp_path, ENCODING)
    file.unlink()
    with pytest.raises(UserError, match="1_Dense has no weights as safetensors"):
        load_colbert(tmp_path, ENCODING)
    (tmp_path / "modules.json").write_text(json.dumps(json.loads((tmp_path / "modules.json").read_text())[:1]))
    with pytest.raises(UserError, match="its projection is missing"):
        load_colbert(tmp_path, ENCODING)


ATTACKS: dict[str, Damage] = {
    "a module": lambda folder: (
        folder.joinpath("modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]'),
        None,
    )[1],
    "a model": edit_json("config.json", auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}),
    "an unknown model": edit_json(
        "config.json",
        model_type="evil",
        auto_map={f"Auto{kind}": "evil.Evil" for kind in ("Config", "Model", "ModelForCausalLM")},
    ),
    "a tokenizer": edit_json(
        "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]}
    ),
}
LOADERS: dict[str, Callable[[Path], object]] = {
    "base": lambda folder: load_colbert(folder, ENCODING),
    "encoder": lambda folder: SentenceTransformerEncoder(folder, "", "", 32, "cpu"),
    "cross-encoder": lambda folder: CrossEncoderTeacher(folder, 40, torch.float32, "cpu"),
    "causal-lm": lambda folder: CausalLMTeacher(folder, 20, torch.float32, "cpu", "fox", "dog"),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_code_of_a_folder_runs(attack: str, loader: str, bert: Path, tmp_path: Path) -> None:
    folder = tiny_dense(tmp_path / "model", bert)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    ATTACKS[attack](folder)
    with pytest.raises(UserError):
        LOADERS[loader](folder)
    assert not (tmp_path / "ran").exists()


MAKERS: dict[str, Callable[[Path, Path], Path]] = {
    "base": lambda folder, bert: shutil.copytree(bert, folder),
    "encoder": tiny_dense,
    "cross-encoder": tiny_cross_encoder,
    "causal-lm": lambda folder, bert: published(folder, "GPT-2", bert),
}
"""What makes a folder that the loader of that name loads."""


@pytest.mark.parametrize("loader", LOADERS)
def test_a_model_that_cannot_compute_is_refused(loader: str, bert: Path, tmp_path: Path) -> None:
    folder = MAKERS[loader](tmp_path / "model", bert)
    LOADERS[loader](folder)
    edit_json("config.json", layer_norm_eps="x", layer_norm_epsilon="x")(folder)
    with pytest.raises(UserError, match=r"cannot be loaded as a.* \(TypeError: .*'eps'"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("loader", ["base", "encoder"])
def test_a_tokenizer_that_panics_is_refused(loader: str, bert: Path, tmp_path: Path) -> None:
    folder = MAKERS[loader](tmp_path / "model", bert)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    del tokenizer["post_processor"]["special_tokens"]["[CLS]"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"cannot be loaded as a.* \(PanicException: no entry found for key"):
        LOADERS[loader](folder)


@pytest.mark.parametrize(
    "fault", [torch.AcceleratorError("CUDA error"), torch.OutOfMemoryError(), MemoryError()], ids=repr
)
def test_a_fault_of_the_machine_is_not_the_folders(fault: Exception, bert: Path) -> None:
    with pytest.raises(type(fault)), whole_model(bert, "my/base", "a base"):
        raise fault


@pytest.mark.parametrize("dimensions", [16, 96, 128])
@pytest.mark.parametrize("settings", [{}, {"query_maxlen": 14, "doc_maxlen": 20}], ids=["alone", "with its settings"])
def test_a_stanford_checkpoint_has_the_projection_that_pylate_takes(
    bert: Path, tmp_path: Path, dimensions: int, settings: dict[str, int]
) -> None:
    folder = published(tmp_path / "stanford", "BERT with its pooler", bert)
    weights = {f"bert.{key}": value for key, value in load_file(folder / "model.safetensors").items()}
    weights["linear.weight"] = torch.randn(dimensions, 32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    edit_json("config.json", architectures=["HF_ColBERT"])(folder)
    if settings:
        (folder / "artifact.metadata").write_text(json.dumps(settings))
    assert (read_saved_encoding(folder) or {}).get("query_length") == settings.get("query_maxlen")
    encoding = EncodingSettings("", "", 14, 20, query_expansion=True)
    ours = load_colbert(folder, encoding, dimensions=dimensions)
    theirs = models.ColBERT(str(folder), device="cpu", query_length=14, document_length=20, local_files_only=True)
    assert "projection" not in drawn_parts(ours) and len(ours) == 2
    # Markers that the vocabulary lacks are drawn, by PyLate without a seed: compare what does not depend on them.
    for part in (0, 1):
        for (name, mine), (_, other) in zip(
            ours[part].named_parameters(), theirs[part].named_parameters(), strict=True
        ):
            rows = slice(None, -2) if "word_embeddings" in name else slice(None)
            assert torch.equal(mine[rows], other[rows]), name
    theirs.load_state_dict(ours.state_dict())
    for is_query in (True, False):
        for mine, other in zip(
            ours.encode(["the fox", "a dog!"], is_query=is_query),
            theirs.encode(["the fox", "a dog!"], is_query=is_query),
            strict=True,
        ):
            np.testing.assert_array_equal(mine, other)
            assert mine.shape[1] == dimensions
    with pytest.raises(UserError, match=f"has a projection to {dimensions} dimensions, but dimensions is 64"):
        load_colbert(folder, encoding, dimensions=64)
    with pytest.raises(UserError, match="query_expansion is True there, False was requested"):
        load_colbert(folder, EncodingSettings("", "", 14, 20))


def test_expansion_tokens_that_see_each_other_are_refused_where_the_saved_encoding_is_asked_for(
    bert: Path, tmp_path: Path
) -> None:
    save_colbert(load_colbert(bert, ENCODING), tmp_path, ENCODING)
    edit_json(CONFIG_FILE, attend_to_expansion_tokens=True)(tmp_path)
    with pytest.raises(UserError, match="which nothing here computes"):
        load_colbert(tmp_path, ENCODING)
    load_colbert(tmp_path, ENCODING, strict=False)


@pytest.mark.parametrize("kind", ["plain", "pylate", "sparse", "no pooling", "no padding"])
def test_a_folder_of_another_kind_is_no_encoder(kind: str, bert: Path, tmp_path: Path) -> None:
    folder, message = tmp_path / "model", "not a sentence-transformers model: no modules.json"
    if kind == "plain":
        folder = bert
    elif kind == "pylate":
        save_colbert(load_colbert(bert, ENCODING), folder, ENCODING)
        message = "is a ColBERT model; an encoder needs a SentenceTransformer"
    else:
        tiny_dense(folder, bert)
    if kind == "sparse":
        edit_json(CONFIG_FILE, model_type="SparseEncoder")(folder)
        message = "is a SparseEncoder model"
    elif kind == "no pooling":
        modules = json.loads((folder / "modules.json").read_text())
        (folder / "modules.json").write_text(json.dumps(modules[:1]))
    elif kind == "no padding":
        edit_json("tokenizer_config.json", pad_token=None)(folder)
        message = "its tokenizer has no padding token"
    with pytest.raises(UserError, match=message) as caught:
        SentenceTransformerEncoder(folder, "", "", 32, "cpu", "their/model")
    assert str(caught.value).startswith("their/model")


def test_an_encoder_takes_no_longer_texts_than_it_has_positions_for(bert: Path, tmp_path: Path) -> None:
    dense = tiny_dense(tmp_path, bert)
    SentenceTransformerEncoder(dense, "", "", 256, "cpu")
    with pytest.raises(UserError, match="takes at most 256 tokens, but maximum_length is 512"):
        SentenceTransformerEncoder(dense, "", "", 512, "cpu")


def test_a_cross_encoder_without_its_head_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights for classifier.bias, classifier.weight of BertForSequenceClass"):
        CrossEncoderTeacher(bert, 40, torch.float32, "cpu")
    tokenizer: Any = AutoTokenizer.from_pretrained(bert)
    config = BertConfig.from_pretrained(bert, num_labels=1)
    kind: Any = BertForSequenceClassification
    kind(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    # Old versions of transformers saved buffers, such as the numbers of positions.
    positions = torch.arange(256)[None]
    edit_weights(lambda weights: weights | {"bert.embeddings.position_ids": positions})(tmp_path)
    CrossEncoderTeacher(tmp_path, 256, torch.float32, "cpu")
    with pytest.raises(UserError, match="takes at most 256 tokens, but maximum_length is 257"):
        CrossEncoderTeacher(tmp_path, 257, torch.float32, "cpu")
    # A classifier passes its pooler, which token embeddings do not.
    edit_weights(lambda weights: {key: value for key, value in weights.items() if "pooler" not in key})(tmp_path)
    with pytest.raises(UserError, match=r"no weights for bert\.pooler\.dense\.bias"):
        CrossEncoderTeacher(tmp_path, 40, torch.float32, "cpu")


def test_a_language_model_without_its_answer_or_its_positions_is_refused(bert: Path, tmp_path: Path) -> None:
    folder = published(tmp_path, "GPT-2", bert)

    def load(length: int, answer: str) -> CausalLMTeacher:
        return CausalLMTeacher(folder, length, torch.float32, "cpu", "fox", answer, "their/teacher")

    load(39, "dog").score([("the fox", "the dog " * 50)])
    with pytest.raises(UserError, match="their/teacher takes at most 40 tokens"):
        load(40, "dog")
    for answer in ("dogdog", "漢", "", "the dog"):
        with pytest.raises(UserError, match=r"their/teacher: answer .* is \[.*\] to its tokenizer"):
            load(20, answer)
    with pytest.raises(UserError, match="takes at most 40 tokens"):
        CausalLMTeacher(folder, 20, torch.float32, "cpu", INSTRUCTION, "dog")
    edit_weights(lambda weights: {key: value for key, value in weights.items() if ".h.1." not in key})(folder)
    with pytest.raises(UserError, match=r"not whole: it has no weights for transformer\.h\.1\."):
        load(20, "dog")
