"""The laws of indexes whose files are let go: records stay, damage stays damage, and files can be made again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from colbert_zero.audit.findings import Check, Finding, Note
from colbert_zero.audit.verify import Audit
from colbert_zero.graph import artifact as artifacts
from colbert_zero.graph.artifact import (
    LET_GO_FILE,
    MANIFEST_FILE,
    SPEC_FILE,
    Artifact,
    Job,
    Spec,
    input_records,
    is_let_go,
    run_step,
)
from colbert_zero.graph.console import UserError
from colbert_zero.graph.let_go import let_go, let_go_finished, main

INDEX = Spec("indexes", "toy", {})
RUN = Spec("runs", "colbert.toy", {"depth": 10}, {"index": [INDEX.name]})
OTHER_RUN = Spec("runs", "colbert.toy", {"depth": 20}, {"index": [INDEX.name]})
FILES = {
    "documents.safetensors": b"vectors",
    "plaid/0.codes.npy": b"codes",
    "plaid/ivf.npy": b"lists",
    "plaid/a/b.npy": b"deep",
}


def publish(spec: Spec, files: Mapping[str, bytes]) -> Artifact:
    def make(job: Job) -> Mapping[str, Any]:
        for name, contents in files.items():
            (job.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (job.folder / name).write_bytes(contents)
        return {}

    assert run_step(make, None, ["--spec", spec.text]) == 0
    return Artifact.open(spec.name)


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An index of three files and its run."""
    monkeypatch.chdir(tmp_path)
    publish(INDEX, FILES)
    publish(RUN, {"run.trec": b"q1 Q0 d1 1 1.0 toy\n"})
    yield tmp_path


def names() -> list[str]:
    return sorted(path.relative_to(INDEX.folder).as_posix() for path in INDEX.folder.rglob("*"))


def there() -> list[str]:
    return [spec.name for spec in (INDEX, RUN) if (spec.folder / MANIFEST_FILE).is_file()]


def problems() -> list[str]:
    """What `verify` finds of the two, but for numbers: their files are no index and no run."""
    told = Audit(1, names=there()).check()
    return [one.problem for one in told if isinstance(one, Finding) and one.check != Check.NUMBERS]


def test_only_the_files_go_and_every_record_stays() -> None:
    before = {name: (INDEX.folder / name).read_bytes() for name in (SPEC_FILE, MANIFEST_FILE)}
    records = input_records(RUN)
    assert let_go(RUN) == sum(map(len, FILES.values()))
    assert names() == [LET_GO_FILE, MANIFEST_FILE, SPEC_FILE]
    assert before == {name: (INDEX.folder / name).read_bytes() for name in before}
    assert input_records(RUN) == records
    assert let_go(RUN) == 0


def test_the_command_is_that_of_the_docstring() -> None:
    assert main(["--spec", RUN.text]) == 0
    assert is_let_go(INDEX.folder)


def test_who_reads_a_file_is_told_how_to_have_it_again() -> None:
    let_go(RUN)
    with pytest.raises(UserError, match=rf"was let go; to have it again: snakemake .* {INDEX.again_file}"):
        Artifact.open(INDEX.name).file("documents.safetensors")


def test_nothing_goes_before_the_run_is_published() -> None:
    assert let_go(OTHER_RUN) == 0
    assert not is_let_go(INDEX.folder)


def test_of_a_damaged_index_nothing_goes() -> None:
    (INDEX.folder / "plaid" / "ivf.npy").unlink()
    before = names()
    assert let_go(RUN) == 0
    assert names() == before
    assert any("ivf.npy is missing" in problem for problem in problems())


def test_what_no_manifest_lists_stays() -> None:
    (INDEX.folder / "note.txt").write_text("mine")
    outside = Path("outside.txt")
    outside.write_text("mine too")
    path = INDEX.folder / MANIFEST_FILE
    manifest = json.loads(path.read_bytes())
    manifest["outputs"]["../../../outside.txt"] = manifest["outputs"]["plaid/ivf.npy"]
    path.write_text(json.dumps(manifest))
    let_go(RUN)
    assert outside.is_file()
    assert "note.txt" in names()


def test_an_interrupted_letting_go_is_finished_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink
    left = iter([True])

    def dying(path: Path, missing_ok: bool = False) -> None:
        if path.name in ("0.codes.npy", "ivf.npy", "documents.safetensors") and not next(left, False):
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dying)
        with pytest.raises(KeyboardInterrupt):
            let_go(RUN)
    assert is_let_go(INDEX.folder)
    assert len(names()) > 3
    assert problems() == []
    assert let_go(RUN) > 0
    assert names() == [LET_GO_FILE, MANIFEST_FILE, SPEC_FILE]


def test_a_forced_rule_makes_nothing_again() -> None:
    let_go(RUN)
    (INDEX.folder / SPEC_FILE).unlink()
    publish(INDEX, {"documents.safetensors": b"never made"})
    assert names() == [LET_GO_FILE, MANIFEST_FILE, SPEC_FILE]


def test_files_that_are_made_again_with_the_same_bytes_have_the_same_record() -> None:
    records = input_records(RUN)
    let_go(RUN)
    index = publish(INDEX, FILES)
    assert not is_let_go(INDEX.folder)
    assert {name: index.file(name).read_bytes() for name in FILES} == FILES
    assert input_records(RUN) == records
    assert problems() == []


def test_files_that_come_out_otherwise_have_a_record_that_names_the_former_one() -> None:
    former = input_records(RUN)[INDEX.name]
    for contents in (b"as a GPU rounds", b"as another one does"):
        let_go(RUN)
        index = publish(INDEX, {"documents.safetensors": contents})
        assert index.file("documents.safetensors").read_bytes() == contents
    assert index.manifest["former"][0] == former
    assert len(index.manifest["former"]) == 2
    assert problems() == []
    notes = [one.text for one in Audit(1, names=there()).check() if isinstance(one, Note)]
    assert any(RUN.name in note and "other bytes since it was made again" in note for note in notes)


def test_an_index_that_was_swapped_is_still_a_finding() -> None:
    """Only a record that says what it follows excuses other files."""
    for path in INDEX.folder.iterdir():
        artifacts._delete(path)
    publish(INDEX, {"documents.safetensors": b"swapped"})
    assert any("is not the one it was made from" in problem for problem in problems())


def test_a_killed_remaking_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go(RUN)
    replace: Callable[..., None] = os.replace

    def dying(source: Any, target: Any) -> None:
        if str(target).endswith("ivf.npy"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(AssertionError):
            publish(INDEX, FILES)
    assert is_let_go(INDEX.folder)
    assert problems() == []
    publish(INDEX, FILES)
    assert {name: Artifact.open(INDEX.name).file(name).read_bytes() for name in FILES} == FILES


def test_an_index_without_a_run_is_a_finding() -> None:
    let_go(RUN)
    for path in RUN.folder.iterdir():
        path.unlink()
    assert any("no run of it is there" in problem for problem in problems())


def finished(keep: bool = False) -> Any:
    """What is read of a study of an index and its two runs, of which one is there."""
    specs = {spec.key: spec for spec in (INDEX, RUN, OTHER_RUN)}
    return SimpleNamespace(config={"evaluation": {"keep_indexes": keep}}, specs=specs)


def test_indexes_of_finished_runs_are_let_go_unless_they_are_kept_or_needed() -> None:
    assert let_go_finished(finished(keep=True), []) == 0
    assert let_go_finished(finished(), [RUN.key]) == 0
    assert not is_let_go(INDEX.folder)
    assert let_go_finished(finished(), [OTHER_RUN.key, INDEX.key]) == sum(map(len, FILES.values()))
    assert names() == [LET_GO_FILE, MANIFEST_FILE, SPEC_FILE]


@pytest.mark.parametrize("missing", [SPEC_FILE, MANIFEST_FILE])
def test_the_index_of_a_run_that_is_not_whole_stays(missing: str) -> None:
    (RUN.folder / missing).unlink()
    assert let_go_finished(finished(), []) == 0
    assert not is_let_go(INDEX.folder)


def test_how_much_became_free_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    os.truncate(INDEX.folder / "documents.safetensors", 1_500_000_000)  # It takes nothing of the disk.
    assert let_go(RUN) > 1_500_000_000
    assert f"let the files of {INDEX.name} go: 1.500 GB; its record stays" in caplog.text
    caplog.clear()
    assert let_go(RUN) == 0 and caplog.text == ""


def test_the_command_needs_a_spec(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "the following arguments are required: --spec" in capsys.readouterr().err
