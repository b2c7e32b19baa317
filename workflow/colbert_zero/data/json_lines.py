"""Read text files and JSON lines, plain or gzipped, line by line; errors name file and line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colbert_zero.graph.console import UserError
from colbert_zero.graph.json_values import parse_json


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
            raise UserError(f"{path}:{number}: not UTF-8 at byte {error.start + 1} of the line; convert it") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: damaged after line {number} ({error}); download or write it again") from None


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON objects of a JSONL(.gz) file, with their line numbers from 1.

    Raises:
        UserError: A line is not UTF-8, or not a JSON object.
    """
    for number, line in read_lines(path):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON ({error}); one object a line is needed") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: a JSON {type(record).__name__}, where an object is needed")
        yield number, record
