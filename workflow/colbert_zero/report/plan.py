"""Show what a study still takes: what is done, jobs, GPU-hours, disk; or what a change of its config would redo.

    colbert-zero plan --directory mystudy
    colbert-zero plan --directory mystudy --set stages.supervised.prompts=none --set seed=7

GPU-hours are measured where the same kind of step has run in this study, else the paper's for trainings of its size,
else unknown; a sum with something unknown in it says «at least». Nothing is run, and nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.assignments import with_assignments
from colbert_zero.graph.config import CONFIG_FILE, Config, read_config
from colbert_zero.graph.console import UserError, one_line
from colbert_zero.graph.inventory import Inventory
from colbert_zero.graph.let_go import LET_GO_KIND
from colbert_zero.graph.planned_jobs import planned_rule
from colbert_zero.graph.planners.evaluation import Row
from colbert_zero.graph.planners.relations import MismatchError
from colbert_zero.graph.rules import SHARING_RULES, STAGES, rule_of
from colbert_zero.graph.shared_documents import SharedDocuments
from colbert_zero.graph.study import Study
from colbert_zero.report.columns import number, size, write_columns
from colbert_zero.report.costs import Entry
from colbert_zero.report.forecast import Estimate, GpuHours, Source, Space, Sum
from colbert_zero.report.ledger import Ledger
from colbert_zero.report.offline_study import offline_study
from colbert_zero.report.sizes import Manifests, Sizes

NOTHING = "–"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--set`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assignments",
        metavar="SETTING=VALUE",
        help="show what this change of the config would redo, such as stages.supervised.prompts=none; may be repeated",
    )


def run(options: argparse.Namespace) -> int:
    """Write the plan, or what a change of it changes; return 0.

    Raises:
        UserError: The config has a mistake, or a change makes one.
    """
    config = read_config(Path(CONFIG_FILE))
    study, unknown = offline_study(config)
    manifests = Manifests()
    plan = Plan(study, manifests, list(Ledger(study, manifests).entries.values()))
    for line in plan.lines() if not options.assignments else changes(plan, config, options.assignments):
        if isinstance(line, str):
            sys.stdout.write(one_line(line) + "\n")
        else:
            write_columns(line, right=False)
    if unknown:
        sys.stdout.write(
            f"The commits of {len(unknown)} repositories of the Hub are not known yet: snakemake -n looks them up, "
            "and what rests on them then has other keys\n"
        )
    return 0


Block = Sequence[Sequence[str]]
"""Lines of cells, to be written under each other."""


@dataclass
class Plan:
    """A study, and what of it is still to be made.

    Attributes:
        study: The study, in the current folder.
        manifests: Reads the manifests of what is there.
        measured: What artifacts that are there have cost.
    """

    study: Study
    manifests: Manifests
    measured: Sequence[Entry]

    @cached_property
    def inventory(self) -> Inventory:
        """What is there."""
        return Inventory(self.study)

    @cached_property
    def sizes(self) -> Sizes:
        """How large things are."""
        return Sizes({spec.name: spec for spec in self.study.known.values()}, self.manifests)

    @cached_property
    def missing(self) -> list[Spec]:
        """What is still to be made, without what only lacks its `spec.json`: that costs nothing."""
        whole = self.inventory.done - self.inventory.let_go
        return [spec for spec in self.inventory.to_make if spec.name not in whole]

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """The GPU-hours of what is still to be made, by name."""
        hours = GpuHours(self.study, self.sizes, self.measured)
        return {spec.name: hours.estimate(spec) for spec in self.missing}

    @cached_property
    def jobs(self) -> Counter[str]:
        """How many jobs a run of Snakemake has, by rule, without its target and images."""
        jobs = Counter(planned_rule(self.study, spec) for spec in self.inventory.to_make)
        for spec in self.inventory.to_make:
            jobs[SHARING_RULES[rule_of(spec).image]] += self._shares(spec)
        return +jobs

    def _shares(self, spec: Spec) -> int:
        """How many jobs share the work on an artifact before it is published; none make files again."""
        if spec.name in self.inventory.let_go:
            return 0
        rule = rule_of(spec)
        jobs = self.study.resource(rule.step, "jobs") if rule.step else 1
        return len(rule.parts) * jobs if jobs > 1 else 0

    @cached_property
    def space(self) -> Space:
        """What it takes on disk."""
        return Space.of(
            {spec.name: spec for spec in self.study.specs.values()},
            self.inventory.to_make,
            self.sizes,
            self.inventory.let_go,
            keep_indexes=self.study.config["evaluation"]["keep_indexes"],
        )

    def gpu_hours(self, specs: Iterable[Spec]) -> Sum:
        """The GPU-hours of those of some artifacts that are still to be made."""
        return Sum.of(self.estimates[spec.name].gpu_hours for spec in specs if spec.name in self.estimates)

    def ancestors(self, row: Row) -> list[Spec]:
        """What a row of the table rests on."""
        return [self.study.specs[key] for key, rows in self.study.used_by.items() if row.name in rows]

    def state(self, spec: Spec) -> str:
        """Whether an artifact is done, begun or missing."""
        if spec.name in self.inventory.done:
            return "done"
        return "begun" if spec.name in self.inventory.begun else "missing"

    def lines(self) -> Iterator[str | Block]:
        """The plan."""
        total = sum(self.jobs.values())
        yield (
            f"study {self.study.name}: {len(self.inventory.done)} of {len(self.study.specs)} artifacts are there, "
            + (f"{total} jobs to run" if total else "nothing to do")
        )
        yield ""
        yield [_row_header("GPU-hours of its trainings", "of the rest"), *map(self._row, self.study.rows)]
        yield ""
        if total:
            yield list(self._by_rule())
            yield ""
        yield from self._totals()

    def _row(self, row: Row) -> list[str]:
        stages = {str(spec.settings.get("stage", spec.label)): self.state(spec) for spec in row.stages}
        done = sum(measure.name in self.inventory.done for measure in row.measures.values())
        needed = self.ancestors(row)
        trainings = self.gpu_hours(spec for spec in needed if spec.kind == "models")
        rest = self.gpu_hours(spec for spec in needed if spec.kind != "models")
        return [
            row.name,
            *_by_stage(stages),
            f"{done} of {len(row.measures)}",
            trainings.words() if row.stages else NOTHING,
            rest.words(),
        ]

    def _by_rule(self) -> Iterator[list[str]]:
        """A line for each rule: its jobs, their GPU-hours, and where that is from."""
        yield ["rule", "jobs", "GPU-hours", "by"]
        by_rule: dict[str, list[Spec]] = {}
        for spec in self.inventory.to_make:
            rule = planned_rule(self.study, spec)
            by_rule.setdefault(f"{rule} {spec.label}" if spec.kind == "models" else rule, []).append(spec)
        by_rule |= {rule: [] for rule in SHARING_RULES.values() if rule in self.jobs}
        for rule, specs in sorted(by_rule.items()):
            estimates = [self.estimates[spec.name] for spec in specs if spec.name in self.estimates]
            sources = Counter(estimate.source for estimate in estimates) or {Source.NONE: 0}
            counted = [f"{count} {source}" for source, count in sources.items()]
            yield [
                rule,
                str(len(specs) or self.jobs[rule]),
                self.gpu_hours(specs).words(),
                ", ".join(counted if len(sources) > 1 else map(str, sources)),
            ]

    def _totals(self) -> Iterator[str]:
        hours = self.gpu_hours(self.missing)
        unknown = f"; {hours.unknown} jobs nobody has measured yet" if hours.unknown else ""
        papers = Sum.of(each.gpu_hours for each in self.estimates.values() if each.source == Source.PAPER)
        from_paper = f", {number(papers.known)} of them by the paper's GH200s" if papers.known else ""
        yield f"GPU-hours to go: {hours.words()}{from_paper}{unknown}"
        space = self.space
        unsized = f" ({space.end.unknown} artifacts of unknown size)" if space.end.unknown else ""
        yield (
            f"disk: {size(space.now.known)} now, {space.end.words(size)} at the end{unsized}, "
            f"{space.peak.words(size)} at its peak"
        )
        if space.passing.known or space.passing.unknown:
            yield (
                f"and an index for each job that runs at once, until it is searched: up to {size(space.largest)}, "
                f"{space.passing.words(size)} for all"
            )
        if space.by_kind:
            yield "of these at the end: " + ", ".join(
                f"{kind} {total.words(size)}" for kind, total in space.by_kind.items() if total.known or total.unknown
            )
        if space.vectors.known:
            shared = SharedDocuments(self.study)
            until = "; of documents that indexes have in common, until all of them are made"
            has_shared = any(shared.beside(spec) for spec in self.missing if spec.kind == LET_GO_KIND)
            yield (
                f"and in results/state, the vectors of each index while it is made: up to {size(space.vectors.known)}"
                + (until if has_shared else "")
            )


def _row_header(*costs: str) -> list[str]:
    return ["row", *STAGES, "evaluation", *costs]


def _by_stage(states: dict[str, str]) -> list[str]:
    return [states.get(stage, NOTHING) for stage in STAGES]


def changes(before: Plan, config: Config, assignments: Sequence[str]) -> Iterator[str | Block]:
    """What a change of the config changes: artifacts by row and stage, and what they cost."""
    try:
        study, refused = _changed_study(with_assignments(config, assignments))
    except UserError as error:
        raise UserError(f"--set {str(error).removeprefix(f'{CONFIG_FILE}: ')}") from None
    after = Plan(study, before.manifests, before.measured)
    old, new = ({spec.name: spec for spec in plan.study.specs.values()} for plan in (before, after))
    added, gone = new.keys() - old.keys(), old.keys() - new.keys()
    yield f"with {' '.join(assignments)}:"
    if refused:
        yield f"snakemake refuses it as it is: {refused}"
    yield ""
    old_rows = {row.name: row for row in before.study.rows}
    header = _row_header("GPU-hours of its trainings", "of the rest")
    yield [header, *(_changed_row(after, row, old_rows.get(row.name), added) for row in after.study.rows)]
    if left := sorted(old_rows.keys() - {row.name for row in after.study.rows}):
        yield f"rows that are no more: {', '.join(left)}"
    yield ""
    there = {spec.name for spec in after.study.specs.values() if spec.name in after.inventory.done}
    by_kind = Counter(name.partition("/")[0] for name in added)
    yield _counted(len(new) - len(added), "unchanged", len(there - added), "are there")
    yield _counted(len(added), "new", len(there & added), "are there already, from another config") + _kinds(by_kind)
    orphaned = [old[name] for name in gone if name in before.inventory.done]
    on_disk = [spec for spec in orphaned if spec.name not in before.inventory.let_go]
    bytes_left = sum(before.sizes.published_bytes(spec) or 0 for spec in on_disk)
    kept = f", and stay on disk: {size(bytes_left)}" if orphaned else ""
    yield _counted(len(gone), "no longer needed", len(orphaned), "are there") + kept
    yield ""
    only_new = after.gpu_hours(new[name] for name in added)
    yield f"GPU-hours of what is new: {only_new.words()}"
    for plan, when in ((before, "without the change"), (after, "with it")):
        yield f"{when}: {sum(plan.jobs.values())} jobs, GPU-hours to go {plan.gpu_hours(plan.missing).words()}"
    yield f"disk at the end: {before.space.end.words(size)} without, {after.space.end.words(size)} with it" + (
        f" and {size(bytes_left)} of what is no longer needed" if orphaned else ""
    )


def _changed_study(config: Config) -> tuple[Study, str]:
    """The study of a changed config, and why Snakemake refuses it: for a mismatch of prompts or lengths, or not."""
    try:
        return offline_study(config)[0], ""
    except MismatchError as error:
        # To allow it moves no key, so what it would cost can be told all the same.
        allowing = {name: {**recipe, "mismatch": "allowed"} for name, recipe in config["recipes"].items()}
        return offline_study({**config, "recipes": allowing})[0], str(error).removeprefix(f"{CONFIG_FILE}: ")


def _counted(count: int, what: str, there: int, are_there: str) -> str:
    noun = "artifact" if count == 1 else "artifacts"
    return f"{count} {noun} {what}" + (f" ({there} {are_there})" if there else "")


def _kinds(by_kind: Counter[str]) -> str:
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(by_kind.items()))
    return f": {listed}" if listed else ""


def _changed_row(plan: Plan, row: Row, before: Row | None, added: set[str]) -> list[str]:
    """A row after a change: of each stage, whether its model is unchanged, or a new one."""
    stages = {
        str(spec.settings.get("stage", spec.label)): "new" if spec.name in added else "unchanged" for spec in row.stages
    }
    for spec in before.stages if before else ():
        stages.setdefault(str(spec.settings.get("stage", spec.label)), "left out")
    measures = [measure.name in added for measure in row.measures.values()]
    needed = [spec for spec in plan.ancestors(row) if spec.name in added]
    trainings = plan.gpu_hours(spec for spec in needed if spec.kind == "models")
    rest = plan.gpu_hours(spec for spec in needed if spec.kind != "models")
    return [
        row.name if before else f"{row.name} (new)",
        *_by_stage(stages),
        f"{sum(measures)} of {len(measures)} new" if any(measures) else "unchanged",
        trainings.words() if row.stages else NOTHING,
        rest.words(),
    ]
