"""Every random draw: seeded by a digest of (seed, purpose, id), so that no order or worker count matters."""

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
        purpose: What is drawn, e.g. `shuffle`; two purposes never share a stream.
        identity: Of what it is drawn, e.g. a source and a row.
    """
    return _number(SEPARATOR.join(map(str, (seed, purpose, *identity))))


def draws(seed: int, purpose: str, *shared: str | int, identities: Iterable[str]) -> list[int]:
    """`draw(seed, purpose, *shared, identity)` of each identity."""
    start = SEPARATOR.join(map(str, (seed, purpose, *shared, "")))
    return [_number(start + identity) for identity in identities]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def sample(items: list[T], size: int, seed: int, purpose: str, *identity: str | int) -> list[T]:
    """`size` of `items` without replacement, in their given order; all of them where there are fewer."""
    order = sorted(range(len(items)), key=lambda index: draw(seed, purpose, *identity, index))
    return [items[index] for index in sorted(order[:size])]
