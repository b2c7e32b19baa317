"""How much of the test the training rows hold: counts from the artifacts `contamination/*`, for people.

Such an artifact says of one source which texts of the collections stand in its rows; a recipe trains on several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq

from colbert_zero.graph.artifact import Artifact

FOUND_FILE = "contamination.parquet"
"""The file of a contamination artifact: a row for each test text, each match, and each column that holds it.

`collection` is the collection's artifact; `id` and `kind` (query or document) name the text; `grade` is a document's
highest grade, null for a query; `match` is exact or ngram; `side` is the column of the training rows, and `row` the
first row, from 0, in which it is found there.
"""
MATCHES = ("exact", "ngram")
PARTS: Mapping[str, str] = {
    "queries": "queries",
    "relevant_documents": "relevant documents",
    "documents": "judged documents",
}
"""What is counted of a collection, by the name of the fact: judged queries, documents that are relevant to one (their
grade is above 0), and all judged documents."""
EXPLANATION = (
    "Which judged texts stand in the training rows, as a query, a document or a negative. Exact: the whole text, but "
    "for case, white space and Unicode's compatible forms. 13-gram: also any 13 words in a row, but for case and "
    "punctuation, as in Brown et al. 2020 (arXiv 2005.14165); a text of fewer words counts if a training text has just "
    "these words. What a base was trained on before is not known here."
)


@dataclass(frozen=True)
class Overlap:
    """How many texts of one part of a collection are found.

    Attributes:
        judged: How many there are to be found: those that the collection has, and that are not empty.
        exact: How many are found as a whole.
        ngram: How many are found as a whole or share an n-gram.
    """

    judged: int
    exact: int
    ngram: int


Found = Mapping[str, set[tuple[str, str, str]]]
"""By match, the texts that are found: collection, part and id."""


def parts_of(kind: str, grade: int | None) -> Sequence[str]:
    """The parts of a collection that a text is counted in."""
    if kind == "query":
        return ("queries",)
    return ("relevant_documents", "documents") if (grade or 0) > 0 else ("documents",)


def found_texts(artifact: Artifact) -> Found:
    """What one source's rows hold.

    Raises:
        UserError: The file is missing, truncated or edited.
    """
    rows = pq.read_table(artifact.file(FOUND_FILE), columns=["collection", "id", "kind", "grade", "match"]).to_pylist()
    found: dict[str, set[tuple[str, str, str]]] = {match: set() for match in MATCHES}
    for row in rows:
        found[row["match"]].update((row["collection"], part, row["id"]) for part in parts_of(row["kind"], row["grade"]))
    return found


def overlaps(sources: Sequence[Artifact]) -> dict[str, dict[str, Overlap]]:
    """What the rows of several sources hold together: by collection's artifact, by part; sorted.

    Raises:
        UserError: A file is missing, truncated or edited.
    """
    each = [found_texts(source) for source in sources]
    exact, ngram = (set().union(*(found[match] for found in each)) for match in MATCHES)
    counts = [Counter((collection, part) for collection, part, _ in texts) for texts in (exact, exact | ngram)]
    judged: Mapping[str, Mapping[str, int]] = sources[0].facts["judged"]
    return {
        collection: {
            part: Overlap(judged[collection][part], *(count[collection, part] for count in counts)) for part in PARTS
        }
        for collection in sorted(judged)
    }


def collection_name(artifact_name: str) -> str:
    """The name of a collection in tables, of its artifact: `scifact` of `collections/hub.scifact-KEY`."""
    return artifact_name.partition("/")[2].rpartition("-")[0].partition(".")[2]


def by_sources(sources: Mapping[str, Sequence[str]]) -> Iterator[tuple[list[str], list[str]]]:
    """Join the rows of the table that train on the same sources: the rows' names, and their contamination artifacts.

    Args:
        sources: By row, the names of the contamination artifacts of the sources that it trains on.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    for row in sorted(sources):
        rows.setdefault(tuple(sorted(sources[row])), []).append(row)
    for artifacts, names in rows.items():
        yield names, list(artifacts)
