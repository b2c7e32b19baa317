"""Release a model: its files, its card and the records behind both, as a folder that can be published as it is.

    python -m colbert_zero.report.release --spec '{"kind":"releases","label":"colbert-zero",...}'

The files are the model's own, hard links where the file system has them. `README.md` is the card, `SHA256SUMS` has the
digests of all files, and `provenance/` the specs and manifests from which others can follow the numbers to the weights,
and the signatures of the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import MANIFEST_FILE, SPEC_FILE, Job, artifact_folder, step_main
from colbert_zero.graph.console import UserError
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.json_values import parse_json
from colbert_zero.graph.local_files import link_or_copy
from colbert_zero.report.model_card import CARD_FILE, RECORDS_FOLDER, SIGNATURES_FOLDER, SUMS_FILE, ModelCard

RECORDED_KINDS = frozenset({"reports", "measures", "runs", "indexes", "models", "selections"})
"""Kinds whose manifests are released: what lies between the report and the weights. Of others, the specs are enough."""


def make(job: Job) -> Mapping[str, Any]:
    """Write the release's files.

    Returns:
        row, model, measure, and values: what the card says by collection, and their mean.

    Raises:
        UserError: A signature is not of the report as it is.
    """
    _refuse_other_signatures(job)
    card = ModelCard.open(job.spec)
    for name in card.model.files():
        target = job.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(card.model.file(name), target)
    for name, text in texts(card):
        _write(job.folder / name, text)
    _write(job.folder / SUMS_FILE, sums(job.folder))
    return {
        "row": job.settings["row"],
        "model": card.model.name,
        "measure": card.row.measure,
        "values": card.values,
    }


def texts(card: ModelCard) -> Iterator[tuple[str, str]]:
    """The path and the text of each file of a release that is neither the model's nor the sums."""
    yield CARD_FILE, card.text
    yield from _records(card)
    for file, text in card.spec.settings.get("signatures", {}).items():
        yield f"{SIGNATURES_FOLDER}/{file}", text


def _records(card: ModelCard) -> Iterator[tuple[str, str]]:
    """The path and the text of each record that a release has: specs of all, manifests of what leads to the weights."""
    for name in sorted({card.report.name, *card.artifacts}):
        recorded = name.partition("/")[0] in RECORDED_KINDS
        for file in (SPEC_FILE, MANIFEST_FILE) if recorded else (SPEC_FILE,):
            yield f"{RECORDS_FOLDER}/{name}/{file}", (artifact_folder(name) / file).read_bytes().decode()


def sums(folder: Path) -> str:
    """The lines of `SHA256SUMS` for the files of a folder that is not an artifact yet."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)


def _refuse_other_signatures(job: Job) -> None:
    """Refuse a statement about another record of the report than the one that is there."""
    manifest = file_digest(job.input("report").folder / MANIFEST_FILE)
    for file, text in job.settings.get("signatures", {}).items():
        if file.endswith(".json"):
            try:
                said = parse_json(text)["manifest"]
            except (ValueError, TypeError, KeyError):
                said = None
            if said != manifest:
                raise UserError(
                    f"signatures/{file} is not of the report as it is: sign it again with colbert-zero sign, or move "
                    "the file and its .sig away"
                )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


if __name__ == "__main__":
    step_main(make, __doc__)
