"""Write Markdown in which every name stands as it is: for files that others render, such as a model's card."""

from __future__ import annotations

import json
import re
from typing import Any

from colbert_zero.graph.console import one_line

SPECIAL = re.compile(r"[\\`*_\[\]<>~&$#!]")
"""What means something within a line of Markdown, or begins HTML, an entity or a formula; a table minds the bar."""


def plain(text: str) -> str:
    """A text as itself, in one line: neither emphasis nor links nor HTML."""
    return SPECIAL.sub(r"\\\g<0>", one_line(text))


def code(text: str) -> str:
    """A text as code, in one line."""
    text = one_line(text)
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}"


def quoted(value: Any) -> str:
    """A value's JSON as code: of a text, the space at its end shows."""
    return code(json.dumps(value, ensure_ascii=False))
