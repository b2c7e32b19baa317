"""Audit a study, as the last step before its report, which shows the result.

    python -m colbert_zero.audit.study_audit --spec JSON [--threads N]

Everything that the measures are made from, back to the sources, is verified as `colbert-zero verify` does it: records,
bytes, inputs, numbers. The prompts of each recipe are followed from its stages' specs to its indexes. What is found
does not stop the study: it stands in `audit.json`, in the report, and in the log.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from colbert_zero.audit.findings import Finding
from colbert_zero.audit.prompt_chain import Verdict, recipe_places
from colbert_zero.audit.verify import Audit
from colbert_zero.graph.artifact import KEY_DIGITS, Job, is_let_go, step_main
from colbert_zero.graph.console import UserError, log
from colbert_zero.report.audit_section import AUDIT_FILE
from colbert_zero.report.results import Lineage

NOT_CHECKED = (
    "this report itself, which is made afterwards, and config.yaml: colbert-zero verify",
    "whether models, runs and indexes can be made again: colbert-zero ladder and replay",
    "whether somebody changed everything and all records of it: colbert-zero verify --signers, with a signature",
)
"""What the audit leaves open, with the command that says more."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `audit.json`; return counts."""
    lineage = Lineage(job.spec.input_names)
    audit = Audit(job.threads, names=lineage.artifacts)
    told = list(audit.check())
    findings = [asdict(one) for one in told if isinstance(one, Finding)]
    notes = [one.text for one in told if not isinstance(one, Finding)]
    artifacts = [artifact for _, artifact in sorted(lineage.artifacts.items())]
    manifests = [artifact.manifest for artifact in artifacts]
    outputs = [artifact.manifest["outputs"] for artifact in artifacts if not is_let_go(artifact.folder)]
    counts = {
        "artifacts": len(artifacts),
        "files": sum(map(len, outputs)),
        "bytes": sum(entry["bytes"] for files in outputs for entry in files.values()),
        "findings": len(findings),
        "older_records": audit.counts["older"],
    }
    result = {
        **counts,
        "kinds": dict(sorted(Counter(artifact.spec.kind for artifact in artifacts).items())),
        "found": findings,
        "notes": notes,
        "drift": _drift(manifests),
        "prompts": {row: _prompts(row_settings, lineage) for row, row_settings in job.settings["rows"].items()},
        "not_checked": list(NOT_CHECKED),
    }
    text = json.dumps(result, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (job.folder / AUDIT_FILE).write_text(text, encoding="utf-8")
    for finding in findings:
        log.warning("%s", finding["problem"])
    log.info("%d artifacts, %d findings", len(artifacts), len(findings))
    return counts


def _drift(manifests: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """In what the making of a study's artifacts differed: how many were made by each code, Python, machine, library."""
    made: dict[str, Counter[str]] = {}
    for manifest in manifests:
        image = manifest.get("image") or {}
        values = {
            "code": manifest["code"]["digest"],
            "Python": manifest["python"],
            "processor": manifest.get("processor") or "unknown",
            "image": ", ".join(f"{name} {value}" for name, value in sorted(image.items())) or "none",
            **{f"package {name}": version for name, version in manifest["packages"].items()},
        }
        for name, value in values.items():
            made.setdefault(name, Counter())[str(value)] += 1
    return {name: dict(sorted(values.items())) for name, values in sorted(made.items())}


def _prompts(row: Mapping[str, Sequence[str]], lineage: Lineage) -> dict[str, Any]:
    """Where the prompts of a row of the table stand, and how many places differ where that is not meant."""
    specs = {name[-KEY_DIGITS:]: artifact.spec for name, artifact in lineage.artifacts.items()}
    stages = [specs[name[-KEY_DIGITS:]] for name in row["stages"]]
    indexes = [
        specs[index[-KEY_DIGITS:]]
        for measure in row["measures"]
        for run in specs[measure[-KEY_DIGITS:]].inputs["run"]
        for index in specs[run[-KEY_DIGITS:]].inputs.get("index", ())
    ]
    try:
        places = list(recipe_places(stages, indexes, specs))
    except UserError as error:
        return {"places": 0, "meant": 0, "differ": [str(error)]}
    return {
        "places": len(places),
        "meant": sum(place.verdict is Verdict.MEANT for place in places),
        "differ": [f"{place.where} ({place.artifact})" for place in places if place.verdict is Verdict.DIFFERS],
    }


if __name__ == "__main__":
    step_main(make, __doc__)
