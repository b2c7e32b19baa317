"""Search a collection for words of one's own, with the model, prompts, lengths and index of a row of the table.

Where the index is published, it is searched as for the collection's queries, so that a judged query's words find what
its run has. Where it is not, a small collection is encoded in a temporary folder, in the same way.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from colbert_zero.data.beir import Collection, Document
from colbert_zero.data.text import document_text
from colbert_zero.evaluation.texts import document_texts
from colbert_zero.evaluation.trec import Hits
from colbert_zero.graph.artifact import MANIFEST_FILE, Artifact, Spec, is_let_go
from colbert_zero.graph.console import progress
from colbert_zero.graph.limits import DEFAULT_PRECISION

if TYPE_CHECKING:
    from colbert_zero.evaluation.token_matches import TokenMatches

PLAID = "plaid"


@dataclass(frozen=True)
class Found:
    """A document that was found.

    Attributes:
        document: The document.
        score: Its score, the greater the better.
        matches: Which token met which, for a late-interaction model.
    """

    document: Document
    score: float
    matches: TokenMatches | None = None


@dataclass(frozen=True)
class Answer:
    """What a search found.

    Attributes:
        kind: `bm25`, `dense`, `exact` or `plaid`: what gave the scores.
        documents: The number of documents that were searched.
        found: The best documents, the best one first; equal scores by descending id.
    """

    kind: str
    documents: int
    found: list[Found]


def is_published(spec: Spec) -> bool:
    """Whether an artifact of the current study is there, with its files."""
    return (spec.folder / MANIFEST_FILE).is_file() and not is_let_go(spec.folder)


def search_words(words: str, depth: int, run: Spec, index: Spec | None) -> Answer:
    """Search a collection of the current study for words, and say which tokens met.

    Args:
        words: The query, without a prompt.
        depth: The number of documents.
        run: The run of the row and the collection, which need not be there.
        index: The run's index; None for BM25, which keeps none. If it is not there, the documents are encoded now.

    Raises:
        UserError: The collection or the model is not there, or damaged.
    """
    artifact = Artifact.open(run.inputs["collection"][0])
    collection, documents = Collection.open(artifact), int(artifact.facts["documents"])
    if index is None:
        kind, found = "bm25", _search_bm25(words, depth, run, collection, documents)
    elif run.label.startswith("dense."):
        kind, found = "dense", _search_dense(words, depth, index, collection, documents)
    else:
        kind, found = _search_tokens(words, depth, index, collection, documents)
    return Answer(kind, documents, found)


def _documents(collection: Collection, hits: Hits) -> dict[str, Document]:
    """The documents of these hits, by id."""
    wanted = {document for document, _ in hits}
    found: dict[str, Document] = {}
    for document in collection.documents():
        if document.id in wanted:
            found[document.id] = document
            if len(found) == len(wanted):
                break
    return found


def _found(collection: Collection, hits: Hits, matches: Mapping[str, TokenMatches] | None = None) -> list[Found]:
    documents = _documents(collection, hits)
    return [Found(documents[name], score, (matches or {}).get(name)) for name, score in hits]


def _search_bm25(words: str, depth: int, run: Spec, collection: Collection, documents: int) -> list[Found]:
    """Index the documents for BM25 and search them."""
    from colbert_zero.retrieval.lucene import DEFAULT_HEAP_MB, LuceneIndex

    ids: list[str] = []

    def texts() -> Iterator[str]:
        for name, text in progress(document_texts(collection), documents, "documents"):
            ids.append(name)
            yield text

    threads = len(os.sched_getaffinity(0))
    with LuceneIndex(texts(), run.settings["k1"], run.settings["b"], threads, DEFAULT_HEAP_MB) as index:
        # Of documents with equal scores, Lucene finds those that it indexed first: as many as the run are asked for.
        (hits,) = index.search([words], max(depth, run.settings["depth"]))
    scored = [(ids[number], float(score)) for number, score in zip(hits.documents, hits.scores, strict=True)]
    return _found(collection, _ranked(scored)[:depth])


def _ranked(hits: Hits) -> Hits:
    """Hits in trec_eval's order: by descending score, then by descending id."""
    return sorted(hits, key=lambda hit: (hit[1], hit[0]), reverse=True)


def _search_dense(words: str, depth: int, index: Spec, collection: Collection, documents: int) -> list[Found]:
    """Compare one vector of the words with one of each document."""
    import pyarrow as pa

    from colbert_zero.evaluation.dense_index import load_dense
    from colbert_zero.evaluation.dense_search import IdOrder, search_exact, search_inverted_file
    from colbert_zero.evaluation.embeddings import Embeddings
    from colbert_zero.models.loading import model_name

    model = Artifact.open(index.inputs["model"][0])
    encoder, _ = load_dense(model.verified_folder(), index.settings, _device(), model_name(model))
    query = encoder.encode_queries([words])
    if is_published(index):
        artifact = Artifact.open(index.name)
        embeddings = Embeddings.open(artifact, "documents")
    else:
        artifact = None
        ids, texts = zip(*progress(document_texts(collection), documents, "documents"), strict=True)
        embeddings = Embeddings(pa.chunked_array([list(ids)]), encoder.encode_documents(texts))
    order = IdOrder(embeddings.ids)
    wanted = min(depth, len(order))
    if artifact is not None and artifact.facts["kind"] != "exact":
        threads = len(os.sched_getaffinity(0))
        (keys,) = search_inverted_file(artifact, embeddings.vectors, query, order, wanted, threads)
    else:
        (keys,) = search_exact(embeddings.vectors, query, order, wanted, _device())
    return _found(collection, order.hits(np.asarray(keys)))


def _search_tokens(
    words: str, depth: int, index: Spec, collection: Collection, documents: int
) -> tuple[str, list[Found]]:
    """Search by MaxSim, and compare the tokens of the words with those of each document that is found.

    Returns:
        The kind of the index, and what was found.
    """
    from colbert_zero.evaluation.index import resolve_encoding
    from colbert_zero.evaluation.search import open_search, search_exact
    from colbert_zero.evaluation.token_matches import match_tokens, read_text
    from colbert_zero.models.colbert import load_colbert
    from colbert_zero.models.loading import model_name
    from colbert_zero.retrieval.encode import encode_texts
    from colbert_zero.retrieval.vectors import TokenVectors, VectorWriter

    source = Artifact.open(index.inputs["model"][0])
    folder, name, device = source.verified_folder(), model_name(source), _device()
    encoding = resolve_encoding(folder, index.settings, name)
    projection = index.settings.get("projection") or {}
    precision = index.settings.get("precision", DEFAULT_PRECISION)
    model = load_colbert(folder, encoding, device, **projection, strict=False, name=name)
    with tempfile.TemporaryDirectory(prefix="colbert-zero-") as scratch:

        def encode(texts: Iterator[tuple[str, str]], part: str, *, is_query: bool) -> TokenVectors:
            """The vectors of texts, rounded as an index has them."""
            with VectorWriter(Path(scratch), part) as writer:
                encode_texts(model, texts, writer, is_query=is_query, precision=precision)
            return TokenVectors.open(writer.vectors_file, writer.texts_file)

        query = encode(iter([("", words)]), "queries", is_query=True)
        kind, encoded = "exact", None
        if is_published(index):
            artifact = Artifact.open(index.name)
            kind = artifact.facts["kind"]
            ((_, hits),) = open_search(artifact, query, depth, device)(range(1))
            if kind == "exact":
                encoded = TokenVectors.open(artifact.file("documents.safetensors"), artifact.file("documents.parquet"))
        else:
            texts = progress(document_texts(collection), documents, "documents")
            encoded = encode(texts, "documents", is_query=False)
            ((_, hits),) = search_exact(encoded, query, depth, device)
        hits = _ranked(hits)
        by_id = _documents(collection, hits)
        shown = {name: document_text(by_id[name].title, by_id[name].text) for name, _ in hits}
        if encoded is None:
            # PLAID keeps no vector as the model makes it.
            encoded = encode(iter(shown.items()), "found", is_query=False)
        places = {text_id: place for place, text_id in enumerate(encoded.ids) if text_id in shown}
        read = read_text(model, words, is_query=True)
        matches = {
            name: match_tokens(
                read,
                query.vectors.numpy(),
                read_text(model, text, is_query=False),
                encoded.vectors[encoded.offsets[places[name]] :][: encoded.lengths[places[name]]].numpy(),
            )
            for name, text in shown.items()
        }
    return kind, [Found(by_id[name], score, matches[name]) for name, score in hits]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
