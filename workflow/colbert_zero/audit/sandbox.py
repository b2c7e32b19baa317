"""Make an artifact again by its own command, in a temporary folder that links to its recorded inputs.

Nothing is written into the study: results, state and locks are those of the temporary folder. What decides how a step
rounds is as recorded: threads, and of a training the number of tokens that are computed at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from colbert_zero.audit.drift import IMAGE_LABEL, gpus_here
from colbert_zero.audit.selection import gpu_of
from colbert_zero.graph.artifact import Artifact, artifact_folder, input_records, is_let_go, read_manifest
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.console import MESSAGE_PREFIX, UserError
from colbert_zero.graph.local_files import absolute_or_in
from colbert_zero.graph.paths import REPOSITORY, WORKFLOW
from colbert_zero.graph.study import Study
from colbert_zero.machine.images import (
    CONTENTS_LABEL,
    IMAGE_NAMES,
    USER_BINDS_VARIABLE,
    image_environment,
    planned_images,
    read_labels,
)
from colbert_zero.machine.launch import training_command

MODULES = {
    "sources/package": "data.docstrings",
    "collections/package": "data.docstrings",
    "sources": "data.fetch",
    "collections": "data.fetch",
    "bases/random": "models.random_base",
    "bases": "data.fetch",
    "shards": "data.shards",
    "candidates/bm25": "mining.bm25",
    "candidates/dense": "mining.dense",
    "negatives": "mining.negatives",
    "scores/bm25": "teaching.bm25",
    "scores/neural": "teaching.neural",
    "batches": "data.batches",
    "models": "training.train",
    "selections": "training.selection",
    "indexes/dense": "evaluation.dense_index",
    "indexes": "evaluation.index",
    "runs/colbert": "evaluation.search",
    "runs/dense": "evaluation.dense_search",
    "runs/bm25": "evaluation.bm25",
    "measures": "evaluation.measure",
    "contamination": "audit.find_contamination",
    "reports": "report.page",
    "releases": "report.release",
}
"""The module that makes the artifacts of a kind, or of a kind and the first part of a label: for records that do not
name it."""
NOT_REPLAYED = {"audits": "an audit, which colbert-zero verify makes again"}
"""Kinds that cannot be made in a sandbox, each with what to do instead: to an audit, its links are findings."""
TRAINING_MODULE, FETCH_MODULE = "colbert_zero.training.train", "colbert_zero.data.fetch"
DROPPED_OPTIONS = {"--evaluate": 1, "--tensorboard": 0, "--scratch": 1}
"""Options that only show how a step goes, or where it writes meanwhile, each with how many words follow it."""


def module_of(artifact: Artifact) -> str:
    """The module whose command makes the artifact.

    Raises:
        UserError: Neither its record nor its kind tells.
    """
    if artifact.spec.kind in NOT_REPLAYED:
        raise UserError(f"not made again: {NOT_REPLAYED[artifact.spec.kind]}")
    code = artifact.manifest.get("code")
    module = code.get("module") if isinstance(code, dict) else None
    if isinstance(module, str) and module.removeprefix("colbert_zero.") in MODULES.values():
        return module
    kind, first = artifact.spec.kind, artifact.spec.label.partition(".")[0]
    known = MODULES.get(f"{kind}/{first}") or MODULES.get(kind)
    if known is None:
        raise UserError(f"{artifact.name}: its record does not say which module made it")
    return f"colbert_zero.{known}"


def needs_network(artifact: Artifact) -> bool:
    """Whether the artifact is fetched from the Hugging Face Hub."""
    return artifact.spec.label.startswith("hub.") and not artifact.spec.inputs


@dataclass
class Sandbox:
    """A folder in which artifacts of a study are made again.

    Attributes:
        study: The study's folder.
        folder: The sandbox.
        notes: What is otherwise here than when the artifacts were made, for people.
    """

    study: Path
    folder: Path
    notes: list[str] = field(default_factory=list)

    @cached_property
    def planned(self) -> Study | None:
        """What today's config plans; None without a config, or with one that is wrong."""
        if not (self.study / CONFIG_FILE).is_file():
            return None
        try:
            return Study(read_config(self.study / CONFIG_FILE), self.study, remember=False)
        except UserError:
            return None

    def add_inputs(self, artifact: Artifact) -> None:
        """Link to the inputs of `artifact` and to all that they are made from; what is there already stays.

        An input whose files were let go is made again.

        Raises:
            UserError: An input is not there, or is not the one that the artifact was made from; or it was let go, and
                cannot be made here.
        """
        recorded = artifact.manifest.get("inputs")
        for name, now in input_records(artifact.spec).items():
            was = recorded.get(name) if isinstance(recorded, dict) else None
            if (was["files"] if isinstance(was, dict) else was) != now["files"]:
                raise UserError(f"its input {name} is not the one it was made from: colbert-zero verify says more")
        for name in artifact.spec.input_names:
            if is_let_go(artifact_folder(name)) and not os.path.lexists(self.folder / artifact_folder(name)):
                self._make_again(Artifact.open(name))
        pending = artifact.spec.input_names
        while pending:
            name = pending.pop()
            link = self.folder / artifact_folder(name)
            if os.path.lexists(link):
                continue
            try:
                pending += Artifact.open(name).spec.input_names
            except UserError:
                # A report reads the records of all that it comes from, other steps those of their inputs alone.
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((self.study / artifact_folder(name)).resolve(), target_is_directory=True)

    def _make_again(self, index: Artifact) -> None:
        self.add_inputs(index)
        if self.make(index).manifest["outputs"] != index.manifest["outputs"]:
            self.notes.append(f"its input {index.name} was let go, and has other bytes as it was made again here")

    def arguments(self, artifact: Artifact) -> list[str]:
        """The step's arguments, as recorded: with local paths in the study, without what only shows how it goes."""
        manifest = artifact.manifest
        recorded = manifest.get("arguments")
        words = list(map(str, recorded)) if isinstance(recorded, list) else self._old_arguments(artifact)
        kept: list[str] = []
        while words:
            word = words.pop(0)
            option, _, value = word.partition("=")
            if option in DROPPED_OPTIONS:
                words = words[0 if "=" in word else DROPPED_OPTIONS[option] :]
            elif option == "--path":
                path = value if "=" in word else words.pop(0)
                kept.append(f"--path={absolute_or_in(self.study, path) if path else ''}")
            else:
                kept.append(word)
        if gpu_of(manifest) is not None and not gpus_here():
            self.notes.append(f"made on {gpu_of(manifest)}, and here on the CPU")
            kept = [*_without_option(_without_option(kept, "--device"), "--maxsim"), "--device", "cpu"]
        if module_of(artifact) == TRAINING_MODULE:
            for fact in ("tokens_per_chunk", "tokens_in_memory"):
                option = f"--{fact.replace('_', '-')}"
                if fact in artifact.facts:
                    kept = [*_without_option(kept, option), option, str(artifact.facts[fact])]
        return kept

    def _old_arguments(self, artifact: Artifact) -> list[str]:
        """The arguments of an artifact whose record has none."""
        self.notes.append("an older record, without the command: this is the command of today")
        path = None
        if module_of(artifact) == FETCH_MODULE and not needs_network(artifact):
            path = self.planned.paths.get(artifact.spec.key) if self.planned else None
            if path is None:
                raise UserError("its record does not say from which file or folder it was copied, nor does config.yaml")
        threads = artifact.manifest.get("threads", 1)
        return ["--threads", str(threads)] + ([f"--path={path}"] if path else [])

    def command(self, artifact: Artifact) -> tuple[list[str], dict[str, str]]:
        """The command that makes `artifact`, and its environment."""
        module, arguments = module_of(artifact), self.arguments(artifact)
        words = ["--spec", artifact.spec.text, *arguments]
        processes = artifact.facts.get("processes", 1)
        if module == TRAINING_MODULE and isinstance(processes, int) and processes > 1:
            gpus = min(processes, len(gpus_here()))
            if gpus < processes:
                self.notes.append(f"trained by {processes} processes, and here by {max(1, gpus)}")
            _, *command = training_command(gpus, int(artifact.manifest.get("threads", 1)), 1, [], words, {})
        else:
            command = ["-m", module, *words]
        environment = os.environ | {
            "PYTHONPATH": str(WORKFLOW),
            "PYTHONSAFEPATH": "1",
            "HF_HUB_OFFLINE": "0" if module == FETCH_MODULE else "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        image = self._image(artifact)
        if image is None:
            return [sys.executable, *command], environment
        environment |= image_environment(self.folder, environment)
        binds = [environment["APPTAINER_BIND"], f"{self.study}:{self.study}:ro"]
        environment["APPTAINER_BIND"] = ",".join(filter(None, binds))
        environment.pop(USER_BINDS_VARIABLE, None)
        return ["apptainer", "exec", "--home", str(self.folder), str(image), "python", *command], environment

    def _image(self, artifact: Artifact) -> Path | None:
        """The file of the image that `artifact` was made in; None if it was made in none, or the file is not here."""
        labels = artifact.manifest.get("image")
        if not isinstance(labels, dict):
            return None
        contents, name = labels.get(CONTENTS_LABEL), labels.get(IMAGE_LABEL)
        if shutil.which("apptainer") and name in IMAGE_NAMES:
            for file in self._image_files(str(name)):
                if file.is_file() and read_labels(file).get(CONTENTS_LABEL) == contents:
                    return file
        self.notes.append(f"made in the image {name} ({contents}), which is not here: by this machine's Python instead")
        return None

    def _image_files(self, name: str) -> Iterator[Path]:
        """The files that may be the image called `name`."""
        folder = REPOSITORY / "resources" / "images"
        if self.planned is not None:
            image = planned_images(self.planned.config["images"], self.study)[name]
            folder = image.folder
            if image.configured and "://" not in image.configured:
                yield Path(image.configured)
        yield from sorted(folder.glob(f"{name}-*.sif"))

    def make(self, artifact: Artifact) -> Artifact:
        """Make `artifact`, whose inputs are in the sandbox.

        Raises:
            UserError: The command failed.
        """
        command, environment = self.command(artifact)
        done = subprocess.run(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output = done.stdout.decode("utf-8", errors="replace").splitlines()
        if done.returncode:
            ours = [line.removeprefix(MESSAGE_PREFIX) for line in output if line.startswith(MESSAGE_PREFIX)]
            reason = (ours or [line for line in output if line.strip()] or ["it said nothing"])[-1]
            raise UserError(f"its command failed here (exit status {done.returncode}): {reason}")
        return self.made(artifact)

    def made(self, artifact: Artifact) -> Artifact:
        """The artifact that was made again, opened in the sandbox."""
        folder = self.folder / artifact.spec.folder
        return Artifact(artifact.spec, read_manifest(folder), folder)


def _without_option(words: Sequence[str], option: str) -> list[str]:
    """Arguments without an option and its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word == option:
            skip = True
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as an error does, so that the sandbox is deleted and its command ended."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def open_sandbox() -> Iterator[Sandbox]:
    """A sandbox for artifacts of the current study in a temporary folder, which is deleted afterwards.

    Raises:
        UserError: The folder for temporary files is in the study.
    """
    study = Path().resolve()
    with _ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="colbert-zero-replay-") as folder:
        if Path(folder).resolve().is_relative_to(study):
            raise UserError(f"TMPDIR is in the study ({tempfile.gettempdir()}): name a folder outside of it")
        yield Sandbox(study, Path(folder).resolve())
