"""Encode pairs as a tokenizer does, but each text once: what is around and between them is the same in all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from threading import Lock
from typing import Any

import numpy as np

from colbert_zero.teaching.pairs import Ids, Inputs, Pair, Pairs, TextTokenizer, longest_first

SEQUENCE_IDS = (0, 1)
"""How a tokenizer calls the two texts of a pair."""


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around and between two texts.

    Attributes:
        around: The ids before the first text, between both, and after the second.
        types: The types of the five segments: before, first text, between, second text, after.
    """

    around: tuple[Ids, Ids, Ids]
    types: Ids

    @property
    def size(self) -> int:
        """The number of tokens that are not of the texts."""
        return sum(map(len, self.around))

    @classmethod
    def of(cls, tokenizer: Any) -> Frame | None:
        """The frame of a fast tokenizer; None of others, or where it has no text in the first pair that is tried."""
        if not tokenizer.is_fast:
            return None
        found = tokenizer("a", "b", return_token_type_ids=True)
        text_of = found.sequence_ids(0)
        if any(text not in text_of for text in SEQUENCE_IDS):
            return None
        (first, second), ends = (text_of.index(text) for text in SEQUENCE_IDS), len(text_of)
        cuts = [0, first, first + text_of.count(0), second, second + text_of.count(1), ends]
        ids, types = (np.array(found[name], np.int64) for name in ("input_ids", "token_type_ids"))
        segments = [slice(start, stop) for start, stop in pairwise(cuts)]
        before, _, between, _, after = (ids[segment] for segment in segments)
        return cls(
            (before, between, after),
            np.array([types[segment][0] if len(types[segment]) else 0 for segment in segments]),
        )


class PairEncoder:
    """Encodes pairs as `tokenizer(query, document, truncation=True)` does; several threads may call it at once.

    Where the frame of the texts and `longest_first` do not give the same as the tokenizer on a few pairs, the tokenizer
    itself encodes each pair.
    """

    def __init__(self, tokenizer: Any, maximum_length: int) -> None:
        """Encode with a tokenizer, at most `maximum_length` tokens of a pair."""
        self._tokenizer, self._maximum_length, self._lock = tokenizer, maximum_length, Lock()
        self._has_types = "token_type_ids" in tokenizer.model_input_names
        self._texts = TextTokenizer(tokenizer)
        self._frame = Frame.of(tokenizer)
        if self._frame is not None and not self._is_right(self._frame):
            self._frame = None

    def __call__(self, pairs: Pairs) -> Inputs:
        """The inputs of pairs, in their order."""
        if self._frame is None:
            return self._each(
                [(pairs.queries[q], pairs.documents[d]) for q, d in zip(pairs.query_of, pairs.document_of, strict=True)]
            )
        return self._framed(pairs, self._frame)

    def _framed(self, pairs: Pairs, frame: Frame) -> Inputs:
        queries, documents = self._texts(pairs.queries), self._texts(pairs.documents)
        of_query, of_document = (
            np.array(list(map(len, texts)), np.int64)[of]
            for texts, of in ((queries, pairs.query_of), (documents, pairs.document_of))
        )
        first, second = longest_first(of_query, of_document, self._maximum_length - frame.size)
        before, between, after = frame.around
        numbers = zip(pairs.query_of, first, pairs.document_of, second, strict=True)
        inputs = Inputs.join([(before, queries[q][:n], between, documents[d][:m], after) for q, n, d, m in numbers])
        if not self._has_types:
            return inputs
        ones = np.ones_like(first)
        lengths = np.stack([ones * len(before), first, ones * len(between), second, ones * len(after)], axis=1)
        types = np.repeat(np.tile(frame.types, len(first)), lengths.ravel())
        return Inputs(inputs.ids, inputs.lengths, types)

    def _each(self, pairs: Sequence[Pair]) -> Inputs:
        with self._lock:
            found = self._tokenizer(
                list(map(list, pairs)),
                truncation=True,
                max_length=self._maximum_length,
                return_attention_mask=False,
                return_token_type_ids=self._has_types,
            )
        inputs = Inputs.join([[np.array(ids, np.int64)] for ids in found["input_ids"]])
        types = np.concatenate([np.array(of, np.int64) for of in found["token_type_ids"]]) if self._has_types else None
        return Inputs(inputs.ids, inputs.lengths, types)

    def _is_right(self, frame: Frame) -> bool:
        """Whether the frame gives what the tokenizer does, for short and long texts."""
        words = [" ".join("abcdefgh"[at % 8] for at in range(count)) for count in (1, 5, self._maximum_length + 1)]
        tried = list(product(words, words))
        framed, expected = self._framed(Pairs.of(tried), frame), self._each(tried)
        return all(
            np.array_equal(getattr(framed, name), getattr(expected, name)) for name in ("ids", "lengths", "types")
        )
