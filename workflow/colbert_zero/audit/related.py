"""Numbers that rest on an artifact's inputs, computed again from them: tables, counts of rows, queries and steps.

Only artifacts and inputs that are intact are looked at: what is wrong with an input is told once, of the input.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev

from colbert_zero.audit.recount import Recorded, guarded, same
from colbert_zero.graph.artifact import KEY_DIGITS, MANIFEST_FILE, SPEC_FILE, Spec, artifact_folder
from colbert_zero.graph.code import part_digests
from colbert_zero.graph.console import one_line
from colbert_zero.graph.json_values import read_json
from colbert_zero.graph.text_files import read_file

POINTS = 0.0051
"""How much a value that is printed with two digits may differ from the value in points."""
STATISTICS_ROUNDING = 1e-9
"""How much a difference of means may differ from one of values that are rounded to 1.5e-11, and then to ten digits."""
DIFFERENCE_CHARACTERS = 80
"""How much is shown of two texts where they differ."""
SECONDS_BY_UNIT = {"s": 1.0, "min": 60.0, "h": 3600.0}


def open_recorded(name: str) -> Recorded:
    """An intact artifact of the study in the current folder."""
    folder = artifact_folder(name)
    spec = Spec.parse(read_file(folder / SPEC_FILE).decode())
    return Recorded(spec, folder, read_json(folder / MANIFEST_FILE))


def recount_with_inputs(name: str, is_intact: Callable[[str], bool]) -> Iterator[str]:
    """What an artifact of the study in the current folder says otherwise than its inputs, in words."""
    compare = COMPARISONS.get(name.partition("/")[0])
    if compare is None:
        return
    recorded = open_recorded(name)
    needed = [*recorded.spec.input_names, *_stages(recorded.spec)]
    if all(map(is_intact, needed)):
        yield from guarded(compare, recorded)
        if recorded.spec.kind in RENDERED and all(map(is_intact, _ancestors(recorded, is_intact))):
            yield from guarded(_otherwise_rendered, recorded)


def _ancestors(recorded: Recorded, is_intact: Callable[[str], bool]) -> set[str]:
    """All artifacts that one is made from, directly or not; nothing is known of those behind one that is not intact."""
    found: set[str] = set()
    pending = [*recorded.spec.input_names]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += open_recorded(name).spec.input_names if is_intact(name) else ()
    return found


def label_of(name: str) -> str:
    """The label in an artifact's name."""
    return name.partition("/")[2][: -KEY_DIGITS - 1]


def _stages(spec: Spec) -> list[str]:
    """The models that a report names, whose times it shows."""
    if spec.kind != "reports":
        return []
    return [stage for row in spec.settings.get("rows", {}).values() for stage in row["stages"]]


def _input(recorded: Recorded, role: str) -> Recorded | None:
    names = recorded.spec.inputs.get(role, ())
    return open_recorded(names[0]) if len(names) == 1 else None


def _shards(recorded: Recorded) -> Iterator[str]:
    source = _input(recorded, "source")
    if source is not None and recorded.current and "rows" in source.facts:
        yield from recorded.wrong({"read": source.facts["rows"]})


def _of_shards(recorded: Recorded) -> Iterator[str]:
    """Candidates, negatives and scores, which have all rows of the shards or say how many are dropped."""
    shards = _input(recorded, "shards")
    if shards is None or "rows" not in shards.facts:
        return
    rows = shards.facts["rows"]
    match recorded.spec.kind:
        case "candidates":
            yield from recorded.wrong({"rows": rows})
        case "negatives":
            yield from recorded.wrong({"rows_read": rows})
        case _:
            yield from recorded.wrong({"rows": rows - sum(recorded.facts.get("dropped", {}).values())})


def _batches(recorded: Recorded) -> Iterator[str]:
    names = recorded.spec.inputs.get("rows", ())
    settings, facts = recorded.spec.settings, recorded.facts
    left_out = facts.get("rows_with_fewer_negatives", {})
    sizes = {label_of(name): open_recorded(name).facts.get("rows") for name in names}
    if None in sizes.values() or "steps" not in facts:
        return
    rows = {label: size - left_out.get(label, 0) for label, size in sizes.items()}
    size, epochs = settings["batch_size"], settings["epochs"]
    yield from recorded.wrong(
        {
            "steps_by_source": {label: epochs * (count // size) for label, count in rows.items()},
            "dropped_rows": {label: count % size for label, count in rows.items()},
        }
    )


def _models(recorded: Recorded) -> Iterator[str]:
    batches = _input(recorded, "batches")
    if batches is not None and "steps" in batches.facts:
        settings = batches.spec.settings
        yield from recorded.wrong(
            {"steps": batches.facts["steps"], "batch_size": settings["batch_size"], "epochs": settings["epochs"]}
        )


def _of_collection(recorded: Recorded) -> Iterator[str]:
    """Indexes and runs, which have all documents and judged queries of a collection."""
    collection = _input(recorded, "collection")
    if collection is not None:
        yield from recorded.wrong({name: collection.facts[name] for name in ("documents", "queries")})
    index = _input(recorded, "index")
    if index is not None and recorded.current:
        model = index.spec.inputs["model"][0]
        for path in recorded.files(r"run\.trec"):
            with path.open(encoding="utf-8") as file:
                tag = next(file, "").rstrip("\n").rpartition(" ")[2]
            if tag not in ("", model):
                yield f"{path.name} is a run of {tag}, but its index is one of {model}"


def _measures(recorded: Recorded) -> Iterator[str]:
    from colbert_zero.data.qrels import read_judgements
    from colbert_zero.evaluation.values import read_values

    collection, run = _input(recorded, "collection"), _input(recorded, "run")
    if collection is None or run is None:
        return
    (qrels_file,) = collection.files(rf"qrels/{re.escape(collection.spec.settings.get('split') or 'test')}\.tsv")
    judged = read_judgements(qrels_file).keys()
    for path in recorded.files(r"measures\.parquet"):
        for measure, values in read_values(path).items():
            if values.keys() != judged:
                yield f"{path.name} has {measure} of other queries than those that {qrels_file} judges"
                return
    searched: set[str] = set()
    for path in run.files(r"run\.trec"):
        with path.open(encoding="utf-8") as file:
            searched.update(line.partition(" ")[0] for line in file)
    yield from recorded.wrong({"queries": len(judged), "queries_without_results": len(judged - searched)})


# Reports


@dataclass(frozen=True)
class Line:
    """A row of the table, computed again.

    Attributes:
        kind: `recipe` or `baseline`.
        stages: The names of its models.
        values: Its value in each column, and their mean last.
        seconds: The training time of all its stages.
        spreads: The standard deviations of the values over its seeds; None without seeds.
    """

    kind: str
    stages: Sequence[str]
    values: Sequence[float]
    seconds: float
    spreads: Sequence[float] | None = None


def _table(spec: Spec) -> tuple[list[str], dict[str, Line]]:
    """The columns of a report's table, and the lines of `table.csv` by name: a row with seeds has one for each."""
    from colbert_zero.evaluation.values import VALUES_FILE, mean_value, read_values

    settings = spec.settings
    groups: Mapping[str, Sequence[str]] = settings["groups"]
    group_of = {collection: name for name, collections in groups.items() for collection in collections}
    lines: dict[str, Line] = {}
    columns: list[str] = []
    for name, row in settings["rows"].items():
        means = {
            label_of(measures): mean_value(
                read_values(artifact_folder(measures) / VALUES_FILE).get(settings["measure"], {})
            )
            for measures in spec.inputs[name]
        }
        columns = list(dict.fromkeys(group_of.get(collection, collection) for collection in sorted(means)))
        values = [
            fmean(means[collection] for collection in groups.get(column, (column,)) if collection in means)
            for column in columns
        ]
        seconds = math.fsum(open_recorded(stage).facts["seconds"] for stage in row["stages"])
        lines[name] = Line(row["kind"], row["stages"], [*values, fmean(values)], seconds)
    return columns, lines


def _averaged(spec: Spec, lines: Mapping[str, Line]) -> dict[str, Line]:
    """The rows of a printed table by name: of a row with seeds, the mean over them and its standard deviation."""
    from colbert_zero.report.results import replicate_names

    averaged = {}
    for row, names in replicate_names(spec.settings).items():
        of_seeds = [lines[name] for name in names]
        columns = list(zip(*(line.values for line in of_seeds), strict=True))
        averaged[row] = Line(
            of_seeds[0].kind,
            of_seeds[0].stages,
            [fmean(values) for values in columns],
            fmean(line.seconds for line in of_seeds),
            [stdev(values) for values in columns] if len(names) > 1 else None,
        )
    return averaged


def _reports(recorded: Recorded) -> Iterator[str]:
    if not recorded.spec.settings.get("rows"):
        return
    columns, lines_of_seeds = _table(recorded.spec)
    lines = _averaged(recorded.spec, lines_of_seeds)
    means = {name: line.values[-1] for name, line in lines.items()}
    yield from recorded.wrong({"means": means})
    baselines = {name for name, line in lines.items() if line.kind == "baseline"} or set(lines)
    reference, named = recorded.facts.get("reference"), recorded.spec.settings.get("reference")
    if named is not None:
        yield from recorded.wrong({"reference": named})
    elif reference is not None and means.get(reference) != max(means[name] for name in baselines):
        yield f"says that the reference is {reference}, which is not the best of those that it may be"
    for path in recorded.files(r"statistics\.json"):
        yield from _wrong_statistics(path, columns, lines, named or reference)
    for path in recorded.files(r"table\.csv"):
        yield from _wrong_csv(path, columns, lines_of_seeds)
    for path in recorded.files(r"table\.md"):
        yield from _wrong_printed(path, _markdown_table(path.read_text(encoding="utf-8")), columns, lines)
    for path in recorded.files(r"report\.html"):
        yield from _wrong_printed(path, _html_table(path.read_text(encoding="utf-8")), columns, lines)


def _wrong_csv(path: Path, columns: Sequence[str], lines: Mapping[str, Line]) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    if header != ["name", "kind", "stages", *columns, "mean", "training_seconds"]:
        yield f"{path.name} has other columns than its spec: {', '.join(header)[:200]}"
        return
    if sorted(row[0] for row in rows) != sorted(lines):
        yield f"{path.name} has other rows than its spec"
        return
    for row in rows:
        line = lines[row[0]]
        if row[1:3] != [line.kind, " ".join(line.stages)]:
            yield f"{path.name} has other stages of {row[0]} than its spec"
        for column, text, value in zip(header[3:], row[3:], [*line.values, line.seconds], strict=True):
            if not same(float(text), value):
                yield f"{path.name} has {column} {text} of {row[0]}, but from the artifacts it is {value}"


def _wrong_statistics(
    path: Path, columns: Sequence[str], lines: Mapping[str, Line], reference: str | None
) -> Iterator[str]:
    """What the statistics have otherwise: their differences are those of the table's values."""
    statistics = read_json(path)
    if reference is None or statistics["reference"] != reference or reference not in lines:
        yield f"{path.name} has the reference {statistics['reference']}, but it is {reference}"
        return
    positions: dict[str | None, int] = {column: position for position, column in enumerate(columns)}
    positions[None] = len(columns)
    for each in statistics["comparisons"]:
        row, column, position = each["row"], each["column"], positions.get(each["column"])
        if row not in lines or position is None:
            yield f"{path.name} compares {row} on {column}, which the table has not"
            continue
        difference = lines[row].values[position] - lines[reference].values[position]
        if abs(each["difference"] - difference) > STATISTICS_ROUNDING:
            yield (
                f"{path.name} has {row} {each['difference']:+.4f} on {column or 'the mean'}, but from the artifacts it "
                f"is {difference:+.4f}"
            )


Printed = list[tuple[str, bool]]
"""The cells of a row as printed, each with whether it is bold."""


def _wrong_printed(
    path: Path, rows: Sequence[Printed], columns: Sequence[str], lines: Mapping[str, Line]
) -> Iterator[str]:
    """What a printed table has otherwise; its rows have name, stages, values, mean and training time."""
    if not rows or [text for text, _ in rows[0][2:-2]] != list(columns):
        yield f"{path.name} has no table of the columns {', '.join(columns)}"
        return
    if sorted(row[0][0] for row in rows[1:]) != sorted(lines):
        yield f"{path.name} has other rows than its spec"
        return
    recipes = [line.values for line in lines.values() if line.kind == "recipe"]
    best = [max(values) for values in zip(*recipes, strict=True)]
    for (name, _), _, *cells, (training, _) in rows[1:]:
        line = lines[name]
        for number, (column, (text, bold), value) in enumerate(
            zip([*columns, "mean"], cells, line.values, strict=True)
        ):
            text, _, spread = text.partition(" ± ")
            if abs(float(text) - 100 * value) > POINTS:
                yield f"{path.name} has {column} {text} of {name}, but from the artifacts it is {100 * value:.2f}"
            if bool(spread) != (line.spreads is not None):
                yield f"{path.name} has {column} of {name} {'with' if spread else 'without'} a spread over seeds"
            elif line.spreads is not None and abs(float(spread) - 100 * line.spreads[number]) > POINTS:
                yield f"{path.name} has {column} ± {spread} of {name}, but it is {100 * line.spreads[number]:.2f}"
            is_best = line.kind == "recipe" and f"{100 * value:.2f}" == f"{100 * best[number]:.2f}"
            if bold != is_best:
                yield f"{path.name} prints {column} of {name} {'as' if bold else 'as if it were not'} the best recipe's"
        if line.stages and not _is_duration(training, line.seconds):
            yield f"{path.name} has {training} for the training of {name}, but it took {line.seconds:.2f} s"


def _is_duration(text: str, seconds: float) -> bool:
    """Whether a duration as printed is one of so many seconds; it has two digits or more."""
    parts = re.findall(r"([\d.,e+]+) (s|min|h)\b", text)
    printed = math.fsum(float(number.replace(",", "")) * SECONDS_BY_UNIT[unit] for number, unit in parts)
    rounding = SECONDS_BY_UNIT[parts[-1][1]] if parts else 0.0
    return bool(parts) and abs(printed - seconds) <= (
        0.06 * seconds if text.endswith(" s") and len(parts) == 1 else rounding
    )


def _markdown_table(text: str) -> list[Printed]:
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace("\\|", "|") for cell in row] for row in rows]
    return [
        [(text.strip("*"), column > 1 and text.startswith("**")) for column, text in enumerate(row)]
        for number, row in enumerate(cells)
        if number != 1
    ]


class _ResultsTable(HTMLParser):
    """Reads the first table after the heading of the results."""

    def __init__(self) -> None:
        """Wait for the heading."""
        super().__init__()
        self.rows: list[Printed] = []
        self._state = "before"
        self._text: list[str] | None = None
        self._bold = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a row or a cell."""
        if self._state == "before" and ("id", "results") in attrs:
            self._state = "in"
        elif self._state == "in" and tag == "tr":
            self.rows.append([])
        elif self._state == "in" and tag in ("th", "td"):
            self._text, self._bold = [], False
        elif tag == "b":
            self._bold = True

    def handle_endtag(self, tag: str) -> None:
        """End a cell, or the table."""
        if self._state == "in" and tag in ("th", "td") and self._text is not None:
            self.rows[-1].append(("".join(self._text).strip(), self._bold))
            self._text = None
        elif self._state == "in" and tag == "table":
            self._state = "after"

    def handle_data(self, data: str) -> None:
        """Add to the text of a cell."""
        if self._text is not None:
            self._text.append(data)


def _html_table(text: str) -> list[Printed]:
    parser = _ResultsTable()
    parser.feed(text)
    return parser.rows


def _otherwise_rendered(recorded: Recorded) -> Iterator[str]:
    """Whether the code that made a report makes the same of it now; nothing if today's code or registry is another."""
    made_by, now = recorded.manifest["code"].get("parts", {}), part_digests()
    if not made_by or any(made_by.get(part) != now[part] for part in ("package", "registry", "report")):
        return
    for name, text in RENDERED[recorded.spec.kind](recorded.spec):
        there = (recorded.folder / name).read_text(encoding="utf-8")
        if there != text:
            place = _first_difference(there, text)
            yield f"{name} is not what the code that made it makes of the same artifacts: {place}"


def _first_difference(there: str, expected: str) -> str:
    """Where a text first differs from the expected one, with what stands at that place in both."""
    characters = enumerate(zip(there, expected, strict=False))
    position = next((at for at, (one, other) in characters if one != other), min(len(there), len(expected)))
    begin = max(there.rfind("\n", 0, position) + 1, position - DIFFERENCE_CHARACTERS // 2)
    shown = (one_line(text[begin:].partition("\n")[0][:DIFFERENCE_CHARACTERS]) for text in (there, expected))
    return f"line {there.count(chr(10), 0, position) + 1} has «{next(shown)}», not «{next(shown)}»"


def _report_files(spec: Spec) -> Iterator[tuple[str, str]]:
    from colbert_zero.report.page import Report

    yield from Report.open(spec).files()


# Releases


def _release_texts(spec: Spec) -> Iterator[tuple[str, str]]:
    """The path and the text of a release's card and records."""
    from colbert_zero.report.model_card import ModelCard
    from colbert_zero.report.release import texts

    yield from texts(ModelCard.open(spec))


RENDERED: Mapping[str, Callable[[Spec], Iterator[tuple[str, str]]]] = {
    "reports": _report_files,
    "releases": _release_texts,
}
"""What makes the texts of an artifact of a kind again, by their paths."""


def _releases(recorded: Recorded) -> Iterator[str]:
    """The model's files are the model's own, the numbers of the card are those of the report's row."""
    from colbert_zero.report.model_card import CARD_FILE, MEAN, card_numbers, only_row

    model, report = _input(recorded, "model"), _input(recorded, "report")
    if model is None or report is None:
        return
    outputs = recorded.manifest["outputs"]
    for file, entry in sorted(model.manifest["outputs"].items()):
        if outputs.get(file, {}).get("sha256") != entry["sha256"]:
            yield f"has another {file} than the model {model.spec.name}"
    columns, lines = _table(only_row(report.spec, recorded.spec.settings["row"]))
    (line,) = lines.values()
    values = dict(zip([*columns, MEAN], line.values, strict=True))
    yield from recorded.wrong({"values": values, "measure": report.spec.settings["measure"], "model": model.spec.name})
    for path in recorded.files(re.escape(CARD_FILE)):
        exact, printed = card_numbers(path.read_text(encoding="utf-8"))
        if not same(exact, values):
            yield f"{path.name} has other values in its front matter than the report's row"
        if printed.keys() != values.keys():
            yield f"{path.name} has results of other collections than the report's row"
        for name in sorted(printed.keys() & values.keys()):
            if abs(printed[name] - 100 * values[name]) > POINTS:
                yield f"{path.name} has {name} {printed[name]}, but from the artifacts it is {100 * values[name]:.2f}"


COMPARISONS: Mapping[str, Callable[[Recorded], Iterator[str]]] = {
    "shards": _shards,
    "candidates": _of_shards,
    "negatives": _of_shards,
    "scores": _of_shards,
    "batches": _batches,
    "models": _models,
    "indexes": _of_collection,
    "runs": _of_collection,
    "measures": _measures,
    "reports": _reports,
    "releases": _releases,
}
"""What compares the artifacts of a kind with their inputs."""
