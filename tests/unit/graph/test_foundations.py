"""The foundations: random draws independent of order, equal texts, errors and progress as users see them, locks."""

import errno
import logging
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.data.text import document_text, normalise, stripped
from colbert_zero.graph import console
from colbert_zero.graph.console import OneLineFormatter, UserError, progress, run_reporting_errors
from colbert_zero.graph.draws import draw, draws, sample
from colbert_zero.graph.locks import acquire_lock
from colbert_zero.graph.text_files import check_writable

WORKFLOW = Path(__file__).parents[3] / "workflow"


def test_a_draw_is_the_same_in_every_process():
    code = "from colbert_zero.graph.draws import draw; print(draw(42, 'shuffle', 'torch', 7))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": str(WORKFLOW), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert outputs == {f"{draw(42, 'shuffle', 'torch', 7)}\n"}


def test_draws_of_many_are_those_of_each():
    names = ["a", "", "b\x1fc", "é"]
    assert draws(42, "shuffle", "torch", identities=names) == [draw(42, "shuffle", "torch", name) for name in names]


def test_draws_for_different_things_differ():
    identities = [(1, "a", "b"), (1, "ab"), (1, "a", "b", 0), (2, "a", "b"), (1, "b", "a")]
    assert len({draw(seed, purpose, *rest) for seed, purpose, *rest in identities}) == len(identities)


def test_draws_are_uniform():
    """Chi-squared over 16 cells has mean 15 and standard deviation 5.5."""
    counts = Counter(draw(0, "test", number) >> 60 for number in range(16_000))
    assert sum((counts[cell] - 1000) ** 2 / 1000 for cell in range(16)) < 15 + 4 * 5.5


@given(st.lists(st.integers(), max_size=30), st.integers(0, 40), st.integers())
def test_a_sample_has_no_item_twice_and_keeps_their_order(items, size, seed):
    chosen = sample(list(enumerate(items)), size, seed, "test")
    assert len(chosen) == min(size, len(items))
    assert [place for place, _ in chosen] == sorted({place for place, _ in chosen})


@pytest.mark.parametrize(
    ("title", "body", "text"),
    [("A", "b", "A b"), ("", "b", "b"), (None, "b", "b"), ("A", None, "A"), (None, None, ""), (" A ", " b ", "A   b")],
)
def test_title_and_body_are_joined_by_one_space_as_beir_does(title, body, text):
    assert document_text(title, body) == text


@given(st.none() | st.text())
def test_a_text_is_stripped_as_a_document_without_a_title_is(text):
    assert stripped(text) == document_text(None, text)


@given(st.text())
def test_normalising_twice_is_normalising_once(text):
    assert normalise(normalise(text)) == normalise(text)


def test_texts_that_differ_in_case_width_or_space_are_the_same():
    assert normalise("Ｆｉｌｅ\u00a0 STRASSE\n") == normalise("file straße")


def test_a_full_disk_is_one_line(capsys):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "results/x")

    assert run_reporting_errors(full) == 1
    assert capsys.readouterr().err == (
        "colbert-zero: no space left while writing results/x: free some, then run the same command again\n"
    )


def test_an_interruption_is_one_line_and_the_status_of_a_signal(capsys):
    def interrupt():
        raise KeyboardInterrupt

    assert run_reporting_errors(interrupt) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "colbert-zero: interrupted; the same command resumes from here\n"


def test_whether_a_folder_can_be_written_is_tried_and_leaves_nothing(tmp_path):
    for _ in range(2):
        check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        check_writable(tmp_path / "file" / "folder")


def test_our_own_bugs_keep_their_traceback():
    with pytest.raises(KeyError):
        run_reporting_errors(lambda: (_ for _ in ()).throw(KeyError("no space left on device")))


HOSTILE_NAMES = {
    "forged line": ("a\nb\r\nc", "a\\nb\\r\\nc"),
    "escape sequence": ("a\x1b[2Jb", "a\\x1b[2Jb"),
    "C1": ("a\x9bb\x85c", "a\\x9bb\\x85c"),
    "reordered": ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
    "line separator": ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
    "other controls": ("a\tb\0c\x7f\x0b\x0c", "a\\tb\\x00c\\x7f\\x0b\\x0c"),
    "half a pair": ("a\ud800", "a\\ud800"),
    "tag": ("a\U000e0041", "a\\U000e0041"),
    "harmless": ("Straße, 木 'x' \\n", "Straße, 木 'x' \\n"),
}


@pytest.mark.parametrize(("name", "shown"), HOSTILE_NAMES.values(), ids=HOSTILE_NAMES)
def test_an_error_is_one_line_whatever_names_are_in_it(capsys, name, shown):
    def fail():
        raise UserError(f"{name} is missing")

    assert run_reporting_errors(fail) == 1
    assert capsys.readouterr().err == f"colbert-zero: {shown} is missing\n"


@pytest.mark.parametrize(("name", "shown"), HOSTILE_NAMES.values(), ids=HOSTILE_NAMES)
def test_a_log_line_is_one_line_whatever_names_are_in_it(name, shown):
    record = logging.LogRecord("colbert_zero", logging.INFO, "", 0, "%s is there", (name,), None)
    assert OneLineFormatter().format(record)[len("00:00:00 ") :] == f"{shown} is there"


def test_a_traceback_in_the_log_keeps_its_lines():
    try:
        raise ValueError
    except ValueError:
        record = logging.LogRecord("colbert_zero", logging.INFO, "", 0, "a", (), sys.exc_info())
    assert OneLineFormatter().format(record).splitlines()[1] == "Traceback (most recent call last):"


def test_progress_in_a_batch_log_is_a_line_a_minute(monkeypatch, caplog):
    clock = iter(range(1000, 10_000, 25))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        assert list(progress(range(12), 12, "rows")) == list(range(12))
    assert len(caplog.records) == 12 * 25 // 75
    assert caplog.messages[0] == "3 of 12 rows, 0.0/s, 225 s left"
    with caplog.at_level(logging.INFO):
        assert list(progress(range(3), None, "rows")) == list(range(3))
    assert caplog.messages[-1] == "3 of ? rows, 0.0/s"


def test_a_lock_ends_with_a_killed_process(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from colbert_zero.graph.locks import acquire_lock;"
        f"lock = acquire_lock(Path({str(path)!r}), 'work'); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(WORKFLOW)}, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"work is under way in process {holder.pid} on "):
            acquire_lock(path, "work")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    acquire_lock(path, "work").close()
