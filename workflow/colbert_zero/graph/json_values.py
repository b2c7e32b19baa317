"""Read JSON that this project, a library or anybody wrote: whatever is no JSON is a ValueError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from colbert_zero.graph.text_files import read_file

KINDS = {
    dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip
"""What people call the JSON values of a type."""


def parse_json(text: str | bytes) -> Any:
    """The JSON value in a text.

    Raises:
        ValueError: It is none, is not UTF-8, or is nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def kind_of(value: Any) -> str:
    """What people call a JSON value of this type: `an object`, `a text` ..."""
    return KINDS[type(value)]


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        OSError: See `read_file`.
        ValueError: See `parse_json`.
    """
    return parse_json(read_file(path))
