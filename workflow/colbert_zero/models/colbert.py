"""Load, save, tokenise with and encode with PyLate's ColBERT models, leaving nothing to a default.

The caller always gives prompts, lengths and query expansion. They are never taken from the model's folder: a model
that is used with other prompts or lengths than in training raises no error, it only retrieves worse.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pylate import models
from torch import Tensor

from colbert_zero.graph.console import UserError
from colbert_zero.graph.draws import draw
from colbert_zero.graph.limits import DEFAULT_DIMENSIONS, MINIMUM_TEXT_TOKENS
from colbert_zero.graph.model_folder import (
    STANFORD_PROJECTION,
    check_lengths,
    check_projection,
    is_stanford_checkpoint,
    projection_size,
    read_json_object,
    transformer_folder,
)
from colbert_zero.graph.saved_encoding import CONFIG_FILE, read_saved_encoding
from colbert_zero.models.batches import batches_by_length
from colbert_zero.models.loading import (
    HEADS,
    POOLER,
    TRIAL,
    load_tokenizer,
    refuse_nonfinite,
    refuse_other_vocabulary,
    whole_model,
)

# On every load, these libraries report what is intended here: an added projection, added markers.
logging.getLogger("pylate.models.colbert").setLevel(logging.ERROR)
logging.getLogger("sentence_transformers").setLevel(logging.WARNING)


@dataclass(frozen=True)
class EncodingSettings:
    """How texts become a model's input.

    Attributes:
        query_prompt: The text before each query, with its trailing space.
        document_prompt: The text before each document.
        query_length: Maximum tokens of a query, including prompt, marker and special tokens.
        document_length: Maximum tokens of a document, counted in the same way.
        query_expansion: Whether queries are padded to `query_length` with mask tokens, which count in MaxSim.
    """

    query_prompt: str
    document_prompt: str
    query_length: int
    document_length: int
    query_expansion: bool = False


def load_colbert(
    folder: Path,
    encoding: EncodingSettings,
    device: str = "cpu",
    *,
    dimensions: int | None = None,
    seed: int = 0,
    strict: bool = True,
    attention: str | None = None,
    name: str | None = None,
) -> models.ColBERT:
    """Load a model from a local folder of transformers, sentence-transformers or PyLate, in fp32.

    Args:
        folder: The model folder; its weights are in safetensors.
        encoding: The prompts and lengths to set.
        device: The device to load the model onto.
        dimensions: Size of the embeddings. A folder without a projection gets one with random weights, of 128
            dimensions if None; a folder with one must have this size.
        seed: Seed of those weights, and of the embeddings of the two markers if the vocabulary lacks them.
        strict: Whether to refuse a model that was saved with other encoding settings.
        attention: The attention implementation, as transformers names it; None lets transformers choose.
        name: What messages call the folder: by default its path.

    Returns:
        The model, in evaluation mode.

    Raises:
        UserError: The folder cannot be loaded whole or names code, cannot take such long texts, has another projection,
            or was saved with other encoding settings.
    """
    name = name or str(folder)
    if not any((folder / file).is_file() for file in ("config.json", "modules.json")):
        raise UserError(f"{name} is not a model folder: it has neither config.json nor modules.json")
    check_projection(folder, dimensions, name)
    if strict:
        refuse_other_encoding(folder, encoding, name)
    check_lengths(folder, {"query_length": encoding.query_length, "document_length": encoding.document_length}, name)
    projected = projection_size(folder)
    if projected is None and read_saved_encoding(folder) is not None:
        raise UserError(f"{name} was saved as a late-interaction model, but its projection is missing")
    stanford = {STANFORD_PROJECTION.partition(".")[0]} if is_stanford_checkpoint(folder) else set()
    with (
        torch.random.fork_rng(),
        whole_model(folder, name, "a late-interaction model", unset=POOLER, unused=HEADS | stanford) as embeddings,
    ):
        torch.manual_seed(draw(seed, "projection"))
        saved_vocabulary = load_tokenizer(transformer_folder(folder)).get_vocab()
        try:
            model = models.ColBERT(
                str(folder),
                device=device,
                prompts=_prompts(encoding),
                local_files_only=True,
                # With an embedding size, PyLate would add a second projection behind an existing one.
                embedding_size=None if projected is not None else dimensions or DEFAULT_DIMENSIONS,
                query_length=encoding.query_length,
                document_length=encoding.document_length,
                do_query_expansion=encoding.query_expansion,
                attend_to_expansion_tokens=False,
                model_kwargs={"dtype": torch.float32, "use_safetensors": True, "attn_implementation": attention},
            )
        except ImportError as error:
            if attention is None:
                raise
            reason = " ".join(str(error).split())
            raise UserError(f"attention {attention} is not available here: {reason[:300]}") from None
        markers = {str(model.query_prefix), str(model.document_prefix)}
        refuse_other_vocabulary(model.tokenizer, embeddings[0], name, added=markers)
        refuse_nonfinite(model, name)
        if model.tokenizer.padding_side != "right":
            raise UserError(f"{name}: its tokenizer pads on the left; use a model whose tokenizer pads on the right")
        _apply_encoding(model, encoding)
        _refuse_full_prompts(model, encoding, name)
        model.eval()
        # An implementation of attention that is asked for may not know fp32.
        _embed_trial(model, bf16=attention is not None)
    loaded: Any = model
    loaded.drawn_parts = sorted(markers - saved_vocabulary.keys()) + ["projection"] * (projected is None)
    return model


@torch.no_grad()
def _embed_trial(model: models.ColBERT, bf16: bool) -> None:
    """Embed a text on each side, with its prompt."""
    for side, prompt in model.prompts.items():
        features = tokenize(model, [TRIAL], side == "query", prompt).pad()
        embed(model, {name: tensor.to(model.device) for name, tensor in features.items()}, bf16)


def drawn_parts(model: models.ColBERT) -> list[str]:
    """The parts of a loaded model that its folder lacked, so that they were drawn: its projection, its markers."""
    parts: Any = model.drawn_parts
    return list(parts)


def _refuse_full_prompts(model: models.ColBERT, encoding: EncodingSettings, name: str) -> None:
    """Refuse lengths that a prompt fills: all texts would become the same input."""
    for side, length in (("query", encoding.query_length), ("document", encoding.document_length)):
        prompt = _prompts(encoding)[side]
        taken = len(model.tokenizer(prompt.strip(), truncation=False)["input_ids"]) + 1
        if length - taken < MINIMUM_TEXT_TOKENS:
            raise UserError(
                f"{side}_length is {length}, but prompt {prompt!r}, marker and special tokens of {name} are {taken} "
                f"tokens; set it well above {taken + MINIMUM_TEXT_TOKENS}"
            )


def save_colbert(model: models.ColBERT, folder: Path, encoding: EncodingSettings) -> None:
    """Save a model so that `pylate.models.ColBERT(folder)` encodes with `encoding`; same model, same bytes."""
    _apply_encoding(model, encoding)
    # The last call to the tokenizer changed these; reset them, or they are saved too.
    transformer: Any = model[0]
    transformer.max_seq_length = model.tokenizer.model_max_length = encoding.document_length - 1
    if model.tokenizer.is_fast:
        model.tokenizer.backend_tokenizer.no_truncation()
        model.tokenizer.backend_tokenizer.no_padding()
    model.save(str(folder), create_model_card=False)


def _prompts(encoding: EncodingSettings) -> dict[str, str]:
    return {"query": encoding.query_prompt, "document": encoding.document_prompt}


def _apply_encoding(model: models.ColBERT, encoding: EncodingSettings) -> None:
    """Set prompts and lengths. Needed after loading too: a folder's own prompts override the constructor's."""
    model.prompts, model.default_prompt_name = _prompts(encoding), None
    model.query_length, model.document_length = encoding.query_length, encoding.document_length
    model.do_query_expansion, model.attend_to_expansion_tokens = encoding.query_expansion, False


def refuse_other_encoding(
    folder: Path, encoding: EncodingSettings, name: str, *, except_for: Collection[str] = ()
) -> None:
    """Refuse a folder that was saved with other encoding settings.

    Args:
        folder: The model folder; one without such settings passes.
        encoding: The requested settings.
        name: What the message calls the folder.
        except_for: Settings that may differ.

    Raises:
        UserError: A setting differs.
    """
    requested = asdict(encoding)
    differences = [
        f"{setting} is {value!r} there, {requested[setting]!r} was requested"
        for setting, value in (read_saved_encoding(folder) or {}).items()
        if value != requested[setting] and setting not in except_for
    ]
    if read_json_object(folder / CONFIG_FILE).get("attend_to_expansion_tokens"):
        differences.append("queries see the mask tokens that expand them there, which nothing here computes")
    if differences:
        raise UserError(f"{name} was trained with other encoding settings: {'; '.join(differences)}")


@dataclass(frozen=True)
class TokenizedTexts:
    """The unpadded token ids of several texts, concatenated.

    Attributes:
        ids: The token ids of all texts, int64.
        lengths: The number of tokens of each text, int64.
        pad_token_id: The id of the padding token.
        minimum_width: Minimum width of a padded batch: the query length with query expansion, else 0.
    """

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    pad_token_id: int
    minimum_width: int = 0

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.lengths)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """The index in `ids` of each text's first token."""
        starts: npt.NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        return starts

    def pad(self, rows: npt.NDArray[np.int64] | None = None) -> dict[str, Tensor]:
        """Pad the texts in `rows`, or all, to the longest of them, as input of a model.

        Returns:
            `input_ids` and `attention_mask`, int64, texts x tokens.
        """
        rows = np.arange(len(self)) if rows is None else rows
        lengths = self.lengths[rows]
        columns = np.arange(max(int(lengths.max(initial=0)), self.minimum_width))
        mask = columns < lengths[:, None]
        ids = np.full(mask.shape, self.pad_token_id)
        ids[mask] = self.ids[(self.starts[rows][:, None] + columns)[mask]]
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def split_by_length(tokens: TokenizedTexts, tokens_per_chunk: int) -> Iterator[npt.NDArray[np.int64]]:
    """Split texts into chunks of similar length, each of at most `tokens_per_chunk` padded tokens or of one text.

    Returns:
        For each chunk the rows of its texts; the longest texts come first.
    """
    return batches_by_length(tokens.lengths, tokens_per_chunk, tokens.minimum_width)


def tokenize(
    model: models.ColBERT, texts: Sequence[str], is_query: bool, prompt: str, tokenizer: Any = None
) -> TokenizedTexts:
    """Tokenise as PyLate's collator does: prompt before the text, marker after the first token, truncated.

    PyLate's own method pads all texts to the full length, and stores the last length in the model. To tokenise in
    several threads at once, give each a copy of the model's tokenizer as `tokenizer`.
    """
    length, marker_id = (
        (model.query_length, model.query_prefix_id) if is_query else (model.document_length, model.document_prefix_id)
    )
    pad_token_id = model.tokenizer.pad_token_id
    assert length is not None and pad_token_id is not None, "PyLate sets both when it loads a model"
    texts = [(prompt + text).strip() for text in texts]
    if model[0].do_lower_case:
        texts = [text.lower() for text in texts]
    token_ids = (tokenizer or model.tokenizer)(
        texts,
        truncation=True,
        max_length=length if marker_id is None else length - 1,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    lengths = np.fromiter(map(len, token_ids), np.int64, len(token_ids))
    ids = np.fromiter(chain.from_iterable(token_ids), np.int64, int(lengths.sum()))
    if marker_id is not None:
        ids = np.insert(ids, np.cumsum(lengths) - lengths + 1, marker_id)
        lengths = lengths + 1
    minimum_width = length if is_query and model.do_query_expansion else 0
    return TokenizedTexts(ids, lengths, pad_token_id, minimum_width)


def scoring_mask(model: models.ColBERT, features: dict[str, Tensor], is_query: bool) -> Tensor:
    """Which tokens of a padded batch count in MaxSim, boolean: no padding, and no token of a document's skiplist."""
    if is_query and model.do_query_expansion:
        return torch.ones_like(features["input_ids"], dtype=torch.bool)
    mask = features["attention_mask"].bool()
    if is_query:
        return mask
    return mask & ~torch.isin(features["input_ids"], torch.tensor(model.skiplist, device=mask.device))


def embed(model: models.ColBERT, features: dict[str, Tensor], bf16: bool = False) -> Tensor:
    """Encode a padded batch: embeddings of unit length in fp32, texts x tokens x dimensions.

    With `bf16`, the model alone computes under autocast. Its output becomes fp32 before it is normalised, as where
    accelerate wraps the model of the reference's trainer.
    """
    with torch.autocast(torch.device(model.device).type, dtype=torch.bfloat16, enabled=bf16):
        # Pass a copy: each module of the model adds entries to its input dictionary.
        vectors = model(dict(features))["token_embeddings"]
    return F.normalize(vectors.float(), p=2, dim=-1)
