"""Small text files: an argument is JSON or the file that has it; what is replaced is whole; what is no JSON is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colbert_zero.graph.console import UserError
from colbert_zero.graph.json_values import parse_json, read_json
from colbert_zero.graph.text_files import json_argument, replace_text


def test_an_argument_is_an_object_or_the_file_that_has_it(tmp_path: Path) -> None:
    assert json_argument(' {"a": 1}') == ' {"a": 1}'
    file = tmp_path / "spec.json"
    file.write_text('{"b": "é"}', encoding="utf-8")
    assert json_argument(str(file)) == '{"b": "é"}'
    with pytest.raises(UserError, match=r"absent.json cannot be read .*; run snakemake again$"):
        json_argument(str(tmp_path / "absent.json"))


def test_a_text_is_replaced_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text"
    for text in ("one\r\n", "two\n"):
        replace_text(path, text)
        assert path.read_bytes() == text.encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", bytes(9), b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_no_json_is_a_value_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(b'{"a": [1, "\xc3\xa9"]}')
    assert read_json(path) == parse_json('{"a": [1, "\u00e9"]}') == {"a": [1, "é"]}
    path.write_bytes(data)
    for read in (lambda: read_json(path), lambda: parse_json(data)):
        with pytest.raises(ValueError):
            read()


def test_what_is_no_file_is_an_os_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, error in (("pipe", OSError), ("absent", FileNotFoundError), (".", IsADirectoryError)):
        with pytest.raises(error) as caught:
            read_json(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
