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
    for line in command.output:
        beginning, cut, _ = line.partition(CUT)
        quoted = shape(beginning)
        assert quoted in printed or (cut and any(other.startswith(quoted) for other in printed)), (
            f"{line}\n\nis not in\n\n{output}"
        )
