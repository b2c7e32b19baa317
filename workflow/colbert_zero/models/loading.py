"""Load a model whole or not at all: no weight is drawn at random because a folder lacks it.

transformers draws the weights that a folder lacks, and only logs which. Here every load runs within `whole_model`,
which refuses such a folder in one line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.console import UserError
from colbert_zero.graph.model_folder import check_model_folder

# These libraries report on every load what is checked here, or show a progress bar per file.
transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

HEADS = frozenset(
    {
        *("classifier", "cls", "decoder", "discriminator_predictions", "embed_out", "generator_lm_head"),
        *("generator_predictions", "head", "lm_head", "lm_loss", "lm_predictions", "logits_proj", "mask_predictions"),
        *("pooler", "pre_classifier", "pred_layer", "predictions", "qa_outputs", "score", "sequence_summary"),
        *("sop_classifier", "vocab_layer_norm", "vocab_projector", "vocab_transform"),
    }
)
"""How transformers' architectures name the parts that predict from an encoder's output. A folder may have such a part
that is not used here: a base has the head of its pre-training."""
POOLER = frozenset({"pooler"})
"""The part of an encoder that token embeddings do not pass: many bases lack it, and nothing here uses it."""
SHOWN = 3
"""Names of weights in a message."""
TRIAL = "a text"
"""What a model computes within `whole_model`: some configs and tokenizers are found to be broken only then."""


def model_name(artifact: Artifact) -> str:
    """What a person calls a model: their own folder, its name on the Hub, or the folder of the artifact."""
    if artifact.spec.kind != "bases":
        return str(artifact.folder)
    named = artifact.facts.get("path") or artifact.facts.get("hub")
    return str(named or artifact.folder)


@contextmanager
def whole_model(
    folder: Path, name: str, kind: str, *, unset: Collection[str] = (), unused: Collection[str] = HEADS
) -> Iterator[list[int]]:
    """Check a folder, then refuse any model that transformers loads from it within this context if it is not whole.

    What a library raises within the context, but for faults of the machine, is the folder's fault: have the model
    compute something there.

    Args:
        folder: The model's folder.
        name: What messages call it.
        kind: What it should be, for messages.
        unset: Parts of the architecture whose weights may be missing, because nothing uses them.
        unused: Parts whose weights may be there although the architecture lacks them.

    Yields:
        The number of token embeddings of each transformer loaded, as saved.

    Raises:
        UserError: The folder may hold code, or no such model loads from it, or it computes nothing, or weights are
            missing, too many, of other shapes or not finite.
    """
    check_model_folder(folder, name)
    load = PreTrainedModel.__dict__["from_pretrained"]
    embeddings: list[int] = []

    def load_whole(cls: type[PreTrainedModel], *args: Any, **kwargs: Any) -> Any:
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = load.__func__(cls, *args, **kwargs)
        _refuse_parts(model, info, name, unset, unused)
        refuse_nonfinite(model, name)
        embeddings.append(model.get_input_embeddings().weight.shape[0])
        return model

    # The libraries that load a transformer as a part of their model do not pass on what was missing.
    PreTrainedModel.from_pretrained = classmethod(load_whole)  # type: ignore[method-assign, assignment]
    try:
        yield embeddings
    except (UserError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # a fault of the GPU is not the folder's, and another attempt may go well
    except BaseException as error:  # a library may raise anything for a folder that is damaged or of another kind
        # Where a tokenizer's code in Rust panics, this is no Exception.
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{name} cannot be loaded as {kind} ({reason[:300]})") from None
    finally:
        PreTrainedModel.from_pretrained = load  # type: ignore[method-assign]


def _refuse_parts(
    model: PreTrainedModel, info: dict[str, Any], name: str, unset: Collection[str], unused: Collection[str]
) -> None:
    """Raise a UserError unless the loaded weights are those of the model."""
    architecture = type(model).__name__

    def inner(key: str) -> str:
        return key.removeprefix(f"{model.base_model_prefix}.")

    def others(keys: Iterable[str], parts: Collection[str]) -> list[str]:
        return [key for key in keys if inner(key).partition(".")[0] not in parts]

    mismatched = [f"{key} ({_shape(found)} for {_shape(wanted)})" for key, found, wanted in info["mismatched_keys"]]
    if mismatched:
        raise UserError(f"{name}: its weights have other shapes than its config says: {_some(mismatched)}")
    missing = others(info["missing_keys"], unset)
    if missing:
        raise UserError(
            f"{name} is not whole: it has no weights for {_some(missing)} of {architecture}, which would be drawn at "
            "random; give a model that was saved with them"
        )
    # Old versions of transformers saved the buffers as well.
    buffers = {inner(key) for key, _ in model.named_buffers()}
    unexpected = [key for key in others(info["unexpected_keys"], unused) if inner(key) not in buffers]
    if unexpected:
        raise UserError(
            f"{name}: {architecture} has no place for its weights {_some(unexpected)}; give a model with its own "
            "config, or saved without them"
        )


def refuse_nonfinite(model: nn.Module, name: str) -> None:
    """Refuse a model with weights that are no numbers.

    Raises:
        UserError: A weight is NaN or infinite; the message calls the model `name`.
    """
    broken = [key for key, weights in model.named_parameters() if not torch.isfinite(weights).all()]
    if broken:
        raise UserError(f"{name}: its weights {_some(broken)} hold NaN or infinity; give a model that was saved whole")


def load_tokenizer(folder: Path, **options: Any) -> Any:
    """Load the tokenizer of a model's folder; no code of the folder runs."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)


def refuse_other_vocabulary(tokenizer: Any, embeddings: int, name: str, added: Collection[str] = ()) -> None:
    """Refuse a tokenizer that is not the model's.

    Args:
        tokenizer: The tokenizer.
        embeddings: How many token embeddings the model was saved with.
        name: What the message calls the model.
        added: Tokens that a stage adds, whose embeddings are drawn.

    Raises:
        UserError: The model has no embedding for some tokens; or the tokenizer knows so few tokens that a file of it
            must be missing, where it would read all words alike.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    unknown = [token for token, number in vocabulary.items() if number >= embeddings and token not in added]
    if unknown:
        raise UserError(
            f"{name}: its tokenizer has {len(vocabulary)} tokens, its model embeddings for {embeddings}: none for "
            f"{_some(map(repr, unknown))}; give the tokenizer that the model was trained with"
        )
    if len(vocabulary) < embeddings / 2:
        raise UserError(
            f"{name}: its tokenizer knows {len(vocabulary)} of the model's {embeddings} tokens: a file of the "
            "tokenizer is missing, or is another model's"
        )


def refuse_unpaddable(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that cannot make a batch of texts of several lengths.

    Raises:
        UserError: It has no padding token; the message calls the model `name`.
    """
    if tokenizer.pad_token_id is None:
        raise UserError(f"{name}: its tokenizer has no padding token; set pad_token in its tokenizer_config.json")


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
