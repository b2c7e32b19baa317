"""Artifacts: named by what decides them, published whole or not at all, never redone, never overwritten."""

import errno
import hashlib
import json
import logging
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.graph import artifact as artifact_module
from colbert_zero.graph import code, locks, provenance
from colbert_zero.graph.artifact import (
    Artifact,
    Spec,
    artifact_folder,
    content_digest,
    published_folders,
    run_step,
    step_main,
)
from colbert_zero.graph.console import RetryableError, UserError
from colbert_zero.graph.faults import AGAIN, explain_fault
from colbert_zero.graph.paths import WORKFLOW
from without_rights import without_rights_of_root

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), values))
def test_key_does_not_depend_on_the_order_of_settings(settings):
    backwards = dict(reversed(settings.items()))
    assert Spec("shards", "x", settings).key == Spec("shards", "x", backwards).key


@given(st.dictionaries(st.text(), values))
def test_spec_survives_its_own_json(settings):
    spec = Spec("shards", "x", settings, {"source": ["sources/a-0123456789ab"]})
    assert Spec.parse(spec.text).text == spec.text


def test_a_key_is_the_first_12_hex_digits_of_the_sha256_of_the_canonical_json():
    spec = Spec("shards", "x", {"p": 0.95, "é": None, "a": [True, "b c"]}, {"source": ["sources/y-0"]})
    text = (
        '{"inputs":{"source":["sources/y-0"]},"kind":"shards","label":"x",'
        '"settings":{"a":[true,"b c"],"p":0.95,"é":null}}'
    )
    assert spec.text == text
    assert spec.key == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert spec.name == f"shards/x-{spec.key}" and len(spec.key) == 12


def test_a_trailing_space_of_a_prompt_decides():
    assert Spec("models", "x", {"prompt": "search_query: "}).key != Spec("models", "x", {"prompt": "search_query:"}).key


def test_order_of_inputs_decides():
    one = Spec("batches", "x", {}, {"rows": ["shards/a-0", "shards/b-0"]})
    other = Spec("batches", "x", {}, {"rows": ["shards/b-0", "shards/a-0"]})
    assert one.key != other.key


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


SPEC = Spec("shards", "letters", {"text": "abc"})


def write_letters(job):
    (job.folder / "letters.txt").write_text(job.settings["text"])
    return {"letters": 3}


def publish(spec=SPEC, make=write_letters):
    return run_step(make, "", ["--spec", spec.text])


def test_published_artifact_opens_with_its_facts_and_files(study):
    assert publish() == 0
    artifact = Artifact.open(SPEC.name)
    assert artifact.facts == {"letters": 3}
    assert artifact.file("letters.txt").read_text() == "abc"
    assert [attempt["end"] for attempt in artifact.manifest["attempts"]] == ["published"]


def test_inputs_are_recorded_by_content(study):
    publish()
    child = Spec("batches", "x", {}, {"rows": [SPEC.name]})
    assert publish(child, lambda job: {"same": job.input("rows").facts["letters"]}) == 0
    record = Artifact.open(child.name).manifest["inputs"][SPEC.name]
    assert record == {
        "spec": hashlib.sha256((SPEC.folder / "spec.json").read_bytes()).hexdigest(),
        "files": content_digest(Artifact.open(SPEC.name).manifest["outputs"]),
        "manifest": hashlib.sha256((SPEC.folder / "manifest.json").read_bytes()).hexdigest(),
    }


def test_a_manifest_names_its_format_and_the_whole_digest_of_its_spec(study):
    publish()
    manifest = Artifact.open(SPEC.name).manifest
    assert (manifest["record"], manifest["spec"]) == (2, SPEC.digest)
    assert SPEC.digest.startswith(SPEC.key) and len(SPEC.digest) == 64


def test_an_input_that_changes_while_a_step_runs_is_not_recorded_as_what_it_was_made_from(study, capsys):
    publish()
    child = Spec("batches", "x", {}, {"rows": [SPEC.name]})

    def make_while_the_input_is_made_again(job):
        shutil.rmtree(SPEC.folder)
        publish(SPEC, lambda other: other.folder.joinpath("other.txt").write_text("other") and {})
        return {}

    assert publish(child, make_while_the_input_is_made_again) == 1
    assert "was made again, with other files, while batches/x-" in capsys.readouterr().err
    assert publish(child, lambda job: {}) == 0


def test_what_ran_is_what_was_there_when_the_attempt_began(study, monkeypatch, caplog):
    caplog.set_level("INFO")
    before = code.part_digests()

    def make_while_the_code_changes(job):
        monkeypatch.setattr(artifact_module, "part_digests", lambda: before | {"package": "other"})
        monkeypatch.setattr(artifact_module, "package_versions", lambda: {"torch": "0"})
        return {}

    publish(SPEC, make_while_the_code_changes)
    manifest = Artifact.open(SPEC.name).manifest
    assert manifest["code"]["parts"] == before
    assert manifest["code"]["changed"] == ["package", "packages"]
    assert manifest["packages"]["torch"] != "0"
    assert manifest["attempts"][0]["code"] == before["package"]
    assert "the package changed on disk while this ran" in caplog.text


def test_unfinished_work_of_another_artifact_is_not_taken_up(study, capsys):
    def stop(job):
        raise RetryableError("time is up")

    other = Spec("models", "b", {})
    publish(other, stop)
    shutil.copytree(other.state, SPEC.state)
    assert publish() == 1
    assert f"{SPEC.state} holds the unfinished work of {other.name}" in capsys.readouterr().err
    assert (SPEC.state / "artifact.json").is_file()


def test_work_from_an_input_that_had_other_files_is_not_taken_up_and_from_the_same_is(study, capsys):
    publish()
    child = Spec("batches", "x", {}, {"rows": [SPEC.name]})

    def stop(job):
        (job.state / "half").write_text("half")
        raise RetryableError("time is up")

    publish(child, stop)
    for text, status in (("abc", 1), ("other", 1), ("abc", 0)):
        shutil.rmtree(SPEC.folder)
        publish(SPEC, lambda job, text=text: job.folder.joinpath("letters.txt").write_text(text) and {})
        resume = stop if status and text == "abc" else lambda job: {"half": (job.state / "half").read_text()}
        assert publish(child, resume) == status
        refused = f"holds work that began from other files of {SPEC.name}" in capsys.readouterr().err
        assert refused == (text == "other")


@pytest.mark.parametrize("damage", [b"", b"\0" * 80, b"[]", b'{"name": 1}', b"{}"])
def test_a_damaged_claim_is_written_again(study, damage):
    SPEC.state.mkdir(parents=True)
    (SPEC.state / "artifact.json").write_bytes(damage)
    assert publish() == 0


def test_a_failing_step_publishes_nothing_and_the_next_attempt_knows(study):
    def fail(job):
        (job.folder / "half.txt").write_text("half")
        raise UserError("no")

    assert publish(make=fail) == 1
    assert not SPEC.folder.exists()
    assert list(SPEC.folder.parent.iterdir()) == []
    assert publish() == 0
    ends = [attempt["end"] for attempt in Artifact.open(SPEC.name).manifest["attempts"]]
    assert ends == ["no", "published"]


def failing(error):
    """A step that fails, and counts its attempts."""

    def make(job):
        make.tries += 1
        raise error

    make.tries = 0
    return make


def test_a_mistake_is_not_retried_in_the_same_run(study, monkeypatch, capsys):
    """Snakemake's retries are for transient failures; what the user has to fix would fail the same way ten times."""
    monkeypatch.setenv(provenance.RUN_VARIABLE, "first")
    make = failing(UserError("row 3 has no answer"))
    assert [publish(make=make) for _ in range(3)] == [1, 1, 1]
    assert make.tries == 1
    assert capsys.readouterr().err.splitlines()[-1] == ("colbert-zero: row 3 has no answer")
    assert list(SPEC.folder.parent.iterdir()) == []
    monkeypatch.setenv(provenance.RUN_VARIABLE, "second")
    assert publish() == 0
    attempts = Artifact.open(SPEC.name).manifest["attempts"]
    assert [(one["run"], one["end"], one.get("mistake", False)) for one in attempts] == [
        ("first", "row 3 has no answer", True),
        ("second", "published", False),
    ]


def test_a_mistake_is_always_retried_outside_snakemake(study, monkeypatch):
    """Without Snakemake, attempts belong to no run."""
    monkeypatch.delenv(provenance.RUN_VARIABLE, raising=False)
    make = failing(UserError("no"))
    assert [publish(make=make) for _ in range(2)] == [1, 1]
    assert make.tries == 2


@pytest.mark.parametrize(
    "error", [RetryableError("the node's disk is full"), OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()]
)
def test_a_transient_failure_is_retried_in_the_same_run(study, monkeypatch, error):
    monkeypatch.setenv(provenance.RUN_VARIABLE, "first")
    make = failing(error)
    assert publish(make=make) != 0
    assert publish(make=make) != 0
    assert make.tries == 2
    assert publish() == 0
    attempts = Artifact.open(SPEC.name).manifest["attempts"]
    assert [one["end"].partition(":")[0] for one in attempts] == [type(error).__name__] * 2 + ["published"]
    assert not any(one.get("mistake") for one in attempts)


def test_a_mistake_before_a_killed_attempt_does_not_stop_the_next(study, monkeypatch):
    """Only the last attempt counts: it got past the mistake that ended the attempt before it."""
    monkeypatch.setenv(provenance.RUN_VARIABLE, "first")
    SPEC.state.mkdir(parents=True)
    lines = [{"run": "first", "end": "no", "mistake": True}, {"run": "first"}]
    (SPEC.state / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert publish() == 0


def test_the_facts_of_every_attempt_reach_the_manifest(study):
    def stop(job):
        job.record(start_step=0)
        job.record(end_step=120)
        raise RetryableError("time is up")

    def go_on(job):
        job.record(start_step=120)
        return write_letters(job)

    assert publish(make=stop) == 1
    assert publish(make=go_on) == 0
    first, second = Artifact.open(SPEC.name).manifest["attempts"]
    assert (first["start_step"], first["end_step"]) == (0, 120)
    assert (second["start_step"], second["end"]) == (120, "published")
    assert "end_step" not in second


def test_recorded_facts_survive_a_kill(study):
    """A fact is on disk as soon as it is recorded."""
    path = study / "attempts.jsonl"
    attempts = provenance.Attempts(path)
    attempts.begin()
    attempts.record(start_step=7)
    later = provenance.Attempts(path)
    later.begin()
    first, _ = later.end("published")
    assert (first["start_step"], first["end"]) == (7, "killed")


def test_an_attempt_records_where_it_ran(study, monkeypatch):
    environment = {"run": "0123", "job": "17", "node": "n[1-2]", "gpus": "0,1"}
    for name, value in environment.items():
        monkeypatch.setenv(provenance.RECORDED_VARIABLES[name], value)
    publish()
    (attempt,) = Artifact.open(SPEC.name).manifest["attempts"]
    assert environment.items() <= attempt.items()
    assert attempt["host"]


def test_the_codes_commit_is_the_one_that_snakemake_passes_on(study, monkeypatch):
    """Images have no git."""
    monkeypatch.setenv(code.COMMIT_VARIABLE, "0123abc, changed")
    publish()
    manifest = Artifact.open(SPEC.name).manifest
    assert manifest["code"]["commit"] == "0123abc, changed"
    assert manifest["image"] is None


def test_the_c_library_is_in_a_platforms_name():
    assert provenance.c_library("Linux-6.1-x86_64-with-glibc2.36") == "glibc2.36"
    assert provenance.c_library("macOS-14.5-arm64-arm-64bit") is None


def test_a_killed_attempt_is_on_record(study):
    SPEC.state.mkdir(parents=True)
    (SPEC.state / "attempts.jsonl").write_text('{"started":"then"}\n')
    publish()
    assert Artifact.open(SPEC.name).manifest["attempts"][0]["end"] == "killed"


def test_a_finished_artifact_is_never_made_again(study):
    """Snakemake deletes spec.json of a forced rule; the artifact is verified and gets its spec back."""
    publish()
    (SPEC.folder / "spec.json").unlink()

    def never(job):
        raise AssertionError("made again")

    assert publish(make=never) == 0
    assert Artifact.open(SPEC.name).file("letters.txt").read_text() == "abc"


def test_the_spec_of_a_damaged_artifact_is_not_restored(study, capsys):
    publish()
    (SPEC.folder / "spec.json").unlink()
    (SPEC.folder / "letters.txt").write_text("abd")
    assert publish() == 1
    assert "letters.txt was changed" in capsys.readouterr().err
    assert not (SPEC.folder / "spec.json").exists()


def test_files_without_a_manifest_are_not_overwritten(study, capsys):
    SPEC.folder.mkdir(parents=True)
    (SPEC.folder / "notes.txt").write_text("mine")
    assert publish() == 1
    assert "not overwritten" in capsys.readouterr().err
    assert (SPEC.folder / "notes.txt").read_text() == "mine"


def test_the_empty_folder_that_snakemake_makes_is_no_obstacle(study):
    SPEC.folder.mkdir(parents=True)
    assert publish() == 0


def test_no_disk_space_is_one_line(study, capsys):
    def full(job):
        raise OSError(errno.ENOSPC, "No space left on device", str(job.folder / "letters.txt"))

    assert publish(make=full) == 1
    err = capsys.readouterr().err
    assert "no space left" in err
    assert "Traceback" not in err
    assert not SPEC.folder.exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_text("abd"), "was changed"),
        (lambda path: path.write_text("ab"), "2 bytes"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_damaged_file_is_found_when_read(study, damage, words):
    publish()
    damage(SPEC.folder / "letters.txt")
    with pytest.raises(UserError, match=words):
        Artifact.open(SPEC.name).file("letters.txt")


def test_an_edited_spec_is_refused(study):
    publish()
    path = SPEC.folder / "spec.json"
    path.write_text(path.read_text().replace("abc", "abd"))
    with pytest.raises(UserError, match="edited"):
        Artifact.open(SPEC.name)


def test_resources_and_results_are_apart():
    assert artifact_folder("collections/x-0") == Path("resources/collections/x-0")
    assert artifact_folder("models/x-0") == Path("results/models/x-0")


def test_published_folders_are_those_of_artifacts_damaged_ones_included(study):
    there = ["resources/sources/b-1", "results/models/a-2", "results/shards/c-3", "results/shards/d-4"]
    others = ["results/models/.a-5.partial", "results/state/models/a-2", "resources/.cache/e-6", "logs/shards/c-3"]
    for name in there + others:
        (study / name).mkdir(parents=True)
    for name in (
        "results/models/notes.txt",
        "results/notes.txt",
        "resources/sources/.DS_Store",
        "results/shards/c-3/x",
    ):
        (study / name).write_text("")
    assert [path.relative_to(study).as_posix() for path in published_folders(study)] == there


def test_manifest_names_code_and_packages(study):
    publish()
    manifest = json.loads((SPEC.folder / "manifest.json").read_text())
    assert len(manifest["code"]["digest"]) == 64
    assert manifest["packages"]["pyarrow"]
    assert manifest["outputs"]["letters.txt"]["bytes"] == 3


def test_a_manifest_tells_seconds_and_megabytes(study, caplog):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    with caplog.at_level(logging.INFO):
        publish()
    manifest = Artifact.open(SPEC.name).manifest
    assert 0 <= manifest["seconds"] < 600
    assert re.search(rf"published {SPEC.folder} in \d{{1,3}}\.\d s", caplog.text)
    assert before <= manifest["peak_memory_mb"] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    (memory_kb,) = re.findall(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert manifest["memory_mb"] == pytest.approx(int(memory_kb) / 1024, rel=0.1)
    assert manifest["processor"]


def test_a_manifest_is_json_in_one_order_that_people_can_read(study):
    publish(make=lambda job: {"é": 1, "a": 2})
    text = (SPEC.folder / "manifest.json").read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["--spec", SPEC.text], []),
        (["--spec", SPEC.text, "--threads", "3"], ["--threads", "3"]),
        (["--threads", "3", "--spec", SPEC.text], ["--threads", "3"]),
        ([f"--spec={SPEC.text}", "--threads", "3"], ["--threads", "3"]),
    ],
)
def test_a_step_is_told_what_to_make_by_its_command_line(study, monkeypatch, words, arguments):
    monkeypatch.setattr(sys, "argv", ["step.py", *words])
    with pytest.raises(SystemExit) as ended:
        step_main(write_letters, "")
    assert not ended.value.code
    manifest = Artifact.open(SPEC.name).manifest
    assert manifest["arguments"] == arguments
    assert manifest["threads"] == (3 if arguments else 1)


def test_a_step_that_is_not_told_what_to_make_says_so(study, capsys):
    with pytest.raises(SystemExit) as ended:
        run_step(write_letters, "", [])
    assert ended.value.code == 2
    assert "the following arguments are required: --spec" in capsys.readouterr().err


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_published_files_have_the_mode_that_the_umask_allows_whatever_wrote_them(study, umask, mode):
    def write(job):
        (job.folder / "letters.txt").write_text("abc")
        (job.folder / "letters.txt").chmod(0o400)
        return {}

    before = os.umask(umask)
    try:
        assert publish(make=write) == 0
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in SPEC.folder.iterdir()} == {mode}


def test_a_second_process_waits_and_finds_the_artifact_made(study, monkeypatch, caplog):
    """A job that a killed Snakemake left behind may still be making the artifact."""
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.01)
    second = failing(AssertionError("made again"))
    status = []
    thread = threading.Thread(target=lambda: status.append(publish(make=second)))

    def first(job):
        thread.start()
        deadline = time.monotonic() + 30
        while f"making {SPEC.name} is under way in process" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not status
        return write_letters(job)

    with caplog.at_level(logging.INFO):
        assert publish(make=first) == 0
        thread.join()
    assert status == [0]
    assert second.tries == 0
    assert [one["end"] for one in Artifact.open(SPEC.name).manifest["attempts"]] == ["published"]


def test_a_second_process_makes_what_the_first_could_not(study, monkeypatch):
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.01)
    status = []
    thread = threading.Thread(target=lambda: status.append(publish()))

    def first(job):
        thread.start()
        raise RetryableError("time is up")

    assert publish(make=first) == 1
    thread.join()
    assert status == [0]
    assert [one["end"] for one in Artifact.open(SPEC.name).manifest["attempts"]] == [
        "RetryableError: time is up",
        "published",
    ]


# Specs in files


LONG = Spec("reports", "long", {"rows": [f"row {number}" for number in range(30_000)]})


def pass_in_file(spec, path=None, data=None):
    """Run a step that is told in a file what to make; returns its exit status."""
    path = path or spec.argument_file("spec")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(spec.text.encode() if data is None else data)
    return run_step(lambda job: {"rows": len(job.settings["rows"])}, "", ["--spec", str(path)])


def test_a_spec_longer_than_an_argument_is_passed_in_a_file(study):
    assert len(LONG.text) > 2**17
    assert pass_in_file(LONG) == 0
    assert Artifact.open(LONG.name).facts == {"rows": 30_000}


def test_the_spec_of_another_artifact_can_be_passed(study):
    """Such as one that was moved away: its folder names it."""
    assert pass_in_file(LONG, Path("kept") / LONG.name / "spec.json") == 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (LONG.text.replace("row 7", "row 8").encode(), "was edited"),
        (bytes(500), "is no spec"),
        (b"", "is no spec"),
        (b"[1]", "is no spec"),
        (b'{"kind": "shards"}', "is no spec"),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_file_that_is_not_the_spec_it_names_is_one_line(study, capsys, data, words):
    assert pass_in_file(LONG, data=data) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"colbert-zero: {LONG.argument_file('spec')} {words}")
    assert err.endswith("run snakemake again\n")
    assert err.count("\n") == 1
    assert not LONG.folder.exists()


def test_a_spec_file_that_is_missing_is_one_line(study, capsys):
    assert run_step(write_letters, "", ["--spec", "results/state/shards/x.spec.json"]) == 1
    assert capsys.readouterr().err.startswith("colbert-zero: results/state/shards/x.spec.json cannot be read (")


# Faults of the machine


@pytest.mark.parametrize(
    ("record", "unreadable"),
    [
        (bytes(300), 1),
        (b"", 0),
        (b'{"started":"then"}\n' + bytes(50), 1),
        (b'{"started":"then"}\n{"star', 1),
        (b"\xff\xfe\n[1, 2]\n7\nnull\n", 4),
        (b"[" * 100_000, 1),
    ],
)
def test_a_damaged_record_of_attempts_does_not_stop_the_next(study, caplog, record, unreadable):
    """As a power loss leaves it: zeros, half a line, what another file held."""
    SPEC.state.mkdir(parents=True)
    (SPEC.state / "attempts.jsonl").write_bytes(record)
    with caplog.at_level(logging.INFO):
        assert publish() == 0
    ends = [attempt["end"] for attempt in Artifact.open(SPEC.name).manifest["attempts"]]
    assert ends.count("its record cannot be read") == unreadable
    assert ends[-1] == "published"
    assert (f"of {unreadable} attempts no record can be read" in caplog.text) == (unreadable > 0)


def no_rights(path):
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_text("half")
    (path / "inner").chmod(0)
    path.chmod(0)


LEFT_BEHIND = {
    "file": lambda path, mine: path.write_text("half"),
    "dangling link": lambda path, mine: path.symlink_to(mine / "nowhere"),
    "link to a folder": lambda path, mine: path.symlink_to(mine),
    "folder without rights": lambda path, mine: no_rights(path),
    "folder with a link in it": lambda path, mine: (path.mkdir(), (path / "link").symlink_to(mine)),
    "pipe": lambda path, mine: os.mkfifo(path),
}


@pytest.mark.parametrize("leave", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_whatever_a_killed_attempt_left_is_cleaned_up(study, leave):
    mine = study / "mine"
    mine.mkdir(mode=0o750)
    (mine / "notes.txt").write_text("mine")
    SPEC.folder.parent.mkdir(parents=True)
    leave(SPEC.folder.with_name(f".{SPEC.folder.name}.partial"), mine)
    assert without_rights_of_root(publish) == 0
    assert os.listdir(SPEC.folder.parent) == [SPEC.folder.name]
    assert (mine / "notes.txt").read_text() == "mine"
    assert mine.stat().st_mode & 0o777 == 0o750


IN_THE_WAY = {
    "results": "a file",
    "results/state": "a file",
    "results/shards": "a file",
    f"results/state/{SPEC.name}": "a file",
    f"results/state/{SPEC.name}.lock": "a folder",
    f"results/state/{SPEC.name}/attempts.jsonl": "a folder",
    "results/": "a broken link",
}


@pytest.mark.parametrize(("name", "kind"), IN_THE_WAY.items())
def test_what_is_in_the_way_is_one_line_and_the_next_run_goes_on(study, capsys, name, kind):
    path = study / name.rstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    {"a file": path.touch, "a folder": path.mkdir, "a broken link": lambda: path.symlink_to("/nowhere")}[kind]()
    assert publish() == 1
    err = capsys.readouterr().err
    assert err.startswith("colbert-zero: ")
    assert name.rstrip("/") in err
    assert err.count("\n") == 1
    path.rmdir() if kind == "a folder" else path.unlink()
    assert publish() == 0


DAMAGE = [b"", bytes(700), b"{", b"[]", b'{"outputs": 3}', b'{"outputs": {}}', b"\xff", b"[" * 100_000]


DAMAGED_PARTS = [
    {"outputs": {"letters.txt": 3}},
    {"outputs": {"letters.txt": {"bytes": 3}}},
    {"outputs": {"letters.txt": {"sha256": "0" * 64, "bytes": "3"}}},
    {"outputs": {"letters.txt": {"sha256": None, "bytes": 3}}},
    {"facts": []},
    {"inputs": [1]},
    {"arguments": 7},
    {"attempts": {"a": 1}},
    {"attempts": [None]},
    {"attempts": [{"threads": "x"}]},
    {"shares": 7},
    {"seconds": "1"},
    {"seconds": True},
    {"threads": None},
]


@pytest.mark.parametrize("part", DAMAGED_PARTS, ids=json.dumps)
def test_a_manifest_with_a_damaged_part_is_one_line(study, part):
    publish()
    path = SPEC.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | part))
    with pytest.raises(UserError, match=r"manifest\.json is no manifest, it is damaged"):
        Artifact.open(SPEC.name)


@pytest.mark.parametrize("data", DAMAGE)
def test_a_damaged_manifest_is_one_line(study, capsys, data):
    """Without it nothing tells whether the other files are intact."""
    publish()
    (SPEC.folder / "manifest.json").write_bytes(data)
    with pytest.raises(UserError, match=r"manifest\.json is no manifest, it is damaged; move results/shards/letters-"):
        Artifact.open(SPEC.name)
    (SPEC.folder / "spec.json").unlink()
    assert publish() == 1
    assert "manifest.json is no manifest" in capsys.readouterr().err
    assert (SPEC.folder / "letters.txt").read_text() == "abc"


@pytest.mark.parametrize("data", DAMAGE)
def test_a_damaged_spec_is_one_line_and_what_it_says_to_do_mends_it(study, data):
    publish()
    path = SPEC.folder / "spec.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"was edited: .*; delete it and run snakemake again"):
        Artifact.open(SPEC.name)
    path.unlink()
    assert publish(make=failing(AssertionError("made again"))) == 0
    assert Artifact.open(SPEC.name).file("letters.txt").read_text() == "abc"


@pytest.mark.parametrize("name", ["spec.json", "manifest.json"])
def test_nobody_waits_for_a_pipe_in_place_of_a_record(study, name):
    publish()
    path = SPEC.folder / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match=f"'{path}'$") as caught:
        Artifact.open(SPEC.name)
    assert explain_fault(caught.value) == f"{path} is no file, and a file should be there: move it away, {AGAIN}"


@pytest.mark.parametrize("name", ["losses.jsonl", "pieces/000001", "pieces/000001/facts.json"])
@pytest.mark.parametrize("target", ["mine", "nowhere"])
def test_no_step_writes_to_what_a_link_points_to(study, capsys, name, target):
    (study / "mine").write_text("mine")
    link = SPEC.state / name
    link.parent.mkdir(parents=True)
    link.symlink_to(study / target)
    share = ["--spec", SPEC.text, "--part", "letters"]
    parts = {"letters": lambda job: pytest.fail("worked")}
    assert publish(make=lambda job: pytest.fail("worked")) == run_step(write_letters, "", share, parts=parts) == 1
    lines = capsys.readouterr().err.splitlines()
    advice = f"{link} is a link to {study / target}, which would be written to: remove it"
    assert lines == [f"colbert-zero: {advice}, {AGAIN}"] * 2
    assert sorted(path.name for path in study.iterdir()) == ["mine", "results"]
    assert (study / "mine").read_text() == "mine"
    link.unlink()
    assert publish() == 0


@pytest.mark.parametrize("leave", [lambda path: path.write_bytes(b"[" * 100_000), os.mkfifo], ids=["deep", "pipe"])
def test_a_claim_that_cannot_be_read_claims_nothing(study, leave):
    SPEC.state.mkdir(parents=True)
    leave(SPEC.state / "artifact.json")
    assert publish() == 0


def test_an_error_is_told_although_there_is_nothing_to_clean_up(study, capsys):
    def fail(job):
        shutil.rmtree(job.folder)
        raise UserError("no")

    assert publish(make=fail) == 1
    assert capsys.readouterr().err == "colbert-zero: no\n"


def test_what_is_published_stays_so_where_its_state_cannot_be_deleted(study, monkeypatch):
    """A network file system keeps files that are open elsewhere, and their folder."""

    def keep(*_arguments, **_options):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(os, "rmdir", keep)
    assert publish() == 0


def test_an_artifact_is_on_disk_before_its_name_is(study, monkeypatch):
    """A rename that is on disk before the files are would, after a power loss, publish files of zeros."""
    events = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda one, other: (events.append(f"to {other}"), rename(one, other)))

    def write(job):
        (job.folder / "inner").mkdir()
        (job.folder / "inner" / "letters.txt").write_text("abc")
        return {}

    assert publish(make=write) == 0
    partial = str(study / SPEC.folder.parent / f".{SPEC.folder.name}.partial")
    published = events.index(f"to {SPEC.folder}")
    for name in ("", "/inner", "/inner/letters.txt", "/spec.json", "/manifest.json"):
        assert events.index(partial + name) < published
    assert events[published + 1] == str(study / SPEC.folder.parent)


LIMITED = """
import resource, sys
import numpy, safetensors.numpy
from colbert_zero.graph.artifact import run_step

def make(job):
    (job.state / "kept.txt").write_text("kept")
    safetensors.numpy.save_file({"x": numpy.zeros(10**6)}, job.folder / "x.safetensors")
    return {}

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(run_step(make, "", sys.argv[2:]))
"""


def test_a_file_that_may_not_be_written_is_one_line_and_the_next_run_goes_on(study):
    """Safetensors says so in an exception of its own."""

    def limited(size):
        command = [sys.executable, "-c", LIMITED, str(size), "--spec", SPEC.text]
        environment = os.environ | {"PYTHONPATH": str(WORKFLOW), provenance.RUN_VARIABLE: "this"}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    first = limited(100_000)
    assert first.returncode == 1
    assert first.stderr.startswith(
        "colbert-zero: the study's folder is larger than a file may be here: raise ulimit -f"
    )
    assert first.stderr.count("\n") == 1
    assert not list(SPEC.folder.parent.iterdir())
    assert (SPEC.state / "kept.txt").read_text() == "kept"
    assert limited(10**8).returncode == 0
    ends = [attempt["end"] for attempt in Artifact.open(SPEC.name).manifest["attempts"]]
    assert (len(ends), ends[0].partition(":")[0], ends[1]) == (2, "SafetensorError", "published")


def share(*flags, made=None):
    """Do a share of a part of the work on `SPEC`; what is done is put into `made`."""

    class Letters:
        def __init__(self, job):
            self.job = job

        def make(self, of_all):
            if made is not None:
                made.append((of_all, self.job.folder, self.job.spec.name))

    return run_step(write_letters, None, ["--spec", SPEC.text, *flags], parts={"letters": Letters})


def test_a_share_of_the_work_is_every_so_manyth_piece_and_publishes_nothing(study):
    made = []
    assert share("--part", "letters", made=made) == 0
    assert [share("--part", "letters", "--share", str(n), "--jobs", "3", made=made) for n in (1, 2, 3)] == [0, 0, 0]
    slices = [slice(0, None, 1), slice(0, None, 3), slice(1, None, 3), slice(2, None, 3)]
    assert made == [(each, SPEC.state, SPEC.name) for each in slices]
    assert not SPEC.folder.exists()
    ends = {path.name: json.loads(path.read_text())["end"] for path in SPEC.state.glob("*.attempts.jsonl")}
    assert ends == dict.fromkeys(
        [f"letters-{n}.attempts.jsonl" for n in ("1-of-1", "1-of-3", "2-of-3", "3-of-3")], "done"
    )
    assert share() == 0 and Artifact.open(SPEC.name).facts == {"letters": 3}
    assert share("--part", "letters", made=made) == 0 and len(made) == 4, "it is published"


@pytest.mark.parametrize(("number", "jobs"), [(0, 1), (2, 1), (4, 3), (-1, 3)])
def test_a_share_that_there_is_not_is_one_line(study, capsys, number, jobs):
    assert share("--part", "letters", f"--share={number}", f"--jobs={jobs}") == 1
    error = capsys.readouterr().err
    assert f"there is no share {number} of {jobs}: give --share a number from 1 to --jobs" in error
    assert not list(SPEC.state.parent.glob("*"))


def test_a_step_whose_work_has_no_parts_has_no_shares(study, capsys):
    with pytest.raises(SystemExit):
        run_step(write_letters, None, ["--spec", SPEC.text, "--part", "letters"])
    assert "unrecognized arguments: --part letters" in capsys.readouterr().err


def test_an_artifact_is_public_if_others_may_read_it(study):
    publish()
    for mode, public in ((0o750, False), (0o754, True), (0o711, False), (0o755, True)):
        SPEC.folder.chmod(mode)
        assert Artifact.open(SPEC.name).is_public is public


def test_what_is_to_be_done_with_a_damaged_artifact_and_with_one_that_was_let_go(study):
    publish()
    (SPEC.folder / "letters.txt").write_text("abd")
    with pytest.raises(UserError, match=r"was changed: .*; move results/shards/.* away and run snakemake again"):
        Artifact.open(SPEC.name).file("letters.txt")
    (SPEC.folder / "let-go.json").write_text("{}")
    with pytest.raises(
        UserError, match=rf"was let go; to have it again: snakemake --profile PROFILE {SPEC.again_file}"
    ):
        Artifact.open(SPEC.name).file("letters.txt")


def test_what_is_there_already_is_said_to_be_intact_or_let_go(study, caplog):
    caplog.set_level(logging.INFO)
    publish()
    for words in ("is already there, and intact", "is already there, and its files were let go"):
        (SPEC.folder / "spec.json").unlink()
        caplog.clear()
        assert publish() == 0 and words in caplog.text
        (SPEC.folder / "let-go.json").write_text("{}")
