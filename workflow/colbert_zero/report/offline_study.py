"""Plan the study of the current folder without the network, also before its names of the Hub have been looked up."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from colbert_zero.graph.config import Config
from colbert_zero.graph.study import Study


def offline_study(config: Config) -> tuple[Study, Collection[str]]:
    """The study of a config, and the repositories of the Hub whose commits nobody has looked up yet.

    What rests on these has other keys once they are known. Nothing of it can be there before.

    Raises:
        UserError: The config has a mistake.
    """
    unknown: dict[str, None] = {}

    def leave_open(_kind: str, repository: str, _revision: str) -> None:
        unknown[repository] = None

    return Study(config, Path(), resolve=leave_open), unknown
