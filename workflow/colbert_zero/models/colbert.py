"""Load, save, tokenise with and encode with PyLate's ColBERT models, leaving nothing to a default.

The caller always gives prompts, lengths and query expansion. They are never taken from the model's folder: a model
that is used with other prompts or lengths than in training raises no error, it only retrieves worse.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import transformers
from pylate import models
from safetensors import SafetensorError
from torch import Tensor

from colbert_zero.graph.console import UserError
from colbert_zero.graph.draws import draw

CONFIG_FILE = "config_sentence_transformers.json"
DEFAULT_DIMENSIONS = 128

# On every load, these libraries report what is intended here (an added projection, added markers) or show a progress
# bar per file.
logging.getLogger("pylate.models.colbert").setLevel(logging.ERROR)
logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


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
    dimensions: int = DEFAULT_DIMENSIONS,
    seed: int = 0,
    strict: bool = True,
    attention: str | None = None,
) -> models.ColBERT:
    """Load a model from a local folder of transformers, sentence-transformers or PyLate, in fp32.

    Args:
        folder: The model folder; its weights are in safetensors.
        encoding: The prompts and lengths to set.
        device: The device to load the model onto.
        dimensions: Size of the embeddings if the folder has no projection: one with random weights is added.
        seed: Seed of those weights, and of the embeddings of the two markers if the vocabulary lacks them.
        strict: Whether to refuse a model that was saved with other encoding settings.
        attention: The attention implementation, as transformers names it; None lets transformers choose.

    Returns:
        The model, in evaluation mode.

    Raises:
        UserError: The folder cannot be loaded, or was saved with other encoding settings.
    """
    if not any((folder / name).is_file() for name in ("config.json", "modules.json")):
        raise UserError(f"{folder} is not a model folder: it has neither config.json nor modules.json")
    saved = _saved_encoding(folder)
    if strict and saved is not None and saved != encoding:
        requested = asdict(encoding)
        differences = [
            f"{name} is {value!r} there, {requested[name]!r} was requested"
            for name, value in asdict(saved).items()
            if value != requested[name]
        ]
        raise UserError(f"{folder} was trained with other encoding settings: {'; '.join(differences)}")
    with torch.random.fork_rng():
        torch.manual_seed(draw(seed, "projection"))
        try:
            model = models.ColBERT(
                str(folder),
                device=device,
                prompts=_prompts(encoding),
                local_files_only=True,
                # With an embedding size, PyLate would add a second projection behind an existing one.
                embedding_size=None if _has_projection(folder) else dimensions,
                query_length=encoding.query_length,
                document_length=encoding.document_length,
                do_query_expansion=encoding.query_expansion,
                attend_to_expansion_tokens=False,
                model_kwargs={"dtype": torch.float32, "use_safetensors": True, "attn_implementation": attention},
            )
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"attention {attention} is not available here: {reason[:300]}") from None
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder} cannot be loaded as a model: {reason[:300]}") from None
    if model.tokenizer.padding_side != "right":
        raise UserError(f"{folder}: its tokenizer pads on the left; use a model whose tokenizer pads on the right")
    _apply_encoding(model, encoding)
    model.eval()
    return model


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


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _saved_encoding(folder: Path) -> EncodingSettings | None:
    """The settings a PyLate folder was saved with; None for other folders, which have no lengths."""
    config = _read_json(folder / CONFIG_FILE)
    if config is None or "query_length" not in config:
        return None
    prompts = config.get("prompts") or {}
    return EncodingSettings(
        query_prompt=prompts.get("query") or "",
        document_prompt=prompts.get("document") or "",
        query_length=config["query_length"],
        document_length=config["document_length"],
        query_expansion=config.get("do_query_expansion", True),
    )


def _has_projection(folder: Path) -> bool:
    return any(module["type"].endswith("Dense") for module in _read_json(folder / "modules.json") or ())


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


def embed(model: models.ColBERT, features: dict[str, Tensor]) -> Tensor:
    """Encode a padded batch: embeddings of unit length, texts x tokens x dimensions."""
    # Pass a copy: each module of the model adds entries to its input dictionary.
    return F.normalize(model(dict(features))["token_embeddings"], p=2, dim=-1)
