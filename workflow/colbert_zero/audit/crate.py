"""What a bundle says of its contents: a Provenance Run Crate, in JSON-LD.

The profile: https://www.researchobject.org/workflow-run-crate/profiles/0.5/provenance_run_crate/. The Snakefile is the
workflow. Each artifact is a `CreateAction` whose instrument is the module that made it, whose objects are the artifacts
and settings that it was made from, and whose result is its folder with its files. A `HowToStep` is a module of the
workflow, a `ControlAction` its use for one artifact, and the `OrganizeAction` is Snakemake's run.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from colbert_zero.graph.artifact import EXTERNAL_KINDS, MANIFEST_FILE, SPEC_FILE, Artifact
from colbert_zero.graph.code import PACKAGE
from colbert_zero.graph.config import CONFIG_FILE, LOCK_FILE
from colbert_zero.graph.digests import canonical_json, digest, file_digest
from colbert_zero.graph.registry import locked_version

METADATA_FILE = "ro-crate-metadata.json"
README_FILE = "README.md"
RO_CRATE = "1.1"
"""The version of RO-Crate that the profile is one of."""
RUN = "https://w3id.org/ro/terms/workflow-run#"
TERMS = ("ContainerImage", "SIFImage", "containerImage", "environment", "registry", "resourceUsage", "sha256", "tag")
"""Terms of the profile that RO-Crate's own context does not have. They are defined in the file itself, so that nothing
but RO-Crate's context has to be known to read it."""
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
WORKFLOW_FILE = "Snakefile"
SNAKEMAKE = "https://snakemake.readthedocs.io/"
LICENCE = "https://spdx.org/licenses/Apache-2.0"
COMPLETED, FAILED = "http://schema.org/CompletedActionStatus", "http://schema.org/FailedActionStatus"
FORMATS = {
    "": "text/plain",
    ".cff": "application/yaml",
    ".csv": "text/csv",
    ".def": "text/plain",
    ".excludes": "text/plain",
    ".gz": "application/gzip",
    ".html": "text/html",
    ".in": "text/plain",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
    ".py": "text/x-python",
    ".smk": "text/plain",
    ".toml": "application/toml",
    ".trec": "text/plain",
    ".tsv": "text/tab-separated-values",
    ".txt": "text/plain",
    ".yaml": "application/yaml",
}
MACHINE = ("platform", "processor", "cores", "memory_mb", "threads")
"""What an action's environment has of the machine, beside hosts, device and Python."""
KINDS = {str: "Text", int: "Integer", float: "Float"}
"""The types of settings, as the profile calls them."""
USAGE = {"seconds": ("SEC", "seconds"), "peak_memory_mb": ("E63", "mebibytes")}
"""What a manifest has of a step's use of the machine, with its unit: UN/CEFACT's code, and in words."""
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])(?:~|/)[^\s'\",;:]*/(?=[^\s'\",;:/]+)")
"""The folders of an absolute path in a text, up to its last part."""

Entity = dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle.

    Attributes:
        study: The study's name.
        report: Its report.
        artifacts: The report and all that it is made from, by name.
        files: The files that are put in, by their path in the bundle.
        images: SHA-256 of the files of images, by the digest of their contents that a manifest has.
        agent: Who ran the study, if that is said: a name, or an address such as an ORCID.
    """

    study: str
    report: Artifact
    artifacts: Mapping[str, Artifact]
    files: Mapping[str, Path]
    images: Mapping[str, str] = field(default_factory=dict)
    agent: str | None = None


def without_folders(text: str) -> str:
    """A text without the folders of the absolute paths in it: they are a machine's, and nobody else's business."""
    return ABSOLUTE_PATH.sub("", text)


def describe(contents: Contents) -> str:
    """The JSON-LD that describes a bundle: equal for equal contents."""
    return _Crate(contents).text()


class _Crate:
    """A description that is being written."""

    def __init__(self, contents: Contents) -> None:
        from rocrate.rocrate import ROCrate

        self._contents = contents
        self._crate = ROCrate(version=RO_CRATE)
        self._crate.metadata.extra_terms = {term: RUN + term for term in TERMS}
        self._examples: dict[str, dict[str, Any]] = {}
        self._given: set[tuple[str, str, str]] = set()
        self._report_manifest = file_digest(contents.report.folder / MANIFEST_FILE)
        # What is not in the bundle has an address that nothing of another report has.
        self._base = f"arcp://uuid,{uuid.uuid5(uuid.NAMESPACE_URL, self._report_manifest)}/"

    def text(self) -> str:
        """Describe everything, and write it as JSON."""
        self._describe_root()
        self._describe_files()
        datasets = {name: self._dataset(artifact) for name, artifact in self._contents.artifacts.items()}
        steps = self._describe_steps()
        actions = {
            name: self._action(artifact, datasets, steps[step_of(artifact)])
            for name, artifact in self._contents.artifacts.items()
        }
        run = self._describe_run(datasets, actions, steps)
        failed = [entity for artifact in self._contents.artifacts.values() for entity in self._failures(artifact)]
        self._crate.root_dataset["mentions"] = [*run, *actions.values(), *failed]
        self._connect_parameters()
        written = self._crate.metadata.generate()
        written["@graph"] = [
            {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in entity.items()}
            for entity in written["@graph"]
        ]
        return json.dumps(written, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def _add(self, at: str, kind: str, **properties: Any) -> Any:
        """A contextual entity, made once."""
        from rocrate.model.contextentity import ContextEntity

        # `get` alone would look through all entities for one that is not there.
        if at in self._crate:
            return self._crate.get(at)
        given = {name: value for name, value in properties.items() if value is not None}
        return self._crate.add(ContextEntity(self._crate, at, properties={"@type": kind, **given}))

    @cached_property
    def _agent(self) -> Any:
        agent = self._contents.agent
        if agent is None:
            return None
        return self._add(agent if agent.startswith("https://") else "#agent", "Person", name=agent)

    def _describe_root(self) -> None:
        contents = self._contents
        root = self._crate.root_dataset
        self._crate.name = f"Study {contents.study}"
        self._crate.description = (
            f"The study {contents.study}, made with the workflow ColBERT-Zero: its report, every artifact that the "
            "report rests on, how each was made, and the workflow. Large files are named by digest and size alone. "
            f"SHA-256 of the report's manifest: {self._report_manifest}."
        )
        root["datePublished"] = span(contents.report.manifest)[1]
        root["identifier"] = f"sha256:{self._report_manifest}"
        root["license"] = self._add(
            "#licence",
            "CreativeWork",
            name="Licences",
            description="The workflow is under Apache-2.0. Data and models keep the licences of where they come from, "
            "of which the records say nothing: see checklist.md.",
        )
        self._add(LICENCE, "CreativeWork", name="Apache License 2.0", identifier="Apache-2.0")
        profiles = [
            self._add(address, "CreativeWork", name=name, version=address.rpartition("/")[2])
            for address, name in PROFILES.items()
        ]
        root["conformsTo"] = profiles

    def _describe_files(self) -> None:
        """The files that are in the bundle and are no artifact's, the workflow's first."""
        places = {f"{artifact.folder.as_posix()}/" for artifact in self._contents.artifacts.values()}
        for path, source in self._contents.files.items():
            if path != WORKFLOW_FILE and not any(path.startswith(place) for place in places):
                self._crate.add_file(source, path, properties=self._file_properties(path, source))
        self._crate.get(README_FILE)["about"] = self._crate.root_dataset
        source = self._contents.files[WORKFLOW_FILE]
        properties = self._file_properties(WORKFLOW_FILE, source) | {
            "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
            "name": "ColBERT-Zero as one graph",
            "version": code_version(self._contents.report.manifest),
            "license": {"@id": LICENCE},
        }
        self._workflow = self._crate.add_workflow(
            source,
            WORKFLOW_FILE,
            properties=properties,
            main=True,
            lang="snakemake",
            lang_version=locked_version("snakemake"),
        )
        self._config = [self._crate.get(name) for name in (CONFIG_FILE, LOCK_FILE) if name in self._contents.files]

    @staticmethod
    def _file_properties(path: str, source: Path, sha256: str | None = None, size: int | None = None) -> Entity:
        return {
            "name": PurePosixPath(path).name,
            "contentSize": str(source.stat().st_size if size is None else size),
            "sha256": sha256 or file_digest(source),
            "encodingFormat": FORMATS.get(PurePosixPath(path).suffix, "application/octet-stream"),
        }

    def _dataset(self, artifact: Artifact) -> Any:
        """An artifact's folder with its files."""
        from rocrate.model.file import File

        folder = artifact.folder.as_posix()
        files = {
            file: (str(entry["sha256"]), int(entry["bytes"])) for file, entry in artifact.manifest["outputs"].items()
        }
        for name in (SPEC_FILE, MANIFEST_FILE):
            record = artifact.folder / name
            files[name] = (file_digest(record), record.stat().st_size)
        parts = []
        for file, (sha256, size) in sorted(files.items()):
            path = f"{folder}/{file}"
            properties = self._file_properties(path, artifact.folder / file, sha256, size)
            if path in self._contents.files:
                entity = self._crate.add_file(self._contents.files[path], path, properties=properties)
            else:
                properties["description"] = f"Not in this bundle, which names its digest: {path} of the study."
                entity = self._crate.add(File(self._crate, self._base + quote(path), properties=properties))
            parts.append(entity)
        dataset = self._crate.add_dataset(
            dest_path=folder,
            properties={
                "name": artifact.name,
                "description": f"An artifact of the kind {artifact.spec.kind}: {artifact.spec.label}.",
                "identifier": artifact.spec.digest,
            },
        )
        dataset["hasPart"] = parts
        return dataset

    def _describe_steps(self) -> dict[str, Any]:
        """A step for each module of the workflow that made an artifact, in an order in which they can run."""
        modules: dict[str, dict[str, Any]] = {}
        for artifact in in_order(self._contents.artifacts):
            tool = self._tool(artifact.manifest, step_of(artifact), with_packages=True)
            modules.setdefault(step_of(artifact), {})[tool.id] = tool
        steps = {}
        for position, (module, tools) in enumerate(modules.items(), 1):
            steps[module] = self._add(
                f"#step/{module}", "HowToStep", name=module, position=str(position), workExample=list(tools.values())
            )
        self._workflow["step"] = list(steps.values())
        self._workflow["hasPart"] = [tool for tools in modules.values() for tool in tools.values()]
        return steps

    def _tool(self, manifest: Mapping[str, Any], module: str, with_packages: bool, code: str | None = None) -> Any:
        """A module of the code that ran, with the packages that it ran with, where they are known."""
        code = code or code_digest(manifest)
        packages = manifest.get("packages") if with_packages else None
        python = manifest.get("python") if with_packages else None
        identity = digest(canonical_json([module, code, packages, python]))[:12]
        requirements = [
            self._add(
                f"https://pypi.org/project/{name}/{version}/",
                "SoftwareApplication",
                name=name,
                version=version,
                url=f"https://pypi.org/project/{name}/",
            )
            for name, version in sorted((packages or {}).items())
        ]
        if python:
            address = f"https://docs.python.org/release/{python}/"
            requirements.append(
                self._add(address, "SoftwareApplication", name="Python", version=python, url="https://www.python.org/")
            )
        own = manifest.get("code")
        version = code_version(manifest) if isinstance(own, dict) and code == own.get("digest") else f"sha256:{code}"
        file = f"workflow/{module.replace('.', '/')}.py"
        return self._add(
            f"{self._base}tool/{module}/{identity}",
            "SoftwareApplication",
            name=module,
            version=version,
            url={"@id": file} if file in self._contents.files else None,
            softwareRequirements=requirements or None,
        )

    def _action(self, artifact: Artifact, datasets: Mapping[str, Any], step: Any) -> Any:
        """The making of an artifact."""
        manifest, module = artifact.manifest, step_of(artifact)
        tool = self._tool(manifest, module, with_packages=True)
        objects = []
        for role, names in sorted(artifact.spec.inputs.items()):
            inputs = [datasets[name] for name in names]
            self._give(tool, "input", f"#input/{module}/{role}", role, "Dataset", inputs)
            objects += inputs
        for setting, value in sorted(artifact.spec.settings.items()):
            objects.append(self._value(tool, module, setting, value))
        dataset = datasets[artifact.name]
        self._give(tool, "output", f"#output/{module}", "artifact", "Dataset", [dataset])
        started, ended = span(manifest)
        return self._add(
            f"#action/{quote(artifact.name)}",
            "CreateAction",
            name=f"Make {artifact.name}",
            description=f"{module} made the artifact {artifact.spec.label} of the kind {artifact.spec.kind}.",
            instrument=tool,
            object=list({entity.id: entity for entity in objects}.values()),
            result=[dataset, *dataset["hasPart"]],
            startTime=started,
            endTime=ended,
            actionStatus=COMPLETED,
            agent=self._agent,
            environment=self._environment(artifact) or None,
            containerImage=self._image(manifest.get("image")),
            resourceUsage=self._usage(artifact) or None,
        )

    def _value(self, tool: Any, module: str, setting: str, value: Any) -> Any:
        shown = value if isinstance(value, str | int | float) else canonical_json(value)
        shown = str(shown).lower() if isinstance(value, bool) else shown
        identifier = f"#value/{module}/{setting}/{digest(canonical_json(value))[:12]}"
        entity = self._add(identifier, "PropertyValue", name=setting, value=shown)
        kind = "Boolean" if isinstance(value, bool) else KINDS.get(type(value), "PropertyValue")
        self._give(tool, "input", f"#setting/{module}/{setting}", setting, kind, [entity])
        return entity

    def _give(self, owner: Any, side: str, identifier: str, name: str, kind: str, examples: Iterable[Any]) -> None:
        """Say that a tool or the workflow has a parameter, of which some entities are examples."""
        if identifier not in self._crate:
            self._crate.add_formal_parameter(name, kind, identifier=identifier, valueRequired=True)
        found = self._crate.get(identifier)
        if found["additionalType"] != kind:
            found["additionalType"] = "PropertyValue"
        self._examples.setdefault(identifier, {}).update({example.id: example for example in examples})
        if (owner.id, side, identifier) not in self._given:
            self._given.add((owner.id, side, identifier))
            owner.append_to(side, found)

    def _connect_parameters(self) -> None:
        for identifier, examples in self._examples.items():
            parameter = self._crate.get(identifier)
            parameter["workExample"] = list(examples.values())
            for example in examples.values():
                example.append_to("exampleOfWork", parameter)

    def _environment(self, artifact: Artifact) -> list[Any]:
        manifest = artifact.manifest
        attempts = attempts_of(manifest)
        said: list[tuple[str, Any]] = [(name, manifest.get(name)) for name in MACHINE]
        said += [("device", artifact.facts.get("device")), ("processes", artifact.facts.get("processes"))]
        said += [(name, attempt.get(name)) for attempt in attempts for name in ("host", "node", "job", "gpus")]
        found = {}
        for name, value in said:
            if isinstance(value, str | int | float):
                identifier = f"#environment/{name}/{digest(canonical_json(value))[:12]}"
                found[identifier] = self._add(identifier, "PropertyValue", name=name, value=value)
        return list(found.values())

    def _usage(self, artifact: Artifact) -> list[Any]:
        return [
            self._add(
                f"#usage/{quote(artifact.name)}/{name}",
                "PropertyValue",
                name=name,
                propertyID=f"#usage/{name}",
                value=str(artifact.manifest[name]),
                unitCode=code,
                unitText=words,
            )
            for name, (code, words) in USAGE.items()
            if isinstance(artifact.manifest.get(name), int | float)
        ]

    def _image(self, labels: Any) -> Any:
        """The image that a step ran in, from the labels that it found there."""
        if not isinstance(labels, dict):
            return None
        contents = labels.get("colbert-zero.contents")
        sha256 = self._contents.images.get(str(contents))
        return self._add(
            f"#image/{contents or digest(canonical_json(labels))[:12]}",
            "ContainerImage",
            name=str(labels.get("colbert-zero.image", "image")),
            additionalType={"@id": RUN + "SIFImage"},
            tag=contents,
            sha256=sha256,
            description=None if sha256 else "No digest of its file is known: the tag is one of definition and lock.",
        )

    def _failures(self, artifact: Artifact) -> list[Any]:
        """The attempts at an artifact that did not end in publishing it."""
        module = step_of(artifact)
        failed = []
        for number, attempt in enumerate(attempts_of(artifact.manifest), 1):
            if attempt.get("end") == "published":
                continue
            code = attempt.get("code")
            failed.append(
                self._add(
                    f"#attempt/{quote(artifact.name)}/{number}",
                    "CreateAction",
                    name=f"Attempt {number} at {artifact.name}",
                    description="It ended without publishing the artifact; a later attempt did.",
                    instrument=self._tool(
                        artifact.manifest,
                        module,
                        with_packages=code in (None, code_digest(artifact.manifest)),
                        code=str(code) if code else None,
                    ),
                    startTime=attempt.get("started"),
                    endTime=attempt.get("ended"),
                    actionStatus=FAILED,
                    error=without_folders(str(attempt.get("end", "killed"))),
                    agent=self._agent,
                )
            )
        return failed

    def _describe_run(
        self, datasets: Mapping[str, Any], actions: Mapping[str, Any], steps: Mapping[str, Any]
    ) -> list[Any]:
        """The run of the whole workflow, and Snakemake's organising of it."""
        contents = self._contents
        external = [datasets[name] for name, made in contents.artifacts.items() if made.spec.kind in EXTERNAL_KINDS]
        report = datasets[contents.report.name]
        spans = [span(artifact.manifest) for artifact in contents.artifacts.values()]
        started = min((start for start, _ in spans if start), default=None)
        ended = max((end for _, end in spans if end), default=None)
        for file, parameter in zip(self._config, ("config", "lock"), strict=False):
            self._give(self._workflow, "input", f"#workflow/{parameter}", file.id, "File", [file])
        if external:
            self._give(self._workflow, "input", "#workflow/external", "what comes from outside", "Dataset", external)
        self._give(self._workflow, "output", "#workflow/report", "report", "Dataset", [report])
        times = {"startTime": started, "endTime": ended, "actionStatus": COMPLETED, "agent": self._agent}
        workflow = self._add(
            "#workflow-run",
            "CreateAction",
            name=f"Make the study {contents.study}",
            description="All that the report rests on, from what comes from outside to the tables.",
            instrument=self._workflow,
            object=[*self._config, *external],
            result=[report, *report["hasPart"]],
            **times,
        )
        engine = self._add(
            SNAKEMAKE,
            "SoftwareApplication",
            name="Snakemake",
            version=locked_version("snakemake"),
            url=SNAKEMAKE,
            description="The version is that of the lock; no record says which one ran.",
        )
        controls = [
            self._add(
                f"#control/{quote(name)}",
                "ControlAction",
                name=f"Orchestrate the making of {name}",
                instrument=steps[step_of(contents.artifacts[name])],
                object=action,
                actionStatus=COMPLETED,
            )
            for name, action in actions.items()
        ]
        organise = self._add(
            "#organize",
            "OrganizeAction",
            name="Run Snakemake",
            instrument=engine,
            object=controls,
            result=workflow,
            **times,
        )
        return [workflow, organise]


def step_of(artifact: Artifact) -> str:
    """The module that made an artifact; of an older record, which does not name it, the artifact's kind."""
    code = artifact.manifest.get("code")
    return str(code.get("module", artifact.spec.kind)) if isinstance(code, dict) else artifact.spec.kind


def code_digest(manifest: Mapping[str, Any]) -> str:
    """The digest of the package that made an artifact."""
    code = manifest.get("code")
    return str(code.get("digest")) if isinstance(code, dict) else "unknown"


def code_version(manifest: Mapping[str, Any]) -> str:
    """The commit of the code that made an artifact, and whether it was changed; the code's digest without a commit."""
    code = manifest.get("code")
    commit = code.get("commit") if isinstance(code, dict) else None
    return str(commit) if commit else f"{PACKAGE} sha256:{code_digest(manifest)}"


def attempts_of(manifest: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The attempts on record, as far as they can be read."""
    attempts = manifest.get("attempts")
    return [attempt for attempt in attempts if isinstance(attempt, dict)] if isinstance(attempts, list) else []


def span(manifest: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """When the first attempt began and the last one ended; None where no record says."""
    attempts = attempts_of(manifest)
    started = [str(attempt["started"]) for attempt in attempts if attempt.get("started")]
    ended = [str(attempt["ended"]) for attempt in attempts if attempt.get("ended")]
    return min(started, default=None), max(ended, default=None)


def in_order(artifacts: Mapping[str, Artifact]) -> list[Artifact]:
    """The artifacts, each after those that it is made from; otherwise by name."""
    ordered: dict[str, Artifact] = {}

    def visit(name: str) -> None:
        if name not in ordered:
            for source in sorted(artifacts[name].spec.input_names):
                visit(source)
            ordered[name] = artifacts[name]

    for name in sorted(artifacts):
        visit(name)
    return list(ordered.values())
