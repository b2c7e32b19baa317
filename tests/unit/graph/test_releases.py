"""Releases when planning: a row's last model, its report, and the signatures that the report has."""

import pytest

from colbert_zero.graph.study import Study
from own_study import CONFIG, write_data


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path / "data")
    (tmp_path / "signatures").mkdir()
    return tmp_path


def test_a_release_is_of_a_rows_last_model_and_of_its_report(folder):
    study = Study(CONFIG, folder)
    (row,) = [row for row in study.rows if row.stages]
    assert study.releases.keys() == {row.name}
    release = study.releases[row.name]
    assert release.inputs == {"model": [row.stages[-1].name], "report": [study.report.name]}
    assert "signatures" not in release.settings


LARGEST = b"x" * 65_536
NO_PAIRS = {
    "a signature of nothing": {".bob.json.sig": b"signature"},
    "a statement without one": {".bob.json": b"{}"},
    "no text": {".bob.json": b"{}", ".bob.json.sig": b"\xff"},
    "too large a statement": {".bob.json": LARGEST + b"x", ".bob.json.sig": b"signature"},
    "too large a signature": {".bob.json": b"{}", ".bob.json.sig": LARGEST + b"x"},
}


@pytest.mark.parametrize("files", NO_PAIRS.values(), ids=NO_PAIRS)
def test_the_signatures_of_a_report_are_pairs_of_small_texts(folder, files):
    before = Study(CONFIG, folder)
    pair = {".alice.json": LARGEST, ".alice.json.sig": LARGEST}
    for end, data in (pair | files).items():
        (folder / "signatures" / f"{before.report.folder.name}{end}").write_bytes(data)
    for end in (".json", ".json.sig"):
        (folder / "signatures" / f"other-0123456789ab.alice{end}").write_bytes(b"{}")
    after = Study(CONFIG, folder)
    (release,) = after.releases.values()
    assert release.settings["signatures"] == {
        f"{after.report.folder.name}{end}": data.decode() for end, data in pair.items()
    }
    assert after.report.key == before.report.key
    assert {release.key} != {spec.key for spec in before.releases.values()}
