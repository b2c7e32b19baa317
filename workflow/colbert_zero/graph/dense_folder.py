"""What the folder of a dense model says: whether it is one, what it was saved with, and how its vectors are compared.

A dense model makes one vector of each text. Its folder is one that sentence-transformers saves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from colbert_zero.graph.console import UserError
from colbert_zero.graph.model_folder import MODULES_FILE, module_names, read_json_object, transformer_folder
from colbert_zero.graph.saved_encoding import CONFIG_FILE, read_saved_encoding, read_trained_encoding

DENSE_MODEL = "SentenceTransformer"
"""How sentence-transformers calls a model with one vector per text, in the config that it saves."""
POOLINGS = frozenset({"BoW", "Pooling", "StaticEmbedding"})
"""The modules of sentence-transformers that make one vector of a text."""
TRANSFORMER_CONFIG_FILE = "sentence_bert_config.json"
"""Where sentence-transformers saves the length after which texts are cut, beside the transformer."""
PROMPTS = ("query_prompt", "document_prompt")
"""The settings of a dense model that are put before texts."""
SIMILARITIES = ("cosine", "dot")
"""The similarities that are inner products, once the vectors have unit length or as they are. The first is what
sentence-transformers takes for a model that names none."""


def check_dense_folder(folder: Path, name: str) -> None:
    """Refuse a folder for which sentence-transformers would invent a pooling, or from which it would drop a part.

    Raises:
        UserError: It is of another kind, or says no pooling; the message calls the folder `name`.
    """
    kind = read_json_object(folder / CONFIG_FILE).get("model_type", DENSE_MODEL)
    if kind == DENSE_MODEL and read_saved_encoding(folder) is not None:
        kind = "ColBERT"
    if kind != DENSE_MODEL:
        hint = "; a miner or a teacher can use it under late-interaction" if kind == "ColBERT" else ""
        raise UserError(f"{name} is a {kind} model; an encoder needs a {DENSE_MODEL}, with one vector per text{hint}")
    if not POOLINGS.intersection(module_names(folder)):
        raise UserError(
            f"{name} is not a sentence-transformers model: no {MODULES_FILE} says how to pool the vectors of its "
            "tokens; save it with sentence-transformers, with the pooling that it was trained with"
        )


def read_dense_encoding(folder: Path) -> dict[str, Any]:
    """The prompts and the length that a dense model was saved with.

    Returns:
        Some or all of `query_prompt`, `document_prompt` (no empty ones: any model is saved with those) and
        `maximum_length`, the tokens after which a text is cut.

    Raises:
        UserError: A file of the folder is not JSON.
    """
    length = read_json_object(transformer_folder(folder) / TRANSFORMER_CONFIG_FILE).get("max_seq_length")
    return read_trained_encoding(folder) | ({"maximum_length": length} if type(length) is int and length > 0 else {})


def read_similarity(folder: Path, name: str) -> str:
    """How a dense model's vectors are compared: `cosine` or `dot`.

    Raises:
        UserError: In another way; the message calls the folder `name`.
    """
    similarity = read_json_object(folder / CONFIG_FILE).get("similarity_fn_name") or SIMILARITIES[0]
    if similarity not in SIMILARITIES:
        raise UserError(
            f"{name}: {CONFIG_FILE} names the similarity {similarity!r}; a search needs {' or '.join(SIMILARITIES)}"
        )
    return str(similarity)


def contradicted(given: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """The names of the given settings that a dense model was not saved for: other prompts, or a greater length.

    A smaller length is none of them: it only cuts texts.
    """
    return [
        name
        for name, value in given.items()
        if name in saved and (value > saved[name] if name == "maximum_length" else value != saved[name])
    ]


def refuse_other_prompts(encoder: Mapping[str, Any], saved: Mapping[str, Any], name: str) -> None:
    """Refuse an encoder's prompts that its model was not saved with.

    Raises:
        UserError: One is another, or none was given where the model was saved with one; the message begins with `name`.
    """
    refuse_other_settings({prompt: encoder[prompt] for prompt in PROMPTS}, saved, name, remedy="give those")


def refuse_other_settings(
    given: Mapping[str, Any],
    saved: Mapping[str, Any],
    name: str,
    meant: Collection[str] = (),
    remedy: str = "leave them out",
) -> None:
    """Refuse settings that a dense model was not saved for, but for those that are `meant`.

    Args:
        given: The settings.
        saved: What the model was saved with.
        name: What the message begins with.
        meant: The names of settings that may be others.
        remedy: What to do if the others are not meant.

    Raises:
        UserError: There are some.
    """
    differing = [setting for setting in contradicted(given, saved) if setting not in meant]
    if differing:
        others = "; ".join(f"{setting} is {given[setting]!r} here, {saved[setting]!r} there" for setting in differing)
        raise UserError(
            f"{name}: the model was saved with other settings: {others}; {remedy}, or say that they are meant "
            "with override: true"
        )
