"""The section "Statistics" of the page: what is better than the reference, in words and in tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from colbert_zero.report.sections import ABSENT, Cell, Section, Table, TableRow, build_table
from colbert_zero.report.statistics.comparison import Comparison, Pairs, Statistics
from colbert_zero.report.statistics.resampling import FLIPS, RESAMPLES
from colbert_zero.report.statistics.significance import ALPHA, CONFIDENCE, POWER

HEADER = ("difference", "95 % interval", "p", "p, Holm", "p, MaxT", "p, both", "effect", "wins/ties/losses")
HEADER_OF_MEAN = ("difference", "95 % interval", "p", "p, MaxT", "p, {}", "effect", "wins/ties/losses")
DETECTABLE = "detectable"
MINUS = "−"


def statistics_sections(statistics: Statistics, measure: str) -> Iterator[Section]:
    """The section of the page; nothing where there is nothing to compare."""
    if statistics.rows:
        unit = _unit(statistics)
        yield Section("Statistics", list(_text(statistics, measure, unit)), list(_tables(statistics, unit)))


def _unit(statistics: Statistics) -> str:
    """What a column is called: a task where some column has several collections."""
    return "tasks" if any(len(collections) > 1 for collections in statistics.columns.values()) else "collections"


def _text(statistics: Statistics, measure: str, unit: str) -> Iterator[str]:
    level = f"{100 * CONFIDENCE:.0f} %"
    yield (
        f"Each row minus {statistics.reference}, query by query, in points ({measure} x 100). A row is called better "
        f"or worse only where p, corrected for all rows and {unit}, is at most {ALPHA} and the {level} interval leaves "
        "out 0; else chance may have made the difference, which is no evidence that there is none."
    )
    yield (
        f"p: a two-sided sign-flip test of the mean difference, by all signs or {FLIPS:,} random ones. Holm: corrected "
        f"for a row's {unit}. MaxT: corrected for the rows. Both: Holm over {unit} of the MaxT values. Interval: "
        f"bootstrap, {RESAMPLES:,} resamples of queries within each collection{_and_seeds(statistics)}. Effect: d_z, "
        "the difference in standard deviations of a query's difference. Wins, ties, losses: of queries, for the mean "
        f"of {unit}. "
        f"Detectable: the difference that a single test of level {ALPHA} finds with probability {POWER}. p values "
        "below 0.001 are in statistics.json. Names of rows with a verdict are coloured."
    )
    yield _power(statistics)
    yield from _about_seeds(statistics)


def _and_seeds(statistics: Statistics) -> str:
    return " and of seeds" if max(statistics.seeds.values()) > 1 else ""


def _power(statistics: Statistics) -> str:
    """How large a difference has to be on each column to be seen."""
    sizes = {
        column: median(statistics.comparisons[row, column].spread.detectable for row in statistics.rows)
        for column in (*statistics.columns, None)
    }
    of_columns = ", ".join(f"{column} {100 * size:.2f}" for column, size in sizes.items() if column is not None)
    return (
        f"How large a difference could be shown (detectable, the median of the rows, in points): {of_columns}; in the "
        f"mean {100 * sizes[None]:.2f}. After corrections it has to be larger."
    )


def _about_seeds(statistics: Statistics) -> Iterator[str]:
    once = [row for row in statistics.rows if statistics.seeds[row] == 1]
    if once:
        which = "" if len(once) == len(statistics.rows) else f": {', '.join(once)}"
        yield (
            f"One model each, of one seed{which}. So the tests speak of these models alone, and not of their recipes: "
            "how much another seed would change is not in them."
        )
    several = {row: seeds for row, seeds in statistics.seeds.items() if seeds > 1}
    if several:
        rows = ", ".join(f"{row} ({seeds})" for row, seeds in several.items())
        yield (
            f"Rows with several seeds: {rows}. p is that of the mean over these seeds; the interval has the seeds "
            "resampled as well, so it speaks of the recipe, as far as so few seeds can."
        )


def _tables(statistics: Statistics, unit: str) -> Iterator[Table]:
    words = [TableRow(row, [Cell(in_words(statistics, row, unit))]) for row in statistics.rows]
    yield build_table(f"against {statistics.reference}", ["in words"], words)
    of_mean = [_row(statistics.comparisons[row, None]) for row in statistics.rows]
    header = [name.format(f"over {unit}") for name in HEADER_OF_MEAN]
    yield build_table(f"mean over {unit}", [*header, DETECTABLE], of_mean)
    for column, collections in statistics.columns.items():
        queries = " + ".join(str(size) for size in collections.values())
        rows = [_row(statistics.comparisons[row, column]) for row in statistics.rows]
        yield build_table(f"{column} ({queries} queries)", [*HEADER, DETECTABLE], rows, collapsed=True)
    if len(statistics.pairs.rows) > 1:
        yield _table_of_pairs(statistics.pairs, unit)


def in_words(statistics: Statistics, row: str, unit: str) -> str:
    """What the tests say of a row, in a sentence or two."""
    verdicts = {comparison.column: comparison.verdict for comparison in statistics.of_row(row)}
    better, worse = ([str(name) for name, each in verdicts.items() if each == word] for word in ("better", "worse"))
    open_ = len(verdicts) - len(better) - len(worse)
    parts = [
        f"{word} than {statistics.reference} on {len(names)} of {len(verdicts)} {unit} ({', '.join(names)})"
        for word, names in (("better", better), ("worse", worse))
        if names
    ]
    if open_:
        parts.append(f"no difference shown on {open_} of {len(verdicts)}")
    mean = statistics.comparisons[row, None]
    verdict = mean.verdict or "no difference shown"
    sentence = "; ".join(parts)
    return (
        f"{sentence[0].upper()}{sentence[1:]}. In the mean {_points(mean.spread.mean)} points "
        f"({_interval(mean)}), p {_p(mean.p_corrected).text}: {verdict}."
    )


def _row(comparison: Comparison) -> TableRow:
    corrected = (
        [_p(comparison.p_max_t), _p(comparison.p_over_columns)]
        if comparison.column is None
        else [_p(comparison.p_holm), _p(comparison.p_max_t), _p(comparison.p_corrected)]
    )
    effect = comparison.spread.effect
    cells = [
        Cell(_points(comparison.spread.mean), numeric=True),
        Cell(_interval(comparison), numeric=True),
        _p(comparison.p),
        *corrected,
        Cell(ABSENT) if effect is None else Cell(f"{effect:+z.2f}".replace("-", MINUS), numeric=True),
        Cell("/".join(map(str, comparison.signs)), numeric=True),
        Cell(f"{100 * comparison.spread.detectable:.2f}", numeric=True),
    ]
    return TableRow(comparison.row, cells, "differs" if comparison.verdict else "")


def _points(value: float) -> str:
    return f"{100 * value:+z.2f}".replace("-", MINUS)


def _interval(comparison: Comparison) -> str:
    low, high = comparison.interval
    return f"{_points(low)} to {_points(high)}"


def _p(value: float | None) -> Cell:
    if value is None:
        return Cell(ABSENT)
    return Cell("< 0.001" if value < 0.001 else f"{value:.3f}", numeric=True)


def _table_of_pairs(pairs: Pairs, unit: str) -> Table:
    """The p values of all pairs, above the diagonal; rows from the highest mean to the lowest."""
    order = sorted(range(len(pairs.rows)), key=lambda position: (-pairs.means[position], pairs.rows[position]))
    rows = [
        TableRow(pairs.rows[row], _cells_of_pairs(pairs, order, position)) for position, row in enumerate(order[:-1])
    ]
    title = f"p of all pairs, mean over {unit}: randomised Tukey, {pairs.draws:,} orders of rows"
    return build_table(title, [pairs.rows[row] for row in order[1:]], rows, collapsed=True)


def _cells_of_pairs(pairs: Pairs, order: Sequence[int], position: int) -> list[Cell]:
    return [
        _p(float(pairs.p[order[position], other])) if column > position else Cell("")
        for column, other in enumerate(order[1:], 1)
    ]
