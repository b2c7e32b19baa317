"""What most tests of the audit begin with."""

import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colbert_zero.report import figures

DRAWN: dict[bytes, str] = {}


@pytest.fixture(autouse=True, scope="module")
def each_figure_is_drawn_once() -> Iterator[None]:
    """Draw a figure once in a process: it is a function of its arguments, and takes most of a verification's time."""

    def remembered(draw: Callable[..., str]) -> Callable[..., str]:
        def draw_once(*arguments: object) -> str:
            key = pickle.dumps((draw.__name__, arguments))
            return DRAWN.get(key) or DRAWN.setdefault(key, draw(*arguments))

        return draw_once

    with pytest.MonkeyPatch.context() as patch:
        for name in ("quality_against_cost", "loss_curves", "differences", "squares", "stacked_bars", "histograms"):
            patch.setattr(figures, name, remembered(getattr(figures, name)))
        yield


@pytest.fixture
def study(finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished study, to be changed; the current folder."""
    folder = shutil.copytree(finished_study, tmp_path / "study", symlinks=True)
    monkeypatch.chdir(folder)
    return folder
