"""Make the text that a model sees from a record, and decide whether two texts are the same; done nowhere else."""

from __future__ import annotations

import unicodedata


def document_text(title: str | None, body: str | None) -> str:
    """Title and body joined with one space, stripped; either may be empty or None (as BEIR does)."""
    return f"{title or ''} {body or ''}".strip()


def stripped(text: str | None) -> str:
    """Strip a text for storage: the same as `document_text` with the body alone, at half the cost."""
    return text.strip() if text else ""


def normalise(text: str) -> str:
    """NFKC, case-folded, white space collapsed: texts with equal results are duplicates of each other."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # The only white space in a printable text is spaces: most texts need no split and join.
    if folded.isprintable() and "  " not in folded:
        return folded.strip(" ")
    return " ".join(folded.split())


def are_same(one: str, other: str) -> bool:
    """Whether `normalise` makes two stripped texts equal; most that differ are told apart by their first character."""
    if one.isascii() and other.isascii() and one[:1].lower() != other[:1].lower():
        return False
    return normalise(one) == normalise(other)
