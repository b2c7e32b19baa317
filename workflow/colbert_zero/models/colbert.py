"""ColBERT models as PyLate has them: loaded, saved and tokenised with nothing left to a default.

Prompts, lengths and query expansion are always given, never taken from where a model happens to come from, since a
model that is queried otherwise than it was trained still answers, only worse.
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

CONFIG = "config_sentence_transformers.json"
DIMENSIONS = 128

# All three announce on every load what is meant to be so: that a projection and markers are added, a bar per file.
logging.getLogger("pylate.models.colbert").setLevel(logging.ERROR)
logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Encoding:
    """How texts become a model's input.

    Attributes:
        query_prompt: Put before each query, with its trailing space.
        document_prompt: Put before each document.
        query_length: Most tokens of a query, prompt and markers among them.
        document_length: Most tokens of a document.
        query_expansion: Whether queries are filled up to their length with mask tokens, which count in the score.
    """

    query_prompt: str
    document_prompt: str
    query_length: int
    document_length: int
    query_expansion: bool = False


def load_colbert(
    folder: Path,
    encoding: Encoding,
    device: str = "cpu",
    *,
    dimensions: int = DIMENSIONS,
    seed: int = 0,
    strict: bool = True,
    attention: str | None = None,
) -> models.ColBERT:
    """Load a model from a local folder of transformers, sentence-transformers or PyLate, in fp32.

    Args:
        folder: Where it is; its weights are in safetensors.
        encoding: How it shall encode.
        device: Where it shall compute.
        dimensions: Size of the projection that is added, with random weights, where the folder has none.
        seed: Decides those weights, and those of the two markers where the vocabulary lacks them.
        strict: Whether a model that was saved with another encoding is refused.
        attention: Which implementation of it, as transformers names them; by default its own choice.

    Returns:
        The model, in evaluation mode.

    Raises:
        UserError: The folder cannot be loaded, or was saved with another encoding.
    """
    if not any((folder / name).is_file() for name in ("config.json", "modules.json")):
        raise UserError(f"{folder} is no model folder: it has neither config.json nor modules.json")
    saved = _saved_encoding(folder)
    if strict and saved is not None and saved != encoding:
        wanted = asdict(encoding)
        differences = [
            f"{name} is {value!r} there, {wanted[name]!r} was asked for"
            for name, value in asdict(saved).items()
            if value != wanted[name]
        ]
        raise UserError(f"{folder} was trained with another encoding: {'; '.join(differences)}")
    with torch.random.fork_rng():
        torch.manual_seed(draw(seed, "projection"))
        try:
            model = models.ColBERT(
                str(folder),
                device=device,
                prompts=_prompts(encoding),
                local_files_only=True,
                # Given where there is a projection already, PyLate would put a second one behind it.
                embedding_size=None if _has_projection(folder) else dimensions,
                query_length=encoding.query_length,
                document_length=encoding.document_length,
                do_query_expansion=encoding.query_expansion,
                attend_to_expansion_tokens=False,
                model_kwargs={"dtype": torch.float32, "use_safetensors": True, "attn_implementation": attention},
            )
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"attention {attention} is asked for and cannot be had here: {reason[:300]}") from None
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder} cannot be loaded as a model: {reason[:300]}") from None
    if model.tokenizer.padding_side != "right":
        raise UserError(f"{folder}: its tokenizer pads on the left; only models that pad on the right can be used")
    _set_encoding(model, encoding)
    model.eval()
    return model


def save_colbert(model: models.ColBERT, folder: Path, encoding: Encoding) -> None:
    """Save a model so that `pylate.models.ColBERT(folder)` encodes as `encoding` says; same model, same bytes."""
    _set_encoding(model, encoding)
    # Traces of the last call that would be saved too.
    transformer: Any = model[0]
    transformer.max_seq_length = model.tokenizer.model_max_length = encoding.document_length - 1
    if model.tokenizer.is_fast:
        model.tokenizer.backend_tokenizer.no_truncation()
        model.tokenizer.backend_tokenizer.no_padding()
    model.save(str(folder), create_model_card=False)


def _prompts(encoding: Encoding) -> dict[str, str]:
    return {"query": encoding.query_prompt, "document": encoding.document_prompt}


def _set_encoding(model: models.ColBERT, encoding: Encoding) -> None:
    """A loaded folder's own prompts come after the constructor's; they must not stay."""
    model.prompts, model.default_prompt_name = _prompts(encoding), None
    model.query_length, model.document_length = encoding.query_length, encoding.document_length
    model.do_query_expansion, model.attend_to_expansion_tokens = encoding.query_expansion, False


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _saved_encoding(folder: Path) -> Encoding | None:
    """What a PyLate folder was saved with; None for other folders, which carry no lengths."""
    config = _json(folder / CONFIG)
    if config is None or "query_length" not in config:
        return None
    prompts = config.get("prompts") or {}
    return Encoding(
        query_prompt=prompts.get("query") or "",
        document_prompt=prompts.get("document") or "",
        query_length=config["query_length"],
        document_length=config["document_length"],
        query_expansion=config.get("do_query_expansion", True),
    )


def _has_projection(folder: Path) -> bool:
    return any(module["type"].endswith("Dense") for module in _json(folder / "modules.json") or ())


@dataclass(frozen=True)
class Tokens:
    """The token ids of some texts, unpadded, one text after the other.

    Attributes:
        ids: All of them, int64.
        lengths: How many each text has, int64.
        padding: The id that fills up.
        width: The least width of a padded batch: the query length with query expansion, else 0.
    """

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    padding: int
    width: int = 0

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.lengths)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each text begins in `ids`."""
        starts: npt.NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        return starts

    def padded(self, rows: npt.NDArray[np.int64] | None = None) -> dict[str, Tensor]:
        """Some of the texts, or all, as a model takes them, padded to the longest among them.

        Returns:
            `input_ids` and `attention_mask`, int64, texts x tokens.
        """
        rows = np.arange(len(self)) if rows is None else rows
        lengths = self.lengths[rows]
        columns = np.arange(max(int(lengths.max(initial=0)), self.width))
        mask = columns < lengths[:, None]
        ids = np.full(mask.shape, self.padding)
        ids[mask] = self.ids[(self.starts[rows][:, None] + columns)[mask]]
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def tokenize(model: models.ColBERT, texts: Sequence[str], is_query: bool, prompt: str, tokenizer: Any = None) -> Tokens:
    """Tokenise as PyLate's collator does: prompt before the text, marker after the first token, cut to the length.

    PyLate's own call pads all texts to the full length, and remembers the last length in the model. A `tokenizer` that
    is a copy of the model's lets several threads do this at once.
    """
    length, marker = (
        (model.query_length, model.query_prefix_id) if is_query else (model.document_length, model.document_prefix_id)
    )
    padding = model.tokenizer.pad_token_id
    assert length is not None and padding is not None, "PyLate sets both when it loads a model"
    texts = [(prompt + text).strip() for text in texts]
    if model[0].do_lower_case:
        texts = [text.lower() for text in texts]
    rows = (tokenizer or model.tokenizer)(
        texts,
        truncation=True,
        max_length=length if marker is None else length - 1,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum()))
    if marker is not None:
        ids = np.insert(ids, np.cumsum(lengths) - lengths + 1, marker)
        lengths = lengths + 1
    width = length if is_query and model.do_query_expansion else 0
    return Tokens(ids, lengths, padding, width)


def scored(model: models.ColBERT, features: dict[str, Tensor], is_query: bool) -> Tensor:
    """Which positions of a padded batch count in MaxSim, boolean: no padding, and no skiplisted token of a document."""
    if is_query and model.do_query_expansion:
        return torch.ones_like(features["input_ids"], dtype=torch.bool)
    mask = features["attention_mask"].bool()
    if is_query:
        return mask
    return mask & ~torch.isin(features["input_ids"], torch.tensor(model.skiplist, device=mask.device))


def embed(model: models.ColBERT, features: dict[str, Tensor]) -> Tensor:
    """Embeddings of length 1 of a padded batch, texts x tokens x dimensions."""
    # A copy, since each of the model's modules adds to what it is given.
    return F.normalize(model(dict(features))["token_embeddings"], p=2, dim=-1)
