"""Show what a study has cost: GPU-hours, CPU-hours and energy by rule, stage and recipe, lost attempts included.

    colbert-zero ledger --directory mystudy

The numbers are those of the manifests, and of the records of attempts at what is not finished. A stage that several
recipes share counts once in a total, and in full for each recipe. Where SLURM keeps accounts (`sacct`), it is asked
about all jobs in one call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import ATTEMPTS_FILE, STATE_FOLDER, published_folders
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.console import one_line
from colbert_zero.graph.study import Study
from colbert_zero.machine.accounting import Accounts, ask_sacct, describe, logged_jobs
from colbert_zero.report.columns import duration, number, write_columns
from colbert_zero.report.costs import Cost, Entry, entry_of, read_attempts, total, unfinished_entry
from colbert_zero.report.offline_study import offline_study
from colbert_zero.report.paper_costs import counterpart_hours
from colbert_zero.report.sizes import Manifests, Sizes


def add_options(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(_options: argparse.Namespace) -> int:
    """Write the ledger; return 0."""
    study, _ = offline_study(read_config(Path(CONFIG_FILE)))
    ledger = Ledger(study, Manifests())
    for block in (ledger.by_rule(), ledger.by_row()):
        write_columns(block)
        sys.stdout.write("\n")
    jobs = ledger.jobs()
    accounts = ask_sacct(jobs) if jobs else None
    for line in (*ledger.remarks(), *slurm_lines(accounts, ledger.finished_jobs())):
        sys.stdout.write(one_line(line) + "\n")
    return 0


class Ledger:
    """What the study in the current folder has cost: what its config plans, and what else lies there."""

    def __init__(self, study: Study, manifests: Manifests) -> None:
        """Read all manifests, and the records of attempts in the state folders."""
        self.study = study
        self._planned = {spec.name: spec for spec in study.known.values()}
        self.sizes = Sizes(self._planned, manifests)
        self.entries: dict[str, Entry] = {}
        self.attempts: dict[str, list[Any]] = {}
        for folder in published_folders(Path()):
            name = f"{folder.parent.name}/{folder.name}"
            spec, manifest = self.sizes.spec(name), manifests(name)
            if spec is not None and manifest is not None:
                self.entries[name] = entry_of(spec, manifest)
                self.attempts[name] = [*manifest.get("shares", ()), *manifest["attempts"]]
        for state in sorted({path.parent for path in STATE_FOLDER.glob(f"*/*/*{ATTEMPTS_FILE}")}):
            name = f"{state.parent.name}/{state.name}"
            if name not in self.entries and (spec := self.sizes.spec(name)) is not None:
                files = sorted(state.glob(f"*{ATTEMPTS_FILE}"))
                self.attempts[name] = [attempt for path in files for attempt in read_attempts(path)]
                self.entries[name] = unfinished_entry(spec, self.attempts[name])

    @property
    def planned(self) -> list[Entry]:
        """The entries of what the config plans."""
        return [entry for name, entry in self.entries.items() if name in self._planned]

    def by_rule(self) -> list[list[str]]:
        """A line for each rule, and of a training for each stage, and one for all."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.planned:
            groups.setdefault(f"{entry.rule} {entry.stage}".strip(), []).append(entry)
        lines = [["what", "artifacts", "attempts", "time", "CPU-hours", "GPU-hours", "of these lost", "GPU energy"]]
        for name, entries in [*sorted(groups.items()), ("all", self.planned)]:
            cost = total(entries)
            lines.append([name, str(len(entries)), str(cost.attempts), duration(cost.seconds), *_numbers(cost)])
        return lines

    def by_row(self) -> list[list[str]]:
        """A line for each row: what all that it rests on took, shared or not, beside the paper's GPU-hours."""
        lines = [["row", "time", "CPU-hours", "GPU-hours", "of these lost", "GPU energy", "trainings", "paper"]]
        for row in self.study.rows:
            keys = [key for key, rows in self.study.used_by.items() if row.name in rows]
            names = [self.study.specs[key].name for key in keys]
            cost = total(self.entries[name] for name in names if name in self.entries)
            trained = total(self.entries[spec.name] for spec in row.stages if spec.name in self.entries)
            paper = counterpart_hours(row.stages, self.sizes)
            lines.append(
                [
                    row.name,
                    duration(cost.seconds),
                    *_numbers(cost),
                    number(trained.gpu_hours),
                    "–" if paper is None else number(paper),
                ]
            )
        return lines

    def remarks(self) -> Iterator[str]:
        """What the tables leave out."""
        untimed = sum(entry.cost.untimed for entry in self.planned)
        if untimed:
            yield f"{untimed} attempts were killed: they count until they were last heard of, which is too little"
        others = [entry for name, entry in self.entries.items() if name not in self._planned]
        if others:
            cost = total(others)
            yield (
                f"not in these numbers: {len(others)} artifacts of other configs, {number(cost.gpu_hours)} GPU-hours "
                f"and {number(cost.cpu_hours)} CPU-hours"
            )

    def jobs(self) -> set[str]:
        """The numbers of all SLURM jobs that are known of: of attempts, and those that only left a log."""
        recorded = (attempt for attempts in self.attempts.values() for attempt in attempts)
        return {str(attempt["job"]) for attempt in recorded if "job" in attempt} | logged_jobs(Path())

    def finished_jobs(self) -> set[str]:
        """The numbers of the jobs that published an artifact."""
        last = (attempts[-1] for attempts in self.attempts.values() if attempts)
        return {str(attempt["job"]) for attempt in last if "job" in attempt and attempt.get("end") == "published"}


def _numbers(cost: Cost) -> list[str]:
    energy = f"{number(cost.watt_hours / 1000)} kWh" if cost.watt_hours else "–"
    return [number(cost.cpu_hours), number(cost.gpu_hours), number(cost.lost_gpu_hours), energy]


def slurm_lines(accounts: Accounts | None, finished: set[str]) -> Iterator[str]:
    """What SLURM says of the jobs; nothing where nobody was asked."""
    if accounts is None:
        return
    if accounts.problem:
        yield f"SLURM: sacct does not say what the jobs took ({accounts.problem})"
        return
    lost = {number: job for number, job in accounts.jobs.items() if number not in finished}
    yield f"SLURM: {describe(accounts.jobs.values())}"
    if lost:
        states = sorted({job.state for job in lost.values()})
        yield f"of these lost, since they left no manifest: {describe(lost.values())} ({', '.join(states)})"
    if accounts.unknown:
        yield f"SLURM knows nothing any more of {len(accounts.unknown)} jobs"
