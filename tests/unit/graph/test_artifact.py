"""Artifacts: named by what decides them, published whole or not at all, never redone, never overwritten."""

import errno
import json
import logging
import shutil
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.graph import locks, provenance
from colbert_zero.graph.artifact import Artifact, Spec, artifact_folder, run_step
from colbert_zero.graph.console import RetryableError, UserError

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
    input_digest = Artifact.open(child.name).manifest["inputs"][SPEC.name]
    assert len(input_digest) == 64


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
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "0123abc, changed")
    publish()
    manifest = Artifact.open(SPEC.name).manifest
    assert manifest["code"]["commit"] == "0123abc, changed"
    assert manifest["image"] is None


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


def test_manifest_names_code_and_packages(study):
    publish()
    manifest = json.loads((SPEC.folder / "manifest.json").read_text())
    assert len(manifest["code"]["digest"]) == 64
    assert manifest["packages"]["pyarrow"]
    assert manifest["outputs"]["letters.txt"]["bytes"] == 3


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


def test_the_digest_of_the_code_is_over_the_modules_of_every_room(tmp_path, monkeypatch):
    package = shutil.copytree(provenance.PACKAGE_FOLDER, tmp_path / "package")
    monkeypatch.setattr(provenance, "PACKAGE_FOLDER", package)
    digests = [provenance.code_identity()["digest"]]
    for room in sorted(path for path in package.iterdir() if (path / "__init__.py").is_file()):
        module = next(path for path in sorted(room.glob("*.py")) if path.name != "__init__.py")
        module.write_text(module.read_text() + "\n")
        digests.append(provenance.code_identity()["digest"])
    assert len(set(digests)) == len(digests) == 10
