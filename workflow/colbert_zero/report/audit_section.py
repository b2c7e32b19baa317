"""The sections of a report that say what an audit found: the study's own, and the test's texts in the training rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.json_values import read_json
from colbert_zero.report.overlaps import EXPLANATION, MATCHES, PARTS, Overlap, by_sources, collection_name, overlaps
from colbert_zero.report.results import Lineage
from colbert_zero.report.sections import Cell, Section, Table, TableRow, build_table, format_cell

AUDIT_FILE = "audit.json"
"""The file of the artifact `audits/*`."""
FINDINGS_SHOWN = 50


def audit_sections(inputs: Mapping[str, Sequence[str]], lineage: Lineage) -> Iterator[Section]:
    """The sections of a report with these inputs; none if no audit is among them.

    Raises:
        UserError: A file is missing, truncated or edited.
    """
    for name in (name for names in inputs.values() for name in names if name.startswith("audits/")):
        audit = lineage.artifacts[name]
        yield _contamination(audit, lineage)
        yield _audit(read_json(audit.file(AUDIT_FILE)))


def _contamination(audit: Artifact, lineage: Lineage) -> Section:
    rows = {row: settings["contamination"] for row, settings in audit.spec.settings["rows"].items()}
    tables = [
        _overlap_table(", ".join(names), overlaps([lineage.artifacts[name] for name in artifacts]))
        for names, artifacts in by_sources({row: names for row, names in rows.items() if names})
    ]
    return Section("Contamination", [EXPLANATION], tables)


def _overlap_table(title: str, collections: Mapping[str, Mapping[str, Overlap]]) -> Table:
    header = [column for part in PARTS.values() for column in (part, "exact", "13-gram")]
    rows = []
    for name, parts in collections.items():
        cells = []
        for part in PARTS:
            counts = parts[part]
            cells += [format_cell(counts.judged), *(_share(getattr(counts, match), counts.judged) for match in MATCHES)]
        found = any(overlap.ngram for overlap in parts.values())
        rows.append(TableRow(collection_name(name), cells, "differs" if found else ""))
    return build_table(title, header, rows)


def _share(count: int, of: int) -> Cell:
    share = f" ({100 * count / of:.1f} %)" if count else ""
    return Cell(format_cell(count).text + share, numeric=True)


def _audit(audit: Mapping[str, Any]) -> Section:
    """What was verified before the report was made, and what was found."""
    differing = [f"{row}: {place}" for row, proof in audit["prompts"].items() for place in proof["differ"]]
    places, meant = (sum(proof[name] for proof in audit["prompts"].values()) for name in ("places", "meant"))
    several = {name: values for name, values in audit["drift"].items() if len(values) > 1}
    entries = {
        "artifacts verified": format_cell(audit["artifacts"]).text,
        "files verified": f"{format_cell(audit['files']).text}, {format_cell(audit['bytes']).text} bytes",
        "findings": format_cell(audit["findings"]).text,
        "prompts": f"{places} places: {len(differing)} differ, and {meant} differ as the config says",
        "made otherwise": "; ".join(f"{name}: {len(values)}" for name, values in several.items()) or "nothing",
        "not checked": "; ".join(audit["not_checked"]),
    }
    problems = [finding["problem"] for finding in audit["found"]] + [f"prompts differ: {place}" for place in differing]
    tables = [build_table("", [""], [TableRow(name, [Cell(text)]) for name, text in entries.items()])]
    if problems:
        shown = [TableRow(str(number), [Cell(text)]) for number, text in enumerate(problems[:FINDINGS_SHOWN], 1)]
        tables.append(build_table(f"findings ({len(problems)})", [""], shown))
    verdict = (
        f"{len(problems)} findings: do not believe this table before they are explained."
        if problems
        else "Everything below the table, back to the sources, is as it was made. Made otherwise: by how many codes, "
        "libraries, machines or images, where it is more than one."
    )
    return Section("Audit", [verdict, *audit["notes"]], tables)
