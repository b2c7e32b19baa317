"""What a neural teacher is: something that scores pairs of a query and a document."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from colbert_zero.teaching.pairs import Pair, Pairs, Scores

PAIRS_SORTED_TOGETHER = 4096
"""Pairs that are sorted by length together: the more, the less padding."""


class Teacher(ABC):
    """A model that scores pairs."""

    @abstractmethod
    def tokenise(self, pairs: Pairs) -> Callable[[], Scores]:
        """Tokenise pairs, and return what computes their scores; several threads may call this at once."""

    def score(self, pairs: Sequence[Pair], threads: int = 1) -> Scores:
        """The raw scores of pairs, in their order; `threads` tokenise ahead of what computes."""
        starts = range(0, len(pairs), PAIRS_SORTED_TOGETHER)
        with ThreadPoolExecutor(threads) as pool:
            computing = pool.map(lambda at: self.tokenise(Pairs.of(pairs[at : at + PAIRS_SORTED_TOGETHER])), starts)
            return np.concatenate([compute() for compute in computing])
