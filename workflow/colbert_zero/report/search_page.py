"""The page of a search: each document's text, shaded by what its tokens add to the score, and a heat map of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from colbert_zero.evaluation.adhoc import Found
from colbert_zero.evaluation.token_matches import ReadText, TokenMatches
from colbert_zero.report.template import fill

LEVELS = 9
"""Shades of a token or a cell, from 1; none is 0."""
LINE_CHARACTERS = frozenset("\n\t\N{NO-BREAK SPACE}")
"""White space that a page shows as it is."""


@dataclass(frozen=True)
class Piece:
    """A part of a text, and its shade."""

    text: str
    level: int


def page(heading: str, about: str, found: Sequence[Found]) -> str:
    """A page to read offline.

    Args:
        heading: What was asked.
        about: What was searched, and how.
        found: The documents, the best one first.
    """
    return fill("search.html", heading=heading, about=about, levels=LEVELS, found=[_entry(of) for of in found])


def _entry(found: Found) -> dict[str, Any]:
    """What the template shows of a document."""
    document, matches = found.document, found.matches
    entry: dict[str, Any] = {
        "id": _visible(document.id),
        "title": _visible(document.title),
        "score": found.score,
        "text": [Piece(_visible(document.text), 0)],
        "unread": "",
        "matches": None,
    }
    if matches is None:
        return entry
    read = matches.document
    return entry | {
        "text": list(shaded(read, matches.contributions.tolist())),
        "unread": _visible(read.text[read.end :]),
        "matches": {
            "tokens": [_visible(token.name) for token in read.counted],
            "rows": list(_rows(matches)),
            "sum": matches.score,
        },
    }


def shaded(read: ReadText, contributions: Sequence[float]) -> Iterator[Piece]:
    """A text in pieces, one for each token and one for what is between two; the greatest contribution is darkest.

    Args:
        read: The text.
        contributions: What each of its tokens that count adds to the score.
    """
    added = iter(contributions)
    amounts = [next(added) if token.counts else 0.0 for token in read.tokens]
    greatest = max(amounts, default=0.0)
    end = 0
    for token, amount in zip(read.tokens, amounts, strict=True):
        # Several tokens may share a letter, each with some of its bytes: the first one shows it.
        if token.end <= end:
            continue
        start = max(token.start, end)
        # A token of bytes begins with the space before its word, which is no part of what one sees of it.
        word = read.text[start : token.end]
        start += len(word) - len(word.lstrip())
        if start > end:
            yield Piece(_visible(read.text[end:start]), 0)
        yield Piece(_visible(read.text[start : token.end]), _level(amount, greatest))
        end = token.end


def _rows(matches: TokenMatches) -> Iterator[dict[str, Any]]:
    """By token of the query: its name, what it met, and the shade of its similarity with each of the document's."""
    for row, (token, other, similarity) in enumerate(matches.met):
        similarities = matches.similarities[row].tolist()
        yield {
            "name": _visible(token.name),
            "met": _visible(other.name),
            "place": matches.best[row],
            "similarity": similarity,
            "levels": [_level(value, 1.0) for value in similarities],
        }


def _level(amount: float, greatest: float) -> int:
    """The shade of an amount between 0 and the greatest one: 0 to `LEVELS`."""
    if amount <= 0 or greatest <= 0:
        return 0
    return min(LEVELS, max(1, round(LEVELS * amount / greatest)))


def _visible(text: str) -> str:
    """Escape what a page would not show, or what would reorder its text."""
    return "".join(
        character if character.isprintable() or character in LINE_CHARACTERS else ascii(character)[1:-1]
        for character in text
    )
