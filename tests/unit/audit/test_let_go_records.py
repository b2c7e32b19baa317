"""A finished study whose indexes were let go: what reads records reads on, what needs files has them made again."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest

from colbert_zero.audit.replay import replay
from colbert_zero.audit.tolerance import Verdict
from colbert_zero.cli import main
from colbert_zero.graph.artifact import LET_GO_FILE, Artifact
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.let_go import let_go_finished
from colbert_zero.graph.study import Study
from finished_study import make


@pytest.fixture
def let_go(study: Path) -> Study:
    """The study, without the files of its indexes."""
    config = read_config(Path(CONFIG_FILE))
    kept = Study(config, Path())
    assert let_go_finished(kept, []) == 0, "a study keeps its indexes unless it says otherwise"
    planned = Study({**config, "evaluation": {**config.get("evaluation", {}), "keep_indexes": False}}, Path())
    assert planned.specs.keys() == kept.specs.keys(), "the setting decides no key"
    busy = [spec.key for spec in planned.specs.values() if spec.kind == "runs"]
    assert let_go_finished(planned, busy) == 0, "the inputs of jobs that are about to start stay"
    assert let_go_finished(planned, []) > 0
    return planned


def indexes(study: Study) -> list[Artifact]:
    return [Artifact.open(spec.name) for spec in study.specs.values() if spec.kind == "indexes"]


def test_it_has_no_findings_and_says_what_was_let_go(let_go: Study, capsys: pytest.CaptureFixture[str]) -> None:
    gone = indexes(let_go)
    assert all((index.folder / LET_GO_FILE).is_file() for index in gone)
    assert main(["verify"]) == 0
    *notes, summary = capsys.readouterr().out.splitlines()
    assert any(note.startswith(f"note: the files of {len(gone)} indexes were let go once searched, ") for note in notes)
    assert summary.endswith(" 0 findings")


def test_its_report_is_made_again_as_it_was(let_go: Study) -> None:
    before = Artifact.open(let_go.report.name)
    table = before.file("table.csv").read_bytes()
    shutil.rmtree(before.folder)
    make(let_go, let_go.report)
    assert Artifact.open(let_go.report.name).file("table.csv").read_bytes() == table


def test_a_cell_is_traced_to_its_sources(let_go: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "all/dev"]) == 0
    assert "indexes/dev-" in capsys.readouterr().out


def test_a_run_is_replayed_from_an_index_that_is_made_for_it(let_go: Study) -> None:
    run = next(spec for spec in let_go.specs.values() if spec.label == "colbert.dev")
    assert replay(Artifact.open(run.name)).verdict is Verdict.IDENTICAL
    (index,) = run.inputs["index"]
    assert replay(Artifact.open(index)).verdict is Verdict.IDENTICAL
    assert main(["verify"]) == 0, "a replay changes nothing in the study"


def test_a_bundle_has_them_by_digest_alone(let_go: Study, tmp_path: Path) -> None:
    assert main(["bundle", "--output", str(tmp_path / "study.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "study.zip") as bundle:
        there = {Path(name).name for name in bundle.namelist() if "/indexes/" in name}
    assert there == {"spec.json", "manifest.json"}


def test_a_search_says_that_its_index_was_let_go(let_go: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "all", "dev", "aqa"]) == 0
    assert re.search(r"indexes/\S+ was let go: its 20 documents are encoded now, and not kept", capsys.readouterr().err)
