"""Plan the audit that a study may end with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from colbert_zero.graph.artifact import KEY_DIGITS, Spec
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.evaluation import Row

AUDIT_ROLE = "+audit"
"""The role of the audit among a report's inputs. The others are the names of the table's rows, which have no +."""


class AuditPlanner:
    """Plans what the setting `audit` asks for: which test texts stand in the training rows, and an audit of it all."""

    def __init__(self, draft: Draft, collections: Iterable[Spec]) -> None:
        """Plan for `draft`, whose test texts are those of `collections`."""
        self._draft = draft
        self._collections = sorted(collections, key=lambda spec: spec.name)

    def contamination(self, row: Row) -> list[Spec]:
        """Which test texts stand in the rows of each source that a row of the table trains on; none if untrained.

        Mined negatives and teacher scores have the texts of the shards that they are made from.
        """
        shards = {spec.name: spec for model in row.stages for spec in self._shards_of(model)}
        return [
            self._draft.add("contamination", spec.label, {}, {"shards": spec, "collections": self._collections})
            for _, spec in sorted(shards.items())
        ]

    def audit(self, study: str, rows: Sequence[Row], contamination: Mapping[str, Sequence[Spec]]) -> Spec:
        """An audit of everything that the rows of the table are made from.

        Args:
            study: The study's name.
            rows: The rows of its table.
            contamination: By row, what `contamination` planned.
        """
        # Rows by name, so that the order of the config's keys decides nothing.
        rows = sorted(rows, key=lambda row: row.name)
        settings = {
            "rows": {
                row.name: {
                    "stages": [model.name for model in row.stages],
                    "measures": [measure.name for measure in _measures(row)],
                    "contamination": [spec.name for spec in contamination[row.name]],
                }
                for row in rows
            }
        }
        inputs = {
            "measures": [measure for row in rows for measure in _measures(row)],
            "contamination": [spec for row in rows for spec in contamination[row.name]],
        }
        return self._draft.add("audits", study, settings, {role: _once(specs) for role, specs in inputs.items()})

    def _shards_of(self, model: Spec) -> Iterator[Spec]:
        for candidate in model.inputs.get("models", ()):  # of a selection
            yield from self._shards_of(self._draft.specs[candidate[-KEY_DIGITS:]])
        for name in model.inputs.get("rows", ()):
            rows = self._draft.specs[name[-KEY_DIGITS:]]
            (shards,) = rows.inputs["shards"] if rows.kind != "shards" else [rows.name]
            yield self._draft.specs[shards[-KEY_DIGITS:]]


def _measures(row: Row) -> list[Spec]:
    return [measure for _, measure in sorted(row.measures.items())]


def _once(specs: Iterable[Spec]) -> list[Spec]:
    """Each of some specs once, in their order."""
    return list({spec.name: spec for spec in specs}.values())
