"""The texts of a collection that a model encodes, and how many of them are in memory at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from colbert_zero.data.beir import Collection
from colbert_zero.data.text import document_text


def document_texts(collection: Collection) -> Iterator[tuple[str, str]]:
    """Each document's id, and the text that a model sees."""
    return ((document.id, document_text(document.title, document.text)) for document in collection.documents())


def in_chunks(texts: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    """(id, text) pairs in lists of `size`, the last one of what is left."""
    iterator = iter(texts)
    while chunk := list(islice(iterator, size)):
        yield chunk
