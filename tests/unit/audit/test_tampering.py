"""Every tampering with a finished study is found, and attributed to the artifact at fault."""

import shutil
from pathlib import Path

import pytest
from forger import Forger
from tampering import Tampering, of_study, signed, tamperings

from colbert_zero.audit.findings import Note
from colbert_zero.audit.verify import Audit, findings
from colbert_zero.graph.artifact import MANIFEST_FILE, artifact_folder


def ids(tampering):
    return f"{tampering.kind}: {tampering.name}"


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


@pytest.mark.parametrize("tampering", tamperings(), ids=ids)
def test_a_tampering_is_found_and_attributed(finished_study, copy, tampering: Tampering):
    artifact = tampering.apply(Forger(copy, ids(tampering)))
    found = findings(Path())
    assert (artifact, tampering.check) in {(finding.artifact, finding.check) for finding in found}, found
    for accused in {finding.artifact for finding in found} - {artifact}:
        assert contents(copy, accused) != contents(finished_study, accused), f"{accused} is as it was made"


@pytest.mark.parametrize("tampering", of_study(), ids=ids)
def test_a_study_that_is_not_the_configs_is_not_clean(copy, tampering: Tampering):
    words = tampering.apply(Forger(copy, ids(tampering)))
    audit = Audit()
    notes = [told.text for told in audit.check() if isinstance(told, Note) and told.unsure]
    assert audit.status != 0
    assert any(words in note for note in notes), notes


@pytest.mark.parametrize("tampering", signed(), ids=ids)
def test_what_is_remade_up_to_the_report_changes_the_record_that_is_signed_alone(
    finished_study, copy, tampering: Tampering
):
    report = Forger(finished_study, "").report
    forger = Forger(copy, ids(tampering))
    tampering.apply(forger)
    assert findings(Path()) == []
    before = (finished_study / artifact_folder(report) / MANIFEST_FILE).read_bytes()
    assert (forger.folder(forger.report) / MANIFEST_FILE).read_bytes() != before


def test_the_matrix_has_all_kinds_and_checks():
    everything = [*tamperings(), *of_study(), *signed()]
    names = [ids(tampering) for tampering in everything]
    assert len(names) == len(set(names)) >= 150
    assert {tampering.check for tampering in everything} == {*type(everything[0].check)}
