"""Read JSON that this project, a library or anybody wrote: whatever is no JSON is a ValueError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from colbert_zero.graph.text_files import read_file


def parse_json(text: str | bytes) -> Any:
    """The JSON value in a text.

    Raises:
        ValueError: It is none, is not UTF-8, or is nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        OSError: See `read_file`.
        ValueError: See `parse_json`.
    """
    return parse_json(read_file(path))
