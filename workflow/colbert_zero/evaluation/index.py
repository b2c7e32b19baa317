"""Encode a collection's documents and judged queries with one model, and index the documents.

    python -m colbert_zero.evaluation.index --spec '{"kind":"indexes","label":"numpy",...}' --threads 2 --device cpu

Below 100,000 documents (`kind: auto`) the index is the documents' token vectors, for an exact search; above, it is a
PLAID index in the folder `plaid`. Either can be asked for. On a CPU, the same spec and number of threads give the same
bytes; on a GPU, PyTorch does not promise that.

A PLAID index is made from all vectors at once, which are spooled to a temporary file first: the memory needed does not
grow with the corpus, but `TMPDIR` needs 2 bytes for each component of each vector (MS MARCO: 180 GB).
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from fast_plaid.search import FastPlaid

from colbert_zero.data.beir import Collection
from colbert_zero.data.text import document_text
from colbert_zero.evaluation.vectors import Matrix, Vectors, VectorWriter
from colbert_zero.graph.artifact import Artifact, Job, run_step
from colbert_zero.graph.console import progress
from colbert_zero.graph.draws import draw
from colbert_zero.machine.devices import add_device_option, choose_device
from colbert_zero.models.colbert import Encoding, load_colbert

EXACT_BELOW = 100_000
"""Documents; an exact search of fewer takes seconds, and has none of an index's variance."""
CHUNK, BATCH = 4096, 64
"""Texts held in memory at once, in which those of like length are encoded together; texts of a forward pass."""
BITS, KMEANS_ITERATIONS = 4, 4
"""Of PLAID: bits for each component of a residual, and rounds of k-means for the centroids (PyLate's defaults)."""

Encoder = Any
"""A `pylate.models.ColBERT`, which has no types."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `queries.*`, and `documents.*` or `plaid/` with `documents.parquet`; returns counts and times."""
    device = choose_device(job)
    source, target = job.input("model"), job.input("collection")
    collection = Collection.open(target)
    model = _load(source, job.settings, device)
    kind = index_kind(job.settings["index"]["kind"], target.facts["documents"])
    with VectorWriter(job.folder, "queries") as queries:
        encode(model, collection.judged.items(), queries, is_query=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="colbert-zero-") as spool:
        with VectorWriter(job.folder if kind == "exact" else Path(spool), "documents") as documents:
            encode(
                model, progress(texts_of(collection), target.facts["documents"], "documents"), documents, is_query=False
            )
        seconds = time.monotonic() - started
        if kind == "plaid":
            del model
            build_plaid(documents, job.folder, job.settings["index"]["seed"], device)
    return {
        "kind": kind,
        "documents": len(documents.ids),
        "document_tokens": sum(documents.lengths),
        "queries": len(queries.ids),
        "query_tokens": sum(queries.lengths),
        "dimensions": documents.dimensions,
        "bytes": sum(path.stat().st_size for path in job.folder.rglob("*") if path.is_file()),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "encoding_seconds": round(seconds, 3),
        "documents_per_second": round(len(documents.ids) / seconds, 1),
        "indexing_seconds": round(time.monotonic() - started - seconds, 3),
    }


def texts_of(collection: Collection) -> Iterator[tuple[str, str]]:
    """Each document's id and the text that a model sees."""
    return ((document.id, document_text(document.title, document.text)) for document in collection.documents())


def index_kind(asked: str, documents: int) -> str:
    """`exact` or `plaid`: what is `asked` for, or what `auto` means for that many documents."""
    if asked != "auto":
        return asked
    return "exact" if documents < EXACT_BELOW else "plaid"


def build_plaid(documents: VectorWriter, folder: Path, seed: int, device: str) -> None:
    """Write a PLAID index of spooled vectors into `folder/plaid`, and their ids beside it.

    It is fast-plaid's own class: PyLate's around it keeps the ids in pickles, and imports for seconds at each search.

    Args:
        documents: The finished writer of the vectors.
        folder: The index's folder.
        seed: Decides the sample that k-means sees, and its start.
        device: Where to compute.
    """
    vectors = Vectors.open(documents.vectors, documents.texts)
    documents.texts.rename(folder / documents.texts.name)
    # The sample is drawn from PyTorch's global state, whatever seed is passed.
    torch.manual_seed(draw(seed, "plaid"))
    index = FastPlaid(index=str(folder / "plaid"), device=device)
    index.create(
        list(torch.split(vectors.tokens, vectors.lengths.tolist())),
        kmeans_niters=KMEANS_ITERATIONS,
        nbits=BITS,
        seed=seed,
        use_triton_kmeans=False,  # its kernel has a race: not the same centroids twice
        start_from_scratch=0,  # keeps no copy of the vectors, which would be a pickle
    )
    index.close()
    # Written again at each search, with times of files inside.
    for path in [*(folder / "plaid").glob("merged_*"), folder / "plaid" / "plaid.lock"]:
        path.unlink()


def _load(model: Artifact, settings: Mapping[str, Any], device: str) -> Encoder:
    """A trained model has to be encoded with as it was trained; one as it is, is told how, and given a projection."""
    projection = settings.get("projection")
    encoding = Encoding(**settings["encoding"])
    return load_colbert(model.model_folder(), encoding, device, **(projection or {}), strict=projection is None)


def encode(model: Encoder, texts: Iterable[tuple[str, str]], writer: VectorWriter, *, is_query: bool) -> None:
    """Encode (id, text) pairs in their order; PyLate sorts each chunk by length, and back."""
    for chunk in _chunks(texts):
        matrices: list[Matrix] = model.encode(
            [text for _, text in chunk],
            prompt_name="query" if is_query else "document",
            is_query=is_query,
            batch_size=BATCH,
            show_progress_bar=False,
        )
        writer.write((identity for identity, _ in chunk), matrices)


def _chunks(texts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    remaining = iter(texts)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        yield chunk


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option))
