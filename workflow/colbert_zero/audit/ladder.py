"""Check a study without the GPUs that made it, level by level.

colbert-zero ladder --level N [--only] [--directory STUDY]

Level N runs all levels up to N, or with --only level N alone:

0. digests: all that `colbert-zero verify` checks.
1. measures and tables, computed again from the stored runs.
2. runs on small collections (--documents), from the stored models: texts are encoded and searched again.
3. the first steps of each training (--steps), from the stored inputs: their losses against the stored ones.
4. all: what it takes, and how; with --against, the tables of this study and of one that was made again elsewhere.

Levels 1 to 3 compute in this process, on this machine, and read only files whose digests are as recorded. Exit 0: all
is identical or within tolerance; 1: something differs; 2: something could not be told, as level 4 without --against.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

from colbert_zero.audit.drift import gpus_here
from colbert_zero.audit.replay import SAME_MACHINE, reasons
from colbert_zero.audit.sandbox import Sandbox, module_of, open_sandbox
from colbert_zero.audit.selection import DAMAGE, damage_text, format_cost, gpu_of, open_artifacts
from colbert_zero.audit.tolerance import (
    LOSSES,
    LOSSES_ON_SAME_MACHINE,
    NUMBERS,
    Closeness,
    Comparison,
    Differ,
    Verdict,
    compare_files,
    compare_losses,
    exit_status,
    worst,
)
from colbert_zero.graph.artifact import Artifact, Job, content_digest, input_records, run_step
from colbert_zero.graph.console import RetryableError, UserError, log, one_line
from colbert_zero.report.columns import counted

FAILED = 2
LEVELS = (
    (
        "digests",
        "every file and record is as it was when it was made",
        "that the recorded steps made them",
    ),
    (
        "measures from stored runs",
        "the table follows from what was retrieved",
        "that the models retrieved it",
    ),
    (
        "runs from stored models",
        "the models retrieve what is stored, on small collections",
        "that the models were trained as recorded, nor anything of larger collections",
    ),
    (
        "a short retraining",
        "the trainings begin as recorded, from the recorded data",
        "that they went on so: a loss of a later step, or the weights, may be anything",
    ),
    (
        "all",
        "the study comes out the same when it is made again",
        "that it is right: both may share a mistake of the code or the data",
    ),
)
"""Of each level: its name, what it shows, and what it does not show."""
SMALL_DOCUMENTS = 20_000
STEPS = 5
BUDGET_SECONDS = 600.0
CPU_FACTOR = 100.0
"""How much longer a step takes on a CPU than on a GPU, roughly: decides whether to begin a retraining at all."""
TABLE_POINTS = 1.0
"""How far two values of a table may be apart, in points: other processors moved means of the embedded study by 0.64."""
OPTION_ADDERS = {"evaluation.index": "add_index_options", "evaluation.search": "add_search_options"}
"""The function that adds a step's flags, where it is not `add_heap_option`."""


@dataclass(frozen=True)
class Result:
    """The verdict on one artifact, and why."""

    name: str
    verdict: Verdict
    detail: str = ""


def check_digests() -> Iterator[Result]:
    """Level 0."""
    from colbert_zero.audit.verify import findings

    for finding in findings(Path()):
        yield Result(finding.artifact, Verdict.DIFFERENT, finding.problem)


def check_measures(artifacts: Sequence[Artifact]) -> Iterator[Result]:
    """Level 1: compute measures from runs and judgements, and tables from measures."""
    for artifact in artifacts:
        if artifact.spec.kind == "measures":
            yield _guarded(artifact, _measures_again)
        elif artifact.spec.kind == "reports":
            yield _guarded(artifact, _table_again)


def _guarded(artifact: Artifact, check: Callable[[Artifact], Comparison]) -> Result:
    try:
        comparison = check(artifact)
    except Differ as difference:
        return Result(artifact.name, Verdict.DIFFERENT, str(difference))
    except (UserError, *DAMAGE) as error:
        return Result(artifact.name, Verdict.UNKNOWN, damage_text(error))
    detail = f"{comparison.file}: {comparison.detail}" if comparison.detail else ""
    return Result(artifact.name, comparison.verdict, detail)


def _measures_again(artifact: Artifact) -> Comparison:
    from colbert_zero.data.beir import Collection
    from colbert_zero.evaluation.measure import measure
    from colbert_zero.evaluation.trec import read_run
    from colbert_zero.evaluation.values import VALUES_FILE, mean_value, read_values

    run, collection = (Artifact.open(artifact.spec.inputs[role][0]) for role in ("run", "collection"))
    qrels = Collection.open(collection).qrels
    names = artifact.spec.settings["measures"]
    values = measure(names, qrels, read_run(run.file("run.trec")))
    made: dict[str, dict[str, float]] = {name: {query: values[query, name] for query in qrels} for name in names}
    stored, closeness = read_values(artifact.file(VALUES_FILE)), Closeness(NUMBERS)
    closeness.compare(stored, made, "")
    closeness.compare(artifact.facts.get("means"), {name: mean_value(made[name]) for name in names}, "facts, means")
    return _comparison(VALUES_FILE, closeness)


def _comparison(file: str, closeness: Closeness) -> Comparison:
    verdict = Verdict.WITHIN if closeness.largest else Verdict.IDENTICAL
    return Comparison(file, verdict, str(closeness) if closeness.largest else "")


def _table_again(artifact: Artifact) -> Comparison:
    from colbert_zero.report.page import Report

    report = Report.open(artifact.spec)
    rows = zip_longest(_cells(artifact.file("table.md").read_text(encoding="utf-8")), _cells(report.markdown()))
    for number, (stored, made) in enumerate(rows, start=1):
        if stored != made:
            raise Differ(f"table.md, row {number}: {stored} is stored, {made} was made")
    with tempfile.TemporaryDirectory(prefix="colbert-zero-") as folder:
        Path(folder, "table.csv").write_text(report.csv(), encoding="utf-8", newline="")
        return compare_files(artifact.file("table.csv"), Path(folder, "table.csv"), "table.csv", "reports")


def _cells(markdown: str) -> Iterator[str]:
    """The rows of a table in Markdown, without the spaces that align its columns, nor what stands around it."""
    for line in markdown.splitlines():
        if line.startswith("|") and not set(line) <= set("|-: "):
            yield " | ".join(cell.strip() for cell in line.strip("|").split("|"))


def check_runs(artifacts: Sequence[Artifact], documents: int) -> Iterator[Result]:
    """Level 2: encode and search again, where a collection has at most this many documents."""
    for artifact in artifacts:
        if artifact.spec.kind == "runs":
            try:
                yield _run_again(artifact, documents)
            except Differ as difference:
                yield Result(artifact.name, Verdict.DIFFERENT, str(difference))
            except (UserError, *DAMAGE) as error:
                yield Result(artifact.name, Verdict.UNKNOWN, damage_text(error))


def _run_again(artifact: Artifact, documents: int) -> Result:
    (name,) = artifact.spec.inputs["collection"]
    collection = Artifact.open(name)
    size = collection.facts.get("documents", 0)
    if size > documents:
        raise UserError(f"not run: {name} has {size} documents, more than --documents {documents}")
    with open_sandbox() as sandbox:
        for index in map(Artifact.open, artifact.spec.inputs.get("index", ())):
            sandbox.add_inputs(index)
            _make_here(sandbox, index)
        sandbox.add_inputs(artifact)
        made = _make_here(sandbox, artifact)
        comparison = compare_files(artifact.file("run.trec"), made.folder / "run.trec", "run.trec", "runs")
        if comparison.verdict == Verdict.IDENTICAL:
            return Result(artifact.name, Verdict.IDENTICAL)
        difference = _difference_of_ndcg(artifact.folder, made.folder, collection)
        notes = [comparison.detail, f"nDCG@10 differs by {difference:.2f} points", *reasons(artifact, sandbox.notes)]
        return Result(artifact.name, comparison.verdict, "; ".join(notes))


def _make_here(sandbox: Sandbox, artifact: Artifact) -> Artifact:
    """Make an artifact in the sandbox, in this process: its libraries are loaded once for all artifacts."""
    name = module_of(artifact)
    adder = OPTION_ADDERS.get(name.removeprefix("colbert_zero."), "add_heap_option")
    module: Any = import_module(name)
    arguments = ["--spec", artifact.spec.text, *sandbox.arguments(artifact)]
    with chdir(sandbox.folder), _quiet():
        if run_step(module.make, None, arguments, getattr(module, adder), getattr(module, "PARTS", None)):
            raise UserError("its command failed here: the message is above")
    return sandbox.made(artifact)


@contextmanager
def _quiet() -> Iterator[None]:
    """Log warnings alone: lines of steps would name folders of a sandbox as if they were the study's."""
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def _difference_of_ndcg(stored: Path, made: Path, collection: Artifact) -> float:
    """How much higher the mean nDCG@10 of the run that was made is, in points."""
    from colbert_zero.data.beir import Collection
    from colbert_zero.evaluation.measure import measure
    from colbert_zero.evaluation.trec import read_run
    from colbert_zero.evaluation.values import mean_value

    qrels = Collection.open(collection).qrels
    first, second = (
        mean_value({query: value for (query, _), value in measure(["nDCG@10"], qrels, run).items()})
        for run in (read_run(folder / "run.trec") for folder in (stored, made))
    )
    return 100 * (second - first)


def check_trainings(artifacts: Sequence[Artifact], steps: int, budget: float) -> Iterator[Result]:
    """Level 3: train the first steps again, as far as the budget of each training goes."""
    for artifact in artifacts:
        if artifact.spec.kind == "models":
            try:
                yield _train_again(artifact, steps, budget)
            except Differ as difference:
                yield Result(artifact.name, Verdict.DIFFERENT, str(difference))
            except (UserError, *DAMAGE) as error:
                yield Result(artifact.name, Verdict.UNKNOWN, damage_text(error))


def _train_again(artifact: Artifact, steps: int, budget: float) -> Result:
    facts = artifact.facts
    if gpu_of(artifact.manifest) is not None and not gpus_here():
        expected = CPU_FACTOR * facts["seconds"] / facts["steps"]
        if expected > budget:
            raise UserError(
                f"not run: a step of it may take {expected:.0f} s on a CPU, more than --budget {budget:.0f}: a GPU is "
                "needed"
            )
    stored = artifact.file("losses.jsonl").read_text(encoding="utf-8").splitlines()
    with open_sandbox() as sandbox:
        sandbox.add_inputs(artifact)
        made = _first_steps(sandbox, artifact, steps, budget)
        why = list(reasons(artifact, sandbox.notes))
        if facts.get("processes", 1) != 1:
            why.append(f"trained by {facts['processes']} processes, and here by 1")
    same_machine = why == [SAME_MACHINE]
    if not made:
        raise UserError(f"no step was done in {budget:.0f} s: raise --budget")
    comparison = compare_losses(stored[: len(made)], made, LOSSES_ON_SAME_MACHINE if same_machine else LOSSES)
    done = f"{len(made)} of {len(stored)} steps"
    if comparison.verdict == Verdict.IDENTICAL:
        return Result(artifact.name, comparison.verdict, done)
    return Result(artifact.name, comparison.verdict, "; ".join([done, comparison.detail, *why]))


def _first_steps(sandbox: Sandbox, artifact: Artifact, steps: int, budget: float) -> list[str]:
    """Train the first steps in the sandbox; the record of each, as a line of JSON."""
    from colbert_zero.training.checkpoints import Checkpoints
    from colbert_zero.training.metrics_log import LOSSES_FILE
    from colbert_zero.training.train import add_options, train

    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    add_options(parser)
    started = time.monotonic()
    with chdir(sandbox.folder):
        spec = artifact.spec
        records = input_records(spec)
        options = parser.parse_args(sandbox.arguments(artifact))
        job = Job(spec, sandbox.folder / "model", options, records, lambda **_facts: None)
        job.folder.mkdir()
        try:
            with _quiet():
                train(job, lambda step: step >= steps or time.monotonic() - started > budget)
        except RetryableError:
            checkpoint = Checkpoints(job.state / "checkpoints", spec.name, records).load_last()
            return list(checkpoint.notes["history"]) if checkpoint else []
        return (job.folder / LOSSES_FILE).read_text(encoding="utf-8").splitlines()


def check_all(artifacts: Sequence[Artifact], against: Path | None) -> Iterator[Result]:
    """Level 4: compare with another study, or say what making one takes."""
    if against is None:
        yield Result(
            "the study",
            Verdict.UNKNOWN,
            f"not made again: that takes what it took, {format_cost(artifacts)}. Copy config.yaml and the data that it "
            "names into a new FOLDER, run snakemake --profile local (or slurm) --directory FOLDER, then this command "
            "with --against FOLDER; or, with the sources as they are here, colbert-zero replay --all",
        )
        return
    reports = [artifact for artifact in artifacts if artifact.spec.kind == "reports"]
    with chdir(against):
        others, problems = open_artifacts()
        others = [Artifact(other.spec, other.manifest, against / other.folder) for other in others]
    yield from (Result(against.name, Verdict.UNKNOWN, problem) for problem in problems.values())
    for report in reports:
        found = [other for other in others if other.name == report.name]
        found = found or [
            other for other in others if (other.spec.kind, other.spec.label) == ("reports", report.spec.label)
        ]
        if len(found) == 1:
            yield _guarded(report, lambda report, other=found[0]: _tables_compared(report, other))  # type: ignore[misc]
        else:
            yield Result(report.name, Verdict.UNKNOWN, f"{against} has {len(found)} reports called {report.spec.label}")
    if not reports:
        yield Result("the study", Verdict.UNKNOWN, "it has no report")
    yield _files_compared(artifacts, others)


def _tables_compared(report: Artifact, other: Artifact) -> Comparison:
    tables = []
    for artifact in (report, other):
        with artifact.file("table.csv").open(encoding="utf-8", newline="") as file:
            tables.append({row.pop("name"): row for row in csv.DictReader(file)})
    first, second = tables
    if first.keys() != second.keys():
        raise Differ(f"rows: {', '.join(first)} here, {', '.join(second)} there")
    largest, where = 0.0, ""
    for name, row in first.items():
        for column in sorted(row.keys() - {"kind", "stages", "training_seconds"}):
            if column not in second[name]:
                raise Differ(f"{name}: no column {column} there")
            points = 100 * abs(float(row[column]) - float(second[name][column]))
            if points > largest:
                largest = points
                where = (
                    f"{name}, {column}: {100 * float(row[column]):.2f} here, {100 * float(second[name][column]):.2f}"
                )
    if not largest:
        return Comparison("table.csv", Verdict.IDENTICAL, "")
    verdict = Verdict.WITHIN if largest <= TABLE_POINTS else Verdict.DIFFERENT
    detail = f"values differ by at most {largest:.3g} points ({TABLE_POINTS:g} allowed): {where} there"
    return Comparison("table.csv", verdict, detail)


def _files_compared(artifacts: Iterable[Artifact], others: Iterable[Artifact]) -> Result:
    """How many artifacts of the same names have the same files: rounding makes others of models and what follows."""
    digests = {other.name: content_digest(other.manifest["outputs"]) for other in others}
    shared = [artifact for artifact in artifacts if artifact.name in digests]
    same = [artifact for artifact in shared if content_digest(artifact.manifest["outputs"]) == digests[artifact.name]]
    verdict = Verdict.IDENTICAL if len(same) == len(shared) else Verdict.WITHIN
    return Result(
        "files", verdict, f"{len(same)} of {counted(len(shared), 'artifact')} of the same name have the same files"
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the level, and what bounds its work."""
    parser.add_argument("--level", type=int, choices=range(len(LEVELS)), required=True, help="how far to go")
    parser.add_argument("--only", action="store_true", help="this level alone, not those below it")
    parser.add_argument(
        "--documents",
        type=int,
        default=SMALL_DOCUMENTS,
        help=f"level 2: the most documents that a collection may have ({SMALL_DOCUMENTS})",
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"level 3: steps of each training ({STEPS})")
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET_SECONDS,
        metavar="SECONDS",
        help=f"level 3: no further step of a training after this time ({BUDGET_SECONDS:.0f})",
    )
    parser.add_argument(
        "--against",
        type=lambda text: Path(text).resolve(),
        metavar="STUDY",
        help="level 4: the folder of the study that was made again",
    )


def run(options: argparse.Namespace) -> int:
    """Run the levels, and write a line for each artifact; return 0, 1 or 2 for the worst of them.

    Raises:
        UserError: `--against` is no folder.
    """
    if options.against is not None and not options.against.is_dir():
        raise UserError(f"--against {options.against} is not a folder")
    artifacts, problems = open_artifacts()
    verdicts = [Verdict.UNKNOWN] * bool(problems or not artifacts)
    _write(problems.values() or (() if artifacts else ["no artifacts here: nothing to check"]))
    checks: list[Callable[[], Iterator[Result]]] = [
        check_digests,
        lambda: check_measures(artifacts),
        lambda: check_runs(artifacts, options.documents),
        lambda: check_trainings(artifacts, options.steps, options.budget),
        lambda: check_all(artifacts, options.against),
    ]
    for level in range(options.level if options.only else 0, options.level + 1):
        name, shows, shows_not = LEVELS[level]
        _write([f"level {level}, {name}: shows that {shows}; does not show {shows_not}"])
        results = []
        for result in checks[level]():
            results.append(result.verdict)
            _write([f"  {result.verdict}: {result.name}" + (f": {result.detail}" if result.detail else "")])
        counts = ", ".join(f"{count} {verdict}" for verdict in Verdict if (count := results.count(verdict)))
        _write([f"level {level}: {counts or 'no findings' if level == 0 else counts or 'nothing to check'}"])
        verdicts.append(worst(results))
    return exit_status(verdicts)


def _write(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(one_line(line) + "\n" for line in lines))
    sys.stdout.flush()
