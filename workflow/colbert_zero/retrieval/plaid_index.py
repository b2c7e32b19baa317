"""Build a PLAID index of token vectors, as fast-plaid's own class does, in a part of its memory and time.

PyLate's wrapper stores the ids in pickles, and its import adds seconds to each search. The class writes a copy of the
index that it has made, to load it. On a CPU its k-means holds the distances of 51,200 vectors to 10,240 centroids at a
time, several times over, which takes up to 10 GB; those of fewer fit the processor's cache, and are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fast_plaid import fast_plaid_rust
from fast_plaid.search import FastPlaid
from fast_plaid.search.kmeans import FastKMeans

from colbert_zero.graph.console import UserError
from colbert_zero.graph.draws import draw
from colbert_zero.retrieval.vectors import read_vectors, write_texts

RESIDUAL_BITS, KMEANS_ITERATIONS = 4, 4
"""PLAID's bits for each component of a residual, and its k-means iterations for the centroids (PyLate's defaults)."""
VECTORS_PER_CENTROID, DOCUMENTS_PER_FILE = 256, 50_000
"""Vectors that k-means sees for each centroid at most, and documents in a file of PLAID's (fast-plaid's defaults)."""
MINIMUM_VECTORS = 10
"""Of fewer, fast-plaid keeps none apart to compute the bounds of its residuals from."""
DISTANCES = {"cpu": (2048, 1024), "cuda": (51_200, 10_240)}
"""Vectors and centroids whose distances are in memory at once."""


def build_plaid(pieces: Sequence[Path], name: str, folder: Path, seed: int, device: str) -> None:
    """Write a PLAID index of the vectors of all pieces into `folder/plaid`, and the documents' ids beside it.

    Args:
        pieces: The folders of the pieces, in order.
        name: Of their files, and of that with the ids.
        folder: The index's folder.
        seed: Decides the sample of vectors that k-means sees, and its initial centroids.
        device: Where to compute.

    Raises:
        UserError: There are fewer than `MINIMUM_VECTORS`.
    """
    texts = [pq.read_table(piece / f"{name}.parquet") for piece in pieces]
    write_texts(pa.concat_tables(texts), folder / f"{name}.parquet")
    matrices = [
        matrix
        for piece, table in zip(pieces, texts, strict=True)
        for matrix in torch.split(read_vectors(piece / f"{name}.safetensors"), table["tokens"].to_pylist())
    ]
    if (vectors := sum(map(len, matrices))) < MINIMUM_VECTORS:
        raise UserError(f"PLAID needs {MINIMUM_VECTORS} vectors, and the documents have {vectors}; search exactly")
    plaid = FastPlaid(index=str(folder / "plaid"), device=device)
    with torch.inference_mode():
        fast_plaid_rust.create(
            index=plaid.index,
            torch_path=plaid.torch_path,
            device=plaid.devices[0],
            embedding_dim=matrices[0].shape[1],
            nbits=RESIDUAL_BITS,
            embeddings=matrices,
            centroids=compute_centroids(matrices, seed, plaid.devices[0]),
            batch_size=DOCUMENTS_PER_FILE,
            seed=seed,
            compress_only=False,
        )


def compute_centroids(matrices: Sequence[torch.Tensor], seed: int, device: str) -> torch.Tensor:
    """The centroids that fast-plaid computes: of a sample of the documents, by k-means.

    There are 16 times the square root of the number of vectors, rounded down to a power of two, and the sample has 16
    times the square root of 120 times the number of documents (Santhanam et al. 2022, PLAID; fast-plaid's code).

    Args:
        matrices: The vectors of each document, in half precision.
        seed: Decides the sample and the initial centroids.
        device: Where to compute.

    Returns:
        The centroids, of unit length, in half precision (centroids x dimensions), on the device.
    """
    # fast-plaid draws the sample from PyTorch's global generator, not from the seed that it is given.
    torch.manual_seed(draw(seed, "plaid"))
    count = len(matrices)
    sampled = torch.randperm(count)[: min(1 + int(16 * math.sqrt(120 * count)), count)].tolist()
    sample = torch.cat([matrices[number] for number in sampled])
    vectors = len(sample) / len(sampled) * count
    at_once, centroids_at_once = DISTANCES[device.partition(":")[0]]
    kmeans = FastKMeans(
        d=sample.shape[1],
        k=min(2 ** math.floor(math.log2(16 * math.sqrt(vectors))), len(sample)),
        niter=KMEANS_ITERATIONS,
        gpu=device.startswith("cuda"),
        seed=seed,
        max_points_per_centroid=VECTORS_PER_CENTROID,
        chunk_size_data=at_once,
        chunk_size_centroids=centroids_at_once,
        use_triton=False,  # its kernel has a race: the centroids would differ from run to run
    )
    centroids = kmeans.train(sample).to(device=device, dtype=torch.float32)
    return torch.nn.functional.normalize(centroids, dim=-1).half()
