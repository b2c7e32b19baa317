"""Evaluate a model during its training, with an exact search of small collections."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from pylate import models

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation.measure import measure
from colbert_zero.evaluation.search import search_exact
from colbert_zero.evaluation.texts import document_texts
from colbert_zero.evaluation.trec import drop_self_match
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.console import UserError
from colbert_zero.graph.limits import PLAID_MIN_DOCUMENTS
from colbert_zero.retrieval.encode import encode_texts
from colbert_zero.retrieval.vectors import TokenVectors, VectorWriter

MEASURE, DEPTH = "nDCG@10", 10


class Evaluator:
    """Evaluates a model on collections."""

    def __init__(self, collections: Mapping[str, Mapping[str, Any]]) -> None:
        """Open collections.

        Args:
            collections: By artifact name, how to evaluate on it: `drop_self`, `query_length` and `document_length`, as
                for the study's own evaluation; without a length, the model's.

        Raises:
            UserError: A collection is too large to be searched during training.
        """
        self._collections: dict[str, tuple[Collection, Mapping[str, Any]]] = {}
        for name, settings in collections.items():
            artifact = Artifact.open(name)
            if artifact.facts["documents"] >= PLAID_MIN_DOCUMENTS:
                raise UserError(
                    f"{name} has {artifact.facts['documents']} documents, too many to evaluate on while training; "
                    f"name collections of fewer than {PLAID_MIN_DOCUMENTS} under evaluate"
                )
            self._collections[artifact.spec.label] = Collection.open(artifact), settings

    def evaluate(self, model: models.ColBERT) -> Mapping[str, float]:
        """Mean nDCG@10 by collection; leaves the model in training mode."""
        model.eval()
        try:
            return {name: _evaluate(model, *collection) for name, collection in self._collections.items()}
        finally:
            model.train()


def _evaluate(model: models.ColBERT, collection: Collection, settings: Mapping[str, Any]) -> float:
    drop_self = settings["drop_self"]
    # A copy has lengths of its own, and the same weights: threads tokenise the next steps with the model meanwhile.
    model = copy(model)
    model.query_length = settings.get("query_length", model.query_length)
    model.document_length = settings.get("document_length", model.document_length)
    with tempfile.TemporaryDirectory(prefix="colbert-zero-") as name:
        queries = _encode(model, Path(name), "queries", collection.judged_queries.items())
        documents = _encode(model, Path(name), "documents", document_texts(collection))
        hits_by_query = search_exact(documents, queries, DEPTH + drop_self, torch.device(model.device).type)
        run = {query: drop_self_match(query, hits, drop_self)[:DEPTH] for query, hits in hits_by_query}
    values = measure([MEASURE], collection.qrels, run)
    return math.fsum(values.values()) / len(values)


def _encode(model: models.ColBERT, folder: Path, name: str, texts: Iterable[tuple[str, str]]) -> TokenVectors:
    with VectorWriter(folder, name) as writer:
        encode_texts(model, texts, writer, is_query=name == "queries")
    return TokenVectors.open(writer.vectors_file, writer.texts_file)
