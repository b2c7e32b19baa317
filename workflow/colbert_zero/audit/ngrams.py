"""Digests of the word n-grams of many texts at a time.

Words are runs of letters, digits and marks, after `normalise`: case, punctuation and white space do not count, as in
Brown et al. 2020 (arXiv 2005.14165, appendix C). A text of fewer words than an n-gram has one digest, that of all its
words, which only a text of the same words has.

A word's digest is a polynomial of its bytes modulo 2^64, mixed; that of an n-gram is a polynomial of its words'
digests. Sums over a range are differences of running sums, so the work is a few passes over whole arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from colbert_zero.data.text import normalise

WORDS = 13
"""Words of an n-gram, as in Brown et al. 2020."""
CHUNK_BYTES = 2**20
"""Texts whose digests are computed together have about so many bytes: each byte takes some tens of bytes meanwhile."""
BYTE_BASE, WORD_BASE = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
"""The polynomials' bases: odd, so that they have inverses."""
NO_WORD = r"[^\p{L}\p{M}\p{N}\x00-\x7F]+"
"""Characters beyond ASCII that belong to no word; those of ASCII are known by their bytes."""

Digests = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

_IN_WORD = np.zeros(256, dtype=np.bool_)
_IN_WORD[[byte for byte in range(256) if byte >= 0x80 or chr(byte).isalnum()]] = True


def text_chunks(texts: pa.LargeStringArray) -> Iterator[tuple[int, pa.LargeStringArray]]:
    """Split texts into runs of about `CHUNK_BYTES`, each with the number of its first text."""
    ends = pc.binary_length(texts).to_numpy(zero_copy_only=False).cumsum()
    start = 0
    while start < len(texts):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + CHUNK_BYTES, side="right")))
        yield start, texts.slice(start, stop - start)
        start = stop


def ngram_digests(texts: pa.LargeStringArray, words: int = WORDS) -> tuple[Digests, Places]:
    """The digests of the word n-grams of some texts.

    Args:
        texts: Texts without nulls, few enough to take at once: see `text_chunks`.
        words: The number of words of an n-gram.

    Returns:
        The digests, in the order of the texts, and for each the number of its text. A text without words has none.
    """
    content, ends = _folded(texts)
    word_starts, word_ends = _words(content, ends)
    # Of which text: words stand in the order of the texts.
    firsts = np.searchsorted(word_starts, ends)
    sizes = np.diff(firsts)
    counts = np.where(sizes >= words, sizes - words + 1, sizes > 0)
    text_of = np.repeat(np.arange(len(texts)), counts)
    # The first word of each n-gram: its text's first word, and as many more as there are n-grams of the text before it.
    before = np.cumsum(counts) - counts
    starts = np.arange(len(text_of)) + np.repeat(firsts[:-1] - before, counts)
    stops = starts + np.minimum(sizes, words)[text_of]
    digests = _mix(_range_sums(content, word_starts, word_ends, BYTE_BASE))
    return _range_sums(digests, starts, stops, WORD_BASE), text_of


def _folded(texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.uint8], Places]:
    """The bytes of texts in which case and characters beyond ASCII that belong to no word are gone, and their ends."""
    ascii_only = pc.string_is_ascii(texts)
    folded = pc.ascii_lower(texts)
    others = texts.filter(pc.invert(ascii_only))
    if len(others):
        normal = pa.array(map(normalise, others.to_pylist()), pa.large_string())
        folded = pc.replace_with_mask(folded, pc.invert(ascii_only), pc.replace_substring_regex(normal, NO_WORD, " "))
    _, offsets, content = folded.buffers()
    ends = np.frombuffer(offsets, np.int64)[folded.offset : folded.offset + len(folded) + 1]
    return np.frombuffer(content or b"", np.uint8)[ends[0] : ends[-1]], ends - ends[0]


def _words(content: npt.NDArray[np.uint8], ends: Places) -> tuple[Places, Places]:
    """Where the words of texts begin and end."""
    inside = _IN_WORD[content]
    # A word begins where the byte before is outside, or another text's; it ends where the next one is.
    edge = np.zeros(len(content) + 1, dtype=np.bool_)
    edge[ends] = True
    begins, stops = inside.copy(), inside.copy()
    begins[1:] &= ~inside[:-1] | edge[1:-1]
    stops[:-1] &= ~inside[1:] | edge[1:-1]
    return np.flatnonzero(begins), np.flatnonzero(stops) + 1


def _range_sums(values: npt.NDArray[np.unsignedinteger[Any]], starts: Places, stops: Places, base: int) -> Digests:
    """For each range, the sum of its values times base^0, base^1 ... modulo 2^64."""
    powers, inverses = _powers(base, max(len(values), CHUNK_BYTES).bit_length())
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(powers[: len(values)] * values, out=sums[1:])
    ranges: Digests = (sums[stops] - sums[starts]) * inverses[starts]
    return ranges


@cache
def _powers(base: int, bits: int) -> tuple[Digests, Digests]:
    """The powers of an odd number and those of its inverse, modulo 2^64: 2^bits of each."""
    both: list[Digests] = []
    for number in (base, pow(base, -1, 2**64)):
        factors = np.full(2**bits, number, dtype=np.uint64)
        factors[0] = 1
        both.append(np.cumprod(factors, dtype=np.uint64))
    return both[0], both[1]


def _mix(values: Digests) -> Digests:
    """The finaliser of splitmix64: equal for equal values, and otherwise all bits differ."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))
