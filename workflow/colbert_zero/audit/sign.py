"""Sign a study's report, and with it all that it rests on; or a model, or its release.

colbert-zero sign --key ~/.ssh/id_ed25519 --directory local
colbert-zero sign --key ~/.ssh/id_ed25519 --model colbert-zero --directory local
colbert-zero sign --key model-key.pem --model colbert-zero --directory local
colbert-zero sign --key model-key.pem --release colbert-zero --directory local

What is signed is a statement of a few lines, without a date: the same study and key give the same statement. It and its
signature stand in the study's folder `signatures/`; no artifact is changed. A study with findings is not signed.

Others check the signature of a report with `colbert-zero verify --signers FILE`, where FILE has a line for each signer
whom they trust: a name, and the public key (`ssh-keygen`, ALLOWED SIGNERS).

A model's statement is that of OpenSSF Model Signing, and so is that of its release, which has a card and records too.
With an elliptic-curve key of OpenSSL (PEM), the signature is a bundle that `model_signing verify key MODEL --signature
FILE --public_key PUBLIC_KEY` accepts. With an SSH key it is one of OpenSSH over the same statement, which that tool
does not read: `ssh-keygen -Y verify -n colbert-zero-model`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Set
from pathlib import Path

from colbert_zero.audit import openssh, signatures
from colbert_zero.audit.model_signing import is_pem_key, model_statement, signed_bundle
from colbert_zero.audit.verify import findings
from colbert_zero.graph.artifact import MANIFEST_FILE, Artifact
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.console import UserError, one_line
from colbert_zero.graph.local_files import absolute_path
from colbert_zero.graph.study import Study
from colbert_zero.graph.text_files import replace_text

MODEL_NAMESPACE = "colbert-zero-model"
BUNDLE = ".sigstore.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The key, who signs, and what."""
    parser.add_argument("--key", type=absolute_path, required=True, help="the file of the key to sign with")
    parser.add_argument("--identity", help="who signs, as those who check name the key; without it, the key alone says")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", metavar="MODEL", help="sign a model, not the report: a recipe's name, or a key")
    what.add_argument("--release", metavar="ROW", help="sign the released folder of a row, not the report")


def run(options: argparse.Namespace) -> int:
    """Write a statement and its signature, and say where; return 0.

    Raises:
        UserError: What is to be signed is not there or has findings, or the key cannot be used.
    """
    study = Study(read_config(Path(CONFIG_FILE)), Path())
    if options.model is None and options.release is None:
        said = signatures.statement(Path(), study.name, study.report)
        _refuse_findings(study.report.name, None)
        said |= {"identity": options.identity} if options.identity else {}
        path = _sign_with_ssh(options.key, said, study.report.folder.name, signatures.NAMESPACE)
        _say(f"{study.report.name} is signed: manifest {said['manifest']}\n{path}")
    else:
        wanted = find_model(study, options.model) if options.release is None else find_release(study, options.release)
        model = Artifact.open(wanted)
        _refuse_findings(model.name, lineage(model))
        _say(f"{model.name} is signed: {model_signature(model, options.key)}")
    return 0


def find_model(study: Study, wanted: str) -> str:
    """The name of the model that a recipe's name, a key or a name means: of a recipe, that of its last stage.

    Raises:
        UserError: There is none.
    """
    recipes = {row.name: row.stages[-1].name for row in study.rows if row.stages}
    if wanted in recipes:
        return recipes[wanted]
    names = [f"models/{path.name}" for path in sorted(Path("results/models").glob("[!.]*")) if path.is_dir()]
    found = [name for name in names if wanted in (name, name.rpartition("-")[2], name.removeprefix("models/"))]
    if len(found) != 1:
        raise UserError(f"there is no model {wanted}: name a recipe ({', '.join(sorted(recipes))}), or a model's key")
    return found[0]


def find_release(study: Study, row: str) -> str:
    """The name of the release of a row.

    Raises:
        UserError: There is no such row, or it is not released yet.
    """
    if row not in study.releases:
        raise UserError(f"no row called {row} is trained here: name one of {', '.join(sorted(study.releases))}")
    release = study.releases[row]
    if not (release.folder / MANIFEST_FILE).is_file():
        raise UserError(f"{release.folder} is not there: snakemake release makes it")
    return release.name


def lineage(artifact: Artifact) -> set[str]:
    """The names of an artifact and of all that it is made from."""
    found: set[str] = set()
    pending = [artifact.name]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += Artifact.open(name).spec.input_names
    return found


def model_signature(model: Artifact, key: Path) -> Path:
    """Sign a model; return the path of the signature."""
    said = model_statement(model)
    if key.is_file() and is_pem_key(key):
        bundle, public = signed_bundle(signatures.statement_text(said), key)
        path = signatures.FOLDER / f"{model.folder.name}.{public[: openssh.FINGERPRINT_DIGITS]}{BUNDLE}"
        replace_text(path, bundle)
        return path
    return _sign_with_ssh(key, said, model.folder.name, MODEL_NAMESPACE)


def _sign_with_ssh(key: Path, said: Mapping[str, object], stem: str, namespace: str) -> Path:
    text = signatures.statement_text(said)
    return signatures.write(Path(), stem, text, openssh.sign(text, key, namespace))


def _refuse_findings(name: str, among: Set[str] | None) -> None:
    """Refuse to sign what has findings, or what rests on an artifact that has: on any of the study if none is named."""
    found = [finding for finding in findings(Path()) if among is None or finding.artifact in among]
    if found:
        raise UserError(f"{name} is not signed: verify has {len(found)} findings, the first: {found[0].problem}")


def _say(text: str) -> None:
    sys.stdout.write("\n".join(map(one_line, text.split("\n"))) + "\n")
