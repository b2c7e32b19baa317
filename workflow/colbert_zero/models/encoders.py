"""Dense encoders for mining: they turn queries and documents into vectors of unit length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from colbert_zero.graph.artifact import Job
from colbert_zero.graph.console import UserError
from colbert_zero.graph.model_folder import MODULES_FILE, check_lengths, module_names, read_json_object
from colbert_zero.graph.saved_encoding import CONFIG_FILE, read_saved_encoding
from colbert_zero.machine.devices import choose_device

Vectors = npt.NDArray[np.float32]
"""One row per text, of unit length; a text of which the encoder knows no word is the zero vector."""

TEXTS_PER_BATCH = 64
DENSE_MODEL = "SentenceTransformer"
"""How sentence-transformers calls a model with one vector per text, in the config that it saves."""
POOLINGS = frozenset({"BoW", "Pooling", "StaticEmbedding"})
"""The modules of sentence-transformers that make one vector of a text."""


class Encoder(Protocol):
    """Encodes queries and documents as vectors whose inner product is the score."""

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """The vectors of queries."""

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """The vectors of documents."""


def load_encoder(job: Job, documents: Sequence[str]) -> Encoder:
    """Load or fit the encoder that a job's settings name.

    Args:
        job: Its setting `encoder` names the encoder; its input `model`, if any, is the encoder's folder.
        documents: The corpus; LSA is fitted on it.

    Raises:
        UserError: The model cannot be loaded.
        RetryableError: The job needs a GPU, and none is visible.
    """
    settings: Mapping[str, Any] = job.settings["encoder"]
    if settings["kind"] == "lsa":
        return LsaEncoder(documents, settings["dimensions"], settings["seed"])
    from colbert_zero.models.loading import model_name

    return SentenceTransformerEncoder(
        job.input("model").verified_folder(),
        settings["query_prompt"],
        settings["document_prompt"],
        settings["maximum_length"],
        choose_device(job),
        model_name(job.input("model")),
    )


class LsaEncoder:
    """Latent semantic analysis: the leading singular vectors of the TF-IDF matrix (Deerwester et al., 1990)."""

    def __init__(self, documents: Sequence[str], dimensions: int, seed: int) -> None:
        """Fit the encoder.

        Args:
            documents: The corpus to fit on.
            dimensions: Number of singular vectors, at most the number of documents and the number of words.
            seed: Seed of the randomised decomposition.

        Raises:
            UserError: The documents contain no word.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from threadpoolctl import threadpool_limits

        self._vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
        try:
            matrix = self._vectorizer.fit_transform(documents)
        except ValueError as error:
            raise UserError(f"the documents have no words to fit LSA on ({error}); use another miner") from None
        self._svd = TruncatedSVD(min(dimensions, *matrix.shape), random_state=seed)
        # One thread: the last bits of a decomposition depend on the number of threads.
        with threadpool_limits(1):
            self._svd.fit(matrix)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """The vectors of queries, computed like those of documents."""
        return self.encode_documents(texts)

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """The vectors of documents."""
        # A product of a sparse and a dense matrix sums in the order of the words, on one thread: reproducible.
        vectors: Vectors = np.asarray(self._vectorizer.transform(texts) @ self._svd.components_.T, np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.where(norms > 0, norms, 1)
        return vectors


class SentenceTransformerEncoder:
    """Any sentence-transformers model that needs no custom code."""

    def __init__(
        self,
        folder: Path,
        query_prompt: str,
        document_prompt: str,
        maximum_length: int,
        device: str,
        name: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            folder: The model folder.
            query_prompt: The text before every query, unchanged.
            document_prompt: The text before every document, unchanged.
            maximum_length: Longer texts are truncated to so many tokens, or to the model's own limit if it is lower.
            device: `cpu` or `cuda`.
            name: What messages call the folder: by default its path.

        Raises:
            UserError: The folder is of another kind, cannot be loaded whole, names code, or its model cannot take such
                long texts.
        """
        import torch
        from sentence_transformers import SentenceTransformer

        from colbert_zero.models.loading import (
            HEADS,
            POOLER,
            refuse_nonfinite,
            refuse_other_vocabulary,
            refuse_unpaddable,
            whole_model,
        )

        name = name or str(folder)
        _refuse_other_kinds(folder, name)
        check_lengths(folder, {"maximum_length": maximum_length}, name)
        with whole_model(folder, name, "a sentence-transformers model", unset=POOLER, unused=HEADS) as embeddings:
            self._model = SentenceTransformer(
                str(folder),
                device=device,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
        refuse_nonfinite(self._model, name)
        for number in embeddings:  # none for a model of static embeddings
            refuse_other_vocabulary(self._model.tokenizer, number, name)
            refuse_unpaddable(self._model.tokenizer, name)
        self._model.max_seq_length = min(maximum_length, self._model.max_seq_length or maximum_length)
        self._query_prompt, self._document_prompt = query_prompt, document_prompt

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """The vectors of queries."""
        return self._encode(texts, self._query_prompt)

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """The vectors of documents."""
        return self._encode(texts, self._document_prompt)

    def _encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        # An empty prompt, unlike None, also turns off the model's default prompt.
        vectors = self._model.encode(
            list(texts), prompt=prompt, batch_size=TEXTS_PER_BATCH, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, np.float32)


def _refuse_other_kinds(folder: Path, name: str) -> None:
    """Refuse a folder for which sentence-transformers would invent a pooling, or from which it would drop a part."""
    kind = read_json_object(folder / CONFIG_FILE).get("model_type", DENSE_MODEL)
    if kind == DENSE_MODEL and read_saved_encoding(folder) is not None:
        kind = "ColBERT"
    if kind != DENSE_MODEL:
        raise UserError(f"{name} is a {kind} model; an encoder needs a {DENSE_MODEL}, with one vector per text")
    if not POOLINGS.intersection(module_names(folder)):
        raise UserError(
            f"{name} is not a sentence-transformers model: no {MODULES_FILE} says how to pool the vectors of its "
            "tokens; save it with sentence-transformers, with the pooling that it was trained with"
        )
