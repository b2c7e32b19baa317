"""A study's config against the artifacts that are there: whether the report is one of today's config, and whole."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path

from colbert_zero.audit.chain import Summaries
from colbert_zero.audit.findings import Check, Finding, Note
from colbert_zero.audit.records import OLDER
from colbert_zero.graph.artifact import Spec, artifact_folder, read_manifest
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.console import UserError
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.study import Study

NAMES_SHOWN = 4


def check_plan(summaries: Summaries, told: Set[str]) -> Iterator[Finding | Note]:
    """Compare the artifacts of the study in the current folder with what its config plans today.

    Planned artifacts that are missing are faults only where the report that rests on them is there: else the study is
    not finished, or its config was edited since, which cannot be told apart.

    Args:
        summaries: What was examined.
        told: Artifacts whose absence was told before.
    """
    reports = sorted(name for name in summaries if name.startswith("reports/"))
    try:
        study = Study(read_config(Path(CONFIG_FILE)), Path(), remember=False)
    except UserError as error:
        yield Note(f"could not tell whether these are the artifacts of {CONFIG_FILE}: {error}", unsure=True)
        if not reports:
            yield Note("could not tell: there is no report", unsure=True)
        return
    planned = {spec.name: spec for spec in study.known.values()}
    missing = sorted({spec.name for spec in study.specs.values()} - summaries.keys())
    for name in sorted(planned.keys() & summaries.keys()):
        summary = summaries[name]
        if summary is not None and summary.spec is not None and summary.spec != planned[name].digest:
            yield Finding(
                name, Check.STUDY, f"{artifact_folder(name)}: its spec is not the one that {CONFIG_FILE} plans"
            )
    yield from _other_copies(study, summaries)
    if study.report.name in summaries:
        for name in missing:
            if name not in told:
                yield Finding(
                    name,
                    Check.STUDY,
                    f"{artifact_folder(name)} is not there, but the report that {CONFIG_FILE} plans rests on it; put "
                    "it back, or run snakemake to make it",
                )
    else:
        yield from _without_report(study, reports, missing, summaries)
    others = len(summaries.keys() - planned.keys())
    if others:
        yield Note(f"{others} of {len(summaries)} artifacts are of another config, or of another version's plans")


def _other_copies(study: Study, summaries: Summaries) -> Iterator[Finding]:
    """Artifacts that are no copies of the user's own folders: planning has found those to be what their specs say."""
    for key, path in sorted(study.paths.items()):
        spec = study.specs.get(key)
        summary = summaries.get(spec.name) if spec else None
        if spec is None or summary is None or not path.is_dir() or spec.settings.get("sha256") in (None, summary.files):
            continue
        # The folder has more files than are copied.
        for name, entry in read_manifest(spec.folder)["outputs"].items():
            if not (path / name).is_file() or file_digest(path / name) != entry["sha256"]:
                yield Finding(
                    spec.name, Check.NUMBERS, f"{spec.folder / name} is no copy of {path / name}, which its spec names"
                )


def _without_report(
    study: Study, reports: list[str], missing: list[str], summaries: Summaries
) -> Iterator[Finding | Note]:
    """What to say of a study whose planned report is not there."""
    first = [spec for spec in study.specs.values() if spec.name in missing and not _waits(spec, missing)]
    shown = ", ".join(sorted(spec.name for spec in first)[:NAMES_SHOWN])
    more = len(first) - NAMES_SHOWN
    count = f"{len(missing)} of the {len(study.specs)} artifacts that {CONFIG_FILE} plans are not made yet"
    count += f", first {shown}" + (f" and {more} more" if more > 0 else "")
    if not reports:
        yield Note(f"could not tell: there is no report; {count}", unsure=True)
        return
    last = summaries[reports[-1]]
    # Versions plan some artifacts otherwise. A report of an older record may be the one of this very config.
    older = last is not None and last.record == OLDER
    yield Note(
        f"{'' if older else 'could not tell: '}the report {reports[-1]} is of another config"
        f"{', or of an earlier version' if older else ''}; {count}",
        unsure=not older,
    )


def _waits(spec: Spec, missing: list[str]) -> bool:
    """Whether an artifact is made from another one that is missing."""
    return not set(missing).isdisjoint(spec.input_names)
