"""Encode a collection's documents and judged queries with one model, and index the documents.

    python -m colbert_zero.evaluation.index --spec '{"kind":"indexes","label":"numpy",...}' --threads 2 --device cpu

An exact index is the documents' token vectors; a PLAID index is the folder `plaid`. `kind: auto` makes an exact index
of fewer than 100,000 documents and a PLAID index from there on; `exact` and `plaid` force one. On a CPU, the same spec
and number of threads give the same bytes; on a GPU, PyTorch does not promise that.

PLAID builds its index from all vectors at once. They are first spooled to a temporary file: so the memory needed does
not grow with the corpus, but `TMPDIR` needs 2 bytes for each component of each vector (MS MARCO: 180 GB).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from fast_plaid.search import FastPlaid

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation.texts import document_texts, in_chunks
from colbert_zero.evaluation.vectors import Matrix, TokenVectors, VectorWriter
from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import UserError, progress
from colbert_zero.graph.draws import draw
from colbert_zero.graph.limits import PLAID_MIN_DOCUMENTS
from colbert_zero.graph.saved_encoding import read_saved_encoding
from colbert_zero.machine.devices import add_device_option, choose_device
from colbert_zero.models.colbert import (
    EncodingSettings,
    drawn_parts,
    load_colbert,
    refuse_other_encoding,
)
from colbert_zero.models.loading import model_name

TEXTS_PER_CHUNK, TEXTS_PER_BATCH = 4096, 64
"""Texts in memory at once, sorted by length so that a batch needs little padding; texts in one forward pass."""
RESIDUAL_BITS, KMEANS_ITERATIONS = 4, 4
"""PLAID's bits for each component of a residual, and its k-means iterations for the centroids (PyLate's defaults)."""

ColBERT = Any
"""A `pylate.models.ColBERT`, which has no types."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `queries.*`, and `documents.*` or `plaid/` with `documents.parquet`; return counts and times."""
    device = choose_device(job)
    collection_artifact = job.input("collection")
    collection, document_count = Collection.open(collection_artifact), collection_artifact.facts["documents"]
    folder, name = job.input("model").verified_folder(), model_name(job.input("model"))
    encoding = resolve_encoding(folder, job.settings, name)
    # An untrained base may lack a projection, a trained model never does.
    projection = job.settings.get("projection") or {}
    model = load_colbert(folder, encoding, device, **projection, strict=False, name=name)
    drawn = drawn_parts(model)
    kind = index_kind(job.settings["index"]["kind"], document_count)
    with VectorWriter(job.folder, "queries") as queries:
        encode_texts(model, collection.judged_queries.items(), queries, is_query=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="colbert-zero-") as spool:
        with VectorWriter(job.folder if kind == "exact" else Path(spool), "documents") as documents:
            texts = progress(document_texts(collection), document_count, "documents")
            encode_texts(model, texts, documents, is_query=False)
        encoding_seconds = time.monotonic() - started
        if kind == "plaid":
            del model
            build_plaid(documents, job.folder, job.settings["index"]["seed"], device)
    return {
        "kind": kind,
        "encoding": asdict(encoding),
        "documents": len(documents.ids),
        "document_tokens": sum(documents.lengths),
        "queries": len(queries.ids),
        "query_tokens": sum(queries.lengths),
        "dimensions": documents.dimensions,
        "drawn_parts": drawn,
        "bytes": sum(path.stat().st_size for path in job.folder.rglob("*") if path.is_file()),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "encoding_seconds": round(encoding_seconds, 3),
        "documents_per_second": round(len(documents.ids) / encoding_seconds, 1),
        "indexing_seconds": round(time.monotonic() - started - encoding_seconds, 3),
    }


def index_kind(setting: str, documents: int) -> str:
    """Resolve the setting `kind` (`auto`, `exact` or `plaid`) for a number of documents to `exact` or `plaid`."""
    if setting != "auto":
        return setting
    return "exact" if documents < PLAID_MIN_DOCUMENTS else "plaid"


def build_plaid(documents: VectorWriter, folder: Path, seed: int, device: str) -> None:
    """Write a PLAID index of spooled vectors into `folder/plaid`, and move the file of the documents' ids beside it.

    This uses fast-plaid's own class: PyLate's wrapper stores the ids in pickles, and its import adds seconds to each
    search.

    Args:
        documents: The closed writer of the vectors.
        folder: The index's folder.
        seed: Decides the sample of vectors that k-means sees, and its initial centroids.
        device: Where to compute.
    """
    vectors = TokenVectors.open(documents.vectors_file, documents.texts_file)
    documents.texts_file.rename(folder / documents.texts_file.name)
    # fast-plaid draws the sample from PyTorch's global generator, not from the seed that it is given.
    torch.manual_seed(draw(seed, "plaid"))
    index = FastPlaid(index=str(folder / "plaid"), device=device)
    index.create(
        list(torch.split(vectors.vectors, vectors.lengths.tolist())),
        kmeans_niters=KMEANS_ITERATIONS,
        nbits=RESIDUAL_BITS,
        seed=seed,
        use_triton_kmeans=False,  # its kernel has a race: the centroids would differ from run to run
        start_from_scratch=0,  # do not keep a copy of the vectors, which would be a pickle
    )
    index.close()
    # Each search writes these files again, and they hold file times: they would make the bytes differ.
    for path in [*(folder / "plaid").glob("merged_*"), folder / "plaid" / "plaid.lock"]:
        path.unlink()


def resolve_encoding(folder: Path, settings: Mapping[str, Any], name: str) -> EncodingSettings:
    """The prompts and lengths to encode with: those of the settings, and for the others those the model was saved with.

    Args:
        folder: The model's folder.
        settings: The index's settings. `encoding` has what is known when planning; `minimum_lengths`, if it is there,
            is what the collection's texts need at least.
        name: What messages call the folder.

    Raises:
        UserError: Neither says a prompt or a length, or they differ and `changed` does not name what differs.
    """
    encoding = {"query_expansion": False, **(read_saved_encoding(folder) or {}), **settings["encoding"]}
    if missing := [field.name for field in fields(EncodingSettings) if field.name not in encoding]:
        raise UserError(f"{name} was not saved with {', '.join(missing)}; set prompts and lengths in config.yaml")
    longer = {length: max(encoding[length], least) for length, least in settings.get("minimum_lengths", {}).items()}
    resolved = EncodingSettings(**encoding | longer)
    refuse_other_encoding(folder, resolved, name, except_for={*settings.get("changed", ()), *longer})
    return resolved


def encode_texts(model: ColBERT, texts: Iterable[tuple[str, str]], writer: VectorWriter, *, is_query: bool) -> None:
    """Encode (id, text) pairs and write their vectors in the order of the pairs.

    PyLate sorts the texts of each chunk by length and restores their order afterwards.
    """
    for chunk in in_chunks(texts, TEXTS_PER_CHUNK):
        matrices: list[Matrix] = model.encode(
            [text for _, text in chunk],
            prompt_name="query" if is_query else "document",
            is_query=is_query,
            batch_size=TEXTS_PER_BATCH,
            show_progress_bar=False,
        )
        writer.write((text_id for text_id, _ in chunk), matrices)


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option))
