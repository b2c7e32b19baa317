"""What of a study is there, and what Snakemake would make."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from colbert_zero.graph.artifact import (
    EXTERNAL_KINDS,
    KEY_DIGITS,
    MANIFEST_FILE,
    SPEC_FILE,
    STATE_FOLDER,
    Spec,
    is_let_go,
)
from colbert_zero.graph.let_go import LET_GO_KIND
from colbert_zero.graph.study import Study


def _names_in(folder: Path) -> list[str]:
    """The names in a folder; none if there is no such folder."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


@dataclass(frozen=True)
class Inventory:
    """The artifacts of a study that are there. Each folder is listed once: a study may have thousands of artifacts.

    Attributes:
        study: The study, in the current folder.
    """

    study: Study

    @cached_property
    def _folders(self) -> set[str]:
        """The names of all artifacts of the study's kinds that have a folder, whole or not."""
        kinds = {spec.kind for spec in self.study.specs.values()}
        parents = {kind: Path("resources" if kind in EXTERNAL_KINDS else "results") / kind for kind in kinds}
        return {f"{kind}/{name}" for kind, parent in parents.items() for name in _names_in(parent)}

    @cached_property
    def done(self) -> set[str]:
        """The names of the artifacts that are published, whether their files are still there or were let go."""
        return {spec.name for spec in self._specs if (spec.folder / MANIFEST_FILE).is_file()}

    @cached_property
    def let_go(self) -> set[str]:
        """The names of the artifacts whose files were let go."""
        return {spec.name for spec in self._specs if spec.kind == LET_GO_KIND and is_let_go(spec.folder)}

    @cached_property
    def begun(self) -> set[str]:
        """The names of the artifacts that are not published, and that a step has worked on."""
        kinds = {spec.kind for spec in self.study.specs.values()}
        states = {f"{kind}/{name}" for kind in kinds for name in _names_in(STATE_FOLDER / kind)}
        return {spec.name for spec in self.study.specs.values() if spec.name in states} - self.done

    @cached_property
    def to_make(self) -> list[Spec]:
        """The artifacts that a run of Snakemake makes; images that it builds are none.

        One is made if its `spec.json` is not there and the report, or something that is made, needs it. So what only
        finished artifacts were made from may be deleted. But if it is made again, for something else, Snakemake also
        runs the jobs of those: they find their artifacts intact, and end. One whose files were let go is made if
        something that is not published needs it.
        """
        users: dict[str, list[Spec]] = {}
        for spec in self.study.specs.values():
            for source in self.needed_by(spec):
                users.setdefault(source.name, []).append(spec)
        there = {spec.name for spec in self._specs if (spec.folder / SPEC_FILE).is_file()}
        found: dict[str, Spec] = {}
        pending = [] if self.study.report.name in there else [self.study.report]
        while pending:
            spec = pending.pop()
            if spec.name not in found:
                found[spec.name] = spec
                needed = list(self.needed_by(spec))
                pending += [source for source in needed if source.name not in there]
                pending += [source for source in needed if source.name in self.let_go and spec.name not in self.done]
                pending += users.get(spec.name, [])
        return list(found.values())

    def needed_by(self, spec: Spec) -> Iterator[Spec]:
        """What must be there before an artifact can be made: its inputs, and what a training is evaluated on."""
        yield from self.study.inputs_of(spec)
        for name in self.study.evaluations.get(spec.key, {}).get("collections", {}):
            yield self.study.spec_of(name[-KEY_DIGITS:])

    def missing_before(self, spec: Spec) -> list[Spec]:
        """What is missing of all that an artifact is made from, the nearest first."""
        found: dict[str, Spec] = {}
        nearest: Iterable[Spec] = [spec]
        while nearest:
            needed = [source for artifact in nearest for source in self.needed_by(artifact)]
            gone = [source for source in needed if source.name not in self.done - self.let_go]
            nearest = list({source.name: source for source in gone}.values())
            nearest = [source for source in nearest if source.name not in found]
            found |= {source.name: source for source in nearest}
        return list(found.values())

    @cached_property
    def _specs(self) -> list[Spec]:
        """The specs of the artifacts that have a folder."""
        return [spec for spec in self.study.specs.values() if spec.name in self._folders]
