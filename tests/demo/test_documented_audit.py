"""The commands of docs/audit.md answer on the finished demo as the page says: `make test-demo`."""

import pytest

from documented_audit import COMMANDS, CUT, run, shape, status_of
from documents import ROOT


def test_there_are_commands():
    assert len(COMMANDS) >= 9


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words[1])
def test_it_answers_as_documented(command, tmp_path):
    status, output = run(command, ROOT / "local", tmp_path)
    assert status == status_of(command), output
    printed = [shape(line) for line in output.splitlines()]
    for line in filter(None, command.output):
        if line.strip() != CUT:
            beginning, cut, _ = line.partition(CUT)
            found = [
                other for other in printed if other == shape(beginning) or (cut and other.startswith(shape(beginning)))
            ]
            assert found, f"{line}\n\nis not in\n\n{output}"
