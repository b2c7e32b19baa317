"""Read YAML that a stranger may have written: plain values, in bounded time and memory, every mistake with its place.

YAML's usual loaders take the last of two equal keys, follow aliases that stand for more values than memory holds, make
objects from tags, and read `no` as a truth value where a name is meant. Here each of these is one line.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml

from colbert_zero.graph.console import UserError

MAXIMUM_BYTES = 1_000_000
MAXIMUM_VALUES = 20_000
"""Values in a file, those that aliases stand for counted each time. The paper's study has 300."""
MAXIMUM_DEPTH = 20
"""Groups and lists in one another. The deepest setting is in eight."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.1, except that 1e-3 is a number: it is one in JSON and in YAML 1.2."""


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what `_Loader` would not read as text."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
    )
_STANDARD = "tag:yaml.org,2002:"
_TEXT, _MERGE = f"{_STANDARD}str", f"{_STANDARD}merge"
_KINDS = {"int": "a number", "float": "a number", "bool": "true or false", "null": "null", "timestamp": "a date"}
"""What YAML takes a plain text for, by the end of the tag it gives it."""
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")


def parse(data: bytes) -> Any:
    """The value that the YAML text in `data` stands for; None if there is nothing in it.

    Raises:
        UserError: The text is not UTF-8, not YAML, or holds what this loader refuses. The message begins with the line
            and column.
    """
    if len(data) > MAXIMUM_BYTES:
        raise UserError(f"longer than {MAXIMUM_BYTES} bytes: a config has settings, the data are in files of their own")
    text = _decode(data)
    try:
        _check_events(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _Checker(loader).check(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        _refuse(error.problem_mark or error.context_mark, f"not YAML: {_in_words(error, text)}")
    except yaml.reader.ReaderError as error:
        before = text.encode()[: error.position].decode(errors="replace")
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise UserError(f"{_place(before)}: the character {code:#04x} cannot be in YAML: remove it") from None


def dump(value: Any) -> str:
    """YAML of groups of texts, sorted by name, that `parse` reads as the same value."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=True, allow_unicode=True))


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _place(data[: error.start].decode("utf-8", errors="replace"))
        raise UserError(f"{place}: not UTF-8 (byte {data[error.start]:#04x}): save the file as UTF-8") from None


def _place(before: str) -> str:
    """The place in a text that follows the text `before`."""
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


def _refuse(mark: Any, problem: str) -> NoReturn:
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    raise UserError(f"{place}{problem}")


def _in_words(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark
    if "found a tab character" in str(error.problem):
        return "a tab cannot indent: use spaces"
    if mark and "that cannot start any token" in str(error.problem):
        character = text.splitlines()[mark.line][mark.column]
        return "a tab cannot indent: use spaces" if character == "\t" else f"{character} cannot begin a value: quote it"
    # Such as «while parsing a block mapping», «did not find expected key».
    return " ".join(f"{error.context or ''} {error.problem or ''}".split())


def _check_events(text: str) -> None:
    """Refuse further documents, tags and what is nested too deep, before anything is built from the text."""
    depth = values = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        match event:
            case yaml.DocumentStartEvent():
                documents += 1
                if documents > 1:
                    _refuse(event.start_mark, "a second document begins here (---): a config is one")
            case yaml.CollectionStartEvent():
                depth += 1
                if depth > MAXIMUM_DEPTH:
                    _refuse(event.start_mark, f"nested deeper than {MAXIMUM_DEPTH} groups and lists")
            case yaml.CollectionEndEvent():
                depth -= 1
        if isinstance(event, yaml.NodeEvent):
            values += 1
            if values > MAXIMUM_VALUES:
                _refuse(event.start_mark, f"more than {MAXIMUM_VALUES} values")
            tag = getattr(event, "tag", None)
            if tag is not None:
                tag = _shown(tag.replace(_STANDARD, "!!"))
                _refuse(event.start_mark, f"the tag {tag} is not allowed: write the value without it")


def _shown(text: str) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= 60 else f"{text[:60]}..."


class _Checker:
    """Checks a document's nodes: keys, numbers, dates, and how many values the aliases stand for."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._sizes: dict[int, tuple[int, int]] = {}
        """Number of values and depth of each group and list, by its node's id; (0, 0) while it is being checked."""

    def check(self, node: yaml.Node) -> tuple[int, int]:
        """Check a node and what is in it; return its number of values and its depth, aliases resolved."""
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)
            return 1, 0
        if id(node) in self._sizes:
            if self._sizes[id(node)] == (0, 0):
                _refuse(node.start_mark, "what is here is inside itself, by an alias (*)")
            return self._sizes[id(node)]
        self._sizes[id(node)] = 0, 0
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            inner = [value for _, value in node.value]
        else:
            inner = node.value
        sizes = [self.check(value) for value in inner]
        size = 1 + sum(values for values, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
        if size[0] > MAXIMUM_VALUES or size[1] > MAXIMUM_DEPTH:
            _refuse(node.start_mark, f"its aliases (*) stand for more than {MAXIMUM_VALUES} values, or nest too deep")
        self._sizes[id(node)] = size
        return size

    def _check_keys(self, node: yaml.MappingNode) -> None:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                _refuse(key.start_mark, "a setting's name is one word, not a list or a group")
            name = _shown(key.value)
            if key.tag not in (_TEXT, _MERGE):
                kind = _KINDS.get(key.tag.removeprefix(_STANDARD), "something else")
                _refuse(key.start_mark, f"YAML reads the name {name} as {kind}: put it in quotes")
            if not key.value.isprintable():
                _refuse(key.start_mark, f"the name {name!r} has characters that cannot be shown")
            if key.value in first:
                line = first[key.value]
                _refuse(key.start_mark, f"{name} is there twice, first in line {line}: keep one of them")
            first[key.value] = key.start_mark.line + 1

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        """Refuse a number or a date that Python cannot read, or reads as another one than is written."""
        kind, text = _KINDS.get(node.tag.removeprefix(_STANDARD)), _shown(node.value)
        is_octal = node.tag == f"{_STANDARD}int" and not _DECIMAL.fullmatch(node.value)
        if is_octal or (node.tag == f"{_STANDARD}float" and ":" in node.value):  # 10:30.5 is 630.5 in base 60.
            _refuse(node.start_mark, f"{text} is no decimal number: write one, or put the text in quotes")
        if node.tag == f"{_STANDARD}value":
            _refuse(node.start_mark, "= alone is no value: put it in quotes")
        try:
            self._loader.construct_object(node)
        except (ValueError, OverflowError):
            _refuse(node.start_mark, f"{text} is not {kind} that can be: correct it, or put the text in quotes")
