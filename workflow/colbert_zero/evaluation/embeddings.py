"""One vector for each text, on disk: `NAME.npy` holds the vectors, `NAME.parquet` the texts' ids in the same order.

The vectors are in single precision, as models compute them. They are mapped from the file, so that only the rows that
are used are read. `documents.faiss` may be beside them, an inverted file of the documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.console import UserError

Vectors = npt.NDArray[np.float32]
"""One row per text."""

INVERTED_FILE = "documents.faiss"
DTYPE = np.dtype("<f4")
IDS_SCHEMA = pa.schema([("id", pa.string())])


@dataclass(frozen=True)
class Embeddings:
    """The vectors of some texts.

    Attributes:
        ids: The texts' ids (texts), in order: a text of Arrow's each.
        vectors: float32 (texts x dimensions), mapped from the file.
    """

    ids: pa.ChunkedArray
    vectors: Vectors

    @classmethod
    def open(cls, index: Artifact, name: str) -> Embeddings:
        """Open the `documents` or the `queries` of an index.

        Raises:
            UserError: A file is missing, truncated or edited.
        """
        with pq.ParquetFile(index.file(f"{name}.parquet")) as file:
            ids = file.read()["id"]
        return cls(ids, np.load(index.file(f"{name}.npy"), mmap_mode="r", allow_pickle=False))


def write_embeddings(folder: Path, name: str, ids: Sequence[str], vectors: Vectors) -> None:
    """Write `NAME.npy` and `NAME.parquet` of the vectors (texts x dimensions) of the texts called `ids`.

    Raises:
        UserError: A vector has a component that is NaN or infinite.
    """
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise UserError(f"the model's vector of {ids[int(finite.argmin())]!r} is not finite; give another model")
    np.save(folder / f"{name}.npy", vectors.astype(DTYPE), allow_pickle=False)
    pq.write_table(pa.table({"id": ids}, schema=IDS_SCHEMA), folder / f"{name}.parquet", compression="zstd")


def join_embeddings(pieces: Sequence[Path], folder: Path, name: str) -> Vectors:
    """Write the vectors and ids of all pieces, in their order, into one file each; memory holds one piece.

    Returns:
        All vectors (texts x dimensions), mapped from the file.
    """
    matrices = [np.load(piece / f"{name}.npy", mmap_mode="r", allow_pickle=False) for piece in pieces]
    shape = (sum(map(len, matrices)), matrices[0].shape[1])
    joined: np.memmap[Any, np.dtype[np.float32]] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", DTYPE, shape)
    start = 0
    with pq.ParquetWriter(folder / f"{name}.parquet", IDS_SCHEMA, compression="zstd") as ids:
        for piece, matrix in zip(pieces, matrices, strict=True):
            joined[start : start + len(matrix)] = matrix
            start += len(matrix)
            ids.write_table(pq.read_table(piece / f"{name}.parquet"))
    joined.flush()
    return joined
