"""No config of a model's folder names code or a file outside of it, and the plan knows what a model can take."""

from __future__ import annotations

import copy
import json
import struct
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from colbert_zero.graph.console import UserError
from colbert_zero.graph.dense_folder import read_dense_encoding
from colbert_zero.graph.model_folder import (
    ACTIVATIONS,
    MODULE_TYPES,
    check_lengths,
    check_model_folder,
    maximum_length,
    projection_size,
)
from colbert_zero.graph.saved_encoding import read_saved_encoding, read_trained_encoding, require_saved_encoding
from colbert_zero.graph.study import Study
from own_study import CONFIG, write_data

TRANSFORMER = {"type": "sentence_transformers.models.Transformer", "path": ""}
POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
DENSE = {"type": "pylate.models.Dense.Dense", "path": "1_Dense"}
IDENTITY = "torch.nn.modules.linear.Identity"


def write(folder: Path, files: dict[str, Any]) -> Path:
    """Write a model's folder; values that are no bytes are written as JSON."""
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return folder


def dense(activation: str, *modules: dict[str, str]) -> dict[str, Any]:
    return {
        "modules.json": [TRANSFORMER, *modules, DENSE],
        "config.json": {"model_type": "bert"},
        "1_Dense/config.json": {"in_features": 32, "out_features": 16, "activation_function": activation},
        "1_Dense/model.safetensors": b"",
    }


SAFE: dict[str, dict[str, Any]] = {
    "transformers": {"config.json": {"model_type": "bert", "auto_map": None}},
    "PyLate": dense(IDENTITY),
    "sentence-transformers": dense("torch.nn.modules.activation.Tanh", POOLING),
    "long names": {"modules.json": [TRANSFORMER | {"type": f"{TRANSFORMER['type']}.Transformer"}]},
    "static": {
        "modules.json": [{"type": "sentence_transformers.models.StaticEmbedding", "path": ""}],
        "model.safetensors": b"",
    },
    "what it was trained on": {"config.json": {"model_type": "bert"}, "data_config.json": [{"name": "stackexchange"}]},
    "cross-encoder": {"config.json": {"sentence_transformers": {"activation_fn": IDENTITY, "version": "5"}}},
    "lengths of the transformer": {
        "modules.json": [TRANSFORMER],
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False, "model_args": {"dtype": "auto"}},
    },
    "settings of a tokenizer": {"tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "lower": True}},
    "an attention": {"config.json": {"_attn_implementation": "sdpa", "text_config": {"attn_implementation": None}}},
    "files that nothing reads": {
        "tokenizer_config.json": {
            "special_tokens_map_file": "/home/someone/special_tokens_map.json",
            "name_or_path": "/home/someone/model",
            "tokenizer_file": None,
            "fast_tokenizer_files": ["tokenizer.4.1.0.json", "tokenizer.json"],
        }
    },
    "a vocabulary beside a tokenizer": {
        "tokenizer.json": {},
        "tokenizer_config.json": {"vocab_file": "/home/someone/vocab.txt"},
    },
    "lists": {"config.json": {"architectures": ["BertModel"], "layers": [[1], {"size": 2}]}},
    "words of a vocabulary": {"tokenizer.json": {"model": {"vocab": {"auto_map": 7}}}, "vocab.json": {"auto_map": 7}},
    "shards": {"model.safetensors.index.json": {"weight_map": {"a": "model-00001-of-00002.safetensors"}}},
}
UNSAFE: dict[str, tuple[dict[str, Any], str]] = {
    "a module of the folder": ({"modules.json": [{"type": "models/m--mod.Evil", "path": ""}]}, "models/m--mod.Evil"),
    "a file beside the weights": ({"modules.json": [{"type": "custom_st.Transformer", "path": ""}]}, "custom_st"),
    "a module of the standard library": ({"modules.json": [{"type": "os.abort", "path": ""}]}, "os.abort"),
    "a prefix": ({"modules.json": [{"type": "sentence_transformers.models.os.abort", "path": ""}]}, "models.os"),
    "a trailing line": ({"modules.json": [TRANSFORMER | {"type": TRANSFORMER["type"] + "\n"}]}, "not loaded"),
    "a router, which names modules": (
        {"modules.json": [{"type": "sentence_transformers.models.Router", "path": ""}]},
        "R",
    ),
    "a second module": ({"modules.json": [TRANSFORMER, {"type": "pylate.hf_hub.Dense", "path": "1"}]}, "pylate.hf_hub"),
    "an activation": (dense("os.abort"), "os.abort"),
    "an activation of torch": (dense("torch.nn.modules.activation.os.abort"), "os.abort"),
    "a function of torch": (dense("torch.hub.load"), "torch.hub.load"),
    "a path": ({"modules.json": [TRANSFORMER | {"path": "../other"}]}, "out of the folder"),
    "an absolute path": ({"modules.json": [TRANSFORMER | {"path": "/etc"}]}, "out of the folder"),
    "code for the model": ({"config.json": {"auto_map": {"AutoModel": "modeling.Evil"}}}, "config.json has auto_map"),
    "code for the tokenizer": ({"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["t.T", None]}}}, "auto_map"),
    "code of a part": (
        {"modules.json": [TRANSFORMER | {"path": "0"}], "0/config.json": {"auto_map": {"AutoModel": "m.Evil"}}},
        "auto_map",
    ),
    "code within a config": ({"config.json": {"text_config": {"auto_map": {"AutoConfig": "c.C"}}}}, "auto_map"),
    "code within a list": ({"config.json": {"parts": [1, {"auto_map": {"AutoConfig": "c.C"}}]}}, "auto_map"),
    "trust": ({"sentence_bert_config.json": {"model_args": {"trust_remote_code": True}}}, "trust_remote_code"),
    "generation": ({"generation_config.json": {"custom_generate": "someone/code"}}, "custom_generate"),
    "another tokenizer": ({"sentence_bert_config.json": {"tokenizer_name_or_path": "/x"}}, "tokenizer_name_or_path"),
    "random weights": (
        {"sentence_roberta_config.json": {"model_args": {"ignore_mismatched_sizes": True}}},
        "model_args.ignore_mismatched_sizes",
    ),
    "kernels": ({"config.json": {"_attn_implementation_internal": "someone/kernel"}}, "attention implementation"),
    "kernels that a setter takes": ({"config.json": {"_attn_implementation": "someone/kernel"}}, "attention implement"),
    "kernels of parts": ({"config.json": {"attn_implementation": {"": "someone/kernel:f"}}}, "attention implement"),
    "kernels of a part": (
        {"config.json": {"text_config": {"_attn_implementation": "someone/kernel@main"}}},
        "attention implementation",
    ),
    "a tokenizer elsewhere": (
        {"tokenizer.json": {}, "tokenizer_config.json": {"tokenizer_file": "/x/tokenizer.json"}},
        "'/x/tokenizer.json' as tokenizer_file",
    ),
    "a tokenizer in the working folder": ({"tokenizer_config.json": {"vocab_file": "vocab.txt"}}, "as vocab_file"),
    "a version of it elsewhere": (
        {"tokenizer_config.json": {"fast_tokenizer_files": ["tokenizer.json", "../tokenizer.4.0.0.json"]}},
        "'../tokenizer.4.0.0.json' as fast_tokenizer_files",
    ),
    "versions that are no list": ({"tokenizer_config.json": {"fast_tokenizer_files": "a/b"}}, "fast_tokenizer_files"),
    "an activation of a cross-encoder": (
        {"config.json": {"sentence_transformers": {"activation_fn": "torch.hub.load"}}},
        "torch.hub.load",
    ),
    "an old activation": ({"config.json": {"sbert_ce_default_activation_function": "os.abort"}}, "os.abort"),
    "an adapter": ({"adapter_config.json": {"base_model_name_or_path": "someone/model"}}, "an adapter"),
    "weights elsewhere": ({"model.safetensors.index.json": {"weight_map": {"a": "../w.safetensors"}}}, "w.safetensors"),
    "pickled shards": ({"model.safetensors.index.json": {"weight_map": {"a": "model.bin"}}}, "model.bin"),
    "pickled weights": ({"config.json": {"transformers_weights": "weights.bin"}}, "weights.bin"),
    "a module of pickles": (
        dense(IDENTITY) | {"modules.json": [DENSE | {"path": "2_Dense"}], "2_Dense/pytorch_model.bin": b""},
        "2_Dense has no weights as safetensors",
    ),
    "an activation that is no name": (dense(["os.abort"]), "os.abort"),  # type: ignore[arg-type]
    "a path of no text": ({"modules.json": [TRANSFORMER | {"path": "a\0b"}]}, "out of the folder"),
    "arguments of no names": ({"sentence_bert_config.json": {"model_args": 3}}, "model_args is no group"),
    "shards of no names": ({"model.safetensors.index.json": {"weight_map": {"a": ["b"]}}}, "no safetensors file"),
    "code deep within": ({"config.json": b'{"a":' * 400 + b'{"auto_map": "x"}' + b"}" * 400}, "auto_map"),
    "no list": ({"modules.json": {"type": "x"}}, "not a list of modules"),
    "no names": ({"modules.json": [{"path": ""}]}, "not a list of modules"),
    "a second one of no name": ({"modules.json": [TRANSFORMER, {"path": ""}]}, "not a list of modules"),
    "no JSON": ({"config.json": b"{"}, "not JSON"),
    "no object": ({"config.json": []}, "not a JSON object"),
    "an abyss": ({"config.json": b"[" * 100_000}, "not JSON"),
}


@pytest.mark.parametrize("case", SAFE)
def test_what_libraries_save_is_loaded(case: str, tmp_path: Path) -> None:
    check_model_folder(write(tmp_path, SAFE[case]))


@pytest.mark.parametrize("case", UNSAFE)
def test_a_config_that_names_code_or_other_files_is_refused(case: str, tmp_path: Path) -> None:
    files, message = UNSAFE[case]
    with pytest.raises(UserError) as caught:
        check_model_folder(write(tmp_path, files), "someone/model")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [None, "someone/model"])
def test_a_folder_is_called_by_its_path_unless_it_has_a_name(name: str | None, tmp_path: Path) -> None:
    write(tmp_path, {"adapter_config.json": {}})
    with pytest.raises(UserError) as caught:
        check_model_folder(tmp_path, name)
    assert str(caught.value).startswith(f"{name or tmp_path}: it holds an adapter")


def test_every_class_that_may_be_named_is_the_librarys_own() -> None:
    import torch
    from sentence_transformers.util import import_from_string

    for name in MODULE_TYPES | ACTIVATIONS:
        found = import_from_string(name)
        assert issubclass(found, torch.nn.Module), name
        assert found.__module__.partition(".")[0] == name.partition(".")[0]
    for name in ACTIVATIONS:
        import_from_string(name)()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 8194}, 8192),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "modernbert", "max_position_embeddings": 8192, "pad_token_id": 50283}, 8192),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": False}, None),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "gemma", "max_position_embeddings": 8192}, 8192),
        ({"model_type": "xlnet", "max_position_embeddings": -1}, None),
        ({"model_type": "bert", "max_position_embeddings": 0}, None),
        ({"model_type": "bert", "max_position_embeddings": 1}, 1),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": None}, 512),
        ({"model_type": ["bert"], "max_position_embeddings": "many"}, None),
        ({}, None),
    ],
)
def test_the_longest_input_follows_from_the_config(
    config: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    write(tmp_path, {"config.json": config})
    assert maximum_length(tmp_path) == expected
    if expected is None:
        check_lengths(tmp_path, {"query_length": 100_000})
    else:
        check_lengths(tmp_path, {"query_length": expected})
        with pytest.raises(UserError, match=f"my/model takes at most {expected} tokens, but document_length is"):
            check_lengths(tmp_path, {"query_length": 1, "document_length": expected + 1}, "my/model")


def test_the_longest_input_is_that_of_the_transformers_folder(tmp_path: Path) -> None:
    part = {"0_T/config.json": {"model_type": "bert", "max_position_embeddings": 77}}
    assert maximum_length(write(tmp_path, {"modules.json": [TRANSFORMER | {"path": "0_T"}], **part})) == 77


def test_a_projection_is_that_of_pylate_or_stanford(tmp_path: Path) -> None:
    header = json.dumps({"linear.weight": {"dtype": "F32", "shape": [96, 32], "data_offsets": [0, 0]}}).encode()
    stanford = {
        "config.json": {"architectures": ["HF_ColBERT"]},
        "model.safetensors": struct.pack("<Q", len(header)) + header + bytes(8),
        "artifact.metadata": {"query_maxlen": 32, "doc_maxlen": 300, "dim": 96},
    }
    assert projection_size(write(tmp_path / "stanford", stanford)) == 96
    several = {"config.json": {"architectures": ["HF_ColBERT", "BertModel"]}}
    assert projection_size(write(tmp_path / "several", stanford | several)) == 96
    others = {"config.json": {"architectures": ["BertModel", "HF_ColBERT"]}}
    assert projection_size(write(tmp_path / "others", stanford | others)) is None
    assert projection_size(write(tmp_path / "pylate", dense(IDENTITY))) == 16
    two = dense(IDENTITY, DENSE | {"path": "0_Dense"}) | {"0_Dense/config.json": {"out_features": 24}}
    assert projection_size(write(tmp_path / "two", two)) == 16
    assert projection_size(write(tmp_path / "base", {"config.json": {"architectures": ["BertModel"]}})) is None
    assert projection_size(write(tmp_path / "torn", stanford | {"model.safetensors": b"\x01"})) is None
    assert read_saved_encoding(tmp_path / "stanford") == {
        "query_prompt": "",
        "document_prompt": "",
        "query_length": 32,
        "document_length": 300,
        "query_expansion": True,
    }
    assert read_saved_encoding(tmp_path / "pylate") is None
    with pytest.raises(UserError, match=r"^it cannot be used .* does not say its query_prompt, document_prompt, "):
        require_saved_encoding(tmp_path / "pylate", "it")


def test_the_saved_encoding_is_what_pylate_wrote(tmp_path: Path) -> None:
    config = {
        "prompts": {"query": "search_query: ", "passage": "search_document: "},
        "query_length": 39,
        "document_length": 519,
        "do_query_expansion": False,
    }
    write(tmp_path, {"config_sentence_transformers.json": config})
    assert require_saved_encoding(tmp_path, "it") == read_saved_encoding(tmp_path)
    assert read_saved_encoding(tmp_path) == {
        "query_prompt": "search_query: ",
        "document_prompt": "search_document: ",
        "query_length": 39,
        "document_length": 519,
        "query_expansion": False,
    }


ODD_SETTINGS: dict[str, tuple[list[Any], str]] = {
    "prompts": (["query: ", ["query: "], 7, True, {"query": 7}, {"document": ["d: "]}], "a group of texts"),
    **dict.fromkeys(
        ("query_length", "document_length", "query_maxlen", "doc_maxlen"),
        (["39", 39.0, True, 0, -1, 2**31, [39], {}], "a number of tokens"),
    ),
    "do_query_expansion": (["no", 0, None, []], "true or false"),
}


@pytest.mark.parametrize("setting", ODD_SETTINGS)
def test_a_saved_setting_that_is_none_is_one_line(setting: str, tmp_path: Path) -> None:
    values, form = ODD_SETTINGS[setting]
    stanford = setting.endswith("maxlen")
    name = "artifact.metadata" if stanford else "config_sentence_transformers.json"
    config = {"config.json": {"architectures": ["HF_ColBERT"]}} if stanford else {}
    for value in values:
        write(tmp_path, config | {name: {"query_length": 39, setting: value}})
        for read in (read_saved_encoding, read_trained_encoding, partial(require_saved_encoding, name="it")):
            with pytest.raises(UserError) as caught:
                read(tmp_path)
            line = f"{tmp_path / name}: {setting} is {value!r}, not {form}; save the model again"
            assert str(caught.value) == line
    # What is null is not said, as what is not there.
    if setting != "do_query_expansion":
        write(tmp_path, config | {name: {"query_length": 39, setting: None}})
        assert setting not in (read_saved_encoding(tmp_path) or {}).keys() - {"document_length"}


def test_a_length_that_is_no_number_of_tokens_is_not_taken_for_one(tmp_path: Path) -> None:
    for value in (0, -1, True, "512", None, 512.0):
        write(tmp_path, {"sentence_bert_config.json": {"max_seq_length": value}})
        assert "maximum_length" not in read_dense_encoding(tmp_path)
    write(tmp_path, {"sentence_bert_config.json": {"max_seq_length": 512}})
    assert read_dense_encoding(tmp_path)["maximum_length"] == 512


def test_what_pylate_did_not_write_is_its_default(tmp_path: Path) -> None:
    write(tmp_path, {"config_sentence_transformers.json": {"query_length": 32}})
    assert read_saved_encoding(tmp_path) == {
        "query_prompt": "",
        "document_prompt": "",
        "query_length": 32,
        "document_length": 180,
        "query_expansion": True,
    }


@pytest.mark.parametrize(
    ("config", "trained"),
    [
        ({}, {}),
        ({"prompts": None}, {}),
        ({"prompts": {"query": "q: ", "document": ""}}, {"query_prompt": "q: "}),
        ({"prompts": {"query": "", "corpus": "d: "}}, {"document_prompt": "d: "}),
        (
            {"prompts": {"query": "q: "}, "query_length": 32, "document_length": 300},
            {"query_prompt": "q: ", "query_length": 32, "document_length": 300, "query_expansion": True},
        ),
    ],
)
def test_an_empty_prompt_says_nothing_of_the_training(
    config: dict[str, Any], trained: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, {"config_sentence_transformers.json": config})
    assert read_trained_encoding(tmp_path) == trained


def projected(folder: Path) -> Path:
    """A PyLate model of 16 dimensions and 40 positions."""
    files = dense(IDENTITY) | {"config.json": {"model_type": "bert", "max_position_embeddings": 40}}
    saved = {"query_length": 20, "document_length": 40, "prompts": {"query": "q: ", "document": "d: "}}
    return write(folder, files | {"config_sentence_transformers.json": saved})


STAGE = {"query_length": 40, "document_length": 40, "dimensions": 16}
"""Settings of a stage that the model above takes."""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"query_length": 41},
            "recipes.all, stage supervised: .*model takes at most 40 tokens, but query_length is 41",
        ),
        (
            {"document_length": 41},
            "recipes.all, stage supervised: .*model takes at most 40 tokens, but document_length is 41",
        ),
        (
            {"dimensions": 128},
            "recipes.all, stage supervised: .*model has a projection to 16 dimensions, but dimensions is 128",
        ),
        ({"next": 32}, "recipes.all, stage distillation: dimensions is 32, but 16 in the stage before"),
        ({"miner": 512}, "miners.enc: .*model takes at most 40 tokens, but maximum_length is 512"),
        ({"teacher": 512}, "teachers.cross: .*model takes at most 40 tokens, but maximum_length is 512"),
        ({"evaluate": 41}, "recipes.all, on mine: .*model takes at most 40 tokens, but query_length is 41"),
        ({"collection": 41}, "recipes.all, on mine: .*model takes at most 40 tokens, but document_length is 41"),
        ({"baseline": 128}, "baselines.saved: .*model has a projection to 16 dimensions, but dimensions is 128"),
        ({}, None),
    ],
)
def test_a_plan_knows_what_a_local_model_can_take(changes: dict[str, int], message: str | None, tmp_path: Path) -> None:
    config = copy.deepcopy(CONFIG)
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data")
    projected(tmp_path / "model")
    pooled = {
        "modules.json": [TRANSFORMER, POOLING],
        "config.json": {"model_type": "bert", "max_position_embeddings": 40},
    }
    write(tmp_path / "dense-model", pooled)
    config["models"] |= {"small": {"folder": "model"}, "pooled": {"folder": "dense-model"}}
    config["miners"]["enc"] = {"encoder": {"model": "pooled", "maximum_length": changes.get("miner", 40)}, "depth": 20}
    config["mining"]["fused"]["miners"] = ["bm25", "enc"]
    cross = {"model": "small", "maximum_length": changes.get("teacher", 40)}
    config["teachers"]["cross"] = {"cross-encoder": cross, "miners": ["bm25"], "documents": 4}
    config["stages"]["distillation"]["teacher"] = "cross"
    stage = STAGE | {name: changes[name] for name in changes.keys() & STAGE}
    last = STAGE | {"dimensions": changes.get("next", 16)}
    config["recipes"]["all"]["stages"] = [{"supervised": stage}, {"distillation": last}]
    config["recipes"]["all"]["evaluate_with"] = {"query_length": changes.get("evaluate", 40)}
    config["recipes"]["all"]["mismatch"] = "allowed"  # The model was saved with other prompts and lengths.
    config["collections"]["mine"]["document_length"] = changes.get("collection", 40)
    # Without `dimensions`, a baseline has those of the projection that its model brings.
    baseline = {"model": "small"} | ({"dimensions": changes["baseline"]} if "baseline" in changes else {})
    config["baselines"]["saved"] = {"late_interaction": baseline}
    if message is None:
        indexes = [spec for spec in Study(config, tmp_path).specs.values() if "projection" in spec.settings]
        assert [spec.settings["projection"]["dimensions"] for spec in indexes] == [16]
    else:
        with pytest.raises(UserError, match=f"config.yaml: {message}"):
            Study(config, tmp_path)


def test_a_plan_knows_what_a_base_can_take_as_soon_as_it_is_fetched(tmp_path: Path) -> None:
    """The Snakemake of the first job after the fetch plans again: nothing is trained."""
    config = copy.deepcopy(CONFIG)
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data")
    config["models"]["small"] = {"registry": "modernbert-base"}
    base = next(spec for spec in Study(config, tmp_path).specs.values() if spec.kind == "bases")
    write(tmp_path / base.folder, {"config.json": {"model_type": "bert", "max_position_embeddings": 16}})
    Study(config, tmp_path)  # A folder without its spec is not finished.
    (tmp_path / base.folder / "spec.json").write_text(base.text)
    with pytest.raises(UserError, match="takes at most 16 tokens, but query_length is"):
        Study(config, tmp_path)
