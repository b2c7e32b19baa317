"""Token vectors of many texts on disk: `NAME.safetensors` holds the vectors, `NAME.parquet` each text's id and length.

The vectors are stored in half precision, which halves the size of an index. Rounding keeps determinism: equal vectors
round to equal ones. It moves a component of a normalised vector by at most 2^-12, far less than the quantisation of a
PLAID index does. Convert the vectors to single precision before computing with them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
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
"""Bytes reserved for the safetensors header, which is written last, when the number of vectors is known. With the 8
bytes of its length before it, a multiple of 64."""

Matrix = npt.NDArray[np.float16 | np.float32]


@dataclass(frozen=True)
class TokenVectors:
    """The token vectors of some texts.

    Attributes:
        ids: The texts' ids, in order.
        lengths: The number of vectors of each text (texts).
        vectors: All vectors, text after text (vectors x dimensions), in half precision; mapped from the file, so that
            only the rows that are used are read.
    """

    ids: Sequence[str]
    lengths: npt.NDArray[np.int64]
    vectors: torch.Tensor

    @classmethod
    def open(cls, vectors_file: Path, texts_file: Path) -> TokenVectors:
        """Open what a `VectorWriter` wrote, given its `.safetensors` and its `.parquet`."""
        table = pq.read_table(texts_file)
        return cls(table["id"].to_pylist(), table["tokens"].to_numpy().astype(np.int64), read_vectors(vectors_file))

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.lengths)

    @classmethod
    def of(cls, ids: Iterable[str], matrices: Sequence[Matrix]) -> TokenVectors:
        """Put together the vectors of texts, at least one (tokens x dimensions), in half precision.

        Raises:
            UserError: A vector has a component that is NaN or infinite.
        """
        names = list(ids)
        lengths = np.array([len(matrix) for matrix in matrices], np.int64)
        return cls(names, lengths, torch.from_numpy(_joined(names, matrices)))

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """The position in `vectors` of each text's first vector (texts)."""
        offsets: npt.NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        return offsets

    def take(self, positions: npt.NDArray[np.int64]) -> TokenVectors:
        """The texts at some positions, in memory."""
        lengths = self.lengths[positions]
        shifts = self.offsets[positions] - (np.cumsum(lengths) - lengths)
        rows = np.repeat(shifts, lengths) + np.arange(lengths.sum())
        return TokenVectors([self.ids[at] for at in positions], lengths, self.vectors[torch.from_numpy(rows)])


class SlicedTokenVectors:
    """The token vectors of texts in slices of one size, of which the last may be shorter; they are mapped from files.

    Memory holds 16 bytes for each text of the slices that were used. Texts are known by their numbers, not by ids.
    """

    def __init__(self, folders: Sequence[Path], name: str) -> None:
        """Open what `VectorWriter`s called `name` wrote into folders, at least one."""
        self._folders, self._name = folders, name
        self._opened: dict[int, TokenVectors] = {}

    def __iter__(self) -> Iterator[TokenVectors]:
        """The slices, in order."""
        return map(self._slice, range(len(self._folders)))

    def take(self, numbers: npt.NDArray[np.int64]) -> TokenVectors:
        """The texts with these numbers, at least one, which ascend; in memory, with their numbers as ids."""
        size = len(self._slice(0))
        bounds = np.searchsorted(numbers, np.arange(len(self._folders) + 1) * size)
        found = [
            self._slice(at).take(numbers[bounds[at] : bounds[at + 1]] - at * size)
            for at in np.flatnonzero(np.diff(bounds)).tolist()
        ]
        lengths, vectors = np.concatenate([part.lengths for part in found]), torch.cat([part.vectors for part in found])
        return TokenVectors(list(map(str, numbers.tolist())), lengths, vectors)

    def _slice(self, at: int) -> TokenVectors:
        if at not in self._opened:
            stem = self._folders[at] / self._name
            lengths = pq.read_table(f"{stem}.parquet", columns=["tokens"])["tokens"].to_numpy().astype(np.int64)
            ids = ("",) * len(lengths)
            self._opened[at] = TokenVectors(ids, lengths, read_vectors(Path(f"{stem}.safetensors")))
        return self._opened[at]


def read_vectors(path: Path) -> torch.Tensor:
    """The vectors of a `.safetensors`, mapped from it."""
    with safe_open(path, framework="pt") as file:
        vectors: torch.Tensor = file.get_tensor("tokens")
    return vectors


class VectorWriter:
    """Writes the vectors of texts to disk, call by call: memory holds the vectors of one call only.

    Attributes:
        vectors_file: `NAME.safetensors`.
        texts_file: `NAME.parquet`.
        ids: The ids of the texts written so far.
        lengths: The number of vectors of each of them.
        dimensions: The size of a vector.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Create `NAME.safetensors` in `folder`; leaving the context completes it and writes `NAME.parquet`."""
        self.vectors_file = folder / f"{name}.safetensors"
        self.texts_file = folder / f"{name}.parquet"
        self.ids: list[str] = []
        self.lengths: list[int] = []
        self.dimensions = 0
        self._file = self.vectors_file.open("wb")

    def __enter__(self) -> VectorWriter:
        """Reserve the bytes of the header."""
        self._file.write(bytes(8 + HEADER_BYTES))
        return self

    def write(self, ids: Iterable[str], matrices: Sequence[Matrix]) -> None:
        """Append texts.

        Args:
            ids: The texts' ids.
            matrices: Each text's vectors (tokens x dimensions), in the same order.

        Raises:
            UserError: A vector has a component that is NaN or infinite.
        """
        names = list(ids)
        lengths = [len(matrix) for _, matrix in zip(names, matrices, strict=True)]
        if not names:
            return
        self._append(names, lengths, _joined(names, matrices))

    def copy(self, texts: TokenVectors) -> None:
        """Append texts that another writer wrote."""
        self._append(texts.ids, texts.lengths.tolist(), texts.vectors.numpy())

    def _append(self, ids: Sequence[str], lengths: Sequence[int], vectors: npt.NDArray[np.float16]) -> None:
        self._file.write(vectors.data)
        self.ids.extend(ids)
        self.lengths.extend(lengths)
        self.dimensions = vectors.shape[1]

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the header and the Parquet file, unless there was an error."""
        with self._file as file:
            if error is not None:
                return
            shape = [sum(self.lengths), self.dimensions]
            entry = {"dtype": "F16", "shape": shape, "data_offsets": [0, 2 * shape[0] * shape[1]]}
            header = json.dumps({"tokens": entry}, separators=(",", ":")).encode().ljust(HEADER_BYTES)
            file.seek(0)
            file.write(struct.pack("<Q", HEADER_BYTES) + header)
        table = pa.table({"id": pa.array(self.ids, pa.string()), "tokens": pa.array(self.lengths, pa.int32())})
        write_texts(table, self.texts_file)


def _joined(names: Sequence[str], matrices: Sequence[Matrix]) -> npt.NDArray[np.float16]:
    """The vectors of all texts (vectors x dimensions), in half precision, or a UserError if one is not finite."""
    vectors: npt.NDArray[np.float16] = np.ascontiguousarray(np.concatenate(matrices), dtype="<f2")
    if not np.isfinite(vectors).all():
        broken = next(name for name, matrix in zip(names, matrices, strict=True) if not np.isfinite(matrix).all())
        raise UserError(f"the model's vectors of {broken!r} are not finite; train it again with a lower learning rate")
    return vectors


def write_texts(table: pa.Table, path: Path) -> None:
    """Write the ids and lengths of texts, `id` and `tokens`; the same bytes in however many parts the table is."""
    pq.write_table(table.combine_chunks(), path, compression="zstd")
