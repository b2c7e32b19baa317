"""What most tests of the audit begin with."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def study(finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished study, to be changed; the current folder."""
    folder = shutil.copytree(finished_study, tmp_path / "study", symlinks=True)
    monkeypatch.chdir(folder)
    return folder
