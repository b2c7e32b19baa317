"""What a model's folder says before any library loads it: whether it is safe to load, and what the model can take.

Libraries import the classes that a folder's configs name. So a folder is checked when it is planned, when it is fetched
and before each load: only the classes listed here may be named, and only files within the folder.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from colbert_zero.graph.console import UserError
from colbert_zero.graph.json_values import parse_json, read_json

CONFIG_FILE, MODULES_FILE, TRAINING_DATA_FILE = "config.json", "modules.json", "data_config.json"
MODULE_TYPES = frozenset(
    name
    for package, classes in {
        "sentence_transformers.models": (
            *("BoW", "CNN", "Dense", "Dropout", "LSTM", "LayerNorm", "Normalize", "Pooling", "StaticEmbedding"),
            *("Transformer", "WeightedLayerPooling"),
        ),
        "pylate.models": ("Dense",),
    }.items()
    for class_name in classes
    for name in (f"{package}.{class_name}", f"{package}.{class_name}.{class_name}")
)
"""The modules that `modules.json` may name: those of sentence-transformers and PyLate whose configs name no class, but
for `Dense`, whose activation is checked. Both ways of writing a class's name are in use."""
ACTIVATIONS = frozenset(
    {"torch.nn.modules.linear.Identity", "torch.nn.Identity"}
    | {
        f"{module}.{name}"
        for module in ("torch.nn.modules.activation", "torch.nn")
        for name in (
            *("CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid"),
            *("Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink"),
            *("Softsign", "Tanh", "Tanhshrink"),
        )
    }
)
"""The activations that a `Dense` module or a cross-encoder may name."""
WEIGHTED_MODULES = ("CNN", "Dense", "LSTM", "LayerNorm", "StaticEmbedding", "WeightedLayerPooling")
"""The modules with weights of their own, in a file of safetensors in their folder."""
SAFE_ARGUMENTS: Mapping[str, frozenset[str]] = {
    "model_args": frozenset({"add_pooling_layer", "dtype", "torch_dtype"}),
    "tokenizer_args": frozenset({"model_max_length", "padding_side", "truncation_side"}),
    "config_args": frozenset(),
}
"""Arguments for transformers that the config of a `Transformer` module may hold. Others could name code, other files,
or let weights be drawn at random."""
TRANSFORMER_SETTINGS = frozenset({"max_seq_length", "do_lower_case", *SAFE_ARGUMENTS})
CODE_SETTINGS = frozenset({"auto_map", "trust_remote_code", "custom_generate"})
"""Settings by which a config names or admits code."""
ATTENTION_SETTING = "attn_implementation"
"""A part of the settings that choose an attention: with `_` before it or `_internal` behind it transformers reads them
as well."""
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILE = "tokenizer.json"
UNREAD_FILES = frozenset(
    {"added_tokens_file", "chat_template_file", "special_tokens_map_file", "tokenizer_config_file"}
)
"""Files that a tokenizer's config may name because transformers does not read them: it reads those of the folder. Old
versions saved where the file lay on the machine of the model's author."""

PADDED_POSITIONS = frozenset(
    {
        *("camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta"),
        *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)
"""Architectures whose positions start behind the id of the padding token, so that 514 of them take 512 tokens."""
UNBOUNDED_POSITIONS = frozenset({"funnel", "mt5", "t5", "umt5", "xlnet"})
"""Architectures with relative positions, which take texts of any length."""


def read_json_object(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file; an empty one if the file does not exist.

    Raises:
        UserError: The file holds something else.
    """
    value = _read_json(path)
    if not isinstance(value, dict | None):
        raise UserError(f"{path} is not a JSON object; save the model again")
    return value or {}


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except ValueError:
        raise UserError(f"{path} is not JSON; save the model again") from None


def modules(folder: Path) -> list[Mapping[str, str]]:
    """The modules that `modules.json` lists, each with its `type` and `path`; none for a folder of transformers.

    Raises:
        UserError: The file is not such a list.
    """
    listed = _read_json(folder / MODULES_FILE)
    if listed is None:
        return []
    if not isinstance(listed, list) or not all(
        isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str)
        for module in listed
    ):
        raise UserError(f"{folder / MODULES_FILE} is not a list of modules; save the model again")
    return listed


def module_names(folder: Path) -> list[str]:
    """The class names of the modules that `modules.json` lists, such as `Pooling`."""
    return [module["type"].rpartition(".")[2] for module in modules(folder)]


def transformer_folder(folder: Path) -> Path:
    """The folder with the transformer's weights and config: a part of a model's folder, or all of it."""
    for module, name in zip(modules(folder), module_names(folder), strict=True):
        if name == "Transformer":
            return folder / module["path"]
    return folder


def check_model_folder(folder: Path, name: str | None = None) -> None:
    """Refuse a folder whose configs name code, or files outside of it.

    Args:
        folder: The folder of a model, as transformers, sentence-transformers or PyLate save it.
        name: What the message calls it: by default the folder's path.

    Raises:
        UserError: The folder is refused.
    """
    name = name or str(folder)
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{name}: it holds an adapter, not a whole model; merge it into its model and save that")
    for module, class_name in zip(modules(folder), module_names(folder), strict=True):
        if module["type"] not in MODULE_TYPES:
            raise UserError(
                f"{name}: {MODULES_FILE} names the module {module['type']!r}, which is not loaded: it may be anybody's "
                "code; save the model with modules of sentence-transformers or PyLate"
            )
        part = folder / _inner_path(module["path"], f"{name}: {MODULES_FILE}")
        if class_name == "Dense":
            _check_activation(read_json_object(part / CONFIG_FILE).get("activation_function"), name)
        if class_name in WEIGHTED_MODULES and not any(part.glob("*.safetensors")):
            raise UserError(f"{name}: its module {module['path']} has no weights as safetensors; save the model again")
    for path in _configs(folder):
        _check_config(path, read_json_object(path), name)


def _configs(folder: Path) -> Iterator[Path]:
    """The configs of a model that libraries read as settings: all JSON but tokenizers, vocabularies and indexes.

    Models of sentence-transformers also come with a list of what they were trained on, which nothing reads.
    """
    for part in {folder, *(folder / module["path"] for module in modules(folder))}:
        for path in sorted(part.glob("*.json")):
            if path.name == TRAINING_DATA_FILE:
                continue
            if path.stem.endswith(("config", "_config")) or path.name.startswith("config_"):
                yield path
        yield from sorted(part.glob("*.safetensors.index.json"))


def _check_config(path: Path, config: Mapping[str, Any], name: str) -> None:
    where = f"{name}: {path.name}"
    for setting, value in _settings(config):
        if setting in CODE_SETTINGS and value:
            raise UserError(
                f"{where} has {setting}, so the model comes with code of its own, which is not run; choose a model "
                "that transformers has the code of"
            )
        if ATTENTION_SETTING in setting and "/" in str(value):
            raise UserError(f"{where} names an attention implementation of the Hub, which is not loaded; remove it")
    if path.name.startswith("sentence_") and path.name.endswith("_config.json"):
        unsafe = {str(setting) for setting in config.keys() - TRANSFORMER_SETTINGS}
        for setting, safe in SAFE_ARGUMENTS.items():
            given = config.get(setting) or {}
            if not isinstance(given, dict):
                raise UserError(f"{where}: {setting} is no group of settings; save the model again")
            unsafe |= {f"{setting}.{argument}" for argument in given.keys() - safe}
        if unsafe:
            raise UserError(f"{where} sets {', '.join(sorted(unsafe))}, which may not be set there; remove it")
    saved = config.get("sentence_transformers")
    _check_activation(saved.get("activation_fn") if isinstance(saved, dict) else None, name)
    _check_activation(config.get("sbert_ce_default_activation_function"), name)
    if path.name == TOKENIZER_CONFIG_FILE:
        _check_tokenizer_files(config, where, (path.parent / TOKENIZER_FILE).is_file())
    shards = config.get("weight_map")
    files = {str(file) for file in shards.values()} if isinstance(shards, dict) else set()
    if config.get("transformers_weights") is not None:
        files.add(str(config["transformers_weights"]))
    for file in sorted(files):
        if PurePosixPath(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"{where} names the weights {file!r}, which is no safetensors file of its folder")


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a config and their values, at any depth."""
    unseen: list[Any] = [config]
    while unseen:
        inner = unseen.pop()
        if isinstance(inner, dict):
            yield from inner.items()
            unseen += inner.values()
        elif isinstance(inner, list):
            unseen += inner


def _check_tokenizer_files(config: Mapping[str, Any], where: str, is_whole: bool) -> None:
    """Refuse a tokenizer's config that has transformers read other files than those of its folder.

    A name in `*_file` is taken before the folder's own file, and sought in the working folder.

    Args:
        config: The config.
        where: What messages call it.
        is_whole: Whether the folder has a `tokenizer.json`: no vocabulary is read then.
    """
    read = {"tokenizer_file"} if is_whole else {key for key in config if key.endswith("_file")} - UNREAD_FILES
    named = {key: config.get(key) for key in sorted(read)}
    versions = config.get("fast_tokenizer_files")
    for file in versions if isinstance(versions, list) else [versions]:
        if PurePosixPath(str(file)).name != str(file):
            named["fast_tokenizer_files"] = file
    for setting, file in named.items():
        if file is not None:
            raise UserError(
                f"{where} names the file {str(file)!r} as {setting}, which need not be of its folder; remove {setting}"
            )


def _check_activation(activation: Any, name: str) -> None:
    if activation is not None and str(activation) not in ACTIVATIONS:
        raise UserError(
            f"{name}: a config names the activation {activation!r}, which is not loaded: it may be anybody's code; "
            "only activations of torch.nn may be named"
        )


def _inner_path(path: str, where: str) -> str:
    """`path`, which must stay in its folder."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\0" in path:
        raise UserError(f"{where} names the path {path!r}, which is out of the folder")
    return path


def check_lengths(folder: Path, lengths: Mapping[str, int], name: str | None = None) -> None:
    """Refuse a model that cannot take texts as long as the settings say.

    Args:
        folder: The model's folder.
        lengths: Tokens of the longest input, special tokens included, by the name of the setting.
        name: What the message calls the folder: by default its path.

    Raises:
        UserError: A length is above what the model has positions for.
    """
    limit = maximum_length(folder)
    for setting, length in lengths.items():
        if limit is not None and length > limit:
            raise UserError(
                f"{name or folder} takes at most {limit} tokens, but {setting} is {length}; set it to {limit} or less"
            )


def check_projection(folder: Path, dimensions: int | None, name: str | None = None) -> None:
    """Refuse a model whose projection has other dimensions than the setting `dimensions` says; None says nothing.

    Raises:
        UserError: The dimensions differ; the message calls the folder `name`, by default its path.
    """
    projected = projection_size(folder)
    if projected is not None and dimensions not in (None, projected):
        raise UserError(
            f"{name or folder} has a projection to {projected} dimensions, but dimensions is {dimensions}; set it to "
            f"{projected}"
        )


def maximum_length(folder: Path) -> int | None:
    """The tokens of the longest input that a model has positions for; None if there is no such limit."""
    config = read_json_object(transformer_folder(folder) / CONFIG_FILE)
    architecture = str(config.get("model_type"))
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    # Without `position_biased_input`, DeBERTa has relative positions alone.
    relative = architecture in UNBOUNDED_POSITIONS or config.get("position_biased_input") is False
    if type(positions) is not int or positions <= 0 or relative:
        return None
    if architecture in PADDED_POSITIONS:
        padding = config.get("pad_token_id")
        return positions - (padding if isinstance(padding, int) else 1) - 1  # 1 is the default of these architectures
    return positions


def projection_size(folder: Path) -> int | None:
    """The dimensions of a model's embeddings if its folder has a projection, else None."""
    sizes: list[Any] = [
        read_json_object(folder / module["path"] / CONFIG_FILE).get("out_features")
        for module, name in zip(modules(folder), module_names(folder), strict=True)
        if name == "Dense"
    ]
    if not sizes and is_stanford_checkpoint(folder):
        sizes = list(tensor_shapes(folder / "model.safetensors").get(STANFORD_PROJECTION, []))[:1]
    return sizes[-1] if sizes and isinstance(sizes[-1], int) else None


STANFORD_ARCHITECTURE, STANFORD_PROJECTION = "HF_ColBERT", "linear.weight"
"""What the config of a checkpoint of Stanford's ColBERT names, and its projection, in the encoder's file of weights."""


def is_stanford_checkpoint(folder: Path) -> bool:
    """Whether the folder is a checkpoint of Stanford's ColBERT, which PyLate loads with the projection that it has."""
    if (folder / MODULES_FILE).is_file():
        return False
    architectures = read_json_object(folder / CONFIG_FILE).get("architectures")
    return isinstance(architectures, list) and architectures[:1] == [STANFORD_ARCHITECTURE]


def tensor_shapes(path: Path) -> dict[str, Sequence[int]]:
    """The shapes of the tensors in a file of safetensors, by name; none if the file is not there or damaged."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = parse_json(file.read(min(size, 100_000_000)))  # the format's own bound
        return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, struct.error, AttributeError, TypeError, KeyError):
        return {}
