"""Mining with a late-interaction model, with the prompts and lengths that it was saved with: a score is a MaxSim.

An exact search computes the MaxSim of each query with every document. An approximate one takes what PLAID finds, in an
index that the first job builds of the documents' vectors. Either way the scores of the candidates, and the positive's,
are computed from the vectors as the model makes them, in double precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from colbert_zero.graph.artifact import Job
from colbert_zero.graph.saved_encoding import require_saved_encoding
from colbert_zero.machine.devices import choose_device
from colbert_zero.mining.candidates import Candidates
from colbert_zero.mining.encoder_mining import EncoderMining, Numbers
from colbert_zero.models.colbert import EncodingSettings, load_colbert
from colbert_zero.models.loading import model_name
from colbert_zero.retrieval.encode import ColBERT, Encoder, texts_per_chunk
from colbert_zero.retrieval.maxsim import maxsim, rescore
from colbert_zero.retrieval.nearest import keep_best, numbers_of
from colbert_zero.retrieval.plaid_index import build_plaid
from colbert_zero.retrieval.plaid_search import PlaidSearch
from colbert_zero.retrieval.vectors import Matrix, SlicedTokenVectors, TokenVectors, VectorWriter

NAME = "documents"
"""Of the files with the vectors of a slice."""
QUERIES_PER_RESCORING = 8
"""Queries whose documents' vectors are read from disk together."""
MORE_ROOM = "free some, or put results on a larger disk"


class LateInteractionMining(EncoderMining[TokenVectors]):
    """The work on the candidates of one source; the model is loaded when there is something to encode."""

    queries_per_piece = 1024

    def __init__(self, job: Job) -> None:
        """Open the corpus and the model's folder.

        Raises:
            UserError: The folder does not say with which prompts and lengths the model was trained.
        """
        super().__init__(job)
        model = job.input("model")
        self._folder, self._name = model.verified_folder(), model_name(model)
        self._encoding = EncodingSettings(**require_saved_encoding(self._folder, self._name))
        self.documents_per_piece = texts_per_chunk(self._encoding.document_length)
        self._device = choose_device(job)
        self._plaid: tuple[Path, PlaidSearch] | None = None

    @cached_property
    def _model(self) -> ColBERT:
        return load_colbert(self._folder, self._encoding, self._device, name=self._name)

    def _encode(self, texts: Sequence[str], *, is_query: bool) -> list[Matrix]:
        encoder = Encoder(self._model, is_query=is_query, precision=self._job.settings["encoder"]["precision"])
        return encoder.encode(encoder.tokenize(texts)())

    def prepare(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Write the vectors of a slice of the documents."""
        numbers = range(len(self.corpus))[number * self.documents_per_piece : (number + 1) * self.documents_per_piece]
        matrices = self._encode(self.corpus.texts[numbers.start : numbers.stop], is_query=False)
        with VectorWriter(folder, NAME) as writer:
            writer.write([f"document {number}" for number in numbers], matrices)
        return {"documents": len(numbers), "tokens": sum(writer.lengths)}

    def encode_queries(self, rows: Sequence[int]) -> TokenVectors:
        """The vectors of the queries of rows."""
        texts = [self.corpus.queries[row] for row in rows]
        return TokenVectors.of([f"query {row}" for row in rows], self._encode(texts, is_query=True))

    @cached_property
    def _pieces(self) -> list[Path]:
        part = self.documents()
        return [part.piece(number) for number in range(part.count)]

    @cached_property
    def _documents(self) -> SlicedTokenVectors:
        return SlicedTokenVectors(self._pieces, NAME)

    def write_pool(self, folder: Path, pool: npt.NDArray[np.int64]) -> None:
        """Write the vectors of the documents that are searched, in slices as long as those of all documents."""
        for start in range(0, len(pool), self.documents_per_piece):
            piece = folder / f"{start:012d}"
            piece.mkdir()
            with VectorWriter(piece, NAME) as writer:
                writer.copy(self._documents.take(pool[start : start + self.documents_per_piece]))

    @cached_property
    def _searched(self) -> list[Path]:
        """The folders with the vectors of the documents that are searched."""
        if self.pool_folder is None:
            return self._pieces
        return sorted(path for path in self.pool_folder.iterdir() if path.is_dir())

    def exact(self, queries: TokenVectors) -> Numbers:
        """The documents with the highest MaxSim of all."""
        best, first = torch.empty((len(queries), 0), dtype=torch.int64, device=self._device), 0
        for documents in SlicedTokenVectors(self._searched, NAME):
            scores = torch.from_numpy(maxsim(documents, queries, range(len(queries)), self._device))
            best = keep_best(best, scores.to(self._device), first, self.size)
            first += len(documents)
        return numbers_of(best)

    def build(self, folder: Path, seed: int) -> Mapping[str, Any]:
        """Write a PLAID index."""
        build_plaid(self._searched, NAME, folder, seed, self._device)
        return {"kind": "plaid"}

    def approximate(self, queries: TokenVectors, folder: Path) -> Numbers:
        """What PLAID finds."""
        found = np.full((len(queries), self.size), -1, np.int64)
        hits = self._open_plaid(folder).search(queries, self.size, range(len(queries)))
        for row, of_query in zip(found, hits, strict=True):
            row[: len(of_query)] = [number for number, _ in of_query]
        found.sort()
        return found

    def _open_plaid(self, folder: Path) -> PlaidSearch:
        if self._plaid is None or self._plaid[0] != folder:
            self._plaid = None  # Its files go away before others are written.
            files = sorted((folder / "plaid").iterdir())
            self._plaid = folder, PlaidSearch(files, self._device, self._job.state, MORE_ROOM)
        return self._plaid[1]

    def find(self, queries: TokenVectors, rows: Sequence[int], retrieved: Numbers) -> Iterator[Candidates]:
        """Yield the candidates of rows, by the MaxSim of what was retrieved."""
        positives = self.corpus.positives[np.asarray(rows)]
        vectors = torch.split(queries.vectors, queries.lengths.tolist())
        for start in range(0, len(queries), QUERIES_PER_RESCORING):
            batch = slice(start, start + QUERIES_PER_RESCORING)
            numbers = np.unique(np.column_stack([retrieved[batch], positives[batch]]))
            numbers = numbers[numbers >= 0]
            documents = self._documents.take(numbers)
            for query, of_query, positive in zip(vectors[batch], retrieved[batch], positives[batch], strict=True):
                found = of_query[of_query >= 0]
                scored = documents.take(np.searchsorted(numbers, np.append(found, positive)))
                scores = rescore(query, scored, self._device)
                # A stable sort keeps documents with equal scores in ascending order.
                best = np.argsort(-scores[:-1], kind="stable")[: self.depth]
                yield Candidates(found[best].astype(np.int32), scores[best], scores[-1])
