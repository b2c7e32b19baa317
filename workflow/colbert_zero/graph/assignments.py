"""Settings of a config that a command line replaces: `stages.supervised.prompts=none`.

A path names groups and lists from the outside in, with points between; an item of a list is its number, from 0. A
name that has points itself is found where it is in the config. The value is YAML, read as a config is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from colbert_zero.graph.config import Config
from colbert_zero.graph.console import UserError
from colbert_zero.graph.strict_yaml import parse


def with_assignments(config: Config, assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of a config with some settings replaced, one after the other.

    Args:
        config: The parsed config.
        assignments: `PATH=VALUE` each. A group that is not there is made: the schema says whether it may be.

    Raises:
        UserError: One has no path or no value, its value is no YAML, or its path leads through something that has
            nothing in it.
    """
    changed: dict[str, Any] = deepcopy(dict(config))
    for assignment in assignments:
        try:
            _assign(changed, assignment)
        except UserError as error:
            raise UserError(f"{assignment}: {error}") from None
    return changed


def _assign(config: dict[str, Any], assignment: str) -> None:
    path, equals, text = assignment.partition("=")
    if not equals or not all(path.split(".")):
        raise UserError("write a setting and its value, such as stages.supervised.prompts=none")
    if not text.strip():
        raise UserError('there is no value; write null for none, "" for an empty text')
    value = parse(text.encode(errors="surrogatepass"))
    container: Any = config
    words = path.split(".")
    done: list[str] = []
    while True:
        name, words = _next_name(container, words, ".".join(done) or "the study")
        done.append(str(name))
        if not words:
            container[name] = value
            return
        if isinstance(container, dict):
            container.setdefault(name, {})
        container = container[name]


def _next_name(container: Any, words: list[str], where: str) -> tuple[str | int, list[str]]:
    """The name of the next setting in a group or a list, and the words of the path after it.

    Of names with points, the longest that is there is meant.
    """
    if isinstance(container, list):
        number = int(words[0]) if words[0].isdecimal() else None
        if number is None or number >= len(container):
            last = len(container) - 1
            raise UserError(f"{where} is a list: name an item by its number, 0 to {last}, or give the whole list")
        return number, words[1:]
    if not isinstance(container, dict):
        shown = json.dumps(container, ensure_ascii=False, default=str)
        raise UserError(f"{where} is {shown[:100]}, which has no settings in it")
    for length in range(len(words), 1, -1):
        name = ".".join(words[:length])
        if name in container:
            return name, words[length:]
    return words[0], words[1:]
