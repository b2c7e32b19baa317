"""Plan releases: of each recipe's row, the folder that can be published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.local_files import problem_with_file
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.evaluation import Row

SIGNATURES = Path("signatures")
"""The folder of a study's signatures."""
STATEMENT, SIGNATURE = ".json", ".json.sig"
"""How the names of a statement and its signature end."""
LARGEST_SIGNATURE = 2**16
"""Bytes that a statement or a signature may have: what stands in a spec is small."""


def plan_releases(draft: Draft, report: Spec, rows: Sequence[Row]) -> dict[str, Spec]:
    """The release of each row that is trained, by the row's name.

    A release has the signatures that its report has. They are in its spec, as all that decides its files: once a report
    is signed, its releases are others.

    Args:
        draft: The study.
        report: The report that has the rows.
        rows: The rows, a seed each.
    """
    signatures = _signatures(draft.folder, report)
    said = dict(draft.config["release"]) | ({"signatures": signatures} if signatures else {})
    return {
        row.name: draft.add(
            "releases", row.name, {"row": row.name, **said}, {"model": row.stages[-1], "report": report}
        )
        for row in rows
        if row.stages
    }


def _signatures(study: Path, report: Spec) -> dict[str, str]:
    """The texts of the statements about a report and of their signatures, by file.

    What is no pair of small texts is left out: it vouches for nothing, as `colbert-zero verify --signers` says.
    """
    found: dict[str, str] = {}
    for signature in sorted((study / SIGNATURES).glob(f"{report.folder.name}.*{SIGNATURE}")):
        statement = signature.with_suffix("")
        said, signed = _small_text(statement), _small_text(signature)
        if said is not None and signed is not None:
            found |= {statement.name: said, signature.name: signed}
    return found


def _small_text(path: Path) -> str | None:
    if problem_with_file(path) or path.stat().st_size > LARGEST_SIGNATURE:
        return None
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None
