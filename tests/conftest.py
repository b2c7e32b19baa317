"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_models import WORDS, tiny_bert, tiny_modernbert


@pytest.fixture(scope="session")
def modernbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_modernbert(tmp_path_factory.mktemp("modernbert"), WORDS)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"), WORDS)
