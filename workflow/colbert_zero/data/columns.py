"""The columns of a source: what each may hold in its files, and as what it is read."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from colbert_zero.data.text import document_text
from colbert_zero.graph.console import UserError
from colbert_zero.graph.json_values import parse_json

LITERAL_CHARACTERS = 2**22
"""The longest text that is read as a Python literal."""
LISTED_NAMES = 20
"""How many names of columns a message lists."""
IDS_ADVICE = "if these are ids, write the texts that they stand for"

COLLECTION_PATTERN = re.compile(r"\s*(array)?[\[({]+\s*(['\"]|[bf]['\"]).*[\])}]\s*$", re.DOTALL)
"""A text that a program printed: a list that cannot be read, a tuple, a set, a record, numpy's array."""

FieldPath = tuple[str, ...]
"""Where a value is in a record: a column, then the fields of the records in it."""


@dataclass(frozen=True)
class Column:
    """A column of a source, and the type as which it is read; a value that cannot be converted becomes null.

    Attributes:
        names: Its names in the file. A name is that of a column, or a path to a field in it (`passage.text`), or a
            pattern (`negative_*`). What several columns hold is joined to one list.
        type: The Arrow type of the values. A column of documents may also give lists of that type.
        convert: Converts a value of JSON, or of Arrow's `to_pylist`, to that type, or to None.
        needs: What the column must hold, for messages.
        is_text: Whether the values are texts that a model reads, rather than ids or numbers.
        optional: Whether a file may lack the column.
    """

    names: tuple[str, ...]
    type: pa.DataType
    convert: Callable[[Any], Any]
    needs: str
    is_text: bool = False
    optional: bool = False

    @property
    def label(self) -> str:
        """The names, for messages."""
        return f"column {', '.join(map(repr, self.names))}"

    def locate(self, available: Sequence[str]) -> list[FieldPath]:
        """Where a file with the columns `available` holds the values; a pattern's columns in the order of numbers."""
        return [path for name in self.names for path in _locate(name, available)]

    def held(self, record: Mapping[str, Any], paths: Sequence[FieldPath]) -> list[Any]:
        """What a record holds at the paths that `locate` gave; one None without any path."""
        return [_value_at(record, path) for path in paths] or [None]

    def convert_all(self, held: Sequence[Any]) -> Any:
        """Convert what a record holds, or give None if that cannot be done; several lists become one."""
        values = [self.convert(value) for value in held]
        if len(values) == 1:
            return values[0]
        return None if any(items is None for items in values) else [item for items in values for item in items]

    def check(self, file: Path, held: Iterable[Sequence[Any]], converted: Iterable[Any]) -> None:
        """Refuse a file of whose first rows none can be used, so that nobody waits for its last.

        Args:
            file: The file.
            held: What each of the first rows holds.
            converted: To what it was converted.

        Raises:
            UserError: Nothing can be converted, or all texts are numbers, or lists that were written as text.
        """
        where = f"{file}, {self.label} holds"
        values = list(converted)
        example = next((value for row in held for value in row if value is not None), None)
        if example is not None and all(value is None for value in values):
            raise UserError(f"{where} {_describe(example)}, where {self.needs} is needed; {self._advice(example)}")
        texts = [text for value in values for text in (value if isinstance(value, list) else [value]) if text]
        if not (self.is_text and texts):
            return
        if all(text.strip().isdecimal() for text in texts):
            raise UserError(f"{where} nothing but numbers, such as {texts[0]!r}; {IDS_ADVICE}")
        if all(parse_list(text) is not None for text in texts):
            raise UserError(
                f"{where} lists that were written as text, where {self.needs} is needed; write them as lists"
            )

    def _advice(self, value: Any) -> str:
        """What to do about a column that holds this value."""
        while isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, Mapping):
            field = "text" if "text" in value else next(iter(value), "text")
            return f"name the field that has the text, such as {self.names[0]}.{field}"
        if self.is_text and isinstance(value, int | float):
            return IDS_ADVICE
        return "write it so, or name another column"


def text_column(name: str) -> Column:
    """A column of texts; a list of one text counts as that text, a record as its title and text."""
    return Column((name,), pa.string(), _to_one_text, "one text", is_text=True)


def documents_column(name: str) -> Column:
    """A column of texts, or of lists of them: a list of one or none becomes a text or null."""
    return Column((name,), pa.string(), _to_documents, "a text, or a list of texts,", is_text=True)


def texts_column(names: str | Sequence[str], optional: bool = False) -> Column:
    """Columns of texts or of lists of texts; a null or absent value means an empty list, and null items are left out.

    A list may be written as text, in JSON or as Python prints it.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    return Column(
        names, pa.list_(pa.string()), _to_texts, "a text, or a list of texts,", is_text=True, optional=optional
    )


def id_column(name: str) -> Column:
    """A column of ids, each a text or a whole number."""
    return Column((name,), pa.string(), _to_id, "an id (a text or a whole number)")


def ids_column(name: str) -> Column:
    """A column of lists of ids; a list may be written as text, in JSON or as Python prints it."""
    return Column((name,), pa.list_(pa.string()), lambda value: _to_list(value, _to_id), "a list of ids")


def numbers_column(name: str) -> Column:
    """A column of lists of numbers; a list, and a number in it, may be written as text."""
    return Column((name,), pa.list_(pa.float64()), lambda value: _to_list(value, _to_number), "a list of numbers")


def parse_list(text: str) -> list[Any] | None:
    """The list that a text is, in JSON or as Python prints it; None if it is none. No code in the text is run."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        value = parse_json(text)
    except ValueError:
        value = _parse_literal(text)
    return value if isinstance(value, list) else None


def first_names(names: Iterable[str]) -> str:
    """The first few of names, for a message."""
    names = list(names)
    return ", ".join([*names[:LISTED_NAMES], *(["..."] if len(names) > LISTED_NAMES else [])])


def _parse_literal(text: str) -> Any:
    """The value of a Python literal, or None."""
    if len(text) > LITERAL_CHARACTERS:
        return None
    try:
        value = ast.literal_eval(text)
        # numpy prints no commas, and Python would join the texts between them to one.
        return None if repr(value) != text and _has_joined_texts(text) else value
    except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        return None


def _has_joined_texts(literal: str) -> bool:
    kinds = [
        token.type
        for token in tokenize.generate_tokens(io.StringIO(literal).readline)
        if token.type not in (tokenize.NL, tokenize.NEWLINE)
    ]
    return any(one == other == tokenize.STRING for one, other in pairwise(kinds))


def _locate(name: str, available: Sequence[str]) -> list[FieldPath]:
    if name in available:
        return [(name,)]
    if "*" in name:
        pattern = re.compile(".*".join(map(re.escape, name.split("*"))))
        return [(match,) for match in sorted(filter(pattern.fullmatch, available), key=_by_number)]
    parts = name.split(".")
    for size in range(len(parts) - 1, 0, -1):
        if (root := ".".join(parts[:size])) in available:
            return [(root, *parts[size:])]
    return []


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts `negative_2` before `negative_10`."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _value_at(value: Any, path: FieldPath) -> Any:
    """The value at a path; a path into a list leads into each of its items."""
    for number, name in enumerate(path):
        if isinstance(value, list):
            return [_value_at(item, path[number:]) for item in value]
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _to_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value if _is_encodable(value) else None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        title = value.get("title")
        return _to_text(document_text(title if isinstance(title, str) else None, value["text"]))
    return None


def _is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode a text: JSON can escape half a surrogate pair, which is not a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_one_text(value: Any) -> str | None:
    return _to_text(value[0] if isinstance(value, list) and len(value) == 1 else value)


def _to_documents(value: Any) -> str | list[str] | None:
    if not isinstance(value, list):
        return _to_text(value)
    texts = _to_texts(value)
    if texts is None:
        return None
    texts = [text for text in texts if text.strip()]
    return texts if len(texts) > 1 else next(iter(texts), None)


def _to_texts(value: Any) -> list[str] | None:
    if value is None:
        return []
    if isinstance(value, str):
        parsed = parse_list(value)
        # A list that is cut or printed by another library must not pass for one text.
        if parsed is None and COLLECTION_PATTERN.match(value):
            return None
        value = [value] if parsed is None else parsed
    if not isinstance(value, list):
        value = [value]
    return _to_list([item for item in value if item is not None], _to_text)


def _to_id(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        # Whole numbers beside a missing one are saved as 7.0 by pandas.
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _to_text(value)


def _to_number(value: Any) -> float | None:
    if isinstance(value, str) and "_" not in value:
        try:
            return float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _to_list(value: Any, convert: Callable[[Any], Any]) -> list[Any] | None:
    if isinstance(value, str):
        value = parse_list(value)
    if not isinstance(value, list):
        return None
    items = [convert(item) for item in value]
    return None if any(item is None for item in items) else items


def _describe(value: Any) -> str:
    """What a value is, for people."""
    if isinstance(value, list):
        first = next((item for item in value if item is not None), None)
        return "empty lists" if first is None else f"lists of {_describe(first)}"
    if isinstance(value, Mapping):
        return f"records with the fields {first_names(map(str, value))}"
    if isinstance(value, bytes):
        return "bytes that are not UTF-8"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return f"numbers such as {value}"
    return f"{'text' if isinstance(value, str) else type(value).__name__} such as {str(value)[:60]!r}"
