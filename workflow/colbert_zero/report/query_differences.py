"""The queries of a collection on which two rows of the table differ most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation.trec import Hits, read_run
from colbert_zero.evaluation.values import VALUES_FILE, read_values
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.planners.evaluation import Row

BEST = 3
"""So many documents of each row are shown."""
UNJUDGED = "–"


def largest_differences(
    values: Mapping[str, float], others: Mapping[str, float], number: int
) -> list[tuple[str, float]]:
    """The queries with the largest differences, `values` minus `others`: the largest absolute one first, ties by id.

    Args:
        values: A value for each query.
        others: A value for each of the same queries.
        number: How many queries to give at most.
    """
    differences = [(query, value - others[query]) for query, value in values.items()]
    return sorted(differences, key=lambda entry: (-abs(entry[1]), entry[0]))[:number]


def describe_differences(row: Row, other: Row, collection_name: str, measure: str, number: int) -> Iterator[str]:
    """Lines about the queries on which two rows differ most: both values, and the documents that both rank first.

    Raises:
        UserError: The measures of a row are not there yet.
    """
    measures = [Artifact.open(of.measures[collection_name].name) for of in (row, other)]
    values, others = (read_values(artifact.file(VALUES_FILE))[measure] for artifact in measures)
    runs = [read_run(Artifact.open(artifact.spec.inputs["run"][0]).file("run.trec")) for artifact in measures]
    collection = Collection.open(Artifact.open(measures[0].spec.inputs["collection"][0]))
    largest = largest_differences(values, others, number)
    yield (
        f"{len(largest)} of {len(values)} queries of {collection_name}: those on which {row.name} and {other.name} "
        f"differ most by {measure}"
    )
    width = max(len(row.name), len(other.name))
    for query, difference in largest:
        yield ""
        yield f"{query}  {difference:+.4f}  {' '.join(collection.queries.get(query, '').split())}"
        for of, its_values, run in zip((row, other), (values, others), runs, strict=True):
            best = _graded(run.get(query, [])[:BEST], collection.qrels.get(query, {}))
            yield f"   {of.name.ljust(width)}  {its_values[query]:.4f}  {best}"


def _graded(hits: Hits, grades: Mapping[str, int]) -> str:
    """Documents with their grades in brackets."""
    if not hits:
        return "no document"
    return "  ".join(f"{document} ({grades.get(document, UNJUDGED)})" for document, _ in hits)
