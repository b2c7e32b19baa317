"""Rows of teacher scores (a source of the format `scored`): join the ids of a query and its documents with their texts.

The texts may be more than fit in memory. They are kept in memory-mapped files, of which the system caches what it can.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from colbert_zero.data.columns import id_column, ids_column, numbers_column, text_column
from colbert_zero.data.row_filter import RowFilter
from colbert_zero.data.rows import SCORED_SCHEMA, min_max, text_digest
from colbert_zero.data.shuffle import with_places
from colbert_zero.data.sources import read_files
from colbert_zero.data.text import stripped
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.console import UserError, progress
from colbert_zero.machine.pieces import folder_made_once, make_once


@dataclass(frozen=True)
class TextStore:
    """Texts by id, in memory-mapped files.

    Attributes:
        folder: The folder of the files: `texts` (UTF-8, concatenated), `offsets` (where each text starts, and the last
            one ends), `ids` (64-bit digests of the ids, sorted) and `order` (the position of the text of each digest).
    """

    folder: Path

    @classmethod
    def write(cls, folder: Path, pairs: Iterator[tuple[str, str]]) -> None:
        """Write pairs of id and text into an empty folder. If two pairs share an id, the first one is kept."""
        offsets, digests = [0], []
        with (folder / "texts").open("wb") as file:
            for identifier, text in pairs:
                offsets.append(offsets[-1] + file.write(text.encode()))
                digests.append(_id_digest(identifier))
        ids = np.array(digests, dtype=np.uint64)
        order = ids.argsort(kind="stable")
        np.save(folder / "offsets.npy", np.array(offsets))
        np.save(folder / "ids.npy", ids[order])
        np.save(folder / "order.npy", order)

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self._ids)

    def positions(self, identifiers: list[str]) -> npt.NDArray[np.int64]:
        """The positions of the texts of these ids, -1 for an id without a text."""
        digests = np.array([_id_digest(identifier) for identifier in identifiers], dtype=np.uint64)
        at = np.searchsorted(self._ids, digests).clip(max=len(self._ids) - 1)
        return np.where(self._ids[at] == digests, self._order[at], -1)

    def take(self, positions: npt.NDArray[np.int64]) -> pa.Array:
        """The texts at these positions."""
        return self._texts.take(pa.array(positions))

    @cached_property
    def _texts(self) -> pa.LargeStringArray:
        offsets = np.load(self.folder / "offsets.npy", mmap_mode="r")
        with pa.memory_map(str(self.folder / "texts")) as file:
            return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), file.read_buffer())

    @cached_property
    def _ids(self) -> npt.NDArray[np.uint64]:
        ids: npt.NDArray[np.uint64] = np.load(self.folder / "ids.npy", mmap_mode="r")
        return ids

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        order: npt.NDArray[np.int64] = np.load(self.folder / "order.npy", mmap_mode="r")
        return order


def _id_digest(identifier: str) -> int:
    # Among the ten million ids of a large collection, a collision happens once in 400,000 such collections.
    return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest(), "big")


@dataclass
class ScoredRows:
    """The rows of a source of teacher scores.

    Attributes:
        source: The source.
        folder: The folder of the texts.
        documents_per_row: The number that the source's settings state, else that of the first row.
    """

    source: Artifact
    folder: Path
    documents_per_row: int | None = field(init=False)

    def __post_init__(self) -> None:
        """Read the number of documents per row from the settings."""
        self.documents_per_row = self.source.spec.settings.get("documents")

    @property
    def files(self) -> list[str]:
        """The files that hold rows."""
        files: list[str] = self.source.facts["files"]["train"]
        return files

    def prepare(self) -> None:
        """Write the texts into memory-mapped files, unless that is done; one job does it while the others wait.

        Raises:
            UserError: There are no texts.
        """
        for role, identifier in (("queries", "query_id"), ("documents", "document_id")):
            write = partial(self._write_texts, role, identifier)
            folder = make_once(self.folder / role, f"reading the {role} of {self.source.name}", write)
            if not len(TextStore(folder)):
                raise UserError(f"{self.source.name}: none of its {role} has an id and a text; correct the source")

    def _write_texts(self, role: str, identifier: str, folder: Path) -> Mapping[str, Any]:
        TextStore.write(folder, self._pairs(role, identifier))
        return {"texts": len(TextStore(folder))}

    def read(self, file: str, row_filter: RowFilter, seed: int, label: str) -> Iterator[pa.RecordBatch]:
        """Yield the valid rows of a file, with their places: the positions of their texts, and the raw scores.

        Raises:
            UserError: A file cannot be read, or rows differ in their number of documents.
        """
        columns = {
            "query": id_column("query_id"),
            "documents": ids_column("document_ids"),
            "scores": numbers_column("scores"),
        }
        for batch in read_files(self.source, [file], columns):
            rows = [row for row in batch.to_pylist() if self._is_valid(row, row_filter)]
            if not rows:
                continue
            per_row = self.documents_per_row
            assert per_row is not None
            identifiers = [row["documents"][:per_row] for row in rows]
            query_positions = self._queries.positions([row["query"] for row in rows])
            document_positions = self._documents.positions(
                [name for document_ids in identifiers for name in document_ids]
            )
            document_positions = document_positions.reshape(len(rows), per_row)
            queries = [text.as_py() for text in self._queries.take(query_positions.clip(min=0))]
            kept, digests = [], []
            for row, (query, names) in enumerate(zip(queries, identifiers, strict=True)):
                reason = row_filter.reject_reason("query", query if query_positions[row] >= 0 else "")
                if not reason and document_positions[row].min() < 0:
                    reason = "no document"
                if reason:
                    row_filter.dropped[reason] += 1
                else:
                    kept.append(row)
                    digests.append(text_digest(query, *names))
            scores = np.array([row["scores"][:per_row] for row in rows], dtype=np.float32)
            yield with_places(
                {
                    "query": pa.array(query_positions[kept]),
                    "documents": pa.FixedSizeListArray.from_arrays(document_positions[kept].ravel(), per_row),
                    "raw": pa.FixedSizeListArray.from_arrays(scores[kept].ravel(), per_row),
                },
                digests,
                seed,
                label,
            )

    def file_facts(self) -> dict[str, Any]:
        """The number of documents per row."""
        return {"documents": self.documents_per_row}

    def schema(self, facts_by_file: Sequence[Mapping[str, Any]]) -> pa.Schema:
        """The columns of scored rows."""
        return SCORED_SCHEMA

    def manifest_facts(self, facts_by_file: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The number of documents per row.

        Raises:
            UserError: The rows of two files differ in their number of documents.
        """
        counts = {facts["documents"] for facts in facts_by_file if facts["documents"]}
        if len(counts) > 1:
            raise UserError(
                f"{self.source.name}: its files have {sorted(counts)} documents for a query; say in the registry how "
                "many to use of each (documents)"
            )
        return {"documents": counts.pop()}

    def to_published(self, rows: pa.Table) -> pa.Table:
        """Replace positions with texts, and add scores that are min-max normalised per query."""
        documents, raw = (rows[name].combine_chunks() for name in ("documents", "raw"))
        size = raw.type.list_size
        scores = raw.flatten().to_numpy().reshape(-1, size)
        columns = [
            self._queries.take(rows["query"].to_numpy()),
            pa.FixedSizeListArray.from_arrays(self._documents.take(documents.flatten().to_numpy()), size),
            raw,
            pa.FixedSizeListArray.from_arrays(min_max(scores).ravel(), size),
        ]
        return pa.Table.from_arrays(columns, names=SCORED_SCHEMA.names)

    @cached_property
    def _queries(self) -> TextStore:
        return TextStore(folder_made_once(self.folder / "queries"))

    @cached_property
    def _documents(self) -> TextStore:
        return TextStore(folder_made_once(self.folder / "documents"))

    def _pairs(self, role: str, identifier: str) -> Iterator[tuple[str, str]]:
        """Yield the ids and texts of a role, without those that lack an id or a text."""
        columns = {"id": id_column(identifier), "text": text_column("text")}
        files = self.source.facts["files"][role]
        for batch in progress(read_files(self.source, files, columns), None, f"batches of 4096 {role} read"):
            for name, text in zip(batch["id"].to_pylist(), map(stripped, batch["text"].to_pylist()), strict=True):
                if name is not None and text:
                    yield name, text

    def _is_valid(self, row: Mapping[str, Any], row_filter: RowFilter) -> bool:
        """Whether a row has usable documents and scores; if not, count the reason."""
        row_filter.rows_read += 1
        reason = _malformed_reason(row)
        if not reason:
            if self.documents_per_row is None:
                self.documents_per_row = len(row["documents"])
            if self.source.spec.settings.get("documents") is None and len(row["documents"]) != self.documents_per_row:
                raise UserError(
                    f"{self.source.name}: query {row['query']} has {len(row['documents'])} documents, others "
                    f"{self.documents_per_row}; say in the registry how many to use of each (documents)"
                )
            reason = _uninformative_reason(
                np.array(row["scores"][: self.documents_per_row], dtype=np.float32), self.documents_per_row
            )
        if reason:
            row_filter.dropped[reason] += 1
        return not reason


def _malformed_reason(row: Mapping[str, Any]) -> str | None:
    """The reason why a row is malformed, or None."""
    if row["query"] is None:
        return "no query"
    if not row["documents"] or not row["scores"] or None in row["documents"] or None in row["scores"]:
        return "documents or scores are not lists"
    return None if len(row["documents"]) == len(row["scores"]) else "not as many scores as documents"


def _uninformative_reason(scores: npt.NDArray[np.float32], documents_per_row: int) -> str | None:
    """The reason why a student cannot learn from a query's scores, or None."""
    if len(scores) < documents_per_row:
        return "too few documents"
    if not np.isfinite(scores).all():
        return "a score is not finite"
    return "all scores are equal" if scores.min() == scores.max() else None
