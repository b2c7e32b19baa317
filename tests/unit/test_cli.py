"""`colbert-zero`: `verify` of a study of two artifacts; commands without a study are one line."""

import json
import shutil

import pytest

from colbert_zero.cli import main
from colbert_zero.graph.artifact import Spec, run_step

PARENT = Spec("shards", "letters", {"text": "abc"})
CHILD = Spec("batches", "plan", {}, {"rows": [PARENT.name]})


def write(job):
    (job.folder / "file.txt").write_text(job.spec.label)
    return {}


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spec in (PARENT, CHILD):
        assert run_step(write, "", ["--spec", spec.text]) == 0
    return tmp_path


def verify(capsys):
    capsys.readouterr()
    status = main(["verify"])
    return status, capsys.readouterr().out.splitlines()


def test_an_intact_study_without_config_and_report_has_no_findings_and_is_not_called_clean(study, capsys):
    status, lines = verify(capsys)
    assert status == 2
    assert lines[-1] == "2 artifacts, 0 findings; could not tell whether all is well"
    assert all(line.startswith("note: could not tell") for line in lines[:-1])


def flip_a_bit(folder):
    path = folder / "file.txt"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def edit_spec(folder):
    path = folder / "spec.json"
    path.write_text(path.read_text().replace("abc", "abd"))


def edit_manifest_input(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"] = {name: dict.fromkeys(record, "0" * 64) for name, record in manifest["inputs"].items()}
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


@pytest.mark.parametrize(
    ("spec", "damage", "words"),
    [
        (CHILD, flip_a_bit, "was changed"),
        (CHILD, lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (CHILD, lambda folder: (folder / "spec.json").unlink(), "spec.json is missing"),
        (CHILD, lambda folder: (folder / "extra.txt").write_text("x"), "is not in the manifest"),
        (CHILD, edit_manifest_input, "its record of its input"),
        (PARENT, edit_spec, "was edited"),
        (PARENT, shutil.rmtree, "its input is not there"),
    ],
)
def test_each_damage_is_one_line(study, capsys, spec, damage, words):
    damage(spec.folder)
    status, lines = verify(capsys)
    assert status == 1
    assert sum(words in line for line in lines) == 1
    assert lines[-1].endswith(" 1 findings")


def test_a_rebuilt_input_with_other_bytes_is_found(study, capsys):
    shutil.rmtree(PARENT.folder)

    def write_other(job):
        (job.folder / "file.txt").write_text("other")
        return {}

    run_step(write_other, "", ["--spec", PARENT.text])
    status, lines = verify(capsys)
    assert status == 1
    assert "is not the one it was made from" in lines[0]
    assert lines[-1] == "2 artifacts, 1 findings"


def test_a_folder_without_a_config_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("colbert-zero: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("command", "status"), [("status", 1), ("table", 1), ("verify", 2)])
def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys, command, status):
    assert main([command, "--directory", str(tmp_path / "nowhere")]) == status
    assert capsys.readouterr().err == f"colbert-zero: {tmp_path / 'nowhere'} is not a folder\n"
