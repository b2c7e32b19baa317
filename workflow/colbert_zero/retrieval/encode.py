"""Encode texts with a late-interaction model: the vectors that PyLate's `encode` gives, in less time and memory.

Texts are encoded chunk by chunk. The texts of a chunk are sorted by their number of tokens, and as many are encoded at
once as have so many tokens together: padding costs little, and long texts take no more memory than short ones. While a
chunk is encoded, the next is tokenised in other threads. Vectors are rounded and copied batch by batch.

With which others a text is encoded changes the rounding of its vectors. So the same texts in the same chunks have the
same vectors, on a CPU with as many threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from colbert_zero.graph.limits import DEFAULT_PRECISION
from colbert_zero.models.batches import TOKENS_PER_BATCH, in_chunks
from colbert_zero.models.colbert import TokenizedTexts, embed, scoring_mask, split_by_length, tokenize
from colbert_zero.retrieval.vectors import Matrix, VectorWriter

TEXTS_PER_CHUNK, TOKENS_PER_CHUNK = 2048, 2**20
"""Texts in memory at once, and their tokens if all are cut at the greatest length: there are fewer such long texts."""
TEXTS_PER_TASK = 128
"""Texts that a thread tokenises before it takes the next."""

ColBERT = Any
"""A `pylate.models.ColBERT`, which has no types."""


def texts_per_chunk(length: int) -> int:
    """How many texts to tokenise and encode together that are cut at so many tokens."""
    return max(1, min(TEXTS_PER_CHUNK, TOKENS_PER_CHUNK // length))


class Encoder:
    """Encodes the texts of one side, queries or documents, on the model's device."""

    def __init__(self, model: ColBERT, *, is_query: bool, precision: str = DEFAULT_PRECISION) -> None:
        """Encode with a model.

        Args:
            model: In evaluation mode, with the prompts and lengths to encode with.
            is_query: The side.
            precision: Of the model's multiplications: `fp32`, `tf32` (on a GPU; `fp32` on a CPU), or `bf16`, which
                is PyTorch's autocast. Vectors are normalised in fp32.
        """
        self._model, self._is_query, self._precision = model, is_query, precision
        self._device = torch.device(model.device)
        # A CPU's threads are the model's; one of them falls behind it by the first chunk only.
        self._threads = 1 if self._device.type == "cpu" else torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads)
        self._tokenizers: SimpleQueue[Any] = SimpleQueue()
        self._begun = False

    def tokenize(self, texts: Sequence[str]) -> Callable[[], TokenizedTexts]:
        """Begin to tokenise texts, at least one, in other threads; what is returned waits for them."""
        parts = [texts[start : start + TEXTS_PER_TASK] for start in range(0, len(texts), TEXTS_PER_TASK)]
        if not self._begun:
            # Two threads cannot use one tokenizer at the same time, and to copy a large one takes a second.
            for _ in range(1, min(len(parts), self._threads)):
                self._tokenizers.put(deepcopy(self._model.tokenizer))
            self._tokenizers.put(self._model.tokenizer)
            self._begun = True
        tasks = [self._pool.submit(self._tokenize, part) for part in parts]
        return lambda: _joined([task.result() for task in tasks])

    def _tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        tokenizer = self._tokenizers.get()
        try:
            prompt = self._model.prompts["query" if self._is_query else "document"]
            return tokenize(self._model, texts, self._is_query, prompt, tokenizer)
        finally:
            self._tokenizers.put(tokenizer)

    def encode(self, tokens: TokenizedTexts) -> list[Matrix]:
        """Encode texts.

        Returns:
            The vectors of each text, of unit length, in half precision (tokens that count in MaxSim x dimensions).
        """
        matrices: list[Matrix] = [np.empty((0, 0), np.float16)] * len(tokens)
        with torch.no_grad(), _multiplications(self._precision):
            for rows in split_by_length(tokens, TOKENS_PER_BATCH[self._device.type]):
                features = tokens.pad(rows)
                # On the CPU, where it takes no waiting for a GPU to know how many vectors each text has.
                mask = scoring_mask(self._model, features, self._is_query)
                places = mask.flatten().nonzero()[:, 0].to(self._device)
                on_device = {name: values.to(self._device) for name, values in features.items()}
                vectors = embed(self._model, on_device, self._precision == "bf16").flatten(0, 1)[places]
                encoded = vectors.half().cpu().numpy()
                ends = np.cumsum(mask.sum(dim=1).numpy())
                for row, matrix in zip(rows, np.split(encoded, ends[:-1]), strict=True):
                    matrices[row] = matrix
        return matrices


@contextmanager
def _multiplications(precision: str) -> Iterator[None]:
    """Have a GPU multiply matrices in TF32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _joined(parts: Sequence[TokenizedTexts]) -> TokenizedTexts:
    ids, lengths = (
        np.concatenate(arrays) for arrays in zip(*((part.ids, part.lengths) for part in parts), strict=True)
    )
    return replace(parts[0], ids=ids, lengths=lengths)


def encode_texts(
    model: ColBERT,
    texts: Iterable[tuple[str, str]],
    writer: VectorWriter,
    *,
    is_query: bool,
    precision: str = DEFAULT_PRECISION,
) -> None:
    """Encode (id, text) pairs and write their vectors in the order of the pairs; the arguments are `Encoder`'s.

    Raises:
        UserError: A vector is not finite.
    """
    encoder = Encoder(model, is_query=is_query, precision=precision)
    before: tuple[list[str], Callable[[], TokenizedTexts]] | None = None
    for chunk in in_chunks(texts, texts_per_chunk(model.query_length if is_query else model.document_length)):
        begun = [text_id for text_id, _ in chunk], encoder.tokenize([text for _, text in chunk])
        if before:
            writer.write(before[0], encoder.encode(before[1]()))
        before = begun
    if before:
        writer.write(before[0], encoder.encode(before[1]()))
