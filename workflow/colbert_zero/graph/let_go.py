"""Let the files of a run's index go once the run is published, to free space.

    python -m colbert_zero.graph.let_go --spec '{"kind":"runs","label":"colbert.toy",...}'

An index is a means: measures, the report, `verify` and `trace` need its record alone. With `evaluation: { keep_indexes:
false }` each search is followed by this command, and a run of Snakemake begins with it for all runs that are there. It
deletes the files that the index's manifest lists, and nothing else: `spec.json` and `manifest.json` stay, and
`let-go.json` beside them says for which run the files went, and when. So the setting decides no key and no digest. A
study has one run of an index: what else asks for the index, such as the run of another depth, has it made again first
(the rule `make_again`), from the inputs that its spec names.

The marker is written before the first file goes. Who is killed between the run's publication and the last file leaves
files that the next run of Snakemake deletes; files that are missing without a marker are damage, as in any artifact,
and the others then stay.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from colbert_zero.graph.artifact import LET_GO_FILE, MANIFEST_FILE, SPEC_FILE, Artifact, Spec, is_let_go
from colbert_zero.graph.console import UserError, log, run_reporting_errors
from colbert_zero.graph.digests import canonical_json
from colbert_zero.graph.locks import acquire_lock
from colbert_zero.graph.text_files import replace_text

if TYPE_CHECKING:
    from colbert_zero.graph.study import Study

LET_GO_KIND = "indexes"
"""The kind of artifacts whose files can be let go: each is for one run, and follows from its inputs."""


def let_go(run: Spec) -> int:
    """Let the files of the index of a published run go; return the bytes that became free.

    What cannot be deleted, or is damaged, stays, and a line says why: no step waits for the space.
    """
    freed = 0
    for name in run.input_names:
        if name.partition("/")[0] == LET_GO_KIND:
            try:
                Artifact.open(run.name)
                freed += _delete_files(Artifact.open(name), run)
            except (UserError, OSError) as error:
                log.info("the files of %s stay: %s", name, error)
    return freed


def _delete_files(index: Artifact, run: Spec) -> int:
    listed = {index.folder / name for name in index.files()}
    with acquire_lock(index.spec.lock_file, f"making {index.name}"):
        # What is found there, rather than what is listed: so no path of a manifest leads out of its folder.
        files = [path for path in index.folder.rglob("*") if path in listed and path.is_file()]
        if not is_let_go(index.folder):
            if len(files) < len(listed):
                raise UserError(f"some of them are missing in {index.folder}: colbert-zero verify")
            moment = datetime.now(UTC).isoformat(timespec="seconds")
            replace_text(index.folder / LET_GO_FILE, canonical_json({"run": run.name, "time": moment}))
        # Else Snakemake would take them for made again, should they be needed.
        index.spec.again_file.unlink(missing_ok=True)
        freed = sum(path.stat().st_size for path in files)
        for path in files:
            path.unlink()
        folders = {folder for path in files for folder in path.relative_to(index.folder).parents} - {Path()}
        for folder in sorted(folders, reverse=True):
            with suppress(OSError):
                (index.folder / folder).rmdir()
    if freed:
        log.info("let the files of %s go: %.3f GB; its record stays", index.name, freed / 1e9)
    return freed


def let_go_finished(study: Study, busy: Iterable[str]) -> int:
    """Let the files of the index of each published run go, unless the config keeps indexes.

    Args:
        study: The study, in the current folder.
        busy: The keys of the artifacts that jobs are about to be started for: their inputs stay.

    Returns:
        The bytes that became free.
    """
    if study.config["evaluation"]["keep_indexes"]:
        return 0
    keys = set(busy)
    runs = [spec for spec in study.specs.values() if spec.kind == "runs" and spec.key not in keys]
    return sum(let_go(run) for run in runs if all((run.folder / file).is_file() for file in (SPEC_FILE, MANIFEST_FILE)))


def main(argv: list[str] | None = None) -> int:
    """Let the files of the index of the run that `--spec` describes go; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Spec.from_argument, required=True, help="the run's spec: JSON, or a file")

    def work() -> int:
        let_go(parser.parse_args(argv).spec)
        return 0

    return run_reporting_errors(work)


if __name__ == "__main__":
    sys.exit(main())
