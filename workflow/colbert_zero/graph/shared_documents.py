"""Which indexes of a study encode the same documents in the same way, as far as a plan can know.

Two collections may have a corpus in common, such as two splits of one repository; or most of one, as the registry says
of FEVER and Climate-FEVER (`documents_of`). An index then takes from the other what that has encoded already.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from colbert_zero.graph import registry
from colbert_zero.graph.artifact import KEY_DIGITS, Spec
from colbert_zero.graph.digests import canonical_json, digest
from colbert_zero.graph.study import Study

OF_QUERIES = "query_"
"""How the names of settings begin that are for queries alone."""
NOT_OF_A_CORPUS = frozenset({"split", "qrels", "queries", *registry.COUNTS})
"""The settings of a collection that its documents do not depend on."""


def encoding_of_documents(index: Spec) -> str:
    """What decides an index's vectors of documents, beside their texts: a digest."""
    settings: dict[str, Any] = {
        name: index.settings[name] for name in ("precision", "projection") if name in index.settings
    }
    for name in ("encoding", "minimum_lengths"):
        of_both = index.settings.get(name, {})
        settings[name] = {key: value for key, value in of_both.items() if not key.startswith(OF_QUERIES)}
    return digest(canonical_json({"model": index.inputs["model"], "settings": settings}))[:KEY_DIGITS]


class SharedDocuments:
    """Which indexes of a study encode the same documents in the same way."""

    def __init__(self, study: Study) -> None:
        """Look at the indexes of `study`, when they are asked for."""
        self._study = study

    def beside(self, index: Spec) -> list[str]:
        """The names of the other indexes that encode documents of an index's corpus in the same way, sorted."""
        return [name for name in self._alike.get(self._documents(index), ()) if name != index.name]

    @cached_property
    def _alike(self) -> dict[tuple[str, str], list[str]]:
        """The names of indexes, sorted, by what they encode."""
        found: dict[tuple[str, str], list[str]] = {}
        for spec in sorted(self._study.specs.values(), key=lambda spec: spec.name):
            if spec.kind == "indexes":
                found.setdefault(self._documents(spec), []).append(spec.name)
        return found

    def _documents(self, index: Spec) -> tuple[str, str]:
        (collection,) = (made_from for made_from in self._study.inputs_of(index) if made_from.kind == "collections")
        return encoding_of_documents(index), _corpus(collection)


def _corpus(collection: Spec) -> str:
    """What tells the corpus of a collection from others, in canonical JSON."""
    settings = {name: value for name, value in collection.settings.items() if name not in NOT_OF_A_CORPUS}
    other = registry.documents_of(settings.get("hub", ""), settings.get("revision", ""))
    return canonical_json(settings if other is None else other)
