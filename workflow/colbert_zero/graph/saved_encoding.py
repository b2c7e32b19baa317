"""What a late-interaction model's folder says about the prompts and lengths that it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from colbert_zero.graph.console import UserError
from colbert_zero.graph.model_folder import is_stanford_checkpoint, read_json_object

CONFIG_FILE = "config_sentence_transformers.json"
"""Where PyLate saves a model's prompts and lengths."""
STANFORD_CONFIG_FILE = "artifact.metadata"
"""Where Stanford's ColBERT saves its settings, as JSON."""
SAVED_SETTINGS = ("query_prompt", "document_prompt", "query_length", "document_length", "query_expansion")
"""What a late-interaction model is saved with, if its folder says it."""
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""The names under which sentence-transformers looks for a document's prompt, the first first."""
LONGEST = 2**31 - 1
"""The tokens of the longest text that any library counts."""


def _is_prompts(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(isinstance(text, str | None) for text in value.values()))


def _is_length(value: Any) -> bool:
    return value is None or (type(value) is int and 0 < value <= LONGEST)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


FORMS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "prompts": (_is_prompts, "a group of texts"),
    **dict.fromkeys(
        ("query_length", "document_length", "query_maxlen", "doc_maxlen"), (_is_length, "a number of tokens")
    ),
    "do_query_expansion": (_is_flag, "true or false"),
}
"""What a saved setting must be, and what a message calls that."""


def read_saved_settings(path: Path) -> Mapping[str, Any]:
    """The settings that a model was saved with, which anybody may have edited.

    Raises:
        UserError: The file is not a JSON object, or prompts, lengths or the query expansion are none.
    """
    config = read_json_object(path)
    for setting, (is_right, form) in FORMS.items():
        if setting in config and not is_right(config[setting]):
            raise UserError(f"{path}: {setting} is {config[setting]!r:.80}, not {form}; save the model again")
    return config


def read_saved_encoding(folder: Path) -> dict[str, Any] | None:
    """The prompts, lengths and query expansion that a model's folder was saved with.

    Returns:
        Some or all of `query_prompt`, `document_prompt`, `query_length`, `document_length` and `query_expansion`, as an
        index's setting `encoding` names them; None if the folder is no late-interaction model, which has no lengths.

    Raises:
        UserError: See `read_saved_settings`.
    """
    config = read_saved_settings(folder / CONFIG_FILE)
    if "query_length" in config:
        saved = _saved_prompts(config) | {
            "query_length": config["query_length"],
            "document_length": config.get("document_length") or 180,  # PyLate's default
            "query_expansion": config.get("do_query_expansion", True),
        }
        return {name: value for name, value in saved.items() if value is not None}
    if not is_stanford_checkpoint(folder):
        return None
    # Stanford's code has no prompts, and always expands queries. Without its file, PyLate takes other lengths.
    metadata = read_saved_settings(folder / STANFORD_CONFIG_FILE)
    lengths = {"query_length": metadata.get("query_maxlen"), "document_length": metadata.get("doc_maxlen")}
    saved = {"query_prompt": "", "document_prompt": "", "query_expansion": True}
    return saved | {name: length for name, length in lengths.items() if length is not None}


def require_saved_encoding(folder: Path, name: str) -> dict[str, Any]:
    """All prompts, lengths and the query expansion that a late-interaction model's folder was saved with.

    Raises:
        UserError: The folder does not say some of them; the message calls it `name`.
    """
    saved = read_saved_encoding(folder) or {}
    if missing := [setting for setting in SAVED_SETTINGS if setting not in saved]:
        raise UserError(
            f"{name} cannot be used as a late-interaction model: its folder does not say its {', '.join(missing)}; "
            "give a model that PyLate saved"
        )
    return saved


def read_trained_encoding(folder: Path) -> dict[str, Any]:
    """What a model's folder says for sure of the prompts and lengths that it was trained with, dense models included.

    An empty prompt is left out: PyLate does not save the prompts that a model was trained with, sentence-transformers
    saves empty ones for any model.

    Raises:
        UserError: See `read_saved_settings`.
    """
    saved = read_saved_encoding(folder)
    if saved is None:
        saved = _saved_prompts(read_saved_settings(folder / CONFIG_FILE))
    return {name: value for name, value in saved.items() if value != ""}


def _saved_prompts(config: Mapping[str, Any]) -> dict[str, Any]:
    prompts = config.get("prompts") or {}
    document = next((prompts[name] for name in DOCUMENT_PROMPTS if prompts.get(name)), "")
    return {"query_prompt": prompts.get("query") or "", "document_prompt": document}
