"""What every command begins with."""

import gc
import importlib
import sys

import pytest

import colbert_zero
from colbert_zero.graph.console import run_reporting_errors


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
