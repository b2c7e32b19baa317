"""Pieces of a part of the work: each is made once, whole or not at all, by whoever comes first."""

import errno
import itertools
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.graph.console import RetryableError
from colbert_zero.machine import pieces
from colbert_zero.machine.pieces import FACTS_FILE, Part, is_intact, seal, sealed_facts
from colbert_zero.machine.slurm import DEADLINE_VARIABLE

COUNT = 7


def write_square(log: Path, number: int, folder: Path) -> Mapping[str, Any]:
    """A piece with a file in a folder; `log` gets a line for each call."""
    with log.open("a") as file:
        file.write(f"{number}\n")
    (folder / "deep").mkdir()
    (folder / "deep" / "square").write_text(str(number**2))
    return {"square": number**2}


def part_in(folder: Path, processes: int = 1, count: int = COUNT) -> Part:
    return Part(folder / "part", count, "squares", partial(write_square, folder / "log"), processes)


def calls(folder: Path) -> list[int]:
    return sorted(map(int, (folder / "log").read_text().split()))


@pytest.mark.parametrize(("jobs", "processes"), [(1, 1), (2, 1), (3, 1), (COUNT + 1, 1), (2, 2)])
def test_any_number_of_jobs_and_processes_makes_each_piece_once(tmp_path, jobs, processes):
    for share in reversed(range(jobs)):
        part_in(tmp_path, processes).make(slice(share, None, jobs))
    part = part_in(tmp_path)
    part.make()
    assert calls(tmp_path) == list(range(COUNT))
    assert part.facts() == [{"square": number**2} for number in range(COUNT)]
    assert [(part.piece(number) / "deep/square").read_text() for number in range(3)] == ["0", "1", "4"]


def test_a_piece_that_failed_is_not_there_and_those_before_it_are_kept(tmp_path):
    def fail_at_three(number: int, folder: Path) -> Mapping[str, Any]:
        facts = write_square(tmp_path / "log", number, folder)
        if number == 3:
            raise ValueError("no")
        return facts

    broken = Part(tmp_path / "part", COUNT, "squares", fail_at_three)
    with pytest.raises(ValueError, match="no"):
        broken.make()
    assert sorted(path.name for path in broken.folder.glob("*[0-9]*")) == ["000000", "000001", "000002"]
    part_in(tmp_path).make()
    assert calls(tmp_path) == sorted([*range(COUNT), 3])


def test_what_a_kill_left_half_done_counts_for_nothing(tmp_path):
    part = part_in(tmp_path)
    part.folder.mkdir()
    (part.folder / ".000002-x").mkdir()
    (part.folder / ".000002-x" / FACTS_FILE).write_text("{}")
    part.make()
    assert calls(tmp_path) == list(range(COUNT))
    assert part.facts()[2] == {"square": 4}


DAMAGE: dict[str, Callable[[Path], object]] = {
    "zeros": lambda piece: (piece / "deep" / "square").write_bytes(bytes(1)),
    "a file that is cut": lambda piece: (piece / "deep" / "square").write_text(""),
    "a file that grew": lambda piece: (piece / "deep" / "square").write_text("44"),
    "no file": lambda piece: (piece / "deep" / "square").unlink(),
    "no facts": lambda piece: (piece / FACTS_FILE).unlink(),
    "facts of zeros": lambda piece: (piece / FACTS_FILE).write_bytes(bytes(90)),
    "half of the facts": lambda piece: (piece / FACTS_FILE).write_text((piece / FACTS_FILE).read_text()[:30]),
    "other facts": lambda piece: (piece / FACTS_FILE).write_text((piece / FACTS_FILE).read_text().replace("4", "5")),
    "no facts at all": lambda piece: (piece / FACTS_FILE).write_text("{}"),
    "a list of facts": lambda piece: (piece / FACTS_FILE).write_text("[4]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_piece_that_is_damaged_is_made_again_and_no_other(tmp_path, caplog, damage):
    part = part_in(tmp_path)
    part.make()
    damage(part.piece(2))
    part.make(slice(1, None, 2))
    assert calls(tmp_path) == list(range(COUNT)), "it is of another job's share"
    part.make()
    assert calls(tmp_path) == sorted([*range(COUNT), 2])
    assert [record.message for record in caplog.records] == [f"{part.piece(2)} is damaged: it is made again"]
    assert part.facts() == [{"square": number**2} for number in range(COUNT)]
    assert (part.piece(2) / "deep" / "square").read_text() == "4"


def test_a_piece_that_cannot_be_read_is_not_damaged(tmp_path, monkeypatch):
    part = part_in(tmp_path)
    part.make()

    def fail(path: Path) -> int:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(pieces, "checksum", fail)
    with pytest.raises(OSError, match="Input/output error"):
        part.make()
    monkeypatch.undo()
    part.make()
    assert calls(tmp_path) == list(range(COUNT))


def test_pieces_of_an_earlier_version_are_kept(tmp_path):
    part = part_in(tmp_path)
    part.make()
    for number in range(COUNT):
        (part.piece(number) / FACTS_FILE).write_text(json.dumps({"square": number**2}))
    part.make()
    assert calls(tmp_path) == list(range(COUNT))
    assert part.facts() == [{"square": number**2} for number in range(COUNT)]


@given(facts=st.dictionaries(st.text() | st.integers(), st.none() | st.booleans() | st.integers() | st.floats()))
def test_whatever_the_facts_are_a_sealed_folder_is_intact(facts):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "file").write_text("text")
        seal(folder, facts)
        assert is_intact(folder)
        assert json.dumps(sealed_facts(folder)) == json.dumps(json.loads(json.dumps(facts)))


def test_a_piece_that_another_process_made_meanwhile_stays_as_it_is(tmp_path):
    def overtaken(number: int, folder: Path) -> Mapping[str, Any]:
        part_in(tmp_path).make(slice(number, number + 1))
        return {"square": -1}

    slow = Part(tmp_path / "part", COUNT, "squares", overtaken)
    slow.make()
    assert slow.facts() == [{"square": number**2} for number in range(COUNT)]
    assert not list(slow.folder.glob(".0*")), "what it made too late is gone"


def test_near_its_deadline_a_job_begins_no_further_piece(tmp_path, monkeypatch):
    written = itertools.count()

    def write(number: int, folder: Path) -> Mapping[str, Any]:
        if next(written) == 2:
            monkeypatch.setenv(DEADLINE_VARIABLE, "1")
        return write_square(tmp_path / "log", number, folder)

    with pytest.raises(RetryableError, match="time is up; what is done of the squares is kept"):
        Part(tmp_path / "part", COUNT, "squares", write).make()
    assert calls(tmp_path) == [0, 1, 2]
    monkeypatch.delenv(DEADLINE_VARIABLE)
    part_in(tmp_path).make()
    assert calls(tmp_path) == list(range(COUNT))


def test_each_attempt_makes_a_piece_however_short_its_time_is(tmp_path, monkeypatch):
    monkeypatch.setenv(DEADLINE_VARIABLE, "1")
    for number in range(COUNT - 1):
        with pytest.raises(RetryableError, match="time is up"):
            part_in(tmp_path).make()
        assert calls(tmp_path) == list(range(number + 1))
    part_in(tmp_path).make()
    assert calls(tmp_path) == list(range(COUNT))


def test_a_part_says_how_many_pieces_it_has(tmp_path):
    part_in(tmp_path).make(slice(1, 2))
    plan = json.loads((tmp_path / "part" / "part.json").read_text())
    assert plan == {"count": COUNT, "unit": "squares"}


def test_a_part_without_pieces_is_done(tmp_path):
    part = part_in(tmp_path, count=0)
    part.make()
    assert part.facts() == []
