"""Verify every artifact of a study: its record, its bytes, its inputs, its numbers, and whether the config plans it.

    colbert-zero verify --directory local

Each finding is a line. The exit status is 0 if there is none, 1 if there are findings, and 2 if it could not be told
whether all is well: without artifacts, without a report, or where config.yaml is missing, wrong, or plans another
report than the one that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path

from colbert_zero.audit.alone import Examined, Summary, examine
from colbert_zero.audit.chain import before_let_go, check_chain
from colbert_zero.audit.findings import Check, Finding, Note
from colbert_zero.audit.hashing import Read, batches, read_files
from colbert_zero.audit.planned import check_plan
from colbert_zero.audit.records import OLDER
from colbert_zero.audit.recount import Recorded, recount
from colbert_zero.audit.related import recount_with_inputs
from colbert_zero.audit.signatures import vouchers
from colbert_zero.audit.vouched import Vouched, forget
from colbert_zero.audit.walk import find_artifacts
from colbert_zero.graph.artifact import artifact_folder
from colbert_zero.graph.console import UserError, one_line, progress
from colbert_zero.graph.local_files import absolute_path
from colbert_zero.report.columns import size

FAILED = 2
"""The exit status where it cannot be told whether a study is as it was made."""
ARTIFACTS_AHEAD = 64
"""Artifacts whose files are being read while the findings of one are told."""
RUNS_SHOWN = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("--threads", type=int, default=None, help="how many files to read at once (all cores)")
    parser.add_argument(
        "--since-last",
        action="store_true",
        help="do not read again what the last audit with this flag found intact, by size, inode and time of change",
    )
    parser.add_argument(
        "--signers", type=absolute_path, metavar="FILE", help="the report must be signed by one of FILE's keys"
    )
    parser.add_argument("--json", action="store_true", help="write findings, notes and summary as lines of JSON")


def run(options: argparse.Namespace) -> int:
    """Write a line for each finding and note, and a summary; return the exit status."""
    audit = Audit(options.threads, options.since_last, signers=options.signers)
    for told in audit.check():
        if options.json:
            kind = "finding" if isinstance(told, Finding) else "note"
            sys.stdout.write(json.dumps({"type": kind, **asdict(told)}, ensure_ascii=True) + "\n")
        else:
            sys.stdout.write(one_line(told.problem if isinstance(told, Finding) else f"note: {told.text}") + "\n")
        sys.stdout.flush()
    if options.json:
        summary = {name: audit.counts[name] for name in ("artifacts", "findings", "unsure", "older", "vouched")}
        sys.stdout.write(json.dumps({"type": "summary", **summary}) + "\n")
    else:
        sys.stdout.write(audit.summary() + "\n")
    return audit.status


def findings(folder: Path) -> list[Finding]:
    """All findings in the study in `folder`, in the order in which `verify` tells them."""
    with chdir(folder):
        return [told for told in Audit().check() if isinstance(told, Finding)]


class Audit:
    """One pass over the study in the current folder.

    Attributes:
        counts: How many artifacts and findings there are, and whatever else the summary says.
    """

    def __init__(
        self,
        threads: int | None = None,
        since_last: bool = False,
        names: Iterable[str] | None = None,
        signers: Path | None = None,
    ) -> None:
        """Prepare a pass.

        Args:
            threads: How many files are read at once; by default one per core.
            since_last: Whether files that the last such pass vouched for are not read again.
            names: The artifacts to look at, and nothing else of the study; by default all that are there, what lies
                between them, and the config.
            signers: A file of allowed signers, one of whom must have signed the report; None to ask for no signature.
        """
        self._signers = signers
        self._names = None if names is None else sorted(names)
        self.counts: Counter[str] = Counter()
        self._threads = max(1, threads or len(os.sched_getaffinity(0)))
        self._before = Vouched.read() if since_last else None
        self._vouched = Vouched()
        self._summaries: dict[str, Summary | None] = {}
        self._faulty: set[str] = set()
        self._unread: set[str] = set()

    @property
    def status(self) -> int:
        """The exit status."""
        return 1 if self.counts["findings"] else FAILED if self.counts["unsure"] else 0

    def summary(self) -> str:
        """The last line."""
        line = f"{self.counts['artifacts']} artifacts, {self.counts['findings']} findings"
        if self.counts["older"]:
            line += f"; {self.counts['older']} of an older record"
        if self.counts["vouched"]:
            line += f"; {self.counts['vouched']} files have not changed since they were last read"
        if self.counts["unsure"] and not self.counts["findings"]:
            line += "; could not tell whether all is well"
        return line

    def check(self) -> Iterator[Finding | Note]:
        """Find what is wrong, artifact by artifact, then between artifacts, then with the study as a whole."""
        for told in self._check():
            if isinstance(told, Finding):
                self.counts["findings"] += 1
                self._faulty.add(told.artifact)
            elif told.unsure:
                self.counts["unsure"] += 1
            yield told
        if self._before is not None:
            if self.counts["findings"]:
                forget()
            else:
                self._vouched.write()

    def _check(self) -> Iterator[Finding | Note]:
        folders, misplaced = self._find()
        yield from misplaced
        if not folders:
            yield Note("could not tell: there is no artifact here", unsure=True)
        with ThreadPoolExecutor(self._threads) as pool:
            try:
                for examined in self._read(pool, progress(folders, len(folders), "artifacts")):
                    yield from self._finish(examined)
            finally:
                pool.shutdown(cancel_futures=True)
        yield from self._check_let_go()
        missing = set()
        for finding in check_chain(self._summaries):
            missing |= {finding.artifact} - self._summaries.keys()
            yield finding
        yield from self._compare_with_inputs()
        if self._names is None:
            yield from check_plan(self._summaries, missing)
        if self._signers is not None:
            yield from self._check_signatures(self._signers)
        yield from self._notes()

    @staticmethod
    def _check_signatures(signers: Path) -> Iterator[Finding | Note]:
        try:
            told = vouchers(Path(), signers)
        except UserError as error:
            yield Note(f"could not tell who signed the report: {error}", unsure=True)
        else:
            yield from told.findings()
            if told.names:
                yield Note(f"{told.report} is signed by {', '.join(told.names)}")

    def _find(self) -> tuple[list[Path], list[Finding]]:
        """The folders to look at, and what lies between those of a whole study wrongly."""
        return find_artifacts(Path()) if self._names is None else ([artifact_folder(name) for name in self._names], [])

    def _read(self, pool: ThreadPoolExecutor, folders: Iterator[Path]) -> Iterator[Examined]:
        """Examine artifacts, and read their files by threads, some artifacts ahead; yield them in their order."""
        pending: deque[tuple[Examined, list[Future[Read]]]] = deque()
        for folder in folders:
            examined = examine(folder)
            reads = [pool.submit(read_files, batch, self._before) for batch in batches(folder, examined.files)]
            pending.append((examined, reads))
            if len(pending) > ARTIFACTS_AHEAD:
                yield self._collect(*pending.popleft())
        while pending:
            yield self._collect(*pending.popleft())

    def _collect(self, examined: Examined, reads: list[Future[Read]]) -> Examined:
        """Wait until the files of an artifact are read, and add what is wrong with them."""
        vouched = 0
        for future in reads:
            read = future.result()
            vouched += read.vouched
            for problem in read.problems:
                examined.add(problem)
            if self._before is not None:
                for name, state in read.states.items():
                    if state is not None:
                        sha256 = examined.files[Path(name).relative_to(examined.folder).as_posix()][1]
                        self._vouched.files[name] = [*state, sha256]
        self.counts["vouched"] += vouched
        if vouched == len(examined.files):
            self._unread.add(examined.name)
        return examined

    def _finish(self, examined: Examined) -> Iterator[Finding]:
        """Count an artifact's numbers again if it is intact; tell what was found."""
        name, summary = examined.name, examined.summary
        self.counts["artifacts"] += 1
        self._summaries[name] = summary
        if summary is not None:
            self.counts["older"] += summary.record == OLDER
            if examined.spec and examined.manifest and not examined.findings and not self._is_counted(name):
                for problem in recount(Recorded(examined.spec, examined.folder, examined.manifest)):
                    examined.add(f"{examined.folder}: {problem}", Check.NUMBERS)
            self._vouched.records[name] = summary.manifest
        yield from examined.findings

    def _is_counted(self, name: str) -> bool:
        """Whether nothing that an artifact's numbers come from has changed since they were last counted again."""
        summary = self._summaries[name]
        return (
            self._before is not None
            and summary is not None
            and name in self._unread
            and self._before.records.get(name) == summary.manifest
        )

    def _compare_with_inputs(self) -> Iterator[Finding]:
        intact = {name for name, summary in self._summaries.items() if summary is not None and name not in self._faulty}
        for name in sorted(intact):
            for problem in recount_with_inputs(name, intact.__contains__):
                yield Finding(name, Check.NUMBERS, f"{artifact_folder(name)}: {problem}")

    def _check_let_go(self) -> Iterator[Finding]:
        """Findings for what was let go before anything was made from it; the others are counted."""
        used = {name for summary in self._summaries.values() if summary is not None for name in summary.inputs}
        for name, summary in sorted(self._summaries.items()):
            if summary is not None and summary.let_go is not None:
                self.counts["let_go"] += 1
                self.counts["let_go_bytes"] += summary.let_go
                if name not in used:
                    yield Finding(
                        name,
                        Check.ARTIFACT,
                        f"{artifact_folder(name)}: its files were let go, but no run of it is there; snakemake makes "
                        "them again if one is planned",
                    )

    def _notes(self) -> Iterator[Note]:
        changed = {
            name: summary.changed
            for name, summary in self._summaries.items()
            if summary is not None and summary.changed
        }
        for name, parts in sorted(changed.items()):
            yield Note(f"{name}: {', '.join(parts)} changed on disk while it was made; what it names is what ran")
        if count := self.counts["let_go"]:
            yield Note(
                f"the files of {count} index{'es' * (count > 1)} were let go once searched, "
                f"{size(self.counts['let_go_bytes'])}: the records are checked, the bytes cannot be"
            )
        if before := before_let_go(self._summaries):
            yield Note(
                "made from an index that was let go, and that has other bytes since it was made again: "
                f"{', '.join(before[:RUNS_SHOWN])}"
                + (f" and {len(before) - RUNS_SHOWN} more" * (len(before) > RUNS_SHOWN))
            )
        if self.counts["older"]:
            yield Note(
                f"{self.counts['older']} artifacts have an older record: these checks cannot be made: whole digests of "
                "specs, the chain of manifests, attempts by name and code, histories of losses"
            )
