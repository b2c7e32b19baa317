"""Judgements (qrels): read them as BEIR and TREC write them, and write them as BEIR does."""

from __future__ import annotations

import csv
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from colbert_zero.data.json_lines import read_lines
from colbert_zero.graph.console import UserError

QRELS_HEADER = ("query-id", "corpus-id", "score")
FIELD_NAMES: Mapping[str, tuple[str, ...]] = {
    "query-id": ("query-id", "query_id", "queryid", "qid", "query"),
    "corpus-id": ("corpus-id", "corpus_id", "document-id", "document_id", "doc-id", "doc_id", "docid", "pid"),
    "score": ("score", "grade", "relevance", "rel", "label"),
}
"""The names, in small letters, under which files of judgements have the query's id, the document's id and the grade."""
GRADE_PATTERN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
MAXIMUM_GRADE = 1_000_000
"""Grades are 0 to 4 or so; trec_eval's code makes a table as long as the greatest one."""

Qrels = dict[str, dict[str, int]]
"""Grade by query id and document id, both in the file's order."""


def read_judgements(path: Path) -> Qrels:
    """Read a file of judgements, as BEIR or TREC write it, or with a header that names its columns.

    Raises:
        UserError: A line is no judgement, or contradicts another one.
    """
    qrels: Qrels = {}
    layout: Layout | None = None
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        if layout is None:
            layout = _find_layout(line, where)
            if layout.is_header:
                continue
        fields = _split_line(line, layout, where)
        if len(fields) != layout.width or not all(fields):
            raise UserError(f"{where}: {line[:80]!r} is not {layout.description}")
        query, document, score = (fields[column] for column in layout.columns)
        add_judgement(qrels, query, document, score, where)
    return qrels


def write_judgements(path: Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Write a file of judgements with BEIR's header: the same judgements in the same order give the same bytes."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(QRELS_HEADER) + "\n")
        for query, row in qrels.items():
            file.writelines(f"{_quoted(query)}\t{_quoted(document)}\t{grade}\n" for document, grade in row.items())


def add_judgement(qrels: Qrels, query: str, document: str, score: object, where: str) -> None:
    """Add a judgement to `qrels`.

    Raises:
        UserError: The score is not a whole number, or too large a one, or another than the pair has already.
    """
    text = str(score)
    grade = float(text) if not isinstance(score, bool) and GRADE_PATTERN.fullmatch(text) else None
    if grade is None or not grade.is_integer():
        raise UserError(f"{where}: score {text[:80]!r} is not a whole number")
    if abs(grade) > MAXIMUM_GRADE:
        raise UserError(f"{where}: score {text[:80]!r} is beyond {MAXIMUM_GRADE}; grades are small whole numbers")
    if qrels.setdefault(query, {}).setdefault(document, int(grade)) != int(grade):
        raise UserError(f"{where}: query {query!r} and document {document!r} have two different scores; keep one")


class Layout(NamedTuple):
    """How a file of judgements is laid out.

    Attributes:
        width: The number of fields of a line.
        columns: The places of query id, document id and score.
        has_tabs: Whether tabs are between the fields, which may then be quoted; else any white space is.
        is_header: Whether the file's first line is a header.
    """

    width: int
    columns: tuple[int, int, int]
    has_tabs: bool = True
    is_header: bool = False

    @property
    def description(self) -> str:
        """What a line has to be, for a message."""
        if self.is_header and self.columns != (0, 1, 2):
            return f"a line of {self.width} fields, as its header is"
        return f"{', '.join(QRELS_HEADER[:2])} and score with tabs between" if self.has_tabs else TREC_DESCRIPTION


BEIR_LAYOUT = Layout(3, (0, 1, 2))
TREC_DESCRIPTION = "query-id, 0, document-id and score"


def _find_layout(line: str, where: str) -> Layout:
    """The layout of a file of judgements by its first line: BEIR's three columns, TREC's four, or as a header says."""
    fields = _split_line(line, BEIR_LAYOUT, where)
    for has_tabs, trec in ((True, fields), (False, re.split(r"[ \t]+", line.strip(string.whitespace)))):
        if len(trec) == 4 and trec[1].upper() in ("0", "Q0") and GRADE_PATTERN.fullmatch(trec[3]):
            return Layout(4, (0, 2, 3), has_tabs)
    if len(fields) < 3 or GRADE_PATTERN.fullmatch(fields[2]):
        return BEIR_LAYOUT
    names = [field.lower() for field in fields]
    columns = [[column for column, name in enumerate(names) if name in FIELD_NAMES[field]] for field in QRELS_HEADER]
    if all(len(places) == 1 for places in columns):
        query, document, score = (places[0] for places in columns)
        return Layout(len(fields), (query, document, score), is_header=True)
    raise UserError(
        f"{where}: {line[:80]!r} is neither a judgement (query-id, corpus-id and a whole number as score with tabs "
        f"between, or TREC's {TREC_DESCRIPTION}) nor the header {' '.join(QRELS_HEADER)}"
    )


def _split_line(line: str, layout: Layout, where: str) -> list[str]:
    """The fields of a line of judgements. White space around a field is no part of it if no id may contain it."""
    if not layout.has_tabs:
        return re.split(r"[ \t]+", line.strip(string.whitespace))
    fields = line.split("\t")
    if '"' in line:
        try:
            # As BEIR reads the file: a field that begins with a quote ends with one, and inner ones are doubled.
            (fields,) = csv.reader([line], delimiter="\t", strict=True)
        except (csv.Error, ValueError) as error:
            raise UserError(
                f"{where}: {line[:80]!r} has a quoted field that does not end where it should ({error}): quote fields "
                'as csv does, and double a quote within ("" for ")'
            ) from None
    return [field.strip(string.whitespace) for field in fields]


def _quoted(name: str) -> str:
    """An id as a field of a TSV file: one that begins with a quote would be read as a quoted one."""
    return '"' + name.replace('"', '""') + '"' if name.startswith('"') else name
