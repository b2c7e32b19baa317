"""How much alike two texts are, character by character: near-duplicates have a resemblance close to 1."""

from __future__ import annotations

from colbert_zero.data.text import normalise

CHARACTERS_PER_SHINGLE = 5
"""As for short texts in Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.2.

Characters, not words: some languages put no spaces between those.
"""


def shingles(text: str) -> frozenset[str]:
    """All sequences of five successive characters of a normalised text; a shorter text is its only one."""
    normalised = normalise(text)
    starts = range(max(1, len(normalised) - CHARACTERS_PER_SHINGLE + 1))
    return frozenset(normalised[start : start + CHARACTERS_PER_SHINGLE] for start in starts)


def resemblance(one: frozenset[str], other: frozenset[str]) -> float:
    """The Jaccard similarity of two texts' shingles (Broder, On the resemblance and containment of documents, 1997).

    Args:
        one: What `shingles` makes of a text.
        other: That of another text.

    Returns:
        From 0, for texts without a common shingle, to 1, for texts of the same.
    """
    common = len(one & other)
    return common / (len(one) + len(other) - common)
