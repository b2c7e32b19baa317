"""Who vouches for a study: signatures of its report, and of everything below it.

A signature is over a statement of a few lines of JSON: the study, the report, and the digests of the report's spec and
manifest. That manifest has the digests of its files and of its inputs' manifests, theirs of theirs, and so on down to
the downloaded bytes: with a signature of the report and without the key, nothing below can be changed unseen.

Statements and signatures stand in `signatures/` of the study, beside the results, so that signing changes no artifact:
`REPORT.FINGERPRINT.json` and `.json.sig`, a pair for each key that signed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colbert_zero.audit import openssh
from colbert_zero.audit.findings import Check, Finding
from colbert_zero.graph.artifact import MANIFEST_FILE, SPEC_FILE, Spec, artifact_folder
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.console import UserError
from colbert_zero.graph.digests import canonical_json, file_digest
from colbert_zero.graph.json_values import parse_json
from colbert_zero.graph.local_files import problem_with_file
from colbert_zero.graph.planners.releases import SIGNATURE, SIGNATURES, STATEMENT
from colbert_zero.graph.study import Study
from colbert_zero.graph.text_files import read_file, replace_text

NAMESPACE = "colbert-zero-report"
FOLDER = SIGNATURES
WORDS = {"study": "study", "report": "report", "spec": "report's spec", "manifest": "report's manifest"}
"""What a statement says, and how a finding calls it."""


def statement(root: Path, study: str, report: Spec) -> dict[str, str]:
    """What a signature of a study's report says.

    Args:
        root: The study's folder.
        study: The study's name.
        report: The spec of its report, which is made.

    Raises:
        UserError: The report is not there.
    """
    folder = root / artifact_folder(report.name)
    for path in (folder / SPEC_FILE, folder / MANIFEST_FILE):
        if problem := problem_with_file(path):
            raise UserError(f"the report {report.name} cannot be signed or compared: {path} {problem}")
    return {
        "study": study,
        "report": report.name,
        "spec": file_digest(folder / SPEC_FILE),
        "manifest": file_digest(folder / MANIFEST_FILE),
    }


def write(root: Path, stem: str, text: str, signature: str) -> Path:
    """Write a statement and its signature below `signatures/`; return the signature's path.

    Args:
        root: The study's folder.
        stem: What the names of both begin with.
        text: The statement.
        signature: Its armoured signature.
    """
    place = root / FOLDER / f"{stem}.{openssh.fingerprint(signature)}"
    replace_text(place.with_name(place.name + STATEMENT), text)
    path = place.with_name(place.name + SIGNATURE)
    replace_text(path, signature)
    return path


@dataclass(frozen=True)
class Vouchers:
    """What the signatures of a report come to.

    Attributes:
        report: The report's name.
        names: Who vouches for it, as the file of allowed signers names them.
        problems: Why each other signature does not, or why there is none.
    """

    report: str
    names: Sequence[str]
    problems: Sequence[str]

    def findings(self) -> Iterator[Finding]:
        """Nothing if somebody vouches for the report, else a finding for each problem."""
        if not self.names:
            yield from (Finding(self.report, Check.SIGNATURE, problem) for problem in self.problems)


def vouchers(root: Path, signers: Path) -> Vouchers:
    """Who of some allowed signers vouches for a study's report as it is.

    It says nothing of the artifacts below the report: those are what `verify` compares with the report's manifest.

    Args:
        root: The study's folder.
        signers: A file of allowed signers.

    Raises:
        UserError: There is no such file; or the config plans no report, and there is not just one.
    """
    if problem := problem_with_file(signers):
        raise UserError(f"{signers} {problem}: name a file of allowed signers, as ssh-keygen describes it")
    study, report = _report(root)
    try:
        expected = statement(root, study, report)
    except UserError as error:
        return Vouchers(report.name, [], [str(error)])
    names: list[str] = []
    problems = []
    for path in sorted((root / FOLDER).glob(f"{report.folder.name}.*{SIGNATURE}")):
        found = _signers(path, expected, signers)
        if isinstance(found, str):
            problems.append(found)
        else:
            names += found
    if not names and not problems:
        problems = [f"{FOLDER} has no signature of {report.name}: colbert-zero sign makes one"]
    return Vouchers(report.name, sorted(set(names)), problems)


def check(root: Path, signers: Path) -> Iterator[Finding]:
    """What is wrong with the signatures of a study's report; nothing if one of an allowed signer is right.

    Arguments and errors are those of `vouchers`.
    """
    yield from vouchers(root, signers).findings()


def _report(root: Path) -> tuple[str, Spec]:
    """The name of the study, and its report: what the config plans, or the only one that is there.

    Whoever was handed a study has not the files that its config names, so it cannot be planned.
    """
    try:
        study = Study(read_config(root / CONFIG_FILE), root)
    except UserError as error:
        specs = sorted((root / "results" / "reports").glob(f"[!.]*/{SPEC_FILE}"))
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            (report,) = (Spec.parse(read_file(path).decode()) for path in specs)
            return str(report.settings["study"]), report
        raise error
    return study.name, study.report


def _signers(signature: Path, expected: Mapping[str, str], signers: Path) -> list[str] | str:
    """Who vouches by a signature for what is expected; or why nobody does."""
    path = signature.with_suffix("")
    for file in (path, signature):
        if problem := problem_with_file(file):
            return f"{file} {problem}"
    text = path.read_bytes().decode("utf-8", errors="replace")
    if not openssh.fits(text, signature, NAMESPACE):
        return f"{signature} is no signature of {path.name}: one of them was edited"
    names = openssh.allowed_signers(text, signature, signers, NAMESPACE)
    if not names:
        return f"{signature} is of a key that {signers} does not allow"
    said = _read(text)
    for key, words in WORDS.items():
        if said.get(key) != expected[key]:
            return f"{path} vouches for the {words} {str(said.get(key))[:100]}, and it is {expected[key]}"
    identity = said.get("identity")
    if identity is None:
        return names
    if identity not in names:
        return f"{path} names {identity} as its signer, and {signers} knows the key as {', '.join(names)}"
    return [identity]


def _read(text: str) -> dict[str, Any]:
    try:
        said = parse_json(text)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {}


def statement_text(said: Mapping[str, Any]) -> str:
    """The bytes that are signed: canonical, so that who makes a statement again gets the same."""
    return canonical_json(said) + "\n"
