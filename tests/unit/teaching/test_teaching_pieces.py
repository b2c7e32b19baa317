"""Scores come in pieces: any number of jobs and kills gives the same bytes, and nothing is scored twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest import CaptureFixture, MonkeyPatch

from colbert_zero.graph.artifact import Artifact, Spec, run_step
from colbert_zero.machine.devices import add_device_option
from colbert_zero.machine.slurm import DEADLINE_VARIABLE
from colbert_zero.teaching import neural, scoring
from colbert_zero.teaching.pairs import Pair, Scores
from colbert_zero.teaching.rerankers import INSTRUCTION
from colbert_zero.teaching.scoring import choose_documents
from colbert_zero.teaching.teacher import Teacher
from mined import publish_candidates, publish_model, publish_shards, rows_in
from tiny_models import tiny_causal_lm

ROWS, DOCUMENTS = 23, 3
TEXTS = [(f"question {row}", f"answer {row} " * (1 + row % 5)) for row in range(ROWS)]
CAUSAL = {"kind": "causal-lm", "maximum_length": 60, "precision": "fp32", "instruction": None, "answer": "Yes"}
FLAGS = ("--device", "cpu")


@pytest.fixture(autouse=True)
def small_pieces(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(neural, "ROWS_PER_PIECE", 4)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("causal"), [INSTRUCTION, "Yes No", "question answer"])


class Counting(Teacher):
    """A teacher that scores a pair by its texts, and says which pairs it was given."""

    def __init__(self) -> None:
        self.scored: list[Pair] = []

    def tokenise(self, pairs: Any) -> Any:
        """What `score` here does not call."""

    def score(self, pairs: Sequence[Pair], threads: int = 1) -> Scores:
        self.scored += pairs
        return np.array([len(query) / 7 + int(document.split()[1]) for query, document in pairs], np.float32)


@pytest.fixture
def teacher(monkeypatch: MonkeyPatch) -> Counting:
    counting = Counting()
    monkeypatch.setattr(neural, "load_teacher", lambda *_: counting)
    return counting


def spec_of(model: Path | None = None, documents: int = DOCUMENTS, **settings: Any) -> Spec:
    """Scores of rows, of which every tenth has too few candidates; `settings` make their name another one."""
    shards = publish_shards(TEXTS)
    lists = [
        (
            ([(row + 1) % ROWS, (row + 5) % ROWS, row] if row % 10 else [row]),
            [3.0, 2.0, 1.0][: 3 if row % 10 else 1],
            0.5,
        )
        for row in range(ROWS)
    ]
    inputs = {"shards": [shards.name], "candidates": [publish_candidates(shards, lists).name]}
    inputs |= {"model": [publish_model(model).name]} if model else {}
    return Spec("scores", "neural.mine", {"documents": documents, "teacher": CAUSAL, **settings}, inputs)


def run(spec: Spec, *flags: str) -> int:
    return run_step(neural.make, None, ["--spec", spec.text, *FLAGS, *flags], add_device_option, neural.PARTS)


def do_share(spec: Spec, share: int, jobs: int) -> int:
    return run(spec, "--part", "rows", "--share", str(share), "--jobs", str(jobs))


def expected_outputs() -> Any:
    alone = spec_of(alone=True)
    assert run(alone) == 0
    return Artifact.open(alone.name).manifest["outputs"]


def test_documents_are_chosen_once(monkeypatch: MonkeyPatch) -> None:
    found: list[Any] = []

    def look(job: Any) -> Any:
        found.append(choose_documents(job))
        monkeypatch.setattr(scoring, "read_lists", None)
        found.append(choose_documents(job))
        return {}

    assert run_step(look, None, ["--spec", spec_of().text]) == 0
    chosen, again = found
    assert chosen.rows.tolist() == again.rows.tolist() == [row for row in range(ROWS) if row % 10]
    assert chosen.documents.tolist() == again.documents.tolist()
    assert chosen.query(0) == "question 1"
    assert chosen.texts(0) == [TEXTS[number][1] for number in (1, 2, 6)]


@pytest.mark.parametrize("jobs", [1, 2, 3, 7])
def test_several_jobs_make_the_same_scores(jobs: int, teacher: Counting, monkeypatch: MonkeyPatch) -> None:
    expected = expected_outputs()
    spec = spec_of()
    teacher.scored.clear()
    for share in range(jobs, 0, -1):
        assert do_share(spec, share, jobs) == 0
    assert len(teacher.scored) == len(set(teacher.scored)) == (ROWS - 3) * DOCUMENTS
    monkeypatch.setattr(neural, "load_teacher", None)
    assert run(spec) == 0, "all is there, so no teacher is loaded"
    artifact = Artifact.open(spec.name)
    assert artifact.manifest["outputs"] == expected
    assert artifact.facts["rows"] == ROWS - 3 and artifact.facts["dropped"]["too few candidates"] == 3
    assert not spec.state.exists()
    assert do_share(spec, 1, jobs) == 0, "a share that starts after the scores are published does nothing"


def test_a_failed_piece_costs_no_other(teacher: Counting, monkeypatch: MonkeyPatch) -> None:
    expected, spec = expected_outputs(), spec_of()
    teacher.scored.clear()
    score = teacher.score

    def fail_once(pairs: Sequence[Pair], threads: int = 1) -> Scores:
        if len(teacher.scored) == 2 * 4 * DOCUMENTS:
            raise SystemExit
        return score(pairs, threads)

    monkeypatch.setattr(teacher, "score", fail_once)
    with pytest.raises(SystemExit):
        run(spec)
    monkeypatch.setattr(teacher, "score", score)
    # The documents are chosen once.
    monkeypatch.setattr(scoring, "read_lists", None)
    assert run(spec) == 0
    assert len(teacher.scored) == len(set(teacher.scored)) == (ROWS - 3) * DOCUMENTS
    assert Artifact.open(spec.name).manifest["outputs"] == expected


def test_a_deadline_ends_a_job_and_not_its_work(
    teacher: Counting, monkeypatch: MonkeyPatch, capfd: CaptureFixture[str]
) -> None:
    expected, spec = expected_outputs(), spec_of()
    teacher.scored.clear()
    score = teacher.score

    def slow(pairs: Sequence[Pair], threads: int = 1) -> Scores:
        if len(teacher.scored) == 4 * DOCUMENTS:
            monkeypatch.setenv(DEADLINE_VARIABLE, "1")
        return score(pairs, threads)

    monkeypatch.setattr(teacher, "score", slow)
    assert run(spec) == 1
    assert "time is up; what is done of the pieces of" in capfd.readouterr().err
    assert len(teacher.scored) == 2 * 4 * DOCUMENTS
    monkeypatch.delenv(DEADLINE_VARIABLE)
    assert run(spec) == 0
    assert len(teacher.scored) == len(set(teacher.scored))
    assert Artifact.open(spec.name).manifest["outputs"] == expected


def test_a_score_that_is_no_number_stops_the_piece(
    teacher: Counting, monkeypatch: MonkeyPatch, capfd: CaptureFixture[str]
) -> None:
    spec, score = spec_of(), teacher.score

    def broken(pairs: Sequence[Pair], threads: int = 1) -> Scores:
        scores = score(pairs, threads)
        scores[[pair[0] == "question 7" for pair in pairs]] = np.nan
        return scores

    monkeypatch.setattr(teacher, "score", broken)
    assert do_share(spec, 1, 1) == 1
    assert "a score of row 7 is not finite; try the teacher in fp32" in capfd.readouterr().err
    assert [path.name for path in (spec.state / "rows").glob("0*")] == ["000000"]


def test_no_row_with_enough_documents_is_one_clear_line(teacher: Counting, capfd: CaptureFixture[str]) -> None:
    assert do_share(spec_of(documents=9), 1, 2) == 1
    assert "no row has 9 documents to score" in capfd.readouterr().err


PROGRAM = """
import sys
from colbert_zero.graph.artifact import run_step
from colbert_zero.machine.devices import add_device_option
from colbert_zero.teaching import neural

neural.ROWS_PER_PIECE = 4
sys.exit(run_step(neural.make, None, None, add_device_option, neural.PARTS))
"""


def test_jobs_killed_at_any_time_end_with_the_same_bytes(causal: Path) -> None:
    alone, spec = spec_of(causal, alone=True), spec_of(causal)
    assert run(alone) == 0
    command = [sys.executable, "-c", PROGRAM, "--spec", spec.text, "--device", "cpu"]
    for pattern, flags in (("documents/.0*", ()), ("rows/.000002*", ("--part", "rows"))):
        running = subprocess.Popen([*command, *flags], start_new_session=True, stderr=subprocess.DEVNULL)
        while running.poll() is None and not any(spec.state.glob(pattern)):
            time.sleep(0.001)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        assert not spec.folder.exists()
    made = {path.name: path.stat().st_ino for path in spec.state.glob("rows/0*")}
    assert {"000000", "000001"} <= set(made)
    assert run(spec) == 0
    one, other = Artifact.open(alone.name), Artifact.open(spec.name)
    assert one.manifest["outputs"] == other.manifest["outputs"] and len(rows_in(other)) == ROWS - 3
    assert json.dumps(one.facts) == json.dumps(other.facts)
