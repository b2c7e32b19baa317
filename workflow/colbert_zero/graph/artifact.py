"""Artifacts: named by what decides them, published whole or not at all.

An artifact is a folder `ROOT/KIND/LABEL-KEY/` with its files, `spec.json` and `manifest.json`. KEY is the first 12
hex digits of the SHA-256 of `spec.json`, which holds everything that decides the files and nothing else. The manifest
holds what happened: digests, code, packages, host, times, attempts.

`run_step` is the one way to publish. Snakemake's declared output is `spec.json`: if Snakemake deletes it (a forced
rule, a failed job), the folder's other files stay, and the next run checks them and writes the spec again. So no
ordinary command ever redoes or deletes a finished artifact.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from colbert_zero.graph.console import RetryableError, UserError, log, run_reporting_errors
from colbert_zero.graph.digests import canonical, digest, file_digest
from colbert_zero.graph.locks import acquire_lock
from colbert_zero.graph.provenance import Attempts, code_identity, image_labels, package_versions

KEY_DIGITS = 12
PATIENCE = 1800.0
"""Seconds to wait for another process that makes the same artifact."""
SPEC, MANIFEST = "spec.json", "manifest.json"
RESOURCES = frozenset({"sources", "collections", "bases"})
"""The kinds that come from outside the study; they live in `resources/`, all others in `results/`."""


@dataclass(frozen=True)
class Spec:
    """Everything that decides an artifact.

    Attributes:
        kind: What it is, in the plural: `shards`, `models`, `runs` ...
        label: For people; unique within a kind only together with the key. Without `/`.
        settings: The leaves of the config, revisions and seeds that decide it (JSON values).
        inputs: Names of the artifacts it is made from, by role, in an order that decides too.
    """

    kind: str
    label: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def text(self) -> str:
        """The canonical JSON, which `spec.json` holds."""
        return canonical(
            {
                "kind": self.kind,
                "label": self.label,
                "settings": self.settings,
                "inputs": {role: list(names) for role, names in self.inputs.items()},
            }
        )

    @cached_property
    def key(self) -> str:
        """The first 12 hex digits of the SHA-256 of the text."""
        return digest(self.text)[:KEY_DIGITS]

    @property
    def name(self) -> str:
        """`KIND/LABEL-KEY`, as other specs refer to it."""
        return f"{self.kind}/{self.label}-{self.key}"

    @property
    def folder(self) -> Path:
        """Where it is published, relative to the study's folder."""
        return locate(self.name)

    @property
    def state(self) -> Path:
        """Where unfinished work is kept between attempts, relative to the study's folder."""
        return Path("results/state") / self.name

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read a spec back from its JSON."""
        value = json.loads(text)
        return cls(value["kind"], value["label"], value["settings"], value["inputs"])


def locate(name: str) -> Path:
    """The folder of an artifact called `name`, relative to the study's folder."""
    kind = name.partition("/")[0]
    return Path("resources" if kind in RESOURCES else "results") / name


def file_digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest and size (bytes) of every file in `folder` but spec and manifest, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"sha256": file_digest(path), "bytes": path.stat().st_size}
        for path in files
        if path.parent != folder or path.name not in (SPEC, MANIFEST)
    }


def content_digest(outputs: Mapping[str, Mapping[str, Any]]) -> str:
    """One digest over an artifact's files: the same for the same bytes under the same names."""
    return digest(canonical({file: entry["sha256"] for file, entry in outputs.items()}))


def folder_digest(folder: Path) -> str:
    """One digest over the files of a folder that is not an artifact yet."""
    return content_digest(file_digests(folder))


@dataclass(frozen=True)
class Artifact:
    """A published artifact, opened for reading.

    Attributes:
        spec: What decided it.
        manifest: What happened.
        folder: Where its files are.
    """

    spec: Spec
    manifest: Mapping[str, Any]
    folder: Path
    _checked: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def open(cls, name: str) -> Artifact:
        """Open the artifact called `name` in the current study.

        Raises:
            UserError: It is not there, or its spec is not the one its name says.
        """
        folder = locate(name)
        try:
            text = (folder / SPEC).read_text(encoding="utf-8")
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{name}: {error.filename} is missing; run snakemake to make it") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{folder}: spec or manifest is not JSON ({error}); move the folder away") from None
        if not name.endswith("-" + digest(text)[:KEY_DIGITS]):
            raise UserError(f"{folder / SPEC} was edited: its digest is not its name; move the folder away")
        return cls(Spec.parse(text), manifest, folder)

    @property
    def name(self) -> str:
        """`KIND/LABEL-KEY`."""
        return self.spec.name

    @property
    def facts(self) -> Mapping[str, Any]:
        """What its command counted and measured."""
        facts: Mapping[str, Any] = self.manifest["facts"]
        return facts

    def files(self, suffix: str = "") -> list[str]:
        """Relative paths of its files that end with `suffix`, sorted."""
        return sorted(file for file in self.manifest["outputs"] if file.endswith(suffix))

    def file(self, name: str) -> Path:
        """The path of one of its files, its bytes checked against the manifest once per process.

        Raises:
            UserError: The file is missing, truncated or edited.
        """
        path = self.folder / name
        if name not in self._checked:
            finding = self.problem_with(name)
            if finding:
                raise UserError(f"{finding}; move {self.folder} away and run snakemake again")
            self._checked.add(name)
        return path

    def problem_with(self, name: str) -> str | None:
        """What is wrong with one of its files, in words, or None."""
        path, entry = self.folder / name, self.manifest["outputs"].get(name)
        if entry is None:
            return f"{path} is not in the manifest"
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{path} has {path.stat().st_size} bytes, its manifest says {entry['bytes']}"
        if file_digest(path) != entry["sha256"]:
            return f"{path} was changed: its digest is not the manifest's"
        return None

    def model_folder(self) -> Path:
        """The folder itself, every file checked: for libraries that load a folder."""
        for name in self.files():
            self.file(name)
        return self.folder


@dataclass(frozen=True)
class Job:
    """What a step's `make` is given.

    Attributes:
        spec: What to make.
        folder: An empty folder to write the files in.
        options: The parsed command line.
        note: Adds facts to the record of this attempt, which the manifest keeps: `note(end_step=120)`.
    """

    spec: Spec
    folder: Path
    options: argparse.Namespace
    note: Callable[..., None]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The spec's settings."""
        return self.spec.settings

    @property
    def threads(self) -> int:
        """How many threads it may use."""
        threads: int = self.options.threads
        return threads

    @property
    def state(self) -> Path:
        """A folder of its own that outlives a failed attempt."""
        self.spec.state.mkdir(parents=True, exist_ok=True)
        return self.spec.state

    def inputs(self, role: str) -> list[Artifact]:
        """Its inputs of one role, opened, in the spec's order."""
        return [Artifact.open(name) for name in self.spec.inputs.get(role, ())]

    def input(self, role: str) -> Artifact:
        """Its only input of one role."""
        (artifact,) = self.inputs(role)
        return artifact


Make = Callable[[Job], Mapping[str, Any]]
"""A step: writes files into `job.folder`, returns the facts for the manifest."""


def run_step(
    make: Make,
    doc: str | None,
    argv: Sequence[str] | None = None,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """The command line of every step: publish the artifact that `--spec` describes.

    Args:
        make: The step's work.
        doc: The module's docstring, shown by `--help`.
        argv: Arguments, by default the process's.
        add_options: Adds the step's own flags; these may decide how fast a result comes, never which.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Spec.parse, required=True, help="the artifact's spec, as JSON")
    parser.add_argument("--threads", type=int, default=1, help="how many threads to use (1)")
    if add_options:
        add_options(parser)
    options = parser.parse_args(argv)

    def publish() -> int:
        lock = options.spec.state.with_name(f"{options.spec.state.name}.lock")
        # Left over from a killed Snakemake, another job may be at it still: what that one makes is not made twice.
        with acquire_lock(lock, f"making {options.spec.name}", wait=PATIENCE):
            return _publish(make, options.spec, options)

    return run_reporting_errors(publish)


def _publish(make: Make, spec: Spec, options: argparse.Namespace) -> int:
    target = spec.folder
    if target.parent.is_dir():
        # Looking into the folder has a network file system forget what it knew before another node published there.
        os.listdir(target.parent)
    if (target / MANIFEST).is_file():
        _restore_spec(spec)
        return 0
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target} holds files but no manifest; it is not overwritten: move it away")
    attempts = Attempts(spec.state / "attempts.jsonl")
    if attempts.unrecoverable_error:
        log.info("not tried again in this run of Snakemake, since it would end as before")
        raise UserError(attempts.unrecoverable_error)
    # The dot keeps unfinished folders out of every walk; a killed attempt's is of no use.
    folder = target.with_name(f".{target.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.time()
    attempts.begin()
    try:
        facts = make(Job(spec, folder, options, attempts.note))
        (folder / SPEC).write_text(spec.text, encoding="utf-8")
        outputs = file_digests(folder)
        manifest = {
            "name": spec.name,
            "inputs": {name: content_digest(Artifact.open(name).manifest["outputs"]) for name in _input_names(spec)},
            "outputs": outputs,
            "facts": facts,
            "seconds": round(time.time() - started, 3),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "threads": options.threads,
            "code": code_identity(),
            "packages": package_versions(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "image": image_labels(),
            "attempts": attempts.end("published"),
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        _sync_files(folder)
        os.replace(folder, target)
    except BaseException as error:
        mistake = isinstance(error, UserError) and not isinstance(error, RetryableError)
        attempts.end((str(error) if mistake else f"{type(error).__name__}: {error}")[:500], mistake)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(spec.state, ignore_errors=True)
    log.info("published %s in %.1f s", target, time.time() - started)
    return 0


def _restore_spec(spec: Spec) -> None:
    """Snakemake removed `spec.json` of a finished artifact: check the rest, write it again."""
    manifest = json.loads((spec.folder / MANIFEST).read_text(encoding="utf-8"))
    artifact = Artifact(spec, manifest, spec.folder)
    artifact.model_folder()
    (spec.folder / SPEC).write_text(spec.text, encoding="utf-8")
    log.info("%s is already there, and intact", spec.folder)


def _input_names(spec: Spec) -> Iterator[str]:
    for names in spec.inputs.values():
        yield from names


def _sync_files(folder: Path) -> None:
    """Bring every file of `folder` to disk before the rename makes them count, readable as the user's files are."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
            with path.open("rb") as file:
                os.fsync(file.fileno())


def published(root: Path) -> Iterator[Path]:
    """The folders of all published artifacts of the study in `root`, whole or not, sorted."""
    for top in ("resources", "results"):
        for kind in sorted((root / top).glob("*")):
            if kind.is_dir() and kind.name != "state":
                yield from sorted(path for path in kind.iterdir() if path.is_dir() and path.name[0] != ".")


def step_main(make: Make, doc: str | None) -> None:
    """`if __name__ == "__main__"` of a step without flags of its own."""
    sys.exit(run_step(make, doc))
