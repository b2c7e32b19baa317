"""Encode a collection's documents and judged queries with a dense model: one vector for each text.

    python -m colbert_zero.evaluation.dense_index --spec '{"kind":"indexes","label":"dense.toy",...}' --threads 2

The model is one of sentence-transformers, with the pooling and the similarity that it was saved with. The vectors have
unit length where the similarity is the cosine, so that any search looks for the greatest inner product.

`kind: exact` writes the vectors alone. `kind: faiss` also writes an inverted file, `documents.faiss`: the documents in
lists, each by the nearest of so many centroids, with a byte for each component. The lists are four times the square
root of the number of documents, at most 4096, and have 39 documents on average at least. The centroids are computed
from 64 documents for each, drawn by the study's seed.

On a CPU, the same spec and number of threads give the same bytes; on a GPU, PyTorch does not promise that. Memory holds
one chunk of texts, and for `faiss` a byte for each component of each vector. A killed step goes on after the last chunk
that it wrote, to the same bytes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation.embeddings import (
    DTYPE,
    IDS_SCHEMA,
    INVERTED_FILE,
    EmbeddingWriter,
    Vectors,
    refuse_nonfinite_vectors,
)
from colbert_zero.evaluation.texts import document_texts, in_chunks
from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import UserError, log, progress
from colbert_zero.graph.dense_folder import (
    check_dense_folder,
    read_dense_encoding,
    read_similarity,
    refuse_other_settings,
)
from colbert_zero.graph.limits import MINIMUM_TEXT_TOKENS
from colbert_zero.graph.local_files import link_or_copy
from colbert_zero.graph.model_folder import check_lengths
from colbert_zero.machine.devices import add_device_option, choose_device
from colbert_zero.models.encoders import SentenceTransformerEncoder
from colbert_zero.models.inverted_file import build_inverted_file, training_numbers
from colbert_zero.models.loading import model_name

TEXTS_PER_CHUNK = 4096
"""Texts in memory at once, sorted by length so that a batch needs little padding; what a killed step loses at most."""
ROWS_AT_ONCE = 65_536
"""Vectors that are put into lists at once."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `queries.*`, `documents.*` and perhaps `documents.faiss`; return counts and times.

    Raises:
        UserError: The model is no dense model, or was saved with other settings, or a prompt leaves no room for texts.
    """
    device = choose_device(job)
    collection_artifact = job.input("collection")
    collection = Collection.open(collection_artifact)
    folder, name = job.input("model").verified_folder(), model_name(job.input("model"))
    encoder, similarity = load_dense(folder, job.settings, device, name)
    encode_queries(encoder, collection.judged_queries, job.folder)
    with EmbeddingWriter(
        job.state, "documents", collection_artifact.facts["documents"], texts_per_chunk=TEXTS_PER_CHUNK
    ) as documents:
        encode_documents(encoder, collection, documents, job.folder / "documents.parquet")
    link_or_copy(documents.path, job.folder / documents.path.name)
    started = time.monotonic()
    kind, lists = job.settings["index"]["kind"], {}
    if kind == "faiss":
        faiss.omp_set_num_threads(job.threads)
        vectors = np.load(documents.path, mmap_mode="r", allow_pickle=False)
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
        "documents": documents.rows,
        "queries": len(collection.judged_queries),
        "dimensions": documents.dimensions,
        **lists,
        "bytes": sum(path.stat().st_size for path in job.folder.iterdir()),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "encoding_seconds": round(documents.seconds, 3),
        "documents_per_second": round(documents.rows / documents.seconds, 1),
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
    ids = list(queries)
    vectors = np.concatenate(
        [encoder.encode_queries([text for _, text in chunk]) for chunk in in_chunks(queries.items(), TEXTS_PER_CHUNK)]
    )
    refuse_nonfinite_vectors(ids, vectors)
    np.save(folder / "queries.npy", vectors.astype(DTYPE), allow_pickle=False)
    pq.write_table(pa.table({"id": ids}, schema=IDS_SCHEMA), folder / "queries.parquet", compression="zstd")


def encode_documents(
    encoder: SentenceTransformerEncoder, collection: Collection, vectors: EmbeddingWriter, ids_file: Path
) -> None:
    """Append the vectors of all documents that `vectors` lacks, and write the ids of all into a Parquet file.

    Raises:
        UserError: A vector is not finite, or there are other documents than `vectors` is for.
    """
    if vectors.rows:
        log.info("going on after %d of %d documents", vectors.rows, vectors.total)
    seen = 0
    with pq.ParquetWriter(ids_file, IDS_SCHEMA, compression="zstd") as ids_writer:
        for chunk in in_chunks(progress(document_texts(collection), vectors.total, "documents"), TEXTS_PER_CHUNK):
            ids, texts = zip(*chunk, strict=True)
            ids_writer.write_table(pa.table({"id": ids}, schema=IDS_SCHEMA))
            seen += len(ids)
            if seen > vectors.rows:
                started = time.monotonic()
                encoded = encoder.encode_documents(texts)
                vectors.append(ids, encoded, time.monotonic() - started)
    if seen != vectors.total:
        raise UserError(
            f"{collection.corpus_file} has {seen} documents, but its manifest says {vectors.total}; move its folder "
            "away and run snakemake again"
        )


def invert(vectors: Vectors, seed: int) -> Any:
    """Put a collection's documents (documents x dimensions) into an inverted file."""
    blocks = (vectors[start : start + ROWS_AT_ONCE] for start in range(0, len(vectors), ROWS_AT_ONCE))
    return build_inverted_file(vectors[training_numbers(len(vectors), seed)], blocks, len(vectors), seed)


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option))
