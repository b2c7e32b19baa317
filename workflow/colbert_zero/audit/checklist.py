"""What the records of a study say to the questions of two checklists, and what they do not say.

The questions are those of ACM's badges (Artifact Review and Badging, version 1.1) and of the NeurIPS paper checklist.
Each answer is a fact that an artifact has on record, or that it is not known: nothing is claimed. Whoever publishes the
study answers the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from colbert_zero.audit.crate import METADATA_FILE, Contents, attempts_of, code_version, in_order
from colbert_zero.graph.artifact import EXTERNAL_KINDS, Artifact
from colbert_zero.graph.console import one_line

CHECKLIST_FILE = "checklist.md"
UNKNOWN = "not known from the records"
SHOWN = 12
"""Longer lists of names are cut."""


def checklist(contents: Contents, left_out: int) -> str:
    """The checklist of a bundle, as Markdown.

    Args:
        contents: What goes into the bundle.
        left_out: How many of the artifacts' files are there by digest alone.
    """
    facts = _Facts(contents, left_out)
    lines = [
        f"# What the records of the study {_text(contents.study)} say",
        "",
        "Each line is a fact from the records in this bundle, or says that they do not know. Nothing is claimed that "
        "no record shows; what is not known is for whoever publishes the study to answer.",
        "",
        "## ACM badges",
        "",
        *_section(ACM, facts),
        "## NeurIPS paper checklist",
        "",
        *_section(NEURIPS, facts),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(questions: Mapping[str, Callable[[_Facts], Iterable[str]]], facts: _Facts) -> Iterator[str]:
    for question, answers in questions.items():
        yield f"### {question}"
        yield ""
        yield from (f"- {answer}" for answer in answers(facts))
        yield ""


def _unknown(what: str) -> str:
    return f"{UNKNOWN}: {what}."


def _text(value: Any) -> str:
    """A value from a record as part of a line of Markdown."""
    return one_line(str(value)).replace("|", "\\|").replace("<", "&lt;")


def _list(values: Iterable[Any]) -> str:
    found = sorted({_text(value) for value in values})
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


class _Facts:
    """What the records of a bundle's artifacts say, subject by subject."""

    def __init__(self, contents: Contents, left_out: int) -> None:
        self.contents, self.left_out = contents, left_out
        self.artifacts = in_order(contents.artifacts)

    def of(self, *kinds: str) -> list[Artifact]:
        """The artifacts of some kinds."""
        return [artifact for artifact in self.artifacts if artifact.spec.kind in kinds]

    def all(self, name: str) -> list[Any]:
        """What the manifests say under a name."""
        return [artifact.manifest[name] for artifact in self.artifacts if artifact.manifest.get(name) is not None]

    def packages(self) -> Iterator[str]:
        versions: dict[str, set[str]] = {}
        for packages in self.all("packages"):
            for name, version in packages.items():
                versions.setdefault(name, set()).add(version)
        if versions:
            yield (
                "Packages that ran: "
                + ", ".join(f"{_text(name)} {_list(found)}" for name, found in sorted(versions.items()))
                + f"; Python {_list(self.all('python')) or UNKNOWN}. All others: envs/*.txt, locked with digests."
            )
        else:
            yield _unknown("which packages ran; envs/*.txt are the locks of the workflow that is here")
        images = [labels for labels in self.all("image") if isinstance(labels, dict)]
        names = _list(labels.get("colbert-zero.contents", "without a digest") for labels in images)
        without = len(self.artifacts) - len(images)
        yield f"Images (digests of definition and lock): {names or 'none'}; {without} artifacts were made without one."

    def code(self) -> Iterator[str]:
        yield f"Code that made the artifacts: {_list(code_version(artifact.manifest) for artifact in self.artifacts)}."

    def hardware(self) -> Iterator[str]:
        processors, cores = _list(self.all("processor")), _list(self.all("cores"))
        memory, systems = _list(self.all("memory_mb")), _list(self.all("platform"))
        if processors:
            yield f"Processors: {processors}; cores: {cores}; memory in MB: {memory}; systems: {systems}."
        else:
            yield _unknown("processors and memory")
        devices = _list(artifact.facts["device"] for artifact in self.artifacts if artifact.facts.get("device"))
        yield f"Devices: {devices}." if devices else _unknown("whether GPUs computed")

    def runtime(self) -> Iterator[str]:
        seconds = [value for value in self.all("seconds") if isinstance(value, int | float)]
        yield f"All steps together took {sum(seconds):.0f} s, one after the other."
        for model in self.of("models"):
            if isinstance(model.facts.get("seconds"), int | float):
                yield f"Training {_text(model.name)}: {model.facts['seconds']:.0f} s."
        ends = [attempt.get("end") for artifact in self.artifacts for attempt in attempts_of(artifact.manifest)]
        failed = sum(end != "published" for end in ends)
        yield f"Attempts on record: {len(ends)}, of which {failed} did not end in publishing; " + _unknown(
            "runs of which nothing was published, such as earlier configs"
        )

    def parameters(self) -> Iterator[str]:
        for model in self.of("bases", "models"):
            count = model.facts.get("parameters")
            told = f"{count} parameters" if isinstance(count, int) else _unknown("the number of parameters").rstrip(".")
            yield f"{_text(model.name)}: {told}."

    def seeds(self) -> Iterator[str]:
        seeds = [artifact.spec.settings["seed"] for artifact in self.artifacts if "seed" in artifact.spec.settings]
        yield f"Seeds: {_list(seeds) or 'none'}. Each recipe was trained with one."

    def splits(self) -> Iterator[str]:
        for collection in self.of("collections"):
            facts, settings = collection.facts, collection.spec.settings
            counts = ", ".join(
                f"{facts[name]} {name}" for name in ("documents", "queries", "judgements") if name in facts
            )
            split = settings.get("split")
            yield f"{_text(collection.name)}: split {_text(split) if split else UNKNOWN}; {counts}."

    def settings(self) -> Iterator[str]:
        yield f"Every setting of every stage is in config.yaml, in spec.json of each artifact, and in {METADATA_FILE}."

    def data(self) -> Iterator[str]:
        for artifact in self.artifacts:
            if artifact.spec.kind in EXTERNAL_KINDS and not artifact.spec.inputs:
                settings = artifact.spec.settings
                places = ("hub", "revision", "commit", "package", "version", "sha256")
                known = {**settings, "commit": artifact.facts.get("commit")}
                told = ", ".join(f"{name} {_text(known[name])}" for name in places if known.get(name))
                qrels = settings.get("qrels")
                if isinstance(qrels, Mapping):
                    told += f"; judgements: hub {_text(qrels.get('hub'))}, revision {_text(qrels.get('revision'))}"
                rows = artifact.facts.get("rows", artifact.facts.get("documents"))
                size = f"; {rows} rows or documents" if rows is not None else ""
                yield f"{_text(artifact.name)}: {told or UNKNOWN}{size}."

    def licences(self) -> Iterator[str]:
        yield "The workflow: Apache-2.0."
        for artifact in self.artifacts:
            if artifact.spec.kind in EXTERNAL_KINDS and not artifact.spec.inputs:
                known = artifact.facts.get("licence") or artifact.facts.get("license")
                yield f"{_text(artifact.name)}: " + (
                    f"{_text(known)}." if known else _unknown("under which licence it is")
                )

    def files(self) -> Iterator[str]:
        count = sum(len(artifact.manifest["outputs"]) for artifact in self.artifacts)
        yield (
            f"{len(self.artifacts)} artifacts with {count} files; {self.left_out} of these are here by digest and size "
            "alone."
        )

    def statistics(self) -> Iterator[str]:
        queries = {artifact.spec.label: artifact.facts.get("queries") for artifact in self.of("measures")}
        told = ", ".join(f"{_text(label)} {count}" for label, count in sorted(queries.items()))
        yield f"Values of each query are on record (queries: {told}); the report has intervals of paired differences."
        yield "One seed was trained of each recipe: " + _unknown("how much another seed would change")


ACM: dict[str, Callable[[_Facts], Iterable[str]]] = {
    "Artifacts Available": lambda facts: [
        *facts.files(),
        _unknown("in which archive with a persistent identifier this bundle is"),
    ],
    "Artifacts Evaluated, Functional": lambda facts: [
        "Documented: the workflow, its config and how each artifact was made are in this bundle.",
        "Consistent and complete: at bundling, `colbert-zero verify` had no finding in the artifacts of the report.",
        *facts.packages(),
        *facts.hardware(),
        "Exercisable: `colbert-zero replay` and `colbert-zero ladder` make parts again; "
        + _unknown("whether anybody did").removesuffix(".")
        + ".",
    ],
    "Artifacts Evaluated, Reusable": lambda facts: [
        *facts.code(),
        *facts.settings(),
        *facts.licences(),
    ],
    "Results Reproduced": lambda facts: [
        *facts.seeds(),
        _unknown("whether others than the authors obtained the results with these artifacts"),
    ],
    "Results Replicated": lambda _: [
        _unknown("whether others obtained the results without these artifacts"),
    ],
}
NEURIPS: dict[str, Callable[[_Facts], Iterable[str]]] = {
    "1. Claims": lambda _: [_unknown("what a paper claims; the report has the numbers")],
    "2. Limitations": lambda _: [_unknown("what a paper says of limitations")],
    "3. Theory assumptions and proofs": lambda _: [_unknown("whether there are theoretical results")],
    "4. Experimental result reproducibility": lambda facts: [*facts.settings(), *facts.seeds(), *facts.parameters()],
    "5. Open access to data and code": lambda facts: [*facts.code(), *facts.data()],
    "6. Experimental setting and details": lambda facts: [*facts.splits(), *facts.settings()],
    "7. Experiment statistical significance": lambda facts: facts.statistics(),
    "8. Experiments compute resources": lambda facts: [*facts.hardware(), *facts.runtime()],
    "9. Code of ethics": lambda _: [_unknown("whether the research conforms to it")],
    "10. Broader impacts": lambda _: [_unknown("what a paper says of impacts")],
    "11. Safeguards": lambda _: [_unknown("which safeguards a release of data or models has")],
    "12. Licenses for existing assets": lambda facts: facts.licences(),
    "13. New assets": lambda facts: [
        *facts.files(),
        "Each new asset has a record of how it was made (manifest.json); " + _unknown("its licence and consent"),
    ],
    "14. Crowdsourcing and research with human subjects": lambda _: [_unknown("whether there were participants")],
    "15. Institutional review board approvals": lambda _: [_unknown("whether approval was needed and given")],
    "16. Declaration of LLM usage": lambda _: [_unknown("how language models took part in the research")],
}
