"""Encode a collection's documents and judged queries with one model, and index the documents.

    python -m colbert_zero.evaluation.index --spec '{"kind":"indexes","label":"numpy",...}' --threads 2 --device cpu

An exact index is the documents' token vectors; a PLAID index is the folder `plaid`. `kind: auto` makes an exact index
of fewer than 100,000 documents and a PLAID index from there on; `exact` and `plaid` force one. On a CPU, the same spec
and number of threads give the same bytes; on a GPU, PyTorch does not promise that.

The documents are encoded in pieces (see `machine.pieces`), which jobs can share: `--part documents --share 2 --jobs 4`.
Their vectors stay in the state folder until the index is published, and PLAID reads them from there. So the memory
needed does not grow with them, but for what fast-plaid itself holds: an object for each document, and the sample that
k-means sees (MS MARCO: 10 GB, by calculation). The study's disk needs 2 bytes for each component of each vector (180
GB).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation.document_pieces import DocumentPieces, add_index_options, given_facts
from colbert_zero.evaluation.texts import TextReader
from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import UserError
from colbert_zero.graph.limits import DEFAULT_PRECISION, PLAID_MIN_DOCUMENTS
from colbert_zero.graph.saved_encoding import read_saved_encoding
from colbert_zero.machine.devices import choose_device
from colbert_zero.machine.disk_space import check_space
from colbert_zero.machine.pieces import Part
from colbert_zero.models.colbert import (
    EncodingSettings,
    TokenizedTexts,
    drawn_parts,
    load_colbert,
    refuse_other_encoding,
)
from colbert_zero.models.loading import model_name
from colbert_zero.retrieval.encode import ColBERT, Encoder, encode_texts, texts_per_chunk
from colbert_zero.retrieval.plaid_index import RESIDUAL_BITS, build_plaid
from colbert_zero.retrieval.vectors import TokenVectors, VectorWriter

NAME = "documents"
"""Of the part of the work that jobs can share, and of the files with the documents' vectors and ids."""
BYTES_PER_CODE, BYTES_PER_COMPONENT = 8, 2
"""What PLAID keeps of a vector besides its residual, the number of its centroid; and a component in half precision."""

Begun = tuple[list[str], Callable[[], TokenizedTexts]]
"""The ids of some documents, and what waits for their tokens."""


class IndexBuild:
    """The work on an index.

    Attributes:
        collection: The collection.
        encoding: The prompts and lengths.
        precision: Of the model's multiplications, see `Encoder`.
        kind: `exact` or `plaid`.
        device: Where to compute.
        documents: The part of the work that jobs can share: the documents' vectors, in pieces of so many documents.
    """

    def __init__(self, job: Job) -> None:
        """Open a job's inputs; the model is loaded when it is needed.

        Raises:
            UserError: Neither the settings nor the model say a prompt or a length, or the model was trained with
                others.
        """
        self.device = choose_device(job)
        collection, model = job.input("collection"), job.input("model")
        self.collection = Collection.open(collection)
        self._job, self._folder, self._name = job, model.verified_folder(), model_name(model)
        self.encoding = resolve_encoding(self._folder, job.settings, self._name)
        self.precision: str = job.settings.get("precision", DEFAULT_PRECISION)
        self._documents: int = collection.facts["documents"]
        self.kind = index_kind(job.settings["index"]["kind"], self._documents)
        self._pieces = DocumentPieces(job, self.collection, texts_per_chunk(self.encoding.document_length), self.device)
        self.documents = self._pieces.part(NAME, self._write)
        self._reader, self._thread = TextReader(self.collection), ThreadPoolExecutor(1)
        self._begun: dict[int, Future[Begun]] = {}

    @cached_property
    def model(self) -> ColBERT:
        """The model."""
        # An untrained base may lack a projection, a trained model never does.
        projection = self._job.settings.get("projection") or {}
        return load_colbert(self._folder, self.encoding, self.device, **projection, strict=False, name=self._name)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.model, is_query=False, precision=self.precision)

    def unload(self) -> None:
        """Free the model's memory; nothing is encoded afterwards."""
        for name in ("model", "_encoder"):
            self.__dict__.pop(name, None)

    def check_space(self) -> None:
        """Refuse to begin what the disk has no room for, going by the first documents that are not encoded yet.

        Raises:
            UserError: The missing pieces and the index need more bytes than are free.
        """
        part = self.documents
        missing = [number for number in range(part.count) if not self._is_there(number)]
        missing.sort(key=lambda number: number < part.first)
        if part.count == 1 or not missing:
            return
        ids, tokens = self._begin(missing[0]).result()
        vectors = np.isin(tokens().ids, self.model.skiplist, invert=True).sum() / len(ids)
        dimensions = self.model[-1].out_features
        piece = BYTES_PER_COMPONENT * dimensions
        index = piece if self.kind == "exact" else BYTES_PER_CODE + dimensions * RESIDUAL_BITS / 8
        needed = vectors * (piece * len(missing) * self._pieces.size + index * self._documents)
        what = f"the vectors of {self._documents} documents and their index"
        check_space(self._job.state, needed, what, "free some, or put results on a larger disk")

    def _write(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Encode the documents of the piece with this number."""
        started = time.monotonic()
        ids, tokens = self._begin(number).result()
        del self._begun[number]
        # Meanwhile the documents that this job will encode next are read and tokenised.
        following = number + int(getattr(self._job.options, "jobs", 1))
        if following < self.documents.count and not self._is_there(following):
            self._begin(following)
        with VectorWriter(folder, NAME) as writer:
            writer.write(ids, self._encoder.encode(tokens()))
        return {
            "documents": len(writer.ids),
            "tokens": sum(writer.lengths),
            "dimensions": writer.dimensions,
            "seconds": time.monotonic() - started,
        }

    def _is_there(self, number: int) -> bool:
        return self.documents.piece(number).is_dir() or self._pieces.is_given(number)

    def _begin(self, number: int) -> Future[Begun]:
        """Have another thread read and tokenise the documents of a piece, unless it does already."""
        encoder, bounds = self._encoder, self._pieces.bounds(number)

        def begin() -> Begun:
            ids, texts = zip(*self._reader.read(*bounds), strict=True)
            return list(ids), encoder.tokenize(texts)

        if number not in self._begun:
            self._begun[number] = self._thread.submit(begin)
        return self._begun[number]


def _documents(job: Job) -> Part:
    build = IndexBuild(job)
    build.check_space()
    return build.documents


PARTS = {NAME: _documents}
"""The part of the work that jobs can share."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `queries.*`, and `documents.*` or `plaid/` with `documents.parquet`; return counts and times.

    Raises:
        UserError: The model does not go with the settings, gives a vector that is not finite, or the disk is too full.
    """
    build = IndexBuild(job)
    build.check_space()
    build.documents.make()
    with VectorWriter(job.folder, "queries") as queries:
        texts = build.collection.judged_queries.items()
        encode_texts(build.model, texts, queries, is_query=True, precision=build.precision)
    drawn = drawn_parts(build.model)
    build.unload()
    started = time.monotonic()
    pieces = [build.documents.piece(number) for number in range(build.documents.count)]
    if build.kind == "exact":
        join_pieces(pieces, job.folder)
    else:
        build_plaid(pieces, NAME, job.folder, job.settings["index"]["seed"], build.device)
    facts = build.documents.facts()
    documents, tokens, encoding_seconds = (
        sum(fact[name] for fact in facts) for name in ("documents", "tokens", "seconds")
    )
    return {
        "kind": build.kind,
        "encoding": asdict(build.encoding),
        "documents": documents,
        "document_tokens": tokens,
        "queries": len(queries.ids),
        "query_tokens": sum(queries.lengths),
        "dimensions": facts[0]["dimensions"],
        "drawn_parts": drawn,
        **given_facts(facts),
        "bytes": sum(path.stat().st_size for path in job.folder.rglob("*") if path.is_file()),
        "device": torch.cuda.get_device_name() if build.device == "cuda" else build.device,
        "encoding_seconds": round(encoding_seconds, 3),
        "documents_per_second": round(documents / encoding_seconds, 1),
        "indexing_seconds": round(time.monotonic() - started, 3),
    }


def index_kind(setting: str, documents: int) -> str:
    """Resolve the setting `kind` (`auto`, `exact` or `plaid`) for a number of documents to `exact` or `plaid`."""
    if setting != "auto":
        return setting
    return "exact" if documents < PLAID_MIN_DOCUMENTS else "plaid"


def join_pieces(pieces: Sequence[Path], folder: Path) -> None:
    """Write an exact index: the vectors of all pieces, in their order, as one writer would have written them."""
    with VectorWriter(folder, NAME) as documents:
        for piece in pieces:
            documents.copy(TokenVectors.open(piece / f"{NAME}.safetensors", piece / f"{NAME}.parquet"))


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


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_index_options, parts=PARTS))
