"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from colbert_zero.graph.paths import WORKFLOW

# What test modules import stays: it is not searched for garbage, neither meanwhile nor later.
gc.disable()

# A busy machine makes an example slow, and no law wrong.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def modernbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_models import SENTENCES, tiny_modernbert  # here, since importing PyTorch takes seconds

    return tiny_modernbert(tmp_path_factory.mktemp("modernbert"), SENTENCES)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_models import SENTENCES, tiny_bert

    return tiny_bert(tmp_path_factory.mktemp("bert"), SENTENCES)


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished study that today's code made, once for all processes: to be copied, and never changed."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "finished-study"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            program = Path(__file__).with_name("finished_study.py")
            partial = folder.with_suffix(".partial")
            environment = os.environ | {"PYTHONPATH": str(WORKFLOW)}
            subprocess.run([sys.executable, program, partial], check=True, env=environment)
            partial.rename(folder)
    return folder


@pytest.fixture
def copied_study(finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished study, in the current folder, where nothing computes on a GPU."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(shutil.copytree(finished_study, tmp_path / "study"))
    return Path()


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty study to train in, and nothing left of what a training sets for its process."""
    import torch

    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
