"""Which token of a query met which token of a document: what a MaxSim score is a sum of.

Each token of the query adds to the score its largest inner product with any of the document's tokens (Khattab and
Zaharia 2020, equation 3). All tokens of the query take part: markers, prompt and, with query expansion, the masks that
it is filled up with. Of the document's, those of the model's skiplist, which is punctuation, have no vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_zero.graph.console import UserError
from colbert_zero.models.colbert import scoring_mask, tokenize
from colbert_zero.retrieval.vectors import Matrix

SPACE = "▁"
"""Stands in a token's name for a space before it, as in SentencePiece."""
UNREADABLE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Token:
    """A token of a text, as a model reads it.

    Attributes:
        name: What the vocabulary calls it; where it spells bytes, the text that they are.
        start: The position in the text of its first character.
        end: The position after its last character; that of the first one for a token that the text does not have, such
            as a marker.
        counts: Whether it has a vector, and so takes part in MaxSim.
    """

    name: str
    start: int
    end: int
    counts: bool


@dataclass(frozen=True)
class ReadText:
    """A text as a model reads it.

    Attributes:
        text: The prompt and the text. What is after the last token was cut off, and is not read.
        tokens: The tokens, in order.
    """

    text: str
    tokens: tuple[Token, ...]

    @cached_property
    def counted(self) -> list[Token]:
        """The tokens that have a vector."""
        return [token for token in self.tokens if token.counts]

    @property
    def end(self) -> int:
        """The position in the text after the last character that is read."""
        return max((token.end for token in self.tokens), default=0)


def read_text(model: Any, text: str, *, is_query: bool) -> ReadText:
    """Tokenise a text as it is encoded, and find each token in it.

    Args:
        model: A `pylate.models.ColBERT` with the prompts and lengths to encode with.
        text: The text of a query or of a document, without its prompt.
        is_query: Which of the two it is.
    """
    prompt = model.prompts["query" if is_query else "document"]
    tokenized = tokenize(model, [text], is_query, prompt)
    features = tokenized.pad()
    ids = features["input_ids"][0].tolist()
    counts = scoring_mask(model, features, is_query)[0].tolist()
    read = (prompt + text).strip()
    if model[0].do_lower_case:
        read = read.lower()
    marker = model.query_prefix_id if is_query else model.document_prefix_id
    spans = _spans(model.tokenizer, read, len(tokenized.ids) - (marker is not None))
    if marker is not None:
        spans.insert(1, (0, 0))
    spans += [(0, 0)] * (len(ids) - len(spans))  # the masks that a query is filled up with
    names = [_name(model.tokenizer, token) for token in model.tokenizer.convert_ids_to_tokens(ids)]
    return ReadText(
        read,
        tuple(
            Token(name, start, end, counted) for name, (start, end), counted in zip(names, spans, counts, strict=True)
        ),
    )


def _spans(tokenizer: Any, text: str, tokens: int) -> list[tuple[int, int]]:
    """Where each of the first tokens of a text begins and ends; a tokenizer in plain Python does not tell."""
    if not tokenizer.is_fast:
        return [(0, 0)] * tokens
    spans = tokenizer(text, truncation=True, max_length=tokens, return_offsets_mapping=True)["offset_mapping"]
    return [(int(start), int(end)) for start, end in spans]


def _name(tokenizer: Any, token: str) -> str:
    """A token's name. A tokenizer of bytes has names such as `Ġfox`; where it has the text ` fox`, this is `▁fox`."""
    if token in tokenizer.all_special_tokens:
        return token
    text: str = tokenizer.convert_tokens_to_string([token])
    # Some bytes are a part of a letter only. Others, such as `##ing` of WordPiece, are what they are called.
    if UNREADABLE in text or not text.strip(" "):
        return token
    spaces = len(text) - len(text.lstrip(" "))
    return SPACE * spaces + text[spaces:]


@dataclass(frozen=True)
class TokenMatches:
    """The similarities of a query's tokens with a document's.

    Attributes:
        query: The query, as the model reads it.
        document: The document, as the model reads it.
        similarities: Inner products (tokens of the query that count x tokens of the document that count), in single
            precision.
    """

    query: ReadText
    document: ReadText
    similarities: Matrix

    @cached_property
    def best(self) -> list[int]:
        """For each token of the query that counts, the position among the document's of the one that it met."""
        positions: list[int] = self.similarities.argmax(axis=1).tolist()
        return positions

    @cached_property
    def met(self) -> list[tuple[Token, Token, float]]:
        """Each token of the query that counts, the document's token that it met, and how similar they are."""
        return [
            (token, self.document.counted[position], float(self.similarities[row, position]))
            for row, (token, position) in enumerate(zip(self.query.counted, self.best, strict=True))
        ]

    @cached_property
    def score(self) -> float:
        """The sum of what each token of the query adds: the document's MaxSim."""
        return math.fsum(similarity for _, _, similarity in self.met)

    @cached_property
    def contributions(self) -> npt.NDArray[np.float64]:
        """What each of the document's tokens that count adds to the score; most add nothing."""
        added = np.zeros(len(self.document.counted))
        for position, (_, _, similarity) in zip(self.best, self.met, strict=True):
            added[position] += similarity
        return added


def match_tokens(query: ReadText, query_vectors: Matrix, document: ReadText, document_vectors: Matrix) -> TokenMatches:
    """Compare the vectors of a query with those of a document.

    Args:
        query: The query, as the model reads it.
        query_vectors: Its vectors (tokens that count x dimensions).
        document: The document, as the model reads it.
        document_vectors: Its vectors (tokens that count x dimensions).

    Raises:
        UserError: A text has another number of tokens than of vectors: they were made with another model or encoding.
    """
    for side, read, vectors in (("query", query, query_vectors), ("document", document, document_vectors)):
        if len(read.counted) != len(vectors):
            raise UserError(
                f"the {side} has {len(read.counted)} tokens but {len(vectors)} vectors, which were made of another "
                "text or by another version of the tokenizer; move the index away and run snakemake again"
            )
    similarities = query_vectors.astype(np.float32) @ document_vectors.astype(np.float32).T
    return TokenMatches(query, document, similarities)
