"""The paper's tables 2 to 4 with our numbers beside: in each cell the paper's and ours, as Markdown and as LaTeX.

A row of the paper that several rows of the study are compared with has a line for each of them; one that none is
compared with has a line without ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from colbert_zero.graph.published import Table, TableRow
from colbert_zero.report.paper import AgainstThePaper, Comparison
from colbert_zero.report.sections import ABSENT
from colbert_zero.report.text_tables import latex_text, markdown_table

Pair = tuple[str, str]
"""What a cell says: the paper's number and ours, as printed."""
EXPLANATION = (
    "nDCG@10 x 100; in each cell the paper's number and ours, – where it is not measured. Ours is the mean only where "
    "all 15 collections are measured."
)
DELTA_EXPLANATION = "Δ is the difference of the mean to that of the row named in brackets."


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        label: The paper's row.
        row: The study's row; `ABSENT` if there is none.
        cells: The columns, the mean, and in tables with differences the difference of the mean.
    """

    label: str
    row: str
    cells: Sequence[Pair]


def paper_files(against: AgainstThePaper) -> Iterator[tuple[str, str]]:
    """The path and the text of each table as a file."""
    for table in against.paper.tables.values():
        blocks = [
            (block.title, [line for row in block.rows for line in _lines(against, table, row)])
            for block in table.blocks
        ]
        yield f"paper/{table.name}.md", _markdown(against, table, blocks)
        yield f"paper/{table.name}.tex", _latex(against, table, blocks)


def _has_deltas(table: Table) -> bool:
    return any(row.against for row in table.rows)


def _lines(against: AgainstThePaper, table: Table, row: TableRow) -> Iterator[Line]:
    published = against.paper.rows[row.model]
    label = row.label
    if row.against:
        label += f" [{next(other.label for other in _block_of(table, row) if other.model == row.against)}]"
    rows: list[Comparison | None] = [*against.of(row.model)]
    for ours in rows or [None]:
        cells = [(f"{value:.2f}", _measured(ours, column)) for column, value in published.numbers.values.items()]
        cells.append((f"{published.numbers.average:.2f}", _mean(ours)))
        if _has_deltas(table):
            cells.append(_delta(against, row, ours))
        yield Line(label, ours.row if ours else ABSENT, cells)


def _block_of(table: Table, row: TableRow) -> Sequence[TableRow]:
    return next(block.rows for block in table.blocks if row in block.rows)


def _measured(ours: Comparison | None, column: str) -> str:
    return f"{ours.ours[column]:.2f}" if ours and column in ours.ours else ABSENT


def _mean(ours: Comparison | None) -> str:
    return f"{ours.mean.ours:.2f}" if ours and ours.complete and ours.mean.ours is not None else ABSENT


def _delta(against: AgainstThePaper, row: TableRow, ours: Comparison | None) -> Pair:
    """The difference of the means; ours to the row that is trained, or not trained, as this one is."""
    if row.against is None:
        return "", ""
    averages = [against.paper.rows[name].numbers.average for name in (row.model, row.against)]
    others = [each for each in against.of(row.against) if ours and each.trained == ours.trained]
    pair = [each.mean.ours for each in (ours, *others[:1]) if each and each.complete and each.mean.ours is not None]
    return f"{averages[0] - averages[1]:+.2f}", f"{pair[0] - pair[1]:+.2f}" if len(pair) == 2 else ABSENT


def _header(against: AgainstThePaper, table: Table) -> list[str]:
    return ["the paper's row", "ours", *against.paper.columns, "mean", *(["Δ"] if _has_deltas(table) else [])]


def _title(table: Table) -> str:
    return f"Table {table.number}: {table.title[0].lower()}{table.title[1:]}"


def _explanation(table: Table) -> str:
    return f"{EXPLANATION} {DELTA_EXPLANATION}" if _has_deltas(table) else EXPLANATION


def _markdown(against: AgainstThePaper, table: Table, blocks: Sequence[tuple[str, Sequence[Line]]]) -> str:
    parts = [f"# {_title(table)}", f"{_explanation(table)}"]
    for title, lines in blocks:
        cells = [
            [line.label, line.row, *(" / ".join(pair) if any(pair) else "" for pair in line.cells)] for line in lines
        ]
        parts += [f"## {title}", "\n".join(markdown_table([_header(against, table), *cells], range(2)))]
    return "\n\n".join(parts) + "\n"


def _latex(against: AgainstThePaper, table: Table, blocks: Sequence[tuple[str, Sequence[Line]]]) -> str:
    header = _header(against, table)
    columns = "l" + "r" * (len(header) - 2)
    heads = [rf"\rotatebox{{90}}{{{latex_text(name)}}}" for name in header[2:]]
    lines = [
        r"% \usepackage{booktabs,graphicx}; in each cell the paper's number, and ours below.",
        r"\begin{table*}",
        r"\centering\scriptsize\setlength{\tabcolsep}{2.5pt}",
        rf"\caption{{{latex_text(f'{table.title}. {_explanation(table)}')}}}",
        rf"\label{{tab:paper-{table.number}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        rf"{_stacked('l', header[0], header[1])} & {' & '.join(heads)} \\",
    ]
    for title, block in blocks:
        lines += [r"\midrule", rf"\multicolumn{{{len(header) - 1}}}{{l}}{{\emph{{{latex_text(title)}}}}} \\"]
        for line in block:
            cells = [_stacked("r", *pair) if any(pair) else "" for pair in line.cells]
            lines.append(rf"{_stacked('l', line.label, line.row)} & {' & '.join(cells)} \\[3pt]")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}"]) + "\n"


def _stacked(alignment: str, above: str, below: str) -> str:
    return rf"\shortstack[{alignment}]{{{latex_text(above)}\\{latex_text(below)}}}"
