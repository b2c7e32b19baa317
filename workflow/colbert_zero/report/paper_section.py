"""The section of a report that compares its rows with published ones, and the same as Markdown and as numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from colbert_zero.report.paper import WIKIPEDIA, AgainstThePaper, Compared, Comparison, Gap, Verdict
from colbert_zero.report.sections import ABSENT, Cell, Figure, Section, Table, TableRow, build_table
from colbert_zero.report.text_tables import markdown_table

TITLE = "Against the paper"
UNTESTED = (
    "The paper trains each model once, tests no gap, and chose learning rates on small versions of 13 of its 15 "
    "collections. p: how often a gap as large comes about if the sign of each collection's difference is a coin's "
    "(exact sign-flip test). It asks whether a gap holds over collections, not whether another seed would keep it. "
    "Gaps of 0.3 or less are not established by single runs, when measuring again moves a mean by 0.1. Most of some "
    f"gaps lies in three collections of Wikipedia ({', '.join(WIKIPEDIA)}), whose like is in the training rows."
)
IN_DOMAIN = "In-domain: MTEB lists the collection as training data of these models."


def paper_section(against: AgainstThePaper, notes: Sequence[str], figures: Sequence[Figure]) -> Section:
    """The section of the page.

    Args:
        against: The comparisons; at least one.
        notes: What limits them, in sentences.
        figures: What is drawn of them.
    """
    cells = [_cells_table(each, against.paper.in_domain) for each in against.comparisons]
    tables = [*_summary_tables(against), *cells]
    return Section(TITLE, [against.verdict, _tolerances(against), *notes, IN_DOMAIN, UNTESTED], tables, figures)


def comparison_markdown(against: AgainstThePaper, notes: Sequence[str]) -> str:
    """The comparison to read in a terminal: the verdict, the means, and every cell outside its tolerance."""
    outside = [
        TableRow(
            each.row,
            [Cell(each.published.id), Cell(column), *_numbers(cell), _number(cell.tolerance), Cell(cell.verdict)],
        )
        for each in against.comparisons
        for column, cell in each.cells.items()
        if cell.verdict in (Verdict.ABOVE, Verdict.BELOW)
    ]
    header = ["published row", "collection", "published", "ours", "difference", "tolerance", "verdict"]
    tables = [
        *_summary_tables(against),
        *([build_table("cells outside tolerance", header, outside)] if outside else []),
    ]
    parts = [f"# {TITLE}", against.verdict, _tolerances(against), *notes, IN_DOMAIN, UNTESTED]
    for table in tables:
        parts += [f"## {table.title}", "\n".join(_markdown(table))]
    return "\n\n".join(parts) + "\n"


def comparison_csv(against: AgainstThePaper) -> str:
    """Every cell and mean as CSV: numbers in points and full precision, none where it is not measured."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["row", "published_row", "column", "published", "ours", "difference", "tolerance", "verdict", "again"]
    )
    for each in against.comparisons:
        for column, cell in [*each.cells.items(), ("mean", each.mean)]:
            numbers = (cell.published, cell.ours, cell.difference, cell.tolerance)
            again = each.again(None if column == "mean" else column)
            writer.writerow([each.row, each.published.id, column, *numbers, cell.verdict, again])
    return file.getvalue()


def _markdown(table: Table) -> list[str]:
    lines = [[cell.text for cell in table.header]]
    lines += [[row.name, *(cell.text for cell in row.cells)] for row in table.rows]
    return markdown_table(lines, {place for place, cell in enumerate(table.header) if not cell.numeric})


def _tolerances(against: AgainstThePaper) -> str:
    """What counts as the same number, and why."""
    tolerances = dict.fromkeys(each.published.tolerance for each in against.comparisons)
    return " ".join(
        f"Tolerance of {tolerance.of}: {tolerance.mean:g} on the mean, {tolerance.collection:g} on a collection. "
        f"{tolerance.reason}"
        for tolerance in tolerances
    )


def _summary_tables(against: AgainstThePaper) -> Iterator[Table]:
    comparisons = against.comparisons
    header = ["published row", "verdict", "published", "ours", "difference", "tolerance", "collections", "cells within"]
    again = any(each.published.again for each in comparisons)
    rows = [TableRow(each.row, [*_mean_cells(each, again=again)], _css_class(each.mean)) for each in comparisons]
    yield build_table("on the mean", [*header, *(["measured again", "ours to that"] if again else [])], rows)
    in_domain = against.paper.in_domain
    header = [f"{of}, {what}" for of in ("out-of-domain", "in-domain") for what in ("published", "ours", "difference")]
    rows = [
        TableRow(
            each.row,
            [
                *_numbers(each.mean_over([column for column in each.common if column not in in_domain])),
                *_numbers(each.mean_over([column for column in each.common if column in in_domain])),
            ],
        )
        for each in comparisons
    ]
    yield build_table("means over out-of-domain and in-domain collections", header, rows)
    header = ["gap", "higher in", "p", "gap without Wikipedia's", "our gap", "higher in", "our p"]
    rows = [
        TableRow(
            tested.claim.says,
            [*_gap(tested.published), _number(tested.without.mean, signed=True), *_gap(tested.ours)],
        )
        for tested in against.claims
    ]
    yield build_table("what conclusions rest on, and the paper does not test", header, rows)
    notes = {each.published.id: each.published.note for each in comparisons if each.published.note}
    if notes:
        rows = [TableRow(name, [Cell(note)]) for name, note in notes.items()]
        yield build_table("notes on published rows", [""], rows)


def _mean_cells(each: Comparison, *, again: bool) -> Iterator[Cell]:
    mean, of = each.mean, len(each.cells)
    yield Cell(each.published.id)
    yield Cell(str(mean.verdict) if each.complete else "no verdict")
    yield from _numbers(mean)
    yield _number(mean.tolerance)
    yield Cell(f"{len(each.common)} of {of}")
    yield Cell(f"{sum(cell.verdict is Verdict.WITHIN for cell in each.cells.values())} of {len(each.common)}")
    if again:
        yield from _again(each.again(), mean)


def _cells_table(each: Comparison, in_domain: Iterable[str]) -> Table:
    header = ["published", "ours", "difference", "tolerance", "verdict", "measured again", "ours to that"]
    rows = [
        TableRow(
            f"{column} (in-domain)" if column in in_domain else column,
            [*_numbers(cell), _number(cell.tolerance), Cell(cell.verdict), *_again(each.again(column), cell)],
            _css_class(cell),
        )
        for column, cell in each.cells.items()
    ]
    return build_table(f"{each.row} against {each.published.name}", header, rows, collapsed=True)


def _css_class(compared: Compared) -> str:
    return "differs" if compared.verdict in (Verdict.ABOVE, Verdict.BELOW) else ""


def _numbers(compared: Compared) -> list[Cell]:
    return [_number(compared.published), _number(compared.ours), _number(compared.difference, signed=True)]


def _again(again: float | None, compared: Compared) -> list[Cell]:
    return [_number(again), _number(Compared(again, compared.ours, None).difference, signed=True)]


def _number(value: float | None, *, signed: bool = False) -> Cell:
    return Cell(ABSENT) if value is None else Cell(f"{value:+.2f}" if signed else f"{value:.2f}", numeric=True)


def _gap(gap: Gap | None) -> list[Cell]:
    if gap is None:
        return [Cell(ABSENT)] * 3
    return [
        Cell(f"{gap.mean:+.2f}", numeric=True),
        Cell(f"{gap.wins} of {gap.columns}"),
        Cell(f"{gap.p:.2f}", numeric=True),
    ]
