"""`colbert-zero verify`: what it says of a whole study, what its exit status means, and what it reads."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from colbert_zero.audit import hashing, recount
from colbert_zero.audit.vouched import VOUCHED_FILE
from colbert_zero.cli import main
from colbert_zero.graph.artifact import MANIFEST_FILE, Spec, published_folders, run_step

ARTIFACTS = 31


def verify(capsys, *options):
    """The exit status and the lines of the command."""
    capsys.readouterr()
    status = main(["verify", *options])
    return status, capsys.readouterr().out.splitlines()


def folder_of(kind):
    return next(folder for folder in published_folders(Path()) if folder.parent.name == kind)


def test_a_finished_study_is_clean(study, capsys):
    assert verify(capsys) == (0, [f"{ARTIFACTS} artifacts, 0 findings"])


@pytest.mark.parametrize("threads", ["1", "7"])
def test_threads_change_neither_findings_nor_their_order(study, capsys, threads):
    for folder in published_folders(Path()):
        (folder / "extra").touch()
    status, lines = verify(capsys, "--threads", threads)
    assert status == 1
    assert lines[:-1] == [f"{folder / 'extra'} is not in the manifest" for folder in published_folders(Path())]


def remove(path):
    shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: [remove("results"), remove("resources")], "there is no artifact here"),
        (lambda: remove("results/reports"), "there is no report"),
        (lambda: remove("config.yaml"), "does not exist"),
        (lambda: Path("config.yaml").write_text("- no\n"), "not a group of settings"),
        (lambda: remove("data"), "could not tell whether these are the artifacts of config.yaml"),
        (
            lambda: Path("config.yaml").write_text(Path("config.yaml").read_text().replace("search_query", "query")),
            "is of another config",
        ),
    ],
    ids=["empty", "no report", "no config", "no settings", "no data", "another prompt"],
)
def test_what_cannot_be_told_is_neither_clean_nor_a_finding(study, capsys, change, words):
    change()
    status, lines = verify(capsys)
    assert status == 2
    assert any(line.startswith("note: could not tell") and words in line for line in lines[:-1])
    assert ", 0 findings" in lines[-1] and lines[-1].endswith("could not tell whether all is well")


def test_where_the_report_is_there_a_planned_artifact_that_is_not_is_a_finding(study, capsys):
    folder = folder_of("batches")
    shutil.rmtree(folder)
    status, lines = verify(capsys)
    assert status == 1
    assert sum(str(folder) in line for line in lines) == 1


def test_an_unfinished_study_has_no_findings(study, capsys):
    for kind in ("reports", "measures", "runs", "indexes", "models"):
        shutil.rmtree(f"results/{kind}")
    Path("results/models/.supervised-000000000000.partial").mkdir(parents=True)
    # Snakemake makes the folder of what a job will publish.
    Path("results/models/supervised-000000000000").mkdir()
    status, lines = verify(capsys)
    assert status == 2
    assert "not made yet" in lines[0]
    assert "findings" in lines[-1] and ", 0 findings" in lines[-1]


def test_artifacts_of_another_config_are_no_findings_and_are_verified(study, capsys):
    spec = Spec("shards", "others", {"text": "abc"})

    def write(job):
        (job.folder / "file.txt").write_text("abc")
        return {}

    assert run_step(write, "", ["--spec", spec.text]) == 0
    assert verify(capsys)[0] == 0
    (spec.folder / "file.txt").write_text("abd")
    status, lines = verify(capsys)
    assert status == 1
    assert str(spec.folder / "file.txt") in lines[0]


def test_json_has_findings_notes_and_a_summary_line_by_line(study, capsys):
    folder = folder_of("runs")
    (folder / "a\nb").touch()
    _, lines = verify(capsys, "--json")
    told = [json.loads(line) for line in lines]
    assert told[0]["type"] == "finding"
    assert told[0]["artifact"] == f"runs/{folder.name}"
    assert told[0]["check"] == "the artifact alone"
    assert "a\nb" in told[0]["problem"]
    assert told[-1]["type"] == "summary"
    assert told[-1]["findings"] == 1 and told[-1]["artifacts"] == ARTIFACTS


def test_an_artifact_that_nobody_foresaw_hides_no_other(study, capsys, monkeypatch):
    last = folder_of("runs")
    (last / "extra").touch()

    def fail(recorded):
        raise ValueError("unforeseen")

    monkeypatch.setitem(recount.COUNTS, "batches", fail)
    _, lines = verify(capsys)
    assert sum("unforeseen" in line for line in lines) == len(list(Path("results/batches").iterdir()))
    assert any(str(last / "extra") in line for line in lines)


def test_a_file_that_cannot_be_read_is_a_finding_of_its_artifact(study, capsys, monkeypatch):
    path = folder_of("runs") / "run.trec"
    opened = os.open

    def refuse(name, *arguments, **options):
        if os.fspath(name) == os.fspath(path):
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return opened(name, *arguments, **options)

    monkeypatch.setattr(hashing.os, "open", refuse)
    status, lines = verify(capsys)
    assert status == 1
    assert lines[0] == f"{path} cannot be read: Permission denied"
    assert lines[-1] == f"{ARTIFACTS} artifacts, 1 findings"


def test_nothing_is_written_into_the_study(study, capsys):
    def contents():
        return {path: path.lstat().st_mtime_ns for path in Path().rglob("*")}

    before = contents()
    verify(capsys)
    assert contents() == before


def test_torch_is_not_loaded(study):
    program = "import sys; from colbert_zero.cli import main; main(['verify']); print({'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


# Files that have not changed since they were last read


@pytest.fixture
def settled(monkeypatch):
    """Files that were written just now count as written long ago."""
    monkeypatch.setattr(hashing, "is_settled", lambda entry: True)


def files_read(monkeypatch):
    """The files that are read from now on."""
    read = []
    digest_of = hashing.digest_of

    def noting(path, size):
        read.append(path)
        return digest_of(path, size)

    monkeypatch.setattr(hashing, "digest_of", noting)
    return read


def test_on_request_what_has_not_changed_is_not_read_again(study, capsys, monkeypatch, settled):
    verify(capsys, "--since-last")
    read = files_read(monkeypatch)
    status, lines = verify(capsys, "--since-last")
    assert (status, read) == (0, [])
    assert "files have not changed since they were last read" in lines[-1]
    path = folder_of("runs") / "run.trec"
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    status, lines = verify(capsys, "--since-last")
    assert (status, read) == (1, [path])
    assert "was changed" in lines[0]


def test_by_default_everything_is_read(study, capsys, monkeypatch, settled):
    verify(capsys, "--since-last")
    read = files_read(monkeypatch)
    verify(capsys)
    assert len(read) == sum(
        len(json.loads(path.read_text())["outputs"]) for path in Path().glob(f"re*/*/*/{MANIFEST_FILE}")
    )


def test_a_pass_with_findings_vouches_for_nothing(study, capsys, settled):
    verify(capsys, "--since-last")
    assert VOUCHED_FILE.is_file()
    (folder_of("runs") / "extra").touch()
    verify(capsys, "--since-last")
    assert not VOUCHED_FILE.exists()


def test_what_changed_just_now_is_not_vouched_for(study, capsys, monkeypatch):
    folder = folder_of("runs")
    (folder / "run.trec").write_bytes((folder / "run.trec").read_bytes())
    verify(capsys, "--since-last")
    read = files_read(monkeypatch)
    verify(capsys, "--since-last")
    assert folder / "run.trec" in read


@pytest.mark.parametrize(
    "damage", [lambda text: text.replace("results", "resultz", 1), lambda text: text[:100], lambda text: "[]"]
)
def test_a_note_of_what_was_read_that_is_not_as_it_was_written_is_not_believed(
    study, capsys, monkeypatch, settled, damage
):
    verify(capsys, "--since-last")
    VOUCHED_FILE.write_text(damage(VOUCHED_FILE.read_text()))
    read = files_read(monkeypatch)
    assert verify(capsys, "--since-last")[0] == 0
    assert len(read) > ARTIFACTS
