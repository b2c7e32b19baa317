"""Rows of teacher scores (a source of the format `scored`): ids of a query and of documents, joined with their texts.

The texts, which may be many more than fit in memory, are kept in files that are mapped: the system holds what of them
it has room for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from colbert_zero.data.row_filter import RowFilter
from colbert_zero.data.rows import SCORED, min_max, text_digest
from colbert_zero.data.shuffle import placed
from colbert_zero.data.sources import id_column, ids_column, numbers_column, read_files, text_column
from colbert_zero.data.text import stripped
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.console import UserError, progress


@dataclass(frozen=True)
class Texts:
    """Texts by id, in files.

    Attributes:
        folder: Where they are: `texts` (UTF-8, one after the other), `offsets` (of each, and the end), `ids` (64-bit
            digests of the ids, sorted) and `order` (whose they are).
    """

    folder: Path

    @classmethod
    def write(cls, folder: Path, pairs: Iterator[tuple[str, str]]) -> None:
        """Write pairs of id and text; of those with the same id the first counts."""
        offsets, ids = [0], []
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "texts").open("wb") as file:
            for identifier, text in pairs:
                offsets.append(offsets[-1] + file.write(text.encode()))
                ids.append(_number(identifier))
        numbers = np.array(ids, dtype=np.uint64)
        order = numbers.argsort(kind="stable")
        np.save(folder / "offsets.npy", np.array(offsets))
        np.save(folder / "ids.npy", numbers[order])
        # Last: where this is, all is.
        np.save(folder / "order.npy", order)

    @property
    def complete(self) -> bool:
        """Whether all is written."""
        return (self.folder / "order.npy").is_file()

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self._ids)

    def find(self, identifiers: list[str]) -> npt.NDArray[np.int64]:
        """Where the texts of these ids are, -1 for an id that has none."""
        wanted = np.array([_number(identifier) for identifier in identifiers], dtype=np.uint64)
        at = np.searchsorted(self._ids, wanted).clip(max=len(self._ids) - 1)
        return np.where(self._ids[at] == wanted, self._order[at], -1)

    def take(self, places: npt.NDArray[np.int64]) -> pa.Array:
        """The texts at some places."""
        return self._all.take(pa.array(places))

    @cached_property
    def _all(self) -> pa.LargeStringArray:
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


def _number(identifier: str) -> int:
    # Of the ten million ids of a large collection, two have the same number once in 400,000 such collections.
    return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest(), "big")


@dataclass
class ScoredRows:
    """The rows of a source of teacher scores.

    Attributes:
        source: Whose.
        folder: Where the texts are kept.
        size: How many documents a row has: what the source's settings say, else as many as the first row.
    """

    source: Artifact
    folder: Path
    size: int | None = field(init=False)

    def __post_init__(self) -> None:
        """Look up what the settings say."""
        self.size = self.source.spec.settings.get("documents")

    @property
    def files(self) -> list[str]:
        """The files that hold rows."""
        files: list[str] = self.source.facts["files"]["train"]
        return files

    def prepare(self) -> None:
        """Have the texts in files.

        Raises:
            UserError: There are none.
        """
        for texts, role, identifier in (
            (self._queries, "queries", "query_id"),
            (self._documents, "documents", "document_id"),
        ):
            if not texts.complete:
                texts.write(texts.folder, self._pairs(role, identifier))
            if not len(texts):
                raise UserError(f"{self.source.name}: none of its {role} has an id and a text; mend the source")

    def read(self, file: str, row_filter: RowFilter, seed: int, label: str) -> Iterator[pa.RecordBatch]:
        """The valid rows of a file, with their places: where their texts are, and scores.

        Raises:
            UserError: A file cannot be read, or rows have documents of different numbers.
        """
        columns = {
            "query": id_column("query_id"),
            "documents": ids_column("document_ids"),
            "scores": numbers_column("scores"),
        }
        for batch in read_files(self.source, [file], columns):
            rows = [row for row in batch.to_pylist() if self._is_fit(row, row_filter)]
            if not rows:
                continue
            assert self.size is not None
            identifiers = [row["documents"][: self.size] for row in rows]
            query_at = self._queries.find([row["query"] for row in rows])
            documents_at = self._documents.find([name for names in identifiers for name in names])
            documents_at = documents_at.reshape(len(rows), self.size)
            queries = [text.as_py() for text in self._queries.take(query_at.clip(min=0))]
            kept, digests = [], []
            for row, (query, names) in enumerate(zip(queries, identifiers, strict=True)):
                finding = row_filter.reject_reason("query", query if query_at[row] >= 0 else "")
                if not finding and documents_at[row].min() < 0:
                    finding = "no document"
                if finding:
                    row_filter.dropped[finding] += 1
                else:
                    kept.append(row)
                    digests.append(text_digest(query, *names))
            scores = np.array([row["scores"][: self.size] for row in rows], dtype=np.float32)
            yield placed(
                {
                    "query": pa.array(query_at[kept]),
                    "documents": pa.FixedSizeListArray.from_arrays(documents_at[kept].ravel(), self.size),
                    "raw": pa.FixedSizeListArray.from_arrays(scores[kept].ravel(), self.size),
                },
                digests,
                seed,
                label,
            )

    def noted(self) -> dict[str, Any]:
        """How many documents a row has."""
        return {"documents": self.size}

    def schema(self, notes: Sequence[Mapping[str, Any]]) -> pa.Schema:
        """The columns of scored rows."""
        return SCORED

    def facts(self, notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """How many documents a row has.

        Raises:
            UserError: The rows of two files have documents of different numbers.
        """
        sizes = {note["documents"] for note in notes if note["documents"]}
        if len(sizes) > 1:
            raise UserError(
                f"{self.source.name}: its files have {sorted(sizes)} documents for a query; say in the registry how "
                "many to use of each (documents)"
            )
        return {"documents": sizes.pop()}

    def write(self, rows: pa.Table) -> pa.Table:
        """The rows as they are published: texts, raw scores, and scores that are min-max normalised per query."""
        found, raw = (rows[name].combine_chunks() for name in ("documents", "raw"))
        size = raw.type.list_size
        scores = raw.flatten().to_numpy().reshape(-1, size)
        columns = [
            self._queries.take(rows["query"].to_numpy()),
            pa.FixedSizeListArray.from_arrays(self._documents.take(found.flatten().to_numpy()), size),
            raw,
            pa.FixedSizeListArray.from_arrays(min_max(scores).ravel(), size),
        ]
        return pa.Table.from_arrays(columns, names=SCORED.names)

    @cached_property
    def _queries(self) -> Texts:
        return Texts(self.folder / "queries")

    @cached_property
    def _documents(self) -> Texts:
        return Texts(self.folder / "documents")

    def _pairs(self, role: str, identifier: str) -> Iterator[tuple[str, str]]:
        """Ids and texts of a role, those without any left out."""
        columns = {"id": id_column(identifier), "text": text_column("text")}
        files = self.source.facts["files"][role]
        for batch in progress(read_files(self.source, files, columns), None, f"batches of 4096 {role} read"):
            for name, text in zip(batch["id"].to_pylist(), map(stripped, batch["text"].to_pylist()), strict=True):
                if name is not None and text:
                    yield name, text

    def _is_fit(self, row: Mapping[str, Any], row_filter: RowFilter) -> bool:
        """Whether a row is one; if not, it is counted why."""
        row_filter.read += 1
        finding = _unusable(row)
        if not finding:
            if self.size is None:
                self.size = len(row["documents"])
            if self.source.spec.settings.get("documents") is None and len(row["documents"]) != self.size:
                raise UserError(
                    f"{self.source.name}: query {row['query']} has {len(row['documents'])} documents, others "
                    f"{self.size}; say in the registry how many to use of each (documents)"
                )
            finding = _unfit(np.array(row["scores"][: self.size], dtype=np.float32), self.size)
        if finding:
            row_filter.dropped[finding] += 1
        return not finding


def _unusable(row: Mapping[str, Any]) -> str | None:
    """Why a teacher's row is not one, or None."""
    if row["query"] is None:
        return "no query"
    if not row["documents"] or not row["scores"] or None in row["documents"] or None in row["scores"]:
        return "documents or scores are not lists"
    return None if len(row["documents"]) == len(row["scores"]) else "not as many scores as documents"


def _unfit(scores: npt.NDArray[np.float32], size: int) -> str | None:
    """Why nothing can be learned from a query's scores, or None."""
    if len(scores) < size:
        return "too few documents"
    if not np.isfinite(scores).all():
        return "a score is not finite"
    return "all scores are equal" if scores.min() == scores.max() else None
