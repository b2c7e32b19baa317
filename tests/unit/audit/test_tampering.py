"""Every tampering with a finished study is found, and attributed to the artifact at fault."""

import shutil
import subprocess
from contextlib import chdir
from pathlib import Path

import pytest
from forger import Forger
from tampering import Tampering, computed, edit_page, of_study, signed, tamperings

from colbert_zero.audit import related, signatures
from colbert_zero.audit.findings import Check, Note
from colbert_zero.audit.verify import Audit, findings
from colbert_zero.cli import main
from colbert_zero.graph.artifact import artifact_folder
from colbert_zero.graph.code import PARTS


def ids(tampering):
    """What is done to what, and what shows it."""
    return f"{tampering.title} ({tampering.check})"


@pytest.fixture
def copy(finished_study, tmp_path, monkeypatch):
    """A copy of the finished study to tamper with, deleted afterwards."""
    folder = shutil.copytree(finished_study, tmp_path / "study", ignore=shutil.ignore_patterns("state", "logs"))
    monkeypatch.chdir(folder)
    yield folder
    shutil.rmtree(tmp_path)


def contents(root, name):
    """What is in the folder of an artifact, or at a path, of the study in `root`."""
    place = root / (name if (root / name).is_dir() else artifact_folder(name))
    return {path.relative_to(place): path.is_file() and path.read_bytes() for path in place.rglob("*")}


@pytest.fixture
def other_code(monkeypatch):
    """Today's code is not what made the report: then it is not rendered again, which takes longer than all else."""
    return lambda: monkeypatch.setattr(related, "part_digests", lambda: dict.fromkeys(PARTS))


@pytest.mark.parametrize("tampering", tamperings(), ids=ids)
def test_a_tampering_is_found_and_attributed(finished_study, copy, other_code, tampering: Tampering):
    if (tampering.kind, tampering.check) != ("reports", Check.NUMBERS):
        other_code()
    artifact = tampering.apply(copy)
    found = findings(Path())
    assert (artifact, tampering.check) in {(finding.artifact, finding.check) for finding in found}, found
    for accused in {finding.artifact for finding in found} - {artifact}:
        assert contents(copy, accused) != contents(finished_study, accused), f"{accused} is as it was made"


@pytest.mark.parametrize("tampering", of_study(), ids=ids)
def test_a_study_that_is_not_the_configs_is_not_clean(copy, other_code, tampering: Tampering):
    other_code()
    words = tampering.apply(copy)
    audit = Audit()
    notes = [told.text for told in audit.check() if isinstance(told, Note) and told.unsure]
    assert audit.status != 0
    assert any(words in note for note in notes), notes


@pytest.fixture(scope="module")
def signature(finished_study, tmp_path_factory):
    """A signature of the finished study, and beside it the file of allowed signers."""
    folder = tmp_path_factory.mktemp("signature")
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key], check=True)
    (folder / "signers").write_text(f"me@example.org {key.with_suffix('.pub').read_text()}")
    study = shutil.copytree(finished_study, folder / "study")
    with chdir(study):
        assert main(["sign", "--key", str(key)]) == 0
    assert list(signatures.check(study, folder / "signers")) == []
    shutil.move(study / signatures.FOLDER, folder)
    return folder / signatures.FOLDER.name


@pytest.mark.parametrize("tampering", signed(), ids=ids)
def test_what_is_remade_up_to_the_report_is_shown_by_its_signature_alone(copy, signature, tampering: Tampering):
    shutil.copytree(signature, copy / signatures.FOLDER)
    tampering.apply(copy)
    assert findings(Path()) == []
    found = list(signatures.check(copy, signature.with_name("signers")))
    assert {(finding.artifact, finding.check) for finding in found} == {(Forger(copy, "").report, Check.SIGNATURE)}


@pytest.mark.parametrize(
    ("level", "tampering"),
    computed(),
    ids=lambda value: ids(value) if isinstance(value, Tampering) else f"level {value}",
)
def test_what_does_not_follow_from_what_is_below_is_shown_by_computing_it_again(copy, level, tampering: Tampering):
    tampering.apply(copy)
    assert main(["ladder", "--level", str(level), "--only"]) == 1


def test_the_matrix_has_all_kinds_and_checks():
    everything = [*tamperings(), *of_study(), *signed()]
    names = [tampering.title for tampering in everything]
    assert len(names) == len(set(names)) >= 150
    assert {tampering.check for tampering in everything} == set(Check)


def test_where_a_report_differs_is_told_with_both_texts(copy):
    forger = Forger(copy, "")
    edit_page("Seed 7", "Seed 8", forger, forger.report)
    line = next(
        number
        for number, text in enumerate((forger.folder(forger.report) / "report.html").read_text().split("\n"), 1)
        if "Seed 8" in text
    )
    (problem,) = (found.problem for found in findings(Path()) if "is not what the code" in found.problem)
    there, expected = problem.partition(f": line {line} has «")[2].rstrip("»").split("», not «")
    assert "Seed 8" in there and there.replace("Seed 8", "Seed 7") == expected
