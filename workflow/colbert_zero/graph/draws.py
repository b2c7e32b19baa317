"""Random draws, each seeded by a digest of (seed, purpose, id): neither order nor number of workers changes one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

from colbert_zero.graph.digests import SEPARATOR

T = TypeVar("T")


def draw(seed: int, purpose: str, *identity: str | int) -> int:
    """A uniform 64-bit integer decided by its arguments alone.

    Args:
        seed: The study's seed.
        purpose: What the draw is for, e.g. `shuffle`; two purposes never share a random stream.
        identity: What the number is drawn for, e.g. a source and a row.
    """
    return _hash(SEPARATOR.join(map(str, (seed, purpose, *identity))))


def draws(seed: int, purpose: str, *shared: str | int, identities: Iterable[str]) -> list[int]:
    """`draw(seed, purpose, *shared, identity)` for each of `identities`."""
    prefix = SEPARATOR.join(map(str, (seed, purpose, *shared, "")))
    return [_hash(prefix + identity) for identity in identities]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def sample(items: list[T], size: int, seed: int, purpose: str, *identity: str | int) -> list[T]:
    """`size` of `items`, drawn without replacement and kept in order; all items if there are fewer."""
    order = sorted(range(len(items)), key=lambda index: draw(seed, purpose, *identity, index))
    return [items[index] for index in sorted(order[:size])]
