"""What a model is worth in the middle of its training: an exact search of small collections."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from pylate import models

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation.index import EXACT_BELOW, encode, texts_of
from colbert_zero.evaluation.measure import measure
from colbert_zero.evaluation.search import search_exact, without_self
from colbert_zero.evaluation.vectors import Vectors, VectorWriter
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.console import UserError

MEASURE, DEPTH = "nDCG@10", 10


class Evaluator:
    """Evaluates a model on collections."""

    def __init__(self, collections: Mapping[str, bool]) -> None:
        """Open collections, given whether a document that is the query is dropped, by artifact name.

        Raises:
            UserError: One is too large to be searched in passing.
        """
        self._collections: dict[str, tuple[Collection, bool]] = {}
        for name, drop_self in collections.items():
            artifact = Artifact.open(name)
            if artifact.facts["documents"] >= EXACT_BELOW:
                raise UserError(
                    f"{name} has {artifact.facts['documents']} documents, too many to evaluate on while training; "
                    f"name collections of fewer than {EXACT_BELOW} under evaluate"
                )
            self._collections[artifact.spec.label] = Collection.open(artifact), drop_self

    def evaluate(self, model: models.ColBERT) -> Mapping[str, float]:
        """Mean nDCG@10 by collection; the model is left in training mode."""
        model.eval()
        try:
            return {name: _evaluate(model, *opened) for name, opened in self._collections.items()}
        finally:
            model.train()


def _evaluate(model: models.ColBERT, collection: Collection, drop_self: bool) -> float:
    with tempfile.TemporaryDirectory(prefix="colbert-zero-") as name:
        queries = _vectors(model, Path(name), "queries", collection.judged.items())
        documents = _vectors(model, Path(name), "documents", texts_of(collection))
        found = search_exact(documents, queries, DEPTH + drop_self, torch.device(model.device).type)
        run = {query: without_self(query, hits, drop_self)[:DEPTH] for query, hits in found}
    values = measure([MEASURE], collection.qrels, run)
    return math.fsum(values.values()) / len(values)


def _vectors(model: models.ColBERT, folder: Path, name: str, texts: Iterable[tuple[str, str]]) -> Vectors:
    with VectorWriter(folder, name) as writer:
        encode(model, texts, writer, is_query=name == "queries")
    return Vectors.open(writer.vectors, writer.texts)
