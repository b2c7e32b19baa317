"""Dense encoders: they turn each query and each document into one vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from colbert_zero.graph.artifact import Job
from colbert_zero.graph.console import UserError
from colbert_zero.graph.dense_folder import check_dense_folder, read_similarity, refuse_other_prompts
from colbert_zero.graph.model_folder import check_lengths
from colbert_zero.graph.saved_encoding import read_trained_encoding
from colbert_zero.machine.devices import choose_device
from colbert_zero.models.batches import TOKENS_PER_BATCH, batches_by_length

Vectors = npt.NDArray[np.float32]
"""One row per text, of unit length unless it is said otherwise; a text of which the encoder knows no word is the zero
vector."""

TEXTS_PER_BATCH = 1024
"""Texts that a model which has no tokens to pad encodes together."""


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
        UserError: The model cannot be loaded, or was saved with other prompts.
        RetryableError: The job needs a GPU, and none is visible.
    """
    settings: Mapping[str, Any] = job.settings["encoder"]
    if settings["kind"] == "lsa":
        return LsaEncoder(documents, settings["dimensions"], settings["seed"])
    from colbert_zero.models.loading import model_name

    folder, name = job.input("model").verified_folder(), model_name(job.input("model"))
    if not settings.get("override"):
        refuse_other_prompts(settings, read_trained_encoding(folder), name)
    return SentenceTransformerEncoder(
        folder,
        settings["query_prompt"],
        settings["document_prompt"],
        settings["maximum_length"],
        choose_device(job),
        name,
        normalize=read_similarity(folder, name) == "cosine",
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
    """Any sentence-transformers model that needs no custom code.

    Attributes:
        query_prompt: The text before every query.
        document_prompt: The text before every document.
    """

    def __init__(
        self,
        folder: Path,
        query_prompt: str,
        document_prompt: str,
        maximum_length: int | None,
        device: str,
        name: str | None = None,
        *,
        normalize: bool = True,
    ) -> None:
        """Load the model.

        Args:
            folder: The model folder.
            query_prompt: The text before every query, unchanged.
            document_prompt: The text before every document, unchanged.
            maximum_length: Longer texts are truncated to so many tokens, or to the model's own limit if it is lower;
                None means the model's own.
            device: `cpu` or `cuda`.
            name: What messages call the folder: by default its path.
            normalize: Whether to bring the vectors to unit length, also those of a model that does not.

        Raises:
            UserError: The folder is of another kind, cannot be loaded whole, names code, or its model cannot take such
                long texts.
        """
        import torch
        from sentence_transformers import SentenceTransformer

        from colbert_zero.models.loading import (
            HEADS,
            POOLER,
            TRIAL,
            refuse_nonfinite,
            refuse_other_vocabulary,
            refuse_unpaddable,
            whole_model,
        )

        name = name or str(folder)
        check_dense_folder(folder, name)
        if maximum_length is not None:
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
            self._cuts = bool(embeddings)  # Static embeddings take texts of any length.
            if maximum_length is not None:
                self.maximum_length = min(maximum_length, self.maximum_length or maximum_length)
            self.query_prompt, self.document_prompt = query_prompt, document_prompt
            self._normalize = normalize
            # Without a cut as well: the tokenizer then compares with its own limit.
            self.tokens_of(TRIAL)
            self._encode([TRIAL], document_prompt)

    @property
    def maximum_length(self) -> int | None:
        """The number of tokens after which a text is cut, prompt included; None if texts of any length are taken."""
        length: int | None = self._model.max_seq_length if self._cuts else None
        return length

    @maximum_length.setter
    def maximum_length(self, length: int) -> None:
        if self._cuts:
            self._model.max_seq_length = length

    @property
    def pooling(self) -> str:
        """How one vector is made of a text, as sentence-transformers calls it: `cls`, `mean`, `lasttoken` ..."""
        modules: list[Any] = list(self._model)
        modes = [module.get_pooling_mode_str() for module in modules if hasattr(module, "get_pooling_mode_str")]
        return modes[0] if modes else type(modules[0]).__name__

    def tokens_of(self, prompt: str) -> int:
        """The number of tokens of a prompt alone, with the special tokens around it; 0 if texts are never cut."""
        return len(self._model.tokenizer(prompt)["input_ids"]) if self._cuts else 0

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """The vectors of queries."""
        return self._encode(texts, self.query_prompt)

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """The vectors of documents."""
        return self._encode(texts, self.document_prompt)

    def _encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        batches = list(self._batches(texts, prompt))
        # An empty prompt, unlike None, also turns off the model's default prompt.
        encoded = [
            self._model.encode(
                [texts[number] for number in batch],
                prompt=prompt,
                batch_size=len(batch),
                normalize_embeddings=self._normalize,
                show_progress_bar=False,
            )
            for batch in batches
        ]
        vectors: Vectors = np.concatenate(encoded).astype(np.float32, copy=False)
        return vectors[np.argsort(np.concatenate(batches))]

    def _batches(self, texts: Sequence[str], prompt: str) -> Iterator[npt.NDArray[np.int64]]:
        """The numbers of texts that are encoded together: sentence-transformers sorts by characters, and pads more."""
        if not self._cuts:
            yield from np.array_split(np.arange(len(texts)), -(-len(texts) // TEXTS_PER_BATCH))
            return
        tokens = self._model.tokenizer(
            [prompt + text for text in texts], truncation=True, max_length=self.maximum_length
        )
        lengths = np.array([len(ids) for ids in tokens["input_ids"]])
        yield from batches_by_length(lengths, TOKENS_PER_BATCH[self._model.device.type])
