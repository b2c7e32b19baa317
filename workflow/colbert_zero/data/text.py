"""The one place where records become the text a model sees, and where two texts are called the same."""

from __future__ import annotations

import unicodedata


def document_text(title: str | None, body: str | None) -> str:
    """Title and body joined with one space, stripped; either may be empty or None (as BEIR does)."""
    return f"{title or ''} {body or ''}".strip()


def stripped(text: str | None) -> str:
    """A text as it is kept: what `document_text` makes of a body alone, at half the cost."""
    return text.strip() if text else ""


def normalise(text: str) -> str:
    """NFKC, case-folded, white space collapsed: equal results mean the same text for deduplication."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A printable text has no white space but spaces: most texts need not be taken apart.
    if folded.isprintable() and "  " not in folded:
        return folded.strip(" ")
    return " ".join(folded.split())
