"""Texts of made-up words for tests of BM25, and the parameters they are searched with."""

from __future__ import annotations

import numpy as np

K1, B = 0.9, 0.4
WORDS = [f"term{chr(97 + number % 26)}{chr(97 + number // 26)}q" for number in range(60)]


def random_words(seed: int, size: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, size))


DOCUMENTS = [random_words(seed, 3 + seed % 30) for seed in range(200)]
QUERIES = [random_words(1000 + seed, 1 + seed % 5) for seed in range(300)]
