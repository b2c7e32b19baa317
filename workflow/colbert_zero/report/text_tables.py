"""Tables as text: in Markdown, aligned to read well in a terminal, and as LaTeX."""

from __future__ import annotations

from collections.abc import Container, Sequence

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "–": "--",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "Δ": r"$\Delta$",
}
"""What LaTeX needs for characters that mean something to it, or that its fonts may lack."""


def markdown_table(lines: Sequence[Sequence[str]], words: Container[int]) -> list[str]:
    """The lines of a Markdown table.

    Args:
        lines: The cells of each line, the header's first; as many in each.
        words: The columns that are aligned to the left, from 0; the others are numbers.
    """
    lines = [[text.replace("|", "\\|").replace("\n", " ") for text in line] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * width if column in words else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return [
        "| "
        + " | ".join(
            text.ljust(width) if column in words else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in (lines[0], rule, *lines[1:])
    ]


def latex_text(text: str) -> str:
    """A text that LaTeX prints as it is."""
    return "".join(LATEX.get(character, character) for character in text)
