"""Small text files: an argument is JSON or the file that has it; what is replaced is whole, its folder made."""

from __future__ import annotations

from pathlib import Path

import pytest

from colbert_zero.graph.console import UserError
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
