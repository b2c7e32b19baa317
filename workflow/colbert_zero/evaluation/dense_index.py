"""Encode a collection's documents and judged queries with a dense model: one vector for each text.

    python -m colbert_zero.evaluation.dense_index --spec '{"kind":"indexes","label":"dense.toy",...}' --threads 2

The model is one of sentence-transformers, with the pooling and the similarity that it was saved with. The vectors have
unit length where the similarity is the cosine, so that any search looks for the greatest inner product.

`kind: exact` writes the vectors alone. `kind: faiss` also writes an inverted file, `documents.faiss`: the documents in
lists, each by the nearest of so many centroids, with a byte for each component. The lists are four times the square
root of the number of documents, at most 4096, and have 39 documents on average at least. The centroids are computed
from 64 documents for each, drawn by the study's seed.

On a CPU, the same spec and number of threads give the same bytes; on a GPU, PyTorch does not promise that. Documents
are encoded in pieces (see `machine.pieces`), which jobs can share. Memory holds one piece, and for `faiss` a byte for
each component of each vector.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation.document_pieces import DocumentPieces, add_index_options, given_facts
from colbert_zero.evaluation.embeddings import INVERTED_FILE, Vectors, join_embeddings, write_embeddings
from colbert_zero.evaluation.texts import TextReader
from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import UserError
from colbert_zero.graph.dense_folder import (
    check_dense_folder,
    read_dense_encoding,
    read_similarity,
    refuse_other_settings,
)
from colbert_zero.graph.limits import MINIMUM_TEXT_TOKENS
from colbert_zero.graph.model_folder import check_lengths
from colbert_zero.machine.devices import choose_device
from colbert_zero.models.batches import in_chunks
from colbert_zero.models.encoders import SentenceTransformerEncoder
from colbert_zero.models.loading import model_name
from colbert_zero.retrieval.inverted_file import build_inverted_file, training_numbers

NAME = "documents"
"""Of the part of the work that jobs can share, and of the files with the documents' vectors and ids."""
TEXTS_PER_PIECE = 4096
"""Texts that are encoded together, sorted by length so that a batch needs little padding."""
ROWS_AT_ONCE = 65_536
"""Vectors that are put into lists at once."""


class DenseIndexBuild:
    """The work on an index.

    Attributes:
        collection: The collection.
        device: Where to compute.
        documents: The part of the work that jobs can share: the documents' vectors, in pieces.
    """

    def __init__(self, job: Job) -> None:
        """Open a job's inputs; the model is loaded when it is needed."""
        self.device = choose_device(job)
        collection = job.input("collection")
        self.collection = Collection.open(collection)
        self._job, self._reader = job, TextReader(self.collection)
        self._pieces = DocumentPieces(job, self.collection, TEXTS_PER_PIECE, self.device)
        self.documents = self._pieces.part(NAME, self._write)

    @cached_property
    def model(self) -> tuple[SentenceTransformerEncoder, str]:
        """The model, and its similarity: `cosine` or `dot`.

        Raises:
            UserError: It is no dense model, or was saved with other settings, or a prompt leaves no room for texts.
        """
        model = self._job.input("model")
        return load_dense(model.verified_folder(), self._job.settings, self.device, model_name(model))

    def _write(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Encode the documents of the piece with this number."""
        encoder, _ = self.model
        started = time.monotonic()
        ids, texts = zip(*self._reader.read(*self._pieces.bounds(number)), strict=True)
        write_embeddings(folder, NAME, ids, encoder.encode_documents(texts))
        return {"documents": len(ids), "seconds": time.monotonic() - started}


PARTS = {NAME: lambda job: DenseIndexBuild(job).documents}
"""The part of the work that jobs can share."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `queries.*`, `documents.*` and perhaps `documents.faiss`; return counts and times.

    Raises:
        UserError: The model is no dense model, or was saved with other settings, or a prompt leaves no room for texts.
    """
    build = DenseIndexBuild(job)
    encoder, similarity = build.model
    queries = build.collection.judged_queries
    encode_queries(encoder, queries, job.folder)
    build.documents.make()
    facts = build.documents.facts()
    count, seconds = (sum(fact[name] for fact in facts) for name in ("documents", "seconds"))
    started = time.monotonic()
    vectors = join_embeddings([build.documents.piece(number) for number in range(len(facts))], job.folder, NAME)
    kind, lists = job.settings["index"]["kind"], {}
    if kind == "faiss":
        faiss.omp_set_num_threads(job.threads)
        inverted_file = invert(vectors, job.settings["index"]["seed"])
        faiss.write_index(inverted_file, str(job.folder / INVERTED_FILE))
        lists = {"lists": inverted_file.nlist}
    return {
        "kind": kind,
        "encoding": {
            "query_prompt": encoder.query_prompt,
            "document_prompt": encoder.document_prompt,
            "maximum_length": encoder.maximum_length,
        },
        "pooling": encoder.pooling,
        "similarity": similarity,
        "documents": count,
        "queries": len(queries),
        "dimensions": vectors.shape[1],
        **lists,
        **given_facts(facts),
        "bytes": sum(path.stat().st_size for path in job.folder.iterdir()),
        "device": torch.cuda.get_device_name() if build.device == "cuda" else build.device,
        "encoding_seconds": round(seconds, 3),
        "documents_per_second": round(count / seconds, 1),
        "indexing_seconds": round(time.monotonic() - started, 3),
    }


def load_dense(
    folder: Path, settings: Mapping[str, Any], device: str, name: str
) -> tuple[SentenceTransformerEncoder, str]:
    """Load a dense model, with the prompts and the length of the settings, and for the others those it was saved with.

    Args:
        folder: The model's folder.
        settings: The index's settings. `encoding` has what is known when planning; `changed`, if it is there, names
            what may be otherwise than the model was saved with.
        device: `cpu` or `cuda`.
        name: What messages call the folder.

    Returns:
        The encoder, and its similarity: `cosine`, for vectors of unit length, or `dot`.

    Raises:
        UserError: The folder is of another kind, cannot be loaded whole, or was saved with other settings that
            `changed` does not name; or a prompt fills the length.
    """
    check_dense_folder(folder, name)
    similarity, given = read_similarity(folder, name), settings["encoding"]
    saved = read_dense_encoding(folder)
    prompts = {"query_prompt": "", "document_prompt": "", **saved, **given}
    encoder = SentenceTransformerEncoder(
        folder,
        prompts["query_prompt"],
        prompts["document_prompt"],
        None,
        device,
        name,
        normalize=similarity == "cosine",
    )
    own = encoder.maximum_length
    # The library infers the length of a model whose folder does not say it.
    saved |= {} if own is None else {"maximum_length": own}
    refuse_other_settings(given, saved, name, settings.get("changed", ()))
    if "maximum_length" in given:
        check_lengths(folder, {"maximum_length": given["maximum_length"]}, name)
        encoder.maximum_length = given["maximum_length"]
        if encoder.maximum_length != given["maximum_length"]:
            raise UserError(f"{name} takes texts of any length, and cuts none; leave maximum_length out")
    for prompt in (encoder.query_prompt, encoder.document_prompt):
        least = encoder.tokens_of(prompt) + MINIMUM_TEXT_TOKENS
        if encoder.maximum_length is not None and encoder.maximum_length < least:
            raise UserError(
                f"{name}: maximum_length is {encoder.maximum_length}, which the prompt {prompt!r} fills, so that all "
                f"texts would become the same input; set it well above {least}"
            )
    return encoder, similarity


def encode_queries(encoder: SentenceTransformerEncoder, queries: Mapping[str, str], folder: Path) -> None:
    """Write `queries.npy` and `queries.parquet` into `folder`.

    Args:
        encoder: The model.
        queries: Text by id.
        folder: An existing folder.

    Raises:
        UserError: A vector is not finite.
    """
    vectors = np.concatenate(
        [encoder.encode_queries([text for _, text in chunk]) for chunk in in_chunks(queries.items(), TEXTS_PER_PIECE)]
    )
    write_embeddings(folder, "queries", list(queries), vectors)


def invert(vectors: Vectors, seed: int) -> Any:
    """Put a collection's documents (documents x dimensions) into an inverted file."""
    blocks = (vectors[start : start + ROWS_AT_ONCE] for start in range(0, len(vectors), ROWS_AT_ONCE))
    return build_inverted_file(vectors[training_numbers(len(vectors), seed)], blocks, len(vectors), seed)


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_index_options, parts=PARTS))
