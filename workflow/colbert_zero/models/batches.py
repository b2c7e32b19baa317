"""Which texts a model computes together: those of similar length, so that padding costs little."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt

TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 16384}
"""Padded tokens in one forward pass of an encoder: few enough for a CPU's cache, enough to keep a GPU busy."""

T = TypeVar("T")


def batches_by_length(
    lengths: npt.NDArray[np.int64], tokens: int, minimum_width: int = 1
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the numbers of texts of similar length, as many as have `tokens` once padded, and at least one.

    The longest come first, so that a lack of memory shows at once. Texts of one length stay in their order.

    Args:
        lengths: The number of tokens of each text.
        tokens: Padded tokens of a batch, at most.
        minimum_width: Shorter texts are padded to so many tokens.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + max(1, tokens // max(minimum_width, int(lengths[order[start]])))
        yield order[start:stop]
        start = stop


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Items in lists of `size`, the last one of what is left."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
