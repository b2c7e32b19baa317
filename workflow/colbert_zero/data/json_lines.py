"""Read text files and JSON lines, plain or gzipped, line by line; errors name file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colbert_zero.graph.console import UserError
from colbert_zero.graph.json_values import kind_of

OTHER_FORMATS = {
    b"\x1f\x8b": "gzip: let its name end in .gz",
    b"PAR1": "Parquet: let its name end in .parquet",
    b"PK\x03\x04": "ZIP: unpack it",
    b"\x28\xb5\x2f\xfd": "Zstandard: decompress it, or compress it with gzip",
    b"BZh": "bzip2: decompress it, or compress it with gzip",
    b"\xfd7zXZ": "xz: decompress it, or compress it with gzip",
    b"\xff\xfe": "UTF-16: convert it to UTF-8",
    b"\xfe\xff": "UTF-16: convert it to UTF-8",
}
"""How files begin that are not text in UTF-8, and what to do with them."""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 text file, plain or gzipped, that are not blank, with their numbers from 1.

    Raises:
        UserError: A line is not UTF-8, or the gzip is damaged.
    """
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, raw in enumerate(file, 1):
                # "-sig" drops the byte order mark with which files saved by spreadsheets begin.
                line = raw.decode("utf-8-sig").strip("\r\n")
                if line.strip():
                    yield number, line
        except UnicodeDecodeError as error:
            for beginning, advice in OTHER_FORMATS.items():
                if number == 1 and error.object.startswith(beginning):
                    raise UserError(f"{path} is {advice}") from None
            raise UserError(f"{path}:{number}: not UTF-8 at byte {error.start + 1} of the line; convert it") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: damaged after line {number} ({error}); download or write it again") from None


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON objects of a JSONL(.gz) file, with their line numbers from 1.

    Raises:
        UserError: A line is not UTF-8, or not a JSON object, or one that says a key twice.
    """
    decode = json.JSONDecoder(object_pairs_hook=_with_distinct_keys).decode
    for number, line in read_lines(path):
        try:
            record = decode(line)
        except KeyError as error:
            raise UserError(f"{path}:{number}: the key {error} stands there twice; keep one") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not JSON ({error}); one object a line is needed") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: {kind_of(record)}, where a JSON object is needed")
        yield number, record


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these keys and values; a KeyError names a key that is there twice."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise KeyError(next(key for key in keys if keys.count(key) > 1)[:100])
    return record
