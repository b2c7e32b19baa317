"""What a late-interaction model's folder says about the prompts and lengths that it was trained with."""

from __future__ import annotations

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


def read_saved_encoding(folder: Path) -> dict[str, Any] | None:
    """The prompts, lengths and query expansion that a model's folder was saved with.

    Returns:
        Some or all of `query_prompt`, `document_prompt`, `query_length`, `document_length` and `query_expansion`, as an
        index's setting `encoding` names them; None if the folder is no late-interaction model, which has no lengths.

    Raises:
        UserError: A file of the folder is not JSON.
    """
    config = read_json_object(folder / CONFIG_FILE)
    if "query_length" in config:
        prompts = config.get("prompts") or {}
        return {
            "query_prompt": prompts.get("query") or "",
            "document_prompt": next((prompts[name] for name in DOCUMENT_PROMPTS if prompts.get(name)), ""),
            "query_length": config["query_length"],
            "document_length": config.get("document_length", 180),  # PyLate's default
            "query_expansion": config.get("do_query_expansion", True),
        }
    if not is_stanford_checkpoint(folder):
        return None
    # Stanford's code has no prompts, and always expands queries. Without its file, PyLate takes other lengths.
    metadata = read_json_object(folder / STANFORD_CONFIG_FILE)
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
        UserError: A file of the folder is not JSON.
    """
    saved = read_saved_encoding(folder)
    if saved is None:
        prompts = read_json_object(folder / CONFIG_FILE).get("prompts") or {}
        document = next((prompts[name] for name in DOCUMENT_PROMPTS if prompts.get(name)), "")
        saved = {"query_prompt": prompts.get("query") or "", "document_prompt": document}
    return {name: value for name, value in saved.items() if value != ""}
