"""One vector for each text, on disk: `NAME.npy` holds the vectors, `NAME.parquet` the texts' ids in the same order.

The vectors are in single precision, as models compute them. They are mapped from the file, so that only the rows that
are used are read. `documents.faiss` may be beside them, an inverted file of the documents.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.console import UserError
from colbert_zero.graph.text_files import replace_text, sync

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


class EmbeddingWriter:
    """Writes the vectors of texts into a file, call by call, and goes on where a killed process was.

    What a call wrote is on disk before `NAME.progress.json` counts it. What was written beyond that count is cut off.

    Attributes:
        path: `NAME.npy`.
        total: The number of texts when the file is finished.
        rows: The number of texts whose vectors are there.
        seconds: How long it took to make them, over all attempts.
        dimensions: The size of a vector; 0 before the first.
    """

    def __init__(self, folder: Path, name: str, total: int, **made: Any) -> None:
        """Open `NAME.npy` in `folder`, for `total` texts.

        Vectors that are there are kept if they were `made` in the same way: values that decide the bytes, and are no
        settings of the artifact.
        """
        self.path, self.total = folder / f"{name}.npy", total
        self.rows, self.seconds, self.dimensions = 0, 0.0, 0
        self._progress_file, self._made = folder / f"{name}.progress.json", {"total": total, **made}
        # Else nothing is there yet, or what a power loss left.
        with suppress(OSError, ValueError, TypeError, KeyError):
            progress = json.loads(self._progress_file.read_bytes())
            end = self._end(progress["rows"], progress["dimensions"])
            if progress["made"] == self._made and self.path.stat().st_size >= end:
                self.rows, self.seconds = progress["rows"], progress["seconds"]
                self.dimensions = progress["dimensions"]
        self._file = self.path.open("r+b" if self.rows else "wb")
        if self.rows:
            self._file.truncate(self._end(self.rows, self.dimensions))
            self._file.seek(0, 2)

    def __enter__(self) -> EmbeddingWriter:
        """Begin to write."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def append(self, ids: Sequence[str], vectors: Vectors, seconds: float) -> None:
        """Append the vectors (texts x dimensions) of the texts called `ids`, which took so many seconds.

        Raises:
            UserError: A vector has a component that is NaN or infinite.
        """
        refuse_nonfinite_vectors(ids, vectors)
        if not self.rows:
            self.dimensions = vectors.shape[1]
            self._file.write(_header(self.total, self.dimensions))
        self._file.write(np.ascontiguousarray(vectors, DTYPE).tobytes())
        self._file.flush()
        sync(self.path)
        self.rows += len(ids)
        self.seconds += seconds
        progress = {"made": self._made, "rows": self.rows, "dimensions": self.dimensions, "seconds": self.seconds}
        replace_text(self._progress_file, json.dumps(progress))

    def _end(self, rows: int, dimensions: int) -> int:
        """The size of the file with so many rows."""
        return len(_header(self.total, dimensions)) + rows * dimensions * DTYPE.itemsize


def refuse_nonfinite_vectors(ids: Sequence[str], vectors: Vectors) -> None:
    """Refuse the vectors (texts x dimensions) of the texts called `ids` if one is no number.

    Raises:
        UserError: A vector has a component that is NaN or infinite.
    """
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise UserError(f"the model's vector of {ids[int(finite.argmin())]!r} is not finite; give another model")


def _header(rows: int, dimensions: int) -> bytes:
    """The header of a file in NumPy's format, version 1.0."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": DTYPE.str, "fortran_order": False, "shape": (rows, dimensions)}
    )
    return header.getvalue()
