"""Make artifacts again, each by its own command, and compare the files.

colbert-zero replay KEY | KIND/LABEL-KEY | ROW/COLLECTION ... [--keep FOLDER]
colbert-zero replay --sample 5 [--seed N] [--budget SECONDS]
colbert-zero replay --all

The command runs in a temporary folder that links to the artifact's recorded inputs, in its image if that is here, with
its threads; nothing is written into the study. TMPDIR decides where. A sample takes artifacts of as many kinds as it
can, at most one of each kind before a second of any, as a digest of the report decides; its artifacts were made in
`--budget` seconds together, and none is fetched from the Hub, which needs the network.

Verdicts: identical (all bytes); within tolerance (how far numbers are off, and how far they may be); different (where
first, and both values); could not tell (why). A replay shows that files follow from their inputs by today's code. It
shows nothing of the inputs: replay those too. Exit 0: all identical or within tolerance; 1: different; 2: cannot tell.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from colbert_zero.audit.drift import Reach, code_changes
from colbert_zero.audit.sandbox import NOT_REPLAYED, needs_network, open_sandbox
from colbert_zero.audit.selection import (
    DAMAGE,
    count_by_kind,
    damage_text,
    gpu_of,
    names_of,
    open_artifacts,
    seconds_of,
    select,
)
from colbert_zero.audit.tolerance import Comparison, Verdict, compare_artifacts, exit_status, worst
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.code import part_digests
from colbert_zero.graph.console import UserError, one_line
from colbert_zero.graph.digests import digest
from colbert_zero.graph.draws import draw
from colbert_zero.graph.provenance import c_library, machine, package_versions
from colbert_zero.report.columns import counted

FAILED = 2
BUDGET_SECONDS = 600.0
"""How long the artifacts of a sample took to make, together, at most."""
MODULES_SHOWN = 3
"""How many of the modules that have changed are named with a difference."""
SAME_MACHINE = "the same code on the same kind of processor should give the same bytes"
"""Said of a difference if code, libraries and processor are those that the artifact was made by."""


@dataclass(frozen=True)
class Replay:
    """How an artifact compares with what its command makes.

    Attributes:
        artifact: The artifact.
        comparisons: How each file compares, and the facts; none if the command failed.
        notes: What was otherwise than when the artifact was made; or why there is nothing to compare.
        seconds: How long it took.
    """

    artifact: Artifact
    comparisons: Sequence[Comparison]
    notes: Sequence[str]
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of a file."""
        return worst(comparison.verdict for comparison in self.comparisons) if self.comparisons else Verdict.UNKNOWN

    def lines(self) -> Iterator[str]:
        """The verdict, and a line for each file that is not identical and for each note."""
        files = f", {len(self.comparisons) - 1} files" if self.comparisons else ""
        yield f"{self.verdict}: {self.artifact.name}{files}, {self.seconds:.1f} s"
        for comparison in self.comparisons:
            if comparison.verdict != Verdict.IDENTICAL:
                yield f"  {comparison.file}: {comparison.verdict}: {comparison.detail}"
        yield from (f"  {note}" for note in self.notes)


def replay(artifact: Artifact, keep: Path | None = None) -> Replay:
    """Make an artifact of the current study again, and compare its files.

    Args:
        artifact: The artifact.
        keep: The folder to keep what was made in, as `KIND/LABEL-KEY`; None to delete it.

    Raises:
        UserError: `keep` cannot take it.
    """
    started = time.monotonic()
    with open_sandbox() as sandbox:
        try:
            sandbox.add_inputs(artifact)
            made = sandbox.make(artifact)
        except (UserError, *DAMAGE) as error:
            return Replay(artifact, (), [*sandbox.notes, damage_text(error)], time.monotonic() - started)
        comparisons = compare_artifacts(artifact, made)
        notes = list(sandbox.notes)
        if worst(comparison.verdict for comparison in comparisons) != Verdict.IDENTICAL:
            notes += reasons(artifact, sandbox.notes)
        if keep is not None:
            _keep(made, keep)
    return Replay(artifact, comparisons, notes, time.monotonic() - started)


def reasons(artifact: Artifact, notes: Sequence[str]) -> Iterator[str]:
    """What may have made a difference besides `notes`, for people; `SAME_MACHINE` if nothing that is known."""
    changes = [change for change in code_changes(artifact.manifest, part_digests()) if change.reach != Reach.NO]
    if changes:
        more = f" and {len(changes) - MODULES_SHOWN} more" if len(changes) > MODULES_SHOWN else ""
        texts = "; ".join(change.text for change in changes[:MODULES_SHOWN])
        yield f"made by other code than is here: {texts}{more}"
    manifest, here = artifact.manifest, package_versions()
    packages = manifest.get("packages")
    recorded = packages if isinstance(packages, dict) else {}
    others = sorted(name for name, version in recorded.items() if here.get(name) != version)
    if others:
        yield f"made with other versions of {', '.join(others)}"
    other_machine = manifest.get("processor") != machine()["processor"]
    if other_machine:
        yield f"made on another processor ({manifest.get('processor', 'not recorded')})"
    made_with, here_with = (c_library(str(name)) for name in (manifest.get("platform"), machine()["platform"]))
    other_library = made_with is not None and made_with != here_with
    if other_library:
        yield f"made with another C library ({made_with}, here {here_with}), which rounds some functions otherwise"
    if not (changes or others or other_machine or other_library or notes or gpu_of(manifest)):
        yield SAME_MACHINE


def _keep(made: Artifact, folder: Path) -> None:
    target = folder / made.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made.folder, target)


def draw_sample(
    artifacts: Iterable[Artifact], size: int, seed: int, budget: float
) -> tuple[list[Artifact], list[tuple[Artifact, str]]]:
    """Draw artifacts to replay, of as many kinds as possible.

    Args:
        artifacts: Those to draw from.
        size: How many.
        seed: Decides the draw, whatever the order of `artifacts`.
        budget: The seconds that the drawn ones took to make, together, at most.

    Returns:
        The drawn artifacts, sorted by name; and those that could not be drawn, each with the reason.
    """
    left_out: list[tuple[Artifact, str]] = []
    by_kind: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        if artifact.spec.kind in NOT_REPLAYED:
            left_out.append((artifact, NOT_REPLAYED[artifact.spec.kind]))
        elif needs_network(artifact):
            left_out.append((artifact, "fetched from the Hub, which needs the network"))
        elif seconds_of(artifact) > budget:
            left_out.append((artifact, f"made in more than --budget {budget:.0f} s"))
        else:
            by_kind.setdefault(artifact.spec.kind, []).append(artifact)
    queue = [
        (rank, draw(seed, "replay kind", kind), artifact)
        for kind, drawn in by_kind.items()
        for rank, artifact in enumerate(sorted(drawn, key=lambda artifact: draw(seed, "replay", artifact.name)))
    ]
    chosen: list[Artifact] = []
    seconds = 0.0
    for _, _, artifact in sorted(queue, key=lambda entry: entry[:2]):
        if len(chosen) == size:
            break
        if seconds + seconds_of(artifact) > budget:
            left_out.append((artifact, "what was left of --budget is too little"))
            continue
        chosen.append(artifact)
        seconds += seconds_of(artifact)
    return sorted(chosen, key=lambda artifact: artifact.name), left_out


def default_seed(artifacts: Iterable[Artifact]) -> int:
    """The seed that a study's reports decide."""
    reports = sorted(artifact.spec.digest for artifact in artifacts if artifact.spec.kind == "reports")
    return int(digest(" ".join(reports))[:16], 16)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the artifacts to replay, and the flags for a sample."""
    parser.add_argument("targets", nargs="*", metavar="ARTIFACT", help="a key, a name, or a cell: ROW/COLLECTION")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="replay N artifacts, of many kinds")
    parser.add_argument("--seed", type=int, help="decides the sample (the digest of the report)")
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET_SECONDS,
        metavar="SECONDS",
        help=f"how long the artifacts of a sample took to make, together, at most ({BUDGET_SECONDS:.0f})",
    )
    parser.add_argument("--all", action="store_true", help="replay every artifact, which takes what the study took")
    parser.add_argument(
        "--keep",
        type=lambda text: Path(text).resolve(),
        metavar="FOLDER",
        help="keep what was made in this folder",
    )


def run(options: argparse.Namespace) -> int:
    """Replay artifacts and write a verdict for each; return 0 if all agree, 1 if one differs, 2 if one cannot be told.

    Raises:
        UserError: No artifact is asked for, or one that does not exist.
    """
    artifacts, problems = open_artifacts()
    named = [select(text, artifacts, problems) for text in options.targets]
    chosen = list({artifact.name: artifact for artifact in named}.values())
    left_out: list[tuple[Artifact, str]] = []
    if options.sample > 0:
        seed = default_seed(artifacts) if options.seed is None else options.seed
        others = [artifact for artifact in artifacts if artifact.name not in names_of(chosen)]
        drawn, left_out = draw_sample(others, options.sample, seed, options.budget)
        chosen += drawn
    elif options.all:
        chosen = artifacts
    elif not options.targets:
        raise UserError("name an artifact (a key, a name, or ROW/COLLECTION), or draw some: --sample 5")
    keep = None if options.keep is None else _checked_keep(options.keep, chosen)
    verdicts = []
    for artifact in chosen:
        result = replay(artifact, keep)
        verdicts.append(result.verdict)
        _write(result.lines())
    counts = ", ".join(f"{count} {verdict}" for verdict in Verdict if (count := verdicts.count(verdict)))
    _write([f"{counted(len(chosen), 'artifact')} replayed: {counts or 'none'}"])
    for reason in sorted({reason for _, reason in left_out}):
        names = [artifact.name for artifact, why in left_out if why == reason]
        _write([f"not drawn: {count_by_kind(names)}: {reason}"])
    _write(problems.values())
    if options.all:
        verdicts += [Verdict.UNKNOWN] * len(problems)
    return exit_status(verdicts) if verdicts else FAILED


def _checked_keep(folder: Path, artifacts: Iterable[Artifact]) -> Path:
    if folder.resolve().is_relative_to(Path().resolve()):
        raise UserError(f"--keep {folder} is in the study, where a replay writes nothing: name a folder outside of it")
    for artifact in artifacts:
        if (folder / artifact.name).exists():
            raise UserError(f"{folder / artifact.name} is there already: move it away")
    return folder


def _write(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(one_line(line) + "\n" for line in lines))
    sys.stdout.flush()
