"""What every command begins with."""

import gc
import importlib
import sys

import pytest

import colbert_zero
from colbert_zero.graph.console import MESSAGE_PREFIX, UserError, exit_on_error, run_reporting_errors


@pytest.mark.parametrize(("started_as", "searched"), [("-m", False), ("", True), ("-c", True), ("/usr/bin/tool", True)])
def test_only_while_a_step_is_imported_nothing_is_searched_for_garbage(monkeypatch, started_as, searched):
    monkeypatch.setattr(sys, "argv", [started_as, "-m"])
    try:
        importlib.reload(colbert_zero)
        assert gc.isenabled() is searched
        assert run_reporting_errors(lambda: 7 if gc.isenabled() else 8) == 7
        assert gc.isenabled()
    finally:
        gc.enable()


def test_a_users_mistake_ends_the_process_and_a_bug_keeps_its_traceback():
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise UserError("the file is empty")
    assert ended.value.code == f"{MESSAGE_PREFIX}the file is empty"
    with pytest.raises(ZeroDivisionError), exit_on_error():
        _ = 1 / 0
    with exit_on_error():
        pass
