"""Token vectors of many texts on disk: `NAME.safetensors` has the vectors, `NAME.parquet` whose they are.

The vectors are stored in half precision: that halves what an index takes, and rounding costs no determinism, since
equal vectors round to equal ones. A component of a normalised vector moves by at most 2^-12, far less than a PLAID
index moves it. Whoever computes with them converts them to single precision first.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open

from colbert_zero.graph.console import UserError

HEADER_BYTES = 248
"""Room for the safetensors header, whose shape is known last; with the 8 bytes before it, a multiple of 64."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Vectors:
    """The token vectors of some texts.

    Attributes:
        ids: The texts' ids, in order.
        lengths: How many vectors each text has (texts).
        tokens: All vectors, text after text (vectors x dimensions), half precision; on the disk until they are read.
    """

    ids: list[str]
    lengths: npt.NDArray[np.int64]
    tokens: torch.Tensor

    @classmethod
    def open(cls, vectors: Path, texts: Path) -> Vectors:
        """Open what a `VectorWriter` wrote, given its `.safetensors` and its `.parquet`."""
        table = pq.read_table(texts)
        with safe_open(vectors, framework="pt") as file:
            tokens = file.get_tensor("tokens")
        return cls(table["id"].to_pylist(), table["tokens"].to_numpy().astype(np.int64), tokens)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """The position of each text's first vector (texts)."""
        starts: npt.NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        return starts


class VectorWriter:
    """Writes the vectors of any number of texts as they come, in memory for one call's texts only."""

    def __init__(self, folder: Path, name: str) -> None:
        """Begin `NAME.safetensors` in `folder`; leaving the context completes it and writes `NAME.parquet`."""
        self.vectors = folder / f"{name}.safetensors"
        self.texts = folder / f"{name}.parquet"
        self.ids: list[str] = []
        self.lengths: list[int] = []
        self.dimensions = 0
        self._file = self.vectors.open("wb")

    def __enter__(self) -> VectorWriter:
        """Leave room for the header."""
        self._file.write(bytes(8 + HEADER_BYTES))
        return self

    def write(self, ids: Iterable[str], matrices: Sequence[Matrix]) -> None:
        """Add texts.

        Args:
            ids: Their ids.
            matrices: Their vectors (tokens x dimensions), in the same order.

        Raises:
            UserError: A vector is not finite.
        """
        for identity, matrix in zip(ids, matrices, strict=True):
            if not np.isfinite(matrix).all():
                raise UserError(
                    f"the model's vectors of {identity!r} are not finite; train it again, with a lower learning rate"
                )
            self._file.write(np.ascontiguousarray(matrix, dtype="<f2").tobytes())
            self.lengths.append(len(matrix))
            self.ids.append(identity)
            self.dimensions = matrix.shape[1]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the files, unless there was an error."""
        with self._file as file:
            if error is not None:
                return
            shape = [sum(self.lengths), self.dimensions]
            entry = {"dtype": "F16", "shape": shape, "data_offsets": [0, 2 * shape[0] * shape[1]]}
            header = json.dumps({"tokens": entry}, separators=(",", ":")).encode().ljust(HEADER_BYTES)
            file.seek(0)
            file.write(struct.pack("<Q", HEADER_BYTES) + header)
        table = pa.table({"id": pa.array(self.ids, pa.string()), "tokens": pa.array(self.lengths, pa.int32())})
        pq.write_table(table, self.texts, compression="zstd")
