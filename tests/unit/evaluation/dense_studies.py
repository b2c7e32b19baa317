"""Small studies of dense models: a published model and a published collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from colbert_zero.evaluation import dense_index, dense_search
from colbert_zero.evaluation.embeddings import Vectors
from colbert_zero.graph.artifact import Artifact, Spec, run_step
from colbert_zero.machine.devices import add_device_option
from mined import publish_model
from publishing import publish_collection

WORDS = [
    *("query", "document", "similarity", "model", "sums", "brown", "fox", "lazy"),
    *("dog", "prompts", "over", "quick", "retrieval", "every", "best", "jumps"),
]
DOCUMENTS = {
    f"d{number}": " ".join(WORDS[number * step % 16] for step in range(1, number % 9 + 2)) for number in range(90)
}
# Three documents with the same text have the same score: their ids decide.
DOCUMENTS |= {"twin-a": "lazy lazy dog", "twin-c": "lazy lazy dog", "twin-b": "lazy lazy dog", "empty": "", "q2": "fox"}
QUERIES = {"q1": "the quick fox", "unjudged": "nothing", "q2": "a lazy dog", "q3": "best similarity of a model"}
QRELS = {"q1": {"d1": 1}, "q2": {"twin-a": 1}, "q3": {"d3": 1}}
JUDGED = {query: QUERIES[query] for query in ("q1", "q2", "q3")}

PROMPTS = {"query": "search_query: ", "document": "search_document: "}
MODELS: dict[str, dict[str, Any]] = {
    "cls": {"pooling": "cls"},
    "mean, of unit length": {"pooling": "mean", "normalize": True},
    "last token, dot": {"pooling": "lasttoken", "similarity_fn_name": "dot"},
    "projected, saved prompts": {"dense": 12, "prompts": PROMPTS, "similarity_fn_name": "cosine"},
    "prompts by other names": {"prompts": {"query": "q: ", "passage": "p: "}, "default_prompt_name": "query"},
}
"""Models as `dense_model` makes them."""


def index_spec(model: Path, encoding: dict[str, Any] | None = None, kind: str = "exact", **settings: Any) -> Spec:
    """The index of a model's folder, which is published with the collection in the study of the current folder."""
    collection = publish_collection("toy", DOCUMENTS, QUERIES, QRELS)
    inputs = {"model": [publish_model(model).name], "collection": [collection.name]}
    index = {"kind": kind} | ({"seed": 7} if kind == "faiss" else {})
    return Spec("indexes", "dense.toy", {"encoding": encoding or {}, "index": index, **settings}, inputs)


def run_spec(index: Spec, depth: int, drop_self: bool = False) -> Spec:
    """A run of an index."""
    inputs = {"index": [index.name], "collection": index.inputs["collection"]}
    return Spec("runs", "dense.toy", {"depth": depth, "drop_self": drop_self}, inputs)


def make_index(spec: Spec, *flags: str) -> Artifact:
    """Make an index."""
    assert run_step(dense_index.make, None, ["--spec", spec.text, *flags], add_device_option) == 0
    return Artifact.open(spec.name)


def make_run(spec: Spec, *flags: str) -> Artifact:
    """Make a run of an index that is there."""
    assert run_step(dense_search.make, None, ["--spec", spec.text, *flags], add_device_option) == 0
    return Artifact.open(spec.name)


def vectors_of(count: int, dimensions: int = 24, seed: int = 1) -> Vectors:
    """Vectors of unit length around 40 centres."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((40, dimensions))
    vectors = centres[generator.integers(40, size=count)] + 0.6 * generator.standard_normal((count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
