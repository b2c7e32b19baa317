"""Read what README.md, CONTRIBUTING.md and docs/ say: their blocks, and the commands in these."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    mark: str
    text: str


class Command(NamedTuple):
    """A command of a console block, and the output lines that the block quotes."""

    block: Block
    words: list[str]
    comment: str
    output: list[str]


# Reading pages


@cache
def tokens(page):
    return MarkdownIt().enable("table").parse((ROOT / page).read_text(encoding="utf-8"))


@cache
def inlines(page):
    return [inner for token in tokens(page) for inner in token.children or ()]


@cache
def all_blocks():
    found = []
    for page in PAGES:
        for token in tokens(page):
            if token.type in ("fence", "code_block"):
                language, _, mark = token.info.strip().partition(" ")
                found.append(Block(page, token.map[0] + 1, language, mark.strip(), token.content))
    return found


def blocks(language, mark=""):
    return [block for block in all_blocks() if (block.language, block.mark) == (language, mark)]


def spans():
    """Page and text of all code spans."""
    return [(page, token.content) for page in PAGES for token in inlines(page) if token.type == "code_inline"]


def commands(block):
    found = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            command, _, comment = line[2:].partition(" # ")
            assert not command.rstrip().endswith("\\"), f"{block.page}:{block.line}: a command is one line"
            found.append(Command(block, shlex.split(command), comment.strip(), []))
        else:
            assert found, f"{block.page}:{block.line}: output without a command"
            found[-1].output.append(line)
    return found
