"""A study of the paper's shape with a million documents and a hundred thousand queries, killed ten times.

    python tests/benchmarks/bench_scale.py [FOLDER] [--documents 1000000] [--queries 100000] [--kills 10]

The simulated study (`simulated_study.py`) runs three times by `snakemake --profile local`: a tenth of it, all of it,
and all of it with every process killed at times that are drawn. Said are the most memory that a process of each step
took in a tenth and in all, which should be about as much; the most that the study took on disk, and what `plan` said
once the texts were there; and whether both whole studies have the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import chdir, suppress
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
import simulated_study
from colbert_zero.graph.artifact import MANIFEST_FILE, SPEC_FILE, published_folders
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.paths import REPOSITORY
from colbert_zero.report.ledger import Ledger
from colbert_zero.report.offline_study import offline_study
from colbert_zero.report.plan import Plan
from colbert_zero.report.sizes import Manifests
from measured import MIB, family, memory_of, table, work_folder

SECONDS_BETWEEN_LOOKS = 0.5
LOOKS_FOR_ONE_AT_THE_DISK = 4
PART = 10
"""How many times larger the whole study is than the one that its memory is compared with."""
TIMED_KINDS = ("reports",)
"""Kinds of artifacts that hold times."""
SEED = 7
KILLED_AFTER = (0.02, 0.1)
"""After which parts of the time that the study takes it is killed, at least and at most."""
PACKAGE = "colbert_zero."


class Watch:
    """Looks at a process and all that it has started, as long as it runs.

    Attributes:
        memory: By step, the most MiB that a process of it held, without pages of mapped files.
        disk: The most bytes that the study's files took at a time.
    """

    def __init__(self, study: Path) -> None:
        """Look at a study."""
        self._study = study
        self.memory: dict[str, int] = {}
        self.disk = 0

    def run(self, process: subprocess.Popen[str], seconds: float | None = None) -> bool:
        """Look until the process ends; or for so many seconds, and kill it and all that it has started.

        Returns:
            Whether it ended by itself.
        """
        started, looks = time.monotonic(), 0
        while process.poll() is None:
            members = family(process.pid)
            for member in members:
                self._look(member)
            if looks % LOOKS_FOR_ONE_AT_THE_DISK == 0:
                self.disk = max(self.disk, bytes_below(self._study))
            if seconds is not None and time.monotonic() > started + seconds:
                for member in members:
                    with suppress(psutil.NoSuchProcess):
                        member.kill()
                process.wait()
                return False
            looks += 1
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return True

    def _look(self, process: psutil.Process) -> None:
        with suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            steps = [word.removeprefix(PACKAGE) for word in words if word.startswith(PACKAGE)]
            step = steps[0] if steps else "snakemake"
            self.memory[step] = max(self.memory.get(step, 0), memory_of(process)[1] // MIB)


def bytes_below(folder: Path) -> int:
    """The bytes on disk of all files below a folder, of which some may go while they are counted; links count nothing.

    Files with two names count once.
    """
    seen = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                status = os.lstat(os.path.join(parent, name))
                seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def start(study: Path, *targets: str) -> subprocess.Popen[str]:
    """Start Snakemake on a study."""
    command = [sys.executable, "-m", "snakemake", "--profile", "local", "--directory", str(study), *targets]
    log = (study / "output.txt").open("a")
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, text=True)


def run(study: Path, watch: Watch, kills: list[float], *targets: str) -> int:
    """Run Snakemake until the study is whole, and kill it after each of some times; return how often it was killed.

    Raises:
        SystemExit: It failed.
    """
    for times, seconds in enumerate([*kills, None]):
        process = start(study, *targets)
        if watch.run(process, seconds):
            if process.returncode:
                sys.exit(f"{study}: Snakemake failed:\n{(study / 'output.txt').read_text()[-4000:]}")
            return times
    raise AssertionError("the last run ends by itself")


def planned_peak(study: Path) -> float:
    """The most bytes that `plan` says a study will take on disk, with one index at a time for each processor."""
    with chdir(study):
        found, _ = offline_study(read_config(Path(CONFIG_FILE)))
        manifests = Manifests()
        space = Plan(found, manifests, list(Ledger(found, manifests).entries.values())).space
    assert not (space.peak.unknown or space.vectors.unknown), "the texts are there"
    return space.peak.known + (os.cpu_count() or 1) * (space.largest + space.vectors.known)


def texts_of(study: Path) -> list[str]:
    """The targets that fetch a study's texts and make its shards."""
    with chdir(study):
        found, _ = offline_study(read_config(Path(CONFIG_FILE)))
        kinds = ("sources", "collections", "shards", "bases")
        return [str(spec.folder / SPEC_FILE) for spec in found.specs.values() if spec.kind in kinds]


def digests(study: Path) -> dict[str, object]:
    """What the files of a study's artifacts are, but for those that hold times."""
    folders = [folder for folder in published_folders(study) if folder.parent.name not in TIMED_KINDS]
    return {
        f"{folder.parent.name}/{folder.name}": json.loads((folder / MANIFEST_FILE).read_bytes())["outputs"]
        for folder in folders
    }


def main() -> None:
    """Run the three, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=work_folder, help="where to write; by default in TMPDIR")
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="scale-"))
    sizes = {"part": PART, "whole": 1, "killed": 1}
    watches, planned = {}, 0.0
    draws, seconds = random.Random(SEED), 0.0
    for name, part in sizes.items():
        study = folder / name
        simulated_study.write(study, options.documents // part, options.queries // part)
        watch = watches[name] = Watch(study)
        run(study, watch, [], *texts_of(study))
        if name == "whole":
            planned = planned_peak(study)
        kills = [draws.uniform(*KILLED_AFTER) * seconds for _ in range(options.kills)] if name == "killed" else []
        started = time.monotonic()
        killed = run(study, watch, kills)
        seconds = time.monotonic() - started
        print(f"{name}: {seconds:.0f} s, killed {killed} times, {watch.disk / 1e9:.2f} GB on disk at most", flush=True)
    rows = [
        (step, watches["part"].memory.get(step, "–"), most, watches["killed"].memory.get(step, "–"))
        for step, most in sorted(watches["whole"].memory.items())
    ]
    print(table(("MiB of a process, without files", f"1/{PART} of it", "whole", "killed"), rows))
    print(f"disk: {max(watches[name].disk for name in ('whole', 'killed')) / 1e9:.2f} GB, planned {planned / 1e9:.2f}")
    whole, others = digests(folder / "whole"), digests(folder / "killed")
    different = sorted(name for name in whole.keys() | others.keys() if whole.get(name) != others.get(name))
    print(f"{len(whole)} artifacts, {len(different)} with other bytes{': ' if different else ''}{', '.join(different)}")
    if different or max(watches[name].disk for name in ("whole", "killed")) > planned:
        sys.exit(1)


if __name__ == "__main__":
    main()
