"""Dense encoders to mine with: what turns queries and documents into vectors of unit length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from colbert_zero.graph.artifact import Job
from colbert_zero.graph.console import UserError
from colbert_zero.machine.devices import choose_device

Vectors = npt.NDArray[np.float32]
"""One row per text, of unit length or, for a text of which the encoder knows no word, zero."""

TEXTS_PER_BATCH = 64


class Encoder(Protocol):
    """Encodes the two sides of a search."""

    def queries(self, texts: Sequence[str]) -> Vectors:
        """The vectors of queries."""

    def documents(self, texts: Sequence[str]) -> Vectors:
        """The vectors of documents."""


def load_encoder(job: Job, documents: Sequence[str]) -> Encoder:
    """The encoder that a job's settings ask for.

    Args:
        job: Its setting `encoder` says which; its input `model`, if any, is the encoder's folder.
        documents: The corpus, for encoders that are fitted on it.

    Raises:
        UserError: The model cannot be loaded.
        RetryableError: A GPU is asked for, and there is none.
    """
    settings: Mapping[str, Any] = job.settings["encoder"]
    if settings["kind"] == "lsa":
        return LsaEncoder(documents, settings["dimensions"], settings["seed"])
    return SentenceEncoder(
        job.input("model").model_folder(),
        settings["query_prompt"],
        settings["document_prompt"],
        settings["maximum_length"],
        choose_device(job),
    )


class LsaEncoder:
    """Latent semantic analysis: the leading singular vectors of the TF-IDF matrix (Deerwester et al., 1990)."""

    def __init__(self, documents: Sequence[str], dimensions: int, seed: int) -> None:
        """Fit it.

        Args:
            documents: The corpus it is fitted on.
            dimensions: How many singular vectors; fewer where the corpus has not so many documents or words.
            seed: Of the randomised decomposition.

        Raises:
            UserError: The documents hold no word.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from threadpoolctl import threadpool_limits

        self._words = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
        try:
            matrix = self._words.fit_transform(documents)
        except ValueError as error:
            raise UserError(f"no words to fit latent semantic analysis on ({error}); use another miner") from None
        self._svd = TruncatedSVD(min(dimensions, *matrix.shape), random_state=seed)
        # One thread: the bits of a decomposition depend on how many share the work.
        with threadpool_limits(1):
            self._svd.fit(matrix)

    def queries(self, texts: Sequence[str]) -> Vectors:
        """The vectors of queries, made as those of documents are."""
        return self.documents(texts)

    def documents(self, texts: Sequence[str]) -> Vectors:
        """The vectors of documents."""
        # A sparse matrix times a dense one adds up in the order of the words, by one thread.
        vectors: Vectors = np.asarray(self._words.transform(texts) @ self._svd.components_.T, np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.where(lengths > 0, lengths, 1)
        return vectors


class SentenceEncoder:
    """Any sentence-transformers model without code of its own."""

    def __init__(self, folder: Path, query_prompt: str, document_prompt: str, maximum_length: int, device: str) -> None:
        """Load it.

        Args:
            folder: The model.
            query_prompt: Put before every query, as it is.
            document_prompt: Put before every document, as it is.
            maximum_length: In tokens; longer texts are cut. The model's own limit holds too.
            device: Where to compute, `cpu` or `cuda`.

        Raises:
            UserError: The model cannot be loaded.
        """
        import torch
        from sentence_transformers import SentenceTransformer

        try:
            self._model = SentenceTransformer(
                str(folder),
                device=device,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: not a sentence-transformers model ({' '.join(str(error).split())})") from None
        self._model.max_seq_length = min(maximum_length, self._model.max_seq_length or maximum_length)
        self._query_prompt, self._document_prompt = query_prompt, document_prompt

    def queries(self, texts: Sequence[str]) -> Vectors:
        """The vectors of queries."""
        return self._encode(texts, self._query_prompt)

    def documents(self, texts: Sequence[str]) -> Vectors:
        """The vectors of documents."""
        return self._encode(texts, self._document_prompt)

    def _encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        # An empty prompt, unlike None, also turns off a default prompt of the model's own.
        vectors = self._model.encode(
            list(texts), prompt=prompt, batch_size=TEXTS_PER_BATCH, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, np.float32)
