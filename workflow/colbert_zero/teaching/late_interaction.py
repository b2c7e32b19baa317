"""A late-interaction model as a teacher: a pair's score is its MaxSim, with the model's own prompts and lengths."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from colbert_zero.graph.saved_encoding import require_saved_encoding
from colbert_zero.models.colbert import (
    EncodingSettings,
    TokenizedTexts,
    embed,
    load_colbert,
    scoring_mask,
    split_by_length,
    tokenize,
)
from colbert_zero.teaching.pairs import TOKENS_PER_BATCH, Ids, Pairs, Scores
from colbert_zero.teaching.teacher import Teacher

PAIRS_AT_ONCE = 256
"""Pairs whose similarities are in memory at once."""


class LateInteractionTeacher(Teacher):
    """A late-interaction model; it encodes each text once, however many pairs it is in."""

    def __init__(self, folder: Path, precision: str, device: str, name: str | None = None) -> None:
        """Load the model.

        Args:
            folder: The model folder, saved by PyLate, or a checkpoint of Stanford's ColBERT.
            precision: With `bf16` the model computes under autocast; its vectors are fp32 in any case.
            device: The device to compute on.
            name: What messages call the folder: by default its path.

        Raises:
            UserError: The folder does not say with which prompts and lengths it was trained, cannot be loaded whole, or
                names code.
        """
        name = name or str(folder)
        self._encoding = EncodingSettings(**require_saved_encoding(folder, name))
        self._model = load_colbert(folder, self._encoding, device, name=name)
        self._bf16, self._device, self._lock = precision == "bf16", device, Lock()

    def tokenise(self, pairs: Pairs) -> Callable[[], Scores]:
        """Tokenise pairs, and return what computes their MaxSim."""
        with self._lock:  # The tokenizer changes its settings between queries and documents.
            queries = tokenize(self._model, pairs.queries, True, self._encoding.query_prompt)
            documents = tokenize(self._model, pairs.documents, False, self._encoding.document_prompt)
        return partial(self._score, pairs, queries, documents)

    @torch.inference_mode()
    def _score(self, pairs: Pairs, queries: TokenizedTexts, documents: TokenizedTexts) -> Scores:
        of_queries, queries_mask = self._embed_queries(queries)
        order, found = [], []
        for rows in split_by_length(documents, TOKENS_PER_BATCH[self._device]):
            vectors, mask = self._embed(documents, rows, is_query=False)
            column = np.full(len(documents), -1)
            column[rows] = np.arange(len(rows))
            numbers = np.flatnonzero(column[pairs.document_of] >= 0)
            for start in range(0, len(numbers), PAIRS_AT_ONCE):
                some = numbers[start : start + PAIRS_AT_ONCE]
                of, at = pairs.query_of[some], column[pairs.document_of[some]]
                found.append(maxsim_of_pairs(of_queries[of], queries_mask[of], vectors[at], mask[at]))
                order.append(some)
        scores = np.empty(len(pairs.query_of), np.float32)
        scores[np.concatenate(order)] = torch.cat(found).cpu().numpy()
        return scores

    def _embed_queries(self, queries: TokenizedTexts) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors of all queries, and which of their tokens count."""
        width = max(int(queries.lengths.max()), queries.minimum_width)
        mask = torch.zeros(len(queries), width, dtype=torch.bool, device=self._device)
        vectors: torch.Tensor | None = None
        for rows in split_by_length(queries, TOKENS_PER_BATCH[self._device]):
            some, counts = self._embed(queries, rows, is_query=True)
            if vectors is None:
                vectors = some.new_zeros(len(queries), width, some.shape[-1])
            vectors[rows, : some.shape[1]], mask[rows, : some.shape[1]] = some, counts
        assert vectors is not None, "there is a query"
        return vectors, mask

    def _embed(self, texts: TokenizedTexts, rows: Ids, is_query: bool) -> tuple[torch.Tensor, torch.Tensor]:
        features = {name: values.to(self._device) for name, values in texts.pad(rows).items()}
        return embed(self._model, features, self._bf16), scoring_mask(self._model, features, is_query)


def maxsim_of_pairs(
    queries: torch.Tensor, queries_mask: torch.Tensor, documents: torch.Tensor, documents_mask: torch.Tensor
) -> torch.Tensor:
    """The sum over a query's tokens of the largest similarity to any of a document's (Khattab and Zaharia, equation 3).

    Args:
        queries: Embeddings, pairs x query tokens x dimensions.
        queries_mask: Which query tokens count; boolean.
        documents: Embeddings, pairs x document tokens x dimensions.
        documents_mask: Which document tokens count; boolean, at least one in each.

    Returns:
        Scores, one per pair.
    """
    similarities = (queries @ documents.transpose(1, 2)).masked_fill(~documents_mask[:, None], -torch.inf)
    return (similarities.max(dim=-1).values * queries_mask).sum(dim=-1)
