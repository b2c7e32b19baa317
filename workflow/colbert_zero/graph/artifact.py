"""Artifacts: folders named by what decides their files, published whole or not at all.

An artifact is a folder `ROOT/KIND/LABEL-KEY/` with its files, `spec.json` and `manifest.json`. KEY is the first 12
hex digits of the SHA-256 of `spec.json`, which holds everything that decides the files and nothing else. The manifest
records how the files were made: digests, code, packages, host, times, attempts. It also holds the digest of each
input's whole manifest, so the digest of a report's manifest stands for every byte and every record that it rests on.

Every step publishes through `run_step`. The output that a rule declares to Snakemake is `spec.json` alone. If Snakemake
deletes that file (a forced rule, a failed job), the other files stay; the next run verifies them and writes the spec
again. So no ordinary command ever remakes or deletes a finished artifact.

The files of an index may be let go once its run is published (`graph.let_go`): spec and manifest stay, so digests of
inputs, facts and costs stay whole. A step that is asked for such an artifact makes its files again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

from colbert_zero.graph.code import code_identity, part_digests, step_module
from colbert_zero.graph.console import RetryableError, UserError, log, run_reporting_errors
from colbert_zero.graph.digests import canonical_json, digest, file_digest
from colbert_zero.graph.json_values import parse_json, read_json
from colbert_zero.graph.local_files import keep_private, refuse_links
from colbert_zero.graph.locks import acquire_lock
from colbert_zero.graph.provenance import Attempts, image_labels, machine, package_versions
from colbert_zero.graph.text_files import json_argument, read_file, replace_text, sync, sync_folder

KEY_DIGITS = 12
RECORD = 2
"""The version of the manifest's format. The first, which names none, has of each input the digest of its files alone,
and neither the parts nor the modules of the code nor its spec's whole digest."""
LOCK_WAIT_SECONDS = 1800.0
"""How long a step waits for another process that is making the same artifact."""
SPEC_FILE, MANIFEST_FILE = "spec.json", "manifest.json"
LET_GO_FILE = "let-go.json"
"""Lies beside both where the files of an index were let go (`graph.let_go`); says for which run, and when."""
AGAIN_SUFFIX = ".again"
"""Ends the name of the file that tells Snakemake that files that were let go were made again."""
STATE_FOLDER = Path("results/state")
ATTEMPTS_FILE = "attempts.jsonl"
SHARE_DONE = "done"
"""How the record of a job ends that did its share of the work on an artifact, and published nothing."""
CLAIM_FILE = "artifact.json"
"""In a state folder: whose unfinished work it holds, and the digests of the files of its inputs."""
KINDS = (
    *("sources", "collections", "bases", "shards", "candidates", "negatives", "scores", "batches", "models"),
    *("indexes", "runs", "measures", "selections", "contamination", "audits", "reports", "releases"),
)
"""The kinds of artifacts, in the order in which they are made from each other."""
EXTERNAL_KINDS = frozenset({"sources", "collections", "bases"})
"""Kinds that come from outside the study. They live in `resources/`, all others in `results/`."""


@dataclass(frozen=True)
class Spec:
    """Everything that decides an artifact.

    Attributes:
        kind: The kind of artifact, in the plural: `shards`, `models`, `runs` ...
        label: A name for people, without `/`. Two artifacts of a kind may share a label; their keys differ.
        settings: The config's leaves, the revisions and the seeds that decide the artifact (JSON values).
        inputs: Names of the artifacts it is made from, by role. Their order is part of the spec.
    """

    kind: str
    label: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def text(self) -> str:
        """The canonical JSON: the contents of `spec.json`."""
        return canonical_json(
            {
                "kind": self.kind,
                "label": self.label,
                "settings": self.settings,
                "inputs": {role: list(names) for role, names in self.inputs.items()},
            }
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text, in hex."""
        return digest(self.text)

    @property
    def key(self) -> str:
        """The first 12 hex digits of the digest."""
        return self.digest[:KEY_DIGITS]

    @property
    def name(self) -> str:
        """`KIND/LABEL-KEY`, by which other specs refer to the artifact."""
        return f"{self.kind}/{self.label}-{self.key}"

    @property
    def folder(self) -> Path:
        """Where the artifact is published, relative to the study's folder."""
        return artifact_folder(self.name)

    @property
    def input_names(self) -> list[str]:
        """The names of its inputs, in the order of the spec."""
        return [name for names in self.inputs.values() for name in names]

    @property
    def state(self) -> Path:
        """The state folder: unfinished work, kept between attempts. Relative to the study's folder."""
        return STATE_FOLDER / self.name

    @property
    def again_file(self) -> Path:
        """What Snakemake is asked for to have files again that were let go. Relative to the study's folder."""
        return STATE_FOLDER / f"{self.name}{AGAIN_SUFFIX}"

    @property
    def lock_file(self) -> Path:
        """Locked by who makes the artifact, or lets its files go. Relative to the study's folder."""
        return STATE_FOLDER / f"{self.name}.lock"

    def argument_file(self, option: str) -> Path:
        """The file in which Snakemake passes the step its argument `--OPTION`. Relative to the study's folder."""
        return STATE_FOLDER / f"{self.name}.{option}.json"

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read a spec from its JSON."""
        value = parse_json(text)
        return cls(value["kind"], value["label"], value["settings"], value["inputs"])

    @classmethod
    def from_argument(cls, argument: str) -> Spec:
        """Read the spec that a command-line argument gives: as JSON, or as a file of it whose path holds the key.

        Raises:
            UserError: The file cannot be read, or what it holds is not the spec that its path names.
        """
        text = json_argument(argument)
        try:
            spec = cls.parse(text)
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{argument[:200]} is no spec; run snakemake again") from None
        if text != argument and spec.key not in argument:
            raise UserError(f"{argument} was edited: its digest is not in its name; run snakemake again")
        return spec


def artifact_folder(name: str) -> Path:
    """The folder of an artifact called `name`, relative to the study's folder."""
    kind = name.partition("/")[0]
    return Path("resources" if kind in EXTERNAL_KINDS else "results") / name


def is_let_go(folder: Path) -> bool:
    """Whether the files of the artifact in `folder` were let go: its spec and its manifest are there, and stand."""
    return (folder / LET_GO_FILE).is_file()


def file_digests(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size in bytes of every file in `folder`, by relative path; without spec and manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"sha256": file_digest(path), "bytes": path.stat().st_size}
        for path in files
        if path.parent != folder or path.name not in (SPEC_FILE, MANIFEST_FILE)
    }


def content_digest(outputs: Mapping[str, Mapping[str, Any]]) -> str:
    """One digest of an artifact's files: equal for equal bytes under equal names."""
    return digest(canonical_json({file: entry["sha256"] for file, entry in outputs.items()}))


def folder_digest(folder: Path) -> str:
    """One digest of the files of a folder that is not an artifact yet."""
    return content_digest(file_digests(folder))


def input_records(spec: Spec) -> dict[str, dict[str, str]]:
    """What a manifest says of each input, by name: SHA-256 of its `spec.json` and its `manifest.json`, and its files'.

    Raises:
        UserError: An input is not there, or damaged.
    """
    return {artifact.name: artifact.record() for artifact in map(Artifact.open, spec.input_names)}


def claim_state(spec: Spec, inputs: Mapping[str, Mapping[str, str]]) -> None:
    """Say in the artifact's state folder whose unfinished work is in it; refuse another's.

    Args:
        spec: The artifact.
        inputs: The records of its inputs.

    Raises:
        UserError: The folder holds unfinished work of another artifact, or from inputs that had other files.
    """
    path = spec.state / CLAIM_FILE
    files = {name: record["files"] for name, record in inputs.items()}
    name, its_files = spec.name, files
    # Else nothing is there yet, or what a power loss left.
    with suppress(OSError, ValueError, TypeError, KeyError):
        claim = read_json(path)
        name, its_files = str(claim["name"]), dict(claim["inputs"])
    advice = f"move {spec.state} away and run snakemake again"
    if name != spec.name:
        raise UserError(f"{spec.state} holds the unfinished work of {name}: {advice}")
    others = sorted(name for name in {**files, **its_files} if files.get(name) != its_files.get(name))
    if others and any(not file.name.endswith((CLAIM_FILE, ATTEMPTS_FILE)) for file in spec.state.iterdir()):
        raise UserError(f"{spec.state} holds work that began from other files of {others[0]}: {advice}")
    replace_text(path, canonical_json({"name": spec.name, "inputs": files}))


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of the artifact in `folder`.

    Raises:
        UserError: It is missing, or no manifest.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is missing; move {folder} away and run snakemake again") from None
    except ValueError:
        manifest = None
    if not _is_manifest(manifest):
        raise UserError(f"{path} is no manifest, it is damaged; move {folder} away and run snakemake again")
    return cast("Mapping[str, Any]", manifest)


def _is_manifest(value: Any) -> bool:
    """Whether a JSON value has what is read of any manifest, in its form; `colbert-zero verify` looks at all of it."""
    if not (isinstance(value, dict) and all(isinstance(value.get(part), dict) for part in ("outputs", "facts"))):
        return False
    return (
        all(map(_is_output, value["outputs"].values()))
        and isinstance(value.get("inputs", {}), dict)
        and isinstance(value.get("arguments", []), list)
        and all(_are_attempts(value.get(part, [])) for part in ("attempts", "shares"))
        and type(value.get("seconds", 0.0)) in (int, float)
        and type(value.get("threads", 1)) is int
    )


def _is_output(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("sha256"), str) and type(value.get("bytes")) is int


def _are_attempts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(attempt, dict) and type(attempt.get("threads", 1)) is int for attempt in value
    )


@dataclass(frozen=True)
class Artifact:
    """A published artifact, opened for reading.

    Attributes:
        spec: What decides its files.
        manifest: How its files were made.
        folder: Where its files are.
    """

    spec: Spec
    manifest: Mapping[str, Any]
    folder: Path
    _verified: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def open(cls, name: str) -> Artifact:
        """Open the artifact called `name` in the current study.

        Raises:
            UserError: The artifact does not exist, or the digest of its spec does not match its name.
        """
        folder = artifact_folder(name)
        path = folder / SPEC_FILE
        try:
            text = read_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{name}: {path} is missing; run snakemake to make it") from None
        if not name.endswith("-" + hashlib.sha256(text).hexdigest()[:KEY_DIGITS]):
            # The step then finds the manifest, verifies the other files and writes the spec again.
            raise UserError(f"{path} was edited: its digest is not in its name; delete it and run snakemake again")
        return cls(Spec.parse(text.decode()), read_manifest(folder), folder)

    @property
    def name(self) -> str:
        """`KIND/LABEL-KEY`."""
        return self.spec.name

    def record(self) -> dict[str, str]:
        """What the manifest of an artifact that is made from it says of it; see `input_records`."""
        return {
            "spec": self.spec.digest,
            "files": content_digest(self.manifest["outputs"]),
            "manifest": file_digest(self.folder / MANIFEST_FILE),
        }

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the step that made the artifact counted and measured."""
        facts: Mapping[str, Any] = self.manifest["facts"]
        return facts

    def files(self, suffix: str = "") -> list[str]:
        """Relative paths of its files that end with `suffix`, sorted."""
        return sorted(file for file in self.manifest["outputs"] if file.endswith(suffix))

    def file(self, name: str) -> Path:
        """The path of a file of the artifact, verified against the manifest once per process.

        Raises:
            UserError: The file is missing, truncated or edited.
        """
        path = self.folder / name
        if name not in self._verified:
            problem = self.problem_with(name)
            if problem and is_let_go(self.folder):
                raise UserError(f"{problem}; to have it again: snakemake --profile PROFILE {self.spec.again_file}")
            if problem:
                raise UserError(f"{problem}; move {self.folder} away and run snakemake again")
            self._verified.add(name)
        return path

    @property
    def is_public(self) -> bool:
        """Whether all who can reach the study may read the artifact's files."""
        return bool(self.folder.stat().st_mode & stat.S_IROTH)

    def problem_with(self, name: str) -> str | None:
        """What is wrong with a file of the artifact, in words; None if the file is intact."""
        path, entry = self.folder / name, self.manifest["outputs"].get(name)
        if entry is None:
            return f"{path} is not in the manifest"
        if is_let_go(self.folder):
            return f"{path} was let go"
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{path} has {path.stat().st_size} bytes, its manifest says {entry['bytes']}"
        if file_digest(path) != entry["sha256"]:
            return f"{path} was changed: its digest is not the manifest's"
        return None

    def verified_folder(self) -> Path:
        """The artifact's folder, once every file in it is verified: for libraries that load a whole folder."""
        for name in self.files():
            self.file(name)
        return self.folder


@dataclass(frozen=True)
class Job:
    """What `run_step` passes to a step's `make`.

    Attributes:
        spec: The artifact to make.
        folder: An empty folder to write the artifact's files in.
        options: The parsed command line.
        input_records: What the manifest will say of each input, by name; see `input_records`.
        record: Adds facts about this attempt, for the manifest's list of attempts: `record(end_step=120)`.
    """

    spec: Spec
    folder: Path
    options: argparse.Namespace
    input_records: Mapping[str, Mapping[str, str]]
    record: Callable[..., None]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The spec's settings."""
        return self.spec.settings

    @property
    def threads(self) -> int:
        """How many threads the step may use."""
        threads: int = self.options.threads
        return threads

    @property
    def state(self) -> Path:
        """The state folder, created if needed: what is in it survives a failed attempt."""
        self.spec.state.mkdir(parents=True, exist_ok=True)
        return self.spec.state

    def inputs(self, role: str) -> list[Artifact]:
        """The artifact's inputs of one role, opened, in the spec's order."""
        return [Artifact.open(name) for name in self.spec.inputs.get(role, ())]

    def input(self, role: str) -> Artifact:
        """The artifact's only input of one role, opened."""
        (artifact,) = self.inputs(role)
        return artifact


Make = Callable[[Job], Mapping[str, Any]]
"""The work of a step: write files into `job.folder`, return facts for the manifest."""


class Work(Protocol):
    """A part of a step's work, which several jobs can share (`machine.pieces.Part`)."""

    def make(self, share: slice) -> None:
        """Do a share of it, and leave the result in the state folder."""


Parts = Mapping[str, Callable[[Job], Work]]
"""The parts of a step's work, by name, in the order in which they are done."""


def run_step(
    make: Make,
    doc: str | None,
    argv: Sequence[str] | None = None,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
    parts: Parts | None = None,
) -> int:
    """The command line of every step: publish the artifact that `--spec` describes.

    Of a step whose work has parts, several jobs can do shares first: `--part NAME --share 2 --jobs 4` does the second
    of four shares of a part, once the parts before it are done, and publishes nothing.

    Args:
        make: The step's work.
        doc: The module's docstring, shown by `--help`.
        argv: Command-line arguments, by default the process's.
        add_options: Adds flags of the step. A flag may change how fast the artifact is made, never its contents.
        parts: The parts of the work that jobs can share.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Spec.from_argument, required=True, help="the artifact's spec: JSON, or a file")
    parser.add_argument("--threads", type=int, default=1, help="how many threads to use (1)")
    if add_options:
        add_options(parser)
    if parts:
        parser.add_argument("--part", choices=parts, help="do a share of this part of the work, and publish nothing")
        parser.add_argument("--share", type=int, default=1, help="which share, from 1")
        parser.add_argument("--jobs", type=int, default=1, help="how many shares there are")

    def publish() -> int:
        words = list(sys.argv[1:] if argv is None else argv)
        options = parser.parse_args(words)
        if parts and options.part:
            return _do_share(parts[options.part], options, code_identity(step_module(make))["digest"])
        # A job that a killed Snakemake left behind may still be making this artifact: wait for that job.
        with acquire_lock(options.spec.lock_file, f"making {options.spec.name}", wait_seconds=LOCK_WAIT_SECONDS):
            return _publish(make, options.spec, options, _without_spec(words))

    return run_reporting_errors(publish)


def _without_spec(words: Sequence[str]) -> list[str]:
    """The arguments of a step but for its spec: with the spec they are the command that makes the artifact."""
    at = next((at for at, word in enumerate(words) if word.partition("=")[0] == "--spec"), len(words))
    taken = 2 if "--spec" in words[at : at + 1] else 1
    return [*words[:at], *words[at + taken :]]


def _do_share(part: Callable[[Job], Work], options: argparse.Namespace, code: str) -> int:
    """Do a share of a part of the work on an artifact, unless it is published; `code` is the digest of what runs.

    Raises:
        UserError: There is no such share, or a link among the unfinished work, or the part's.
    """
    if not 1 <= options.share <= options.jobs:
        raise UserError(f"there is no share {options.share} of {options.jobs}: give --share a number from 1 to --jobs")
    spec: Spec = options.spec
    if (spec.folder / MANIFEST_FILE).is_file():
        return 0
    refuse_links(spec.state)
    attempts = Attempts(spec.state / f"{options.part}-{options.share}-of-{options.jobs}.{ATTEMPTS_FILE}")
    _refuse_hopeless(attempts)
    attempts.begin(name=spec.name, code=code, threads=options.threads)
    try:
        inputs = input_records(spec)
        claim_state(spec, inputs)
        for original in map(artifact_folder, inputs):
            keep_private(spec.state, original)
        job = Job(spec, spec.state, options, inputs, attempts.record)
        part(job).make(slice(options.share - 1, None, options.jobs))
    except BaseException as error:
        _record_failure(attempts, error)
        raise
    attempts.end(SHARE_DONE)
    return 0


def share_attempts(state: Path) -> list[dict[str, Any]]:
    """The records of the jobs that did shares of the work on an artifact, by its state folder."""
    return [attempt for path in sorted(state.glob(f"*.{ATTEMPTS_FILE}")) for attempt in Attempts(path).records]


def _refuse_hopeless(attempts: Attempts) -> None:
    """Refuse to try again what a user's mistake ended in this run of Snakemake.

    Raises:
        UserError: The last attempt's.
    """
    if attempts.unrecoverable_error:
        log.info("not retried in this run of Snakemake: the last attempt failed with an error that a retry cannot fix")
        raise UserError(attempts.unrecoverable_error)


def _record_failure(attempts: Attempts, error: BaseException) -> None:
    unrecoverable = isinstance(error, UserError) and not isinstance(error, RetryableError)
    attempts.end((str(error) if unrecoverable else f"{type(error).__name__}: {error}")[:500], unrecoverable)


def _publish(make: Make, spec: Spec, options: argparse.Namespace, arguments: Sequence[str]) -> int:
    target = spec.folder
    if target.parent.is_dir():
        # Listing the folder refreshes a network file system's cache, so that what another node published is seen.
        os.listdir(target.parent)
    again = is_let_go(target) and (target / SPEC_FILE).is_file()
    if (target / MANIFEST_FILE).is_file() and not again:
        _restore_spec(spec)
        return 0
    if not again and target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target} holds files but no manifest; it is not overwritten: move it away")
    refuse_links(spec.state)
    attempts = Attempts(spec.state / ATTEMPTS_FILE)
    _refuse_hopeless(attempts)
    # The leading dot hides unfinished folders from `published_folders`. What a killed attempt left there is deleted.
    folder = target.with_name(f".{target.name}.partial")
    _delete(folder)
    folder.mkdir(parents=True)
    started = time.time()
    # What runs is what is there now: the code may change on disk before the step ends.
    code, packages = code_identity(step_module(make)), package_versions()
    attempts.begin(name=spec.name, code=code["digest"], threads=options.threads)
    try:
        inputs = input_records(spec)
        claim_state(spec, inputs)
        for original in map(artifact_folder, inputs):
            # What is made from private data holds a part of them: it is as private.
            keep_private(folder, original)
            keep_private(spec.state, original)
        facts = make(Job(spec, folder, options, inputs, attempts.record))
        (folder / SPEC_FILE).write_text(spec.text, encoding="utf-8")
        _refuse_changed_inputs(spec, inputs)
        manifest = {
            "record": RECORD,
            "name": spec.name,
            "spec": spec.digest,
            "inputs": inputs,
            "outputs": file_digests(folder),
            "facts": facts,
            "seconds": round(time.time() - started, 3),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "threads": options.threads,
            "arguments": list(arguments),
            "code": code | {"changed": _changes_since(code, packages)},
            "packages": packages,
            "python": platform.python_version(),
            **machine(),
            "image": image_labels(),
            "attempts": attempts.end("published"),
        }
        if shares := share_attempts(spec.state):
            manifest["shares"] = shares
        if again:
            former = Artifact.open(spec.name)
            manifest["former"] = [*former.manifest.get("former", ()), former.record()]
        text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
        _sync_files(folder)
        if again:
            _take_back(folder, target, manifest["outputs"], same=former.manifest["outputs"] == manifest["outputs"])
        else:
            os.replace(folder, target)
        sync_folder(target.parent)
    except BaseException as error:
        _record_failure(attempts, error)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(spec.state, ignore_errors=True)
    log.info("published %s in %.1f s", target, time.time() - started)
    return 0


def _refuse_changed_inputs(spec: Spec, before: Mapping[str, Mapping[str, str]]) -> None:
    """Raise `RetryableError` if an input was made again, with other files, while the step ran."""
    after = input_records(spec)
    for name, record in before.items():
        if after[name]["files"] != record["files"]:
            raise RetryableError(f"{name} was made again, with other files, while {spec.name} was made from it")


def _changes_since(code: Mapping[str, Any], packages: Mapping[str, str]) -> list[str]:
    """The parts of the code, and `packages`, that are others now than when the attempt began; each is logged."""
    changed = [name for name, part in part_digests().items() if part != code["parts"][name]]
    changed += ["packages"] * (package_versions() != packages)
    for name in changed:
        log.info("the %s changed on disk while this ran; the manifest names what was there at the start", name)
    return changed


def _restore_spec(spec: Spec) -> None:
    """Write the `spec.json` of a finished artifact again, once its other files are verified: Snakemake deleted it.

    Files that were let go stay away: what needs them asks for `again_file`.
    """
    artifact = Artifact(spec, read_manifest(spec.folder), spec.folder)
    let_go = is_let_go(spec.folder)
    if not let_go:
        artifact.verified_folder()
    replace_text(spec.folder / SPEC_FILE, spec.text)
    log.info("%s is already there, and %s", spec.folder, "its files were let go" if let_go else "intact")


def _take_back(folder: Path, target: Path, files: Iterable[str], *, same: bool) -> None:
    """Move `files` that were made again in `folder` to where they were let go, `target`.

    The marker goes last: if this is killed before, the files are made again. If they are the `same` bytes as those that
    were let go, the manifest stays too: runs have it on record. Else, as on a GPU, the new one comes along, which says
    what it follows: runs from before have one of these records of it.
    """
    for path in target.iterdir():
        if path.name not in (SPEC_FILE, MANIFEST_FILE, LET_GO_FILE):
            _delete(path)
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, target / name)
    if not same:
        os.replace(folder / MANIFEST_FILE, target / MANIFEST_FILE)
        log.info("%s has other bytes than before: its record names those that earlier runs rest on", target)
    sync_folder(target)
    (target / LET_GO_FILE).unlink()
    shutil.rmtree(folder)


def _delete(path: Path) -> None:
    """Delete what is at `path`, such as a killed attempt's folder, whatever it is and whatever its modes are."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        path.chmod(stat.S_IRWXU)
        for parent, folders, _ in os.walk(path):
            for folder in (Path(parent, name) for name in folders):
                if not folder.is_symlink():
                    folder.chmod(stat.S_IRWXU)
        shutil.rmtree(path)


def _sync_files(folder: Path) -> None:
    """Flush every file of `folder` to disk, before the rename publishes it.

    Each file gets the mode that the user's umask and the folder allow, whatever the library that wrote it gave it.
    """
    umask = os.umask(0)
    os.umask(umask)
    mode = 0o666 & ~umask & folder.stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            sync(path)
        else:
            sync_folder(path)
    sync_folder(folder)


def published_folders(root: Path) -> Iterator[Path]:
    """The folders of all published artifacts of the study in `root`, intact or damaged, sorted."""
    for parent in ("resources", "results"):
        for kind in sorted((root / parent).glob("*")):
            if kind.is_dir() and kind.name[0] != "." and kind.name != "state":
                yield from sorted(path for path in kind.iterdir() if path.is_dir() and path.name[0] != ".")


def step_main(make: Make, doc: str | None, parts: Parts | None = None) -> None:
    """The `if __name__ == "__main__"` block of a step without flags of its own."""
    sys.exit(run_step(make, doc, parts=parts))
