"""Token vectors of random texts, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from colbert_zero.retrieval.vectors import TokenVectors, VectorWriter


def random_vectors(folder: Path, name: str, lengths: list[int], dimensions: int = 16, seed: int = 0) -> TokenVectors:
    generator = np.random.default_rng(seed)
    with VectorWriter(folder, name) as writer:
        for number, length in enumerate(lengths):
            matrix = generator.standard_normal((length, dimensions)).astype(np.float32)
            writer.write([f"{name}{number}"], [matrix / np.linalg.norm(matrix, axis=1, keepdims=True)])
    return TokenVectors.open(writer.vectors_file, writer.texts_file)


def split(vectors: TokenVectors) -> list[torch.Tensor]:
    return [part.float() for part in torch.split(vectors.vectors, vectors.lengths.tolist())]
