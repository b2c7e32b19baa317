"""Arguments of steps that are passed in files: Linux allows 128 KiB in one argument, and a spec may be longer.

Snakemake writes the files into the state folder before it starts the first job, and at its end deletes those of
published artifacts. A job that outlives a killed Snakemake thus finds its own, and the next run writes the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from colbert_zero.graph.artifact import SPEC_FILE, STATE_FOLDER, artifact_folder
from colbert_zero.graph.digests import canonical_json
from colbert_zero.graph.study import Study
from colbert_zero.graph.text_files import replace_text

ARGUMENT_FILE = re.compile(r"(?P<name>.+-[0-9a-f]{12})\.(spec|evaluate)\.json")


def write_arguments(study: Study, keys: Iterable[str]) -> None:
    """Write the files that the steps of the artifacts with `keys` are passed; those that are there already, stay."""
    for spec in (study.known[key] for key in set(keys) & study.known.keys()):
        arguments = {"spec": spec.text}
        if spec.key in study.evaluations:
            arguments["evaluate"] = canonical_json(study.evaluations[spec.key])
        for option, text in arguments.items():
            path = spec.argument_file(option)
            if not (path.is_file() and path.read_bytes() == text.encode()):
                replace_text(path, text)


def delete_used_arguments() -> None:
    """Delete the files for artifacts of the current study that are published by now."""
    for path in STATE_FOLDER.glob("*/*.json"):
        match = ARGUMENT_FILE.fullmatch(path.name)
        if match and (artifact_folder(f"{path.parent.name}/{match['name']}") / SPEC_FILE).is_file():
            path.unlink(missing_ok=True)
