"""SHA-256 of values, texts and files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from colbert_zero.graph.text_files import open_file

SEPARATOR = "\x1f"
"""Put between texts that are digested together."""


def canonical_json(value: Any) -> str:
    """A value's JSON in its only canonical form: sorted keys, no spaces, UTF-8 unescaped, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        OSError: See `open_file`.
    """
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
