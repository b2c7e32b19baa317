"""A copy of a finished study in the hands of someone who may write everywhere, and knows how its records are made."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import chdir
from functools import cached_property
from pathlib import Path
from typing import Any

import finished_study
from colbert_zero.graph.artifact import KINDS as ALL_KINDS
from colbert_zero.graph.artifact import (
    MANIFEST_FILE,
    SPEC_FILE,
    Spec,
    artifact_folder,
    content_digest,
    file_digests,
    published_folders,
)
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.study import Study
from colbert_zero.report.page import Report

KINDS = tuple(kind for kind in ALL_KINDS if kind not in ("selections", "contamination", "audits", "releases"))
"""Those that a study has without an audit, sweeps and releases."""


def manifest_text(manifest: Any) -> str:
    """A manifest as a step writes it."""
    return json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


class Forger:
    """What can be done to a study by hand.

    Attributes:
        root: The study's folder.
        random: Draws of this forger, the same each time.
    """

    def __init__(self, root: Path, seed: str) -> None:
        """Work in `root`; `seed` decides what is chosen."""
        self.root = root
        self.random = random.Random(seed)

    @cached_property
    def names(self) -> list[str]:
        """The artifacts' names, sorted."""
        return sorted(f"{folder.parent.name}/{folder.name}" for folder in published_folders(self.root))

    def of_kind(self, kind: str) -> list[str]:
        """The names of the artifacts of a kind, sorted."""
        return [name for name in self.names if name.startswith(f"{kind}/")]

    def pick(self, kind: str) -> str:
        """An artifact of a kind."""
        return self.random.choice(self.of_kind(kind))

    @property
    def report(self) -> str:
        """The study's report."""
        (name,) = self.of_kind("reports")
        return name

    def row(self, name: str) -> dict[str, str]:
        """By kind, the artifacts of a row of the table, from its measures to its last model."""
        names = {"measures": self.spec(self.report)["inputs"][name][0]}
        names["runs"] = self.spec(names["measures"])["inputs"]["run"][0]
        names["indexes"] = self.spec(names["runs"])["inputs"]["index"][0]
        names["models"] = self.spec(names["indexes"])["inputs"]["model"][0]
        return names

    def folder(self, name: str) -> Path:
        """An artifact's folder."""
        return self.root / artifact_folder(name)

    def files(self, name: str) -> list[Path]:
        """The paths of an artifact's own files, sorted."""
        return [self.folder(name) / file for file in sorted(file_digests(self.folder(name)))]

    def file(self, name: str) -> Path:
        """One of an artifact's own files."""
        return self.random.choice(self.files(name))

    def spec(self, name: str) -> dict[str, Any]:
        """What `spec.json` says."""
        value: dict[str, Any] = json.loads((self.folder(name) / SPEC_FILE).read_bytes())
        return value

    def manifest(self, name: str) -> dict[str, Any]:
        """What `manifest.json` says."""
        value: dict[str, Any] = json.loads((self.folder(name) / MANIFEST_FILE).read_bytes())
        return value

    def write_manifest(self, name: str, manifest: Any) -> None:
        """Replace an artifact's manifest, in the form in which a step writes it."""
        (self.folder(name) / MANIFEST_FILE).write_text(manifest_text(manifest), encoding="utf-8")

    def edit_manifest(self, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
        """Change an artifact's manifest."""
        manifest = self.manifest(name)
        edit(manifest)
        self.write_manifest(name, manifest)

    def fit(self, name: str) -> None:
        """Make the outputs of an artifact's manifest those of the files that are there."""
        self.edit_manifest(name, lambda manifest: manifest.update(outputs=file_digests(self.folder(name))))

    def inputs(self, name: str) -> list[str]:
        """What an artifact is made from, by its spec."""
        return _inputs(self.spec(name))

    def consumers(self, name: str) -> list[str]:
        """The artifacts that are made from this one, sorted."""
        return [other for other in self.names if name in _inputs(self.spec(other))]

    def followers(self, *names: str) -> list[str]:
        """All that rests on these artifacts, each after what it is made from."""
        reached, followers = set(names), []
        for name in self.in_order:
            if name not in names and reached.intersection(_inputs(self.spec(name))):
                reached.add(name)
                followers.append(name)
        return followers

    @property
    def in_order(self) -> list[str]:
        """All artifacts, each after what it is made from."""
        order: dict[str, None] = {}

        def visit(name: str) -> None:
            for source in _inputs(self.spec(name)):
                if source not in order:
                    visit(source)
            order[name] = None

        for name in self.names:
            visit(name)
        return list(order)

    def record_inputs(self, name: str) -> None:
        """Make the records that an artifact has of its inputs those of the inputs that are there."""
        records = {}
        for source in _inputs(self.spec(name)):
            folder = self.folder(source)
            records[source] = {
                "spec": file_digest(folder / SPEC_FILE),
                "files": _content_digest(self.manifest(source).get("outputs")),
                "manifest": file_digest(folder / MANIFEST_FILE),
            }
        self.edit_manifest(name, lambda manifest: manifest.update(inputs=records))

    def remake_chain(self, *names: str) -> None:
        """Make every record above these artifacts agree with them, up to the report's."""
        for follower in self.followers(*names):
            self.record_inputs(follower)

    def rekey(self, name: str, edit: Callable[[dict[str, Any]], object]) -> dict[str, str]:
        """Change an artifact's spec, and give it and all that rests on it the names that follow from it.

        Returns:
            The new names by the old.
        """
        renamed: dict[str, str] = {}
        for old in [name, *self.followers(name)]:
            value = json.loads(_replace((self.folder(old) / SPEC_FILE).read_text(encoding="utf-8"), renamed))
            if old == name:
                edit(value)
            spec = Spec(value["kind"], value["label"], value["settings"], value["inputs"])
            renamed[old] = spec.name
            self.folder(old).rename(self.folder(spec.name))
            (self.folder(spec.name) / SPEC_FILE).write_text(spec.text, encoding="utf-8")
            manifest = self.manifest(spec.name)
            self.write_manifest(spec.name, json.loads(_replace(json.dumps(manifest), renamed)) | {"spec": spec.digest})
            for file in self.files(spec.name):
                if file.name in ("run.trec", "table.csv", "report.html"):
                    file.write_text(_replace(file.read_text(encoding="utf-8"), renamed), encoding="utf-8")
        del self.names
        for new in renamed.values():
            self.fit(new)
            if new != renamed[name]:
                self.record_inputs(new)
        return renamed

    def plan(self) -> Study:
        """What the config that is there plans."""
        with chdir(self.root):
            return Study(read_config(Path(CONFIG_FILE)), Path())

    def make_again(self, name: str) -> None:
        """Let the step make an artifact again, from the inputs that are there."""
        shutil.rmtree(self.folder(name))
        study = self.plan()
        with chdir(self.root):
            finished_study.make(study, next(spec for spec in study.specs.values() if spec.name == name))

    def report_again(self) -> None:
        """Write the report's files as they follow from what is there, and let its record fit; nothing else is new."""
        name, folder = self.report, self.folder(self.report)
        with chdir(self.root):
            report = Report.open(Spec.parse((folder / SPEC_FILE).read_text(encoding="utf-8")))
            for file, text in report.files():
                (folder / file).write_text(text, encoding="utf-8")
        means = {row.name: report.mean(row) for row in report.rows}
        self.edit_manifest(name, lambda manifest: manifest["facts"].update(means=means))
        self.fit(name)
        self.record_inputs(name)

    def edit_config(self, old: str, new: str) -> None:
        """Replace a text in the config."""
        path = self.root / CONFIG_FILE
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")


def _content_digest(outputs: Any) -> str:
    """What stands for an artifact's files, also where its record no longer says it."""
    try:
        return content_digest(outputs)
    except (AttributeError, KeyError, TypeError):
        return "0" * 64


def _inputs(spec: Mapping[str, Any]) -> list[str]:
    return [name for names in spec["inputs"].values() for name in names]


def _replace(text: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text
