"""Pairs of a query and a document as a re-ranker's input: each text tokenised once, batches with little padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from colbert_zero.models.batches import batches_by_length

TOKENS_PER_BATCH = {"cpu": 8192, "cuda": 32768}
"""By device, the tokens of a batch, its padding among them; a longer input is a batch of its own."""

Pair = tuple[str, str]
"""A query and a document."""
Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pairs:
    """Pairs of a query and a document.

    Attributes:
        queries: The distinct queries.
        documents: The distinct documents.
        query_of: The number of each pair's query.
        document_of: The number of each pair's document.
    """

    queries: list[str]
    documents: list[str]
    query_of: Ids
    document_of: Ids

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Pairs:
        """Find the distinct texts of some pairs."""
        (queries, query_of), (documents, document_of) = (_distinct([pair[side] for pair in pairs]) for side in range(2))
        return cls(queries, documents, query_of, document_of)


def _distinct(texts: Sequence[str]) -> tuple[list[str], Ids]:
    numbers: dict[str, int] = {}
    of = np.fromiter((numbers.setdefault(text, len(numbers)) for text in texts), np.int64, len(texts))
    return list(numbers), of


class TextTokenizer:
    """Tokenises texts without special tokens; several threads may call it at once."""

    def __init__(self, tokenizer: Any) -> None:
        """Tokenise as a tokenizer of transformers does."""
        self._tokenizer, self._backend = tokenizer, None
        if tokenizer.is_fast:
            # The tokenizer itself changes its settings with each call, which threads could not share.
            self._backend = deepcopy(tokenizer.backend_tokenizer)
            self._backend.no_truncation()
            self._backend.no_padding()

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        """The token ids of each text."""
        if self._backend is not None:
            # This lets other threads run.
            found = [
                encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
            ]
        else:
            # verbose=False: no warning about a text longer than the model's maximum, since it is truncated later.
            found = [self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
        return [np.array(ids, np.int64) for ids in found]


@dataclass(frozen=True)
class Inputs:
    """The inputs of a model for several pairs, without padding, one after another.

    Attributes:
        ids: The token ids of all inputs.
        lengths: The number of tokens of each input.
        types: The type of each token, where the model takes it.
    """

    ids: Ids
    lengths: Ids
    types: Ids | None = None

    def __len__(self) -> int:
        """The number of inputs."""
        return len(self.lengths)

    @cached_property
    def starts(self) -> Ids:
        """The place in `ids` of each input's first token."""
        starts: Ids = np.cumsum(self.lengths) - self.lengths
        return starts

    @classmethod
    def join(cls, parts: Sequence[Sequence[Ids]]) -> Inputs:
        """The inputs whose parts are given."""
        lengths = np.array([sum(map(len, of)) for of in parts], np.int64)
        return cls(np.concatenate([part for of in parts for part in of]), lengths)

    def pad(self, rows: Ids, pad_id: int, *, left: bool = False, pad_type: int = 0) -> dict[str, torch.Tensor]:
        """Pad some inputs to the longest of them.

        Returns:
            `input_ids`, `attention_mask` and, where there are types, `token_type_ids`: inputs x tokens, int64.
        """
        lengths = self.lengths[rows]
        columns = np.arange(int(lengths.max()))
        mask = columns >= columns.size - lengths[:, None] if left else columns < lengths[:, None]
        first = self.starts[rows] - (columns.size - lengths if left else 0)
        places = (first[:, None] + columns)[mask]
        padded = {"input_ids": (self.ids, pad_id), "token_type_ids": (self.types, pad_type)}
        features = {"attention_mask": torch.from_numpy(mask.astype(np.int64))}
        for name, (values, padding) in padded.items():
            if values is not None:
                filled = np.full(mask.shape, padding, np.int64)
                filled[mask] = values[places]
                features[name] = torch.from_numpy(filled)
        return features


def score_batches(inputs: Inputs, device: str, score: Callable[[Ids], torch.Tensor]) -> Scores:
    """Score inputs in batches.

    Args:
        inputs: The inputs.
        device: Where `score` computes: `cpu` or `cuda`.
        score: The scores of the inputs with some numbers, on its device.

    Returns:
        The score of each input, in their order.
    """
    order = list(batches_by_length(inputs.lengths, TOKENS_PER_BATCH[device]))
    # Fetched once at the end: the next batch is padded while a GPU computes.
    found = torch.cat([score(rows).float() for rows in order])
    scores = np.empty(len(inputs), np.float32)
    scores[np.concatenate(order)] = found.cpu().numpy()
    return scores


def longest_first(first: Ids, second: Ids, room: int) -> tuple[Ids, Ids]:
    """The lengths that two texts keep, where the longer is cut first, then both to half of the room.

    This is what `truncation="longest_first"` does in tokenizers (`truncate_encodings`).

    Args:
        first: Tokens of the first text of each pair.
        second: Tokens of the second text of each pair.
        room: Tokens that both may have together.
    """
    shorter, longer = np.minimum(first, second), np.maximum(first, second)
    longer = np.where(shorter > room, shorter, np.maximum(shorter, room - shorter))
    both = shorter + longer > room
    shorter, longer = np.where(both, room // 2, shorter), np.where(both, room - room // 2, longer)
    swapped, fits = first > second, first + second <= room
    return (
        np.where(fits, first, np.where(swapped, longer, shorter)),
        np.where(fits, second, np.where(swapped, shorter, longer)),
    )
