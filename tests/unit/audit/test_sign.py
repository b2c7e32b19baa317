"""A signature of the report vouches for everything below it, and for nothing else."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from colbert_zero.audit import signatures
from colbert_zero.audit.findings import Check
from colbert_zero.audit.verify import findings
from colbert_zero.cli import main
from colbert_zero.graph.artifact import published_folders
from colbert_zero.graph.config import read_config
from colbert_zero.graph.study import Study

VALIDATORS = Path(__file__).parents[3] / ".venv" / "validators"


def make_key(path, passphrase=""):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two keys, `ours` and `theirs`, and a file of allowed signers that knows the first as me@example.org."""
    folder = tmp_path_factory.mktemp("keys")
    ours, _ = make_key(folder / "ours"), make_key(folder / "theirs")
    (folder / "signers").write_text(f"me@example.org {ours.with_suffix('.pub').read_text()}")
    return folder


@pytest.fixture
def study(study, tmp_path, monkeypatch):
    """A copy of the finished study, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return study


@pytest.fixture(scope="module")
def signed_study(finished_study, keys, tmp_path_factory):
    """A signed study, to be copied."""
    folder = tmp_path_factory.mktemp("signed") / "study"
    shutil.copytree(finished_study, folder)
    here = Path.cwd()
    assert main(["sign", "--key", str(keys / "ours"), "--directory", str(folder)]) == 0
    os.chdir(here)
    return folder


@pytest.fixture
def signed(signed_study, tmp_path, monkeypatch):
    folder = tmp_path / "study"
    shutil.copytree(signed_study, folder)
    monkeypatch.chdir(tmp_path)
    return folder


def problems(folder, keys):
    found = list(signatures.check(folder, keys / "signers"))
    assert all(finding.check is Check.SIGNATURE for finding in found)
    return [finding.problem for finding in found]


def tree(folder):
    """All files in a folder, but for the cache of digests that any plan writes."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".digests.json")
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def flip(path, at):
    """Change one bit of the byte at this place of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def the_report(folder):
    (report,) = (folder / "results" / "reports").iterdir()
    return report


def test_a_signed_report_has_no_findings(signed, keys):
    assert problems(signed, keys) == []
    assert findings(signed) == []


def test_signing_changes_no_artifact_and_adds_none(signed, finished_study):
    made = {path: content for path, content in tree(signed).items() if path.parts[0] != "signatures"}
    assert made == tree(finished_study)
    assert len(list(published_folders(signed))) == len(list(published_folders(finished_study)))


def test_the_same_key_gives_the_same_statement_and_signature(signed, keys):
    before = tree(signed)
    assert main(["sign", "--key", str(keys / "ours"), "--directory", str(signed)]) == 0
    assert tree(signed) == before


def test_a_report_without_a_signature_is_found(study, keys):
    (problem,) = problems(study, keys)
    assert "has no signature" in problem


def test_another_key_is_refused(study, keys):
    assert main(["sign", "--key", str(keys / "theirs"), "--directory", str(study)]) == 0
    (problem,) = problems(study, keys)
    assert "of a key that" in problem and "does not allow" in problem


def test_one_allowed_signer_is_enough(signed, keys):
    assert main(["sign", "--key", str(keys / "theirs"), "--directory", str(signed)]) == 0
    assert problems(signed, keys) == []
    assert len(list((signed / "signatures").glob("*.sig"))) == 2


def test_a_signature_for_something_else_is_refused(signed, keys):
    """One of the same key and text, as it would sign a commit."""
    (statement,) = (signed / "signatures").glob("*.json")
    statement.with_name(statement.name + ".sig").unlink()
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", keys / "ours", "-n", "git", statement], check=True)
    (problem,) = problems(signed, keys)
    assert "is no signature of" in problem


@pytest.mark.parametrize("suffix", [".json", ".json.sig"])
def test_a_byte_of_the_statement_or_the_signature_is_found(signed, keys, suffix):
    (path,) = (signed / "signatures").glob(f"*{suffix}")
    flip(path, path.stat().st_size // 2)
    (problem,) = problems(signed, keys)
    assert "edited" in problem


@pytest.mark.parametrize("suffix", [".json", ".json.sig"])
def test_a_statement_or_a_signature_that_is_missing_is_found(signed, keys, suffix):
    (path,) = (signed / "signatures").glob(f"*{suffix}")
    path.unlink()
    assert len(problems(signed, keys)) == 1


def test_a_byte_anywhere_below_changes_what_is_found(signed, keys):
    """Of each kind of artifact, its spec, its manifest and a file of it."""
    seen = set()
    for folder in published_folders(signed):
        if folder.parent.name in seen:
            continue
        seen.add(folder.parent.name)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in (folder / "spec.json", folder / "manifest.json", files[0]):
            flip(path, -2)
            assert findings(signed) or problems(signed, keys), path
            flip(path, -2)
    assert {"sources", "models", "measures", "reports"} <= seen
    assert findings(signed) == problems(signed, keys) == []


def test_a_report_whose_record_changed_after_the_signing_is_refused(signed, keys):
    """Even in a way that JSON does not show, and of which nothing below tells."""
    path = the_report(signed) / "manifest.json"
    path.write_text(path.read_text() + "\n")
    (problem,) = problems(signed, keys)
    assert "the report's manifest" in problem


def test_a_signature_copied_to_another_study_is_refused(signed, keys, tmp_path):
    """Also under the name that the other study's report has."""
    other = tmp_path / "other"
    shutil.copytree(signed, other)
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("study: kept", "study: other"))
    (report,) = (other / "results" / "reports").iterdir()
    planned = Study(read_config(config), other).report
    shutil.copytree(report, other / planned.folder)
    (other / planned.folder / "spec.json").write_text(planned.text)
    (problem,) = problems(other, keys)
    assert "has no signature" in problem
    for path in list((other / "signatures").iterdir()):
        path.rename(path.with_name(path.name.replace(report.name, planned.folder.name)))
    (problem,) = problems(other, keys)
    assert "vouches for the study kept, and it is other" in problem


def test_the_name_in_a_statement_is_the_one_by_which_the_key_is_known(study, keys):
    arguments = ["sign", "--key", str(keys / "ours"), "--directory", str(study)]
    assert main([*arguments, "--identity", "somebody@example.org"]) == 0
    (problem,) = problems(study, keys)
    assert "names somebody@example.org as its signer" in problem and "me@example.org" in problem
    assert main([*arguments, "--identity", "me@example.org"]) == 0
    assert problems(study, keys) == []


def test_a_study_with_findings_is_not_signed(study, keys, capsys):
    path = next(study.glob("results/runs/*/run.trec"))
    path.write_bytes(path.read_bytes() + b"\n")
    assert main(["sign", "--key", str(keys / "ours"), "--directory", str(study)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not signed" in line and "run.trec" in line
    assert not (study / "signatures").exists()


def test_verify_tells_who_signed_or_that_nobody_did(signed, keys, tmp_path, monkeypatch, capsys):
    """With a path of where it was started; from a folder that holds what was handed over, too."""
    shutil.copy(keys / "signers", tmp_path)
    arguments = ["verify", "--directory", str(signed), "--signers"]
    assert main([*arguments, "signers"]) == 0
    assert f"reports/{the_report(signed).name} is signed by me@example.org" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "absent"]) == 2
    assert "could not tell who signed the report" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    flip(next((signed / "signatures").glob("*.json")), 20)
    assert main([*arguments, "signers"]) == 1
    assert "one of them was edited" in capsys.readouterr().out


def test_a_signature_is_found_where_the_config_cannot_be_planned(signed, keys):
    """As in a bundle, which has not the files that the config names: it is that of the only report."""
    shutil.rmtree(signed / "data")
    assert problems(signed, keys) == []
    flip(the_report(signed) / "manifest.json", -1)
    (problem,) = problems(signed, keys)
    assert "the report's manifest" in problem


def refusal(study, key, capsys):
    assert main(["sign", "--key", str(key), "--directory", str(study)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert not (study / "signatures").exists()
    return line


def test_a_key_that_cannot_sign_is_one_line(study, keys, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    assert "is no file" in refusal(study, tmp_path / "absent", capsys)
    assert "is no file" in refusal(study, tmp_path, capsys)
    assert "is no SSH key" in refusal(study, study / "config.yaml", capsys)
    assert "has a passphrase" in refusal(study, make_key(tmp_path / "locked", "a passphrase"), capsys)


def test_an_openssh_that_is_missing_or_too_old_is_one_line(study, keys, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no ssh-keygen: install OpenSSH 8.1 or later" in refusal(study, keys / "ours", capsys)
    program = tmp_path / "ssh-keygen"
    program.write_text("#!/bin/sh\necho 'unknown option -- Y' >&2\necho 'usage: ssh-keygen [-q]' >&2\nexit 1\n")
    program.chmod(0o755)
    assert "OpenSSH 8.1 or later is needed" in refusal(study, keys / "ours", capsys)


def test_a_file_of_signers_that_is_missing_is_one_line(signed, tmp_path):
    with pytest.raises(Exception, match="name a file of allowed signers"):
        list(signatures.check(signed, tmp_path / "absent"))


def sign_model(study, key, model="all"):
    return main(["sign", "--key", str(key), "--model", model, "--directory", str(study)])


def test_a_model_statement_has_the_digest_of_each_file(study, keys):
    assert sign_model(study, keys / "ours") == 0
    (path,) = (study / "signatures").glob("distillation-*.json")
    said = json.loads(path.read_text())
    folder = study / "results" / "models" / said["subject"][0]["name"]
    assert {resource["name"]: resource["digest"] for resource in said["predicate"]["resources"]} == {
        file.as_posix(): hashlib.sha256(content).hexdigest() for file, content in tree(folder).items()
    }


def test_a_model_is_found_by_recipe_key_and_name(study, keys):
    (name,) = {path.name for path in study.glob("results/models/unsupervised-*")}
    for wanted in (name, f"models/{name}", name.rpartition("-")[2]):
        assert sign_model(study, keys / "ours", wanted) == 0
    assert len(list((study / "signatures").glob("*.sig"))) == 1
    assert sign_model(study, keys / "ours", "nothing") == 1


def test_a_model_that_rests_on_something_damaged_is_not_signed(study, keys):
    path = next(study.glob("resources/sources/*/lines.jsonl"))
    path.write_bytes(path.read_bytes() + b"\n")
    assert sign_model(study, keys / "ours") == 1
    assert not (study / "signatures").exists()


def model_signing_accepts(folder, bundle, public):
    words = ["model_signing", "verify", "key", folder, "--signature", bundle, "--public_key", public]
    return subprocess.run(
        [sys.executable, "-m", *words],
        env=os.environ | {"PYTHONPATH": str(VALIDATORS)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).returncode


@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1"])
def test_the_bundle_of_a_model_is_one_that_model_signing_accepts(study, tmp_path, curve):
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    assert sign_model(study, key) == 0
    (bundle,) = (study / "signatures").glob("*.sigstore.json")
    folder = study / "results" / "models" / bundle.name.split(".")[0]
    assert model_signing_accepts(folder, bundle, public) == 0
    flip(folder / "model.safetensors", -1)
    assert model_signing_accepts(folder, bundle, public) == 1


def test_a_key_of_another_kind_than_an_elliptic_curve_is_one_line(study, tmp_path, capsys):
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    assert sign_model(study, key) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not on one of the curves P-256, P-384, P-521" in line
    key.write_text("-----BEGIN PRIVATE KEY-----\nnone\n-----END PRIVATE KEY-----\n")
    assert sign_model(study, key) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "key.pem cannot sign: " in line
