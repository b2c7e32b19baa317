"""The texts of a collection that a model encodes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from colbert_zero.data.beir import Collection
from colbert_zero.data.text import document_text


def document_texts(collection: Collection) -> Iterator[tuple[str, str]]:
    """Each document's id, and the text that a model sees."""
    return ((document.id, document_text(document.title, document.text)) for document in collection.documents())


class TextReader:
    """Reads parts of a corpus: any, and each further along than the one before in one pass over the file."""

    def __init__(self, collection: Collection) -> None:
        """Read nothing yet."""
        self._collection, self._at = collection, 0
        self._texts: Iterator[tuple[str, str]] = iter(())

    def read(self, start: int, stop: int) -> list[tuple[str, str]]:
        """(id, text) pairs of the documents from number `start` to before `stop`, or to the last one."""
        if not 0 < self._at <= start:
            self._texts, self._at = document_texts(self._collection), 0
        found = list(islice(self._texts, start - self._at, stop - self._at))
        self._at = stop
        return found
