"""Which steps of an evaluation are one job on a cluster, and what they ask for.

All of a model's on small collections are one, and each asks for less.

Of BEIR's 26 collections, 17 have fewer than 100,000 documents, of which a GPU encodes the largest in two minutes: to
wait in a queue and to start takes longer. How many documents a collection has is known from the registry, guessed from
the bytes of a folder, or known once it is there; until then it counts as large.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import Spec, read_manifest
from colbert_zero.graph.console import UserError
from colbert_zero.graph.limits import PLAID_MIN_DOCUMENTS
from colbert_zero.graph.study import Study

KINDS = ("indexes", "runs", "measures")
"""What an evaluation makes."""
FULL_DOCUMENTS = 2_000_000
"""Of a collection of so many documents or more, a step of the evaluation asks for what the config says."""
BYTES_PER_DOCUMENT = 1000
"""Of a folder's corpus, roughly: what encoding it takes goes with its bytes anyway."""
LEAST = {"runtime": 5, "mem_mb": 16_000}
"""What a step asks for however small its collection is, in minutes and MB; but never more than the config says."""


class EvaluationJobs:
    """What the steps of a study's evaluation ask for, and which of them are one job."""

    def __init__(self, study: Study) -> None:
        """Look at the collections of `study`, in the current folder."""
        self._study = study
        self._counted: dict[str, int | None] = {}

    def group(self, spec: Spec) -> str | None:
        """The name of the job that makes an artifact among others; None if it has a job of its own.

        Args:
            spec: An index, a run, or measures.
        """
        documents = self._documents(spec)
        if documents is None or documents >= PLAID_MIN_DOCUMENTS:
            return None
        return f"evaluation-{self._evaluated(spec)}"

    def resource(self, spec: Spec, step: str, name: str, attempt: int = 1) -> Any:
        """What the step that makes an artifact asks for: less for a small collection than the config says.

        Args:
            spec: The artifact; of one that is no index, run or measures, the config says it.
            step: The step.
            name: `mem_mb`, `runtime` (minutes) or another, which does not depend on sizes.
            attempt: The number of the attempt, from 1: each asks for twice as much, up to what the config says, since
                the guess may be too low for a machine.
        """
        configured = self._study.resource(step, name)
        if name not in LEAST or spec.kind not in KINDS or (documents := self._documents(spec)) is None:
            return configured
        of_this_size = max(LEAST[name], -(-configured * documents // FULL_DOCUMENTS))
        return min(configured, of_this_size * 2 ** (attempt - 1))

    def _documents(self, spec: Spec) -> int | None:
        """How many documents the collection of an artifact has."""
        collection = next(made_from for made_from in self._study.inputs_of(spec) if made_from.kind == "collections")
        if collection.name not in self._counted:
            self._counted[collection.name] = _documents_of(collection, self._study.paths.get(collection.key))
        return self._counted[collection.name]

    def _evaluated(self, spec: Spec) -> str:
        """What is evaluated: the model's label and key, or `bm25`."""
        for made_from in self._study.inputs_of(spec):
            if made_from.kind in KINDS:
                return self._evaluated(made_from)
            if made_from.kind != "collections":
                return made_from.folder.name
        return "bm25"


def _documents_of(collection: Spec, path: Path | None) -> int | None:
    """How many documents a collection has, which may be fetched from a local folder; None if that is not known yet."""
    if "documents" in collection.settings:
        return int(collection.settings["documents"])
    with suppress(UserError):
        documents = read_manifest(collection.folder)["facts"].get("documents")
        if isinstance(documents, int):
            return documents
    if path is None:
        return None
    return sum(file.stat().st_size for file in path.glob("corpus.jsonl*")) // BYTES_PER_DOCUMENT
