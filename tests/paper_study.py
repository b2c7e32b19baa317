"""A finished study of artifacts of a few bytes each, whose rows have the published values of the paper, or nearly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.published import MEASURE, paper
from publishing import publish

FORUMS = ("cqadupstack-android", "cqadupstack-gaming")
"""The members of the one column that is a group; two stand for all."""
SECONDS, PROCESSES = 3600.0, 4
"""The training time of each stage, and the processes that it had."""

Shift = Callable[[str, str], float]
"""What is added to a value, in points, by row and column."""


def publish_study(
    rows: Mapping[str, str], shift: Shift = lambda _row, _column: 0.0, columns: Sequence[str] = paper().columns
) -> Spec:
    """Publish all but the report of a study whose rows have the values of published ones; return the report's spec.

    Args:
        rows: By row, the id of the published row that it has the values of and is compared with. A row is trained if
            that is, unless its name begins with `released`.
        shift: What is added to a value.
        columns: The columns that are measured.
    """
    facts = {"documents": 1, "queries": 2, "judgements": 2}
    collections = {
        name: publish(Spec("collections", f"folder.{name}", {"split": "test"}), None, facts).name
        for column in columns
        for name in (FORUMS if column == "cqadupstack" else (column,))
    }
    spec_of_rows: dict[str, Any] = {}
    inputs: dict[str, list[str]] = {}
    models: dict[tuple[str, ...], str] = {}
    source = publish(Spec("sources", "file.own", {"rows": 8}), None, {"rows": 8}).name
    base = publish(Spec("bases", "random.tiny", {"seed": 42}, {"sources": [source]}), None, {}).name
    for row, published in rows.items():
        entry = paper().rows[published]
        stages = () if row.startswith("released") else entry.stages
        chain: list[str] = []
        for number, stage in enumerate(stages, 1):
            key = (*stages[:number], row)
            models[key] = _publish_model(stage, row, chain[-1] if chain else base)
            chain.append(models[key])
        model = chain[-1:] or [base]
        inputs[row] = [
            _publish_measures(
                name,
                {"row": [*model], "collection": [collections[name]]},
                entry.numbers.values.get(column, 20.0) + shift(row, column),
            )
            for column in columns
            for name in (FORUMS if column == "cqadupstack" else (column,))
        ]
        spec_of_rows[row] = {"kind": "recipe" if chain else "baseline", "stages": chain}
    settings = {
        "study": "paper",
        "seed": 42,
        "measure": MEASURE,
        "groups": {"cqadupstack": list(FORUMS)} if "cqadupstack" in columns else {},
        "rows": spec_of_rows,
        "published": dict(rows),
    }
    return Spec("reports", "paper", settings, inputs)


def _publish_model(stage: str, row: str, start: str) -> str:
    settings = {"stage": stage, "seed": 42, "row": row, "query_prompt": "search_query: "}
    losses = "".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, 4))
    facts = {"seconds": SECONDS, "processes": PROCESSES, "steps": 3, "device": "GPU", "parameters": 149_015_808}
    spec = Spec("models", stage, settings, {"start": [start]})
    return publish(spec, lambda folder: (folder / "losses.jsonl").write_text(losses), facts).name


def _publish_measures(collection: str, inputs: Mapping[str, Sequence[str]], points: float) -> str:
    values = [points / 100 - 0.05, points / 100 + 0.05]
    table = pa.table({"query_id": ["p", "q"], "measure": [MEASURE] * 2, "value": values})
    spec = Spec("measures", collection, {"measures": [MEASURE], "points": points}, inputs)
    return publish(spec, lambda folder: pq.write_table(table, folder / "measures.parquet"), {}).name
