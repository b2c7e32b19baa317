"""Make the shards of one source: validate, deduplicate and shuffle its rows, and write files of about equal size.

    python -m colbert_zero.data.shards --spec JSON [--threads N] [--part files|shards --share 2 --jobs 4]

Rows of texts (`query`, `document`, perhaps `negatives`) keep their columns. Rows of teacher scores (format `scored`)
are joined with the texts of their ids. A digest of seed, source and row content decides a row's place: neither the
order nor the number of the source's files, nor the number of workers, can change it.

Duplicates are rows with the same query and document; one stays, with the negatives of all of them. With the setting
`deduplicate: false` every row stays, as the paper counts them, and a digest of its file's name and its number in the
file decides its place: copies of a row are not neighbours, whom one batch would take for each other's negatives.

With the setting `share` only rows whose place lies in the first share of all places stay: about so many of the source.

Negatives that are the row's own document are removed and counted. In a source with negatives, a row without any is
dropped and counted: a supervised step could not use it.

However large the source, a process holds less than 1 GiB (see `shuffle`). First each file and then each shard is a
piece of the work (see `machine.pieces`), for `--threads` processes or for several jobs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from colbert_zero.data.row_filter import RowFilter
from colbert_zero.data.rows import PAIR_SCHEMA, TRIPLE_SCHEMA, ShardWriter, row_facts, shard_file_name, text_digests
from colbert_zero.data.scored import ScoredRows
from colbert_zero.data.shuffle import (
    DIGEST_FIELD,
    PLACE_FIELD,
    BucketRange,
    merge_spills,
    partition,
    plan_shards,
    with_places,
)
from colbert_zero.data.sources import read_rows
from colbert_zero.data.text import are_same, stripped
from colbert_zero.graph.artifact import Artifact, Job, Spec, step_main
from colbert_zero.graph.console import UserError
from colbert_zero.graph.local_files import link_or_copy
from colbert_zero.machine.pieces import Part

ROWS_PER_WRITE = 512
"""Rows converted and written at once: with 32 documents each, far below the 2 GB that an Arrow column may hold."""
SHARD_FILE = "rows.parquet"
"""The name of a shard while it is a piece."""


class RowFormat(Protocol):
    """How to read the rows of a source, and how to write them to shards."""

    @property
    def files(self) -> list[str]:
        """The source's files that hold rows."""

    def prepare(self) -> None:
        """Do the work that must be done once before any file is read; other jobs wait for the one that does it."""

    def read(self, file: str, row_filter: RowFilter, seed: int, label: str) -> Iterator[pa.RecordBatch]:
        """Yield the valid rows of a file, with their places."""

    def file_facts(self) -> dict[str, Any]:
        """The facts about the file that was read, which `schema` and `manifest_facts` need."""

    def schema(self, facts_by_file: Sequence[Mapping[str, Any]]) -> pa.Schema:
        """The columns of the shards, given the facts of all files."""

    def manifest_facts(self, facts_by_file: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Further facts for the manifest, given the facts of all files."""

    def to_published(self, rows: pa.Table) -> pa.Table:
        """Convert at most `ROWS_PER_WRITE` shuffled rows to the columns of the shards."""


@dataclass
class TextRows:
    """The rows of a source of texts.

    Attributes:
        source: The source.
        has_negatives: Whether any row read so far has negatives.
        further_documents: How many pairs were made of further documents of a row: a list of three gives three pairs.
        removed_negatives: How many negatives were removed since they are their row's own document.
    """

    source: Artifact
    has_negatives: bool = False
    further_documents: int = 0
    removed_negatives: int = 0

    @property
    def files(self) -> list[str]:
        """All files of the source."""
        return self.source.files()

    def prepare(self) -> None:
        """Do nothing: texts need no preparation."""

    def read(self, file: str, row_filter: RowFilter, seed: int, label: str) -> Iterator[pa.RecordBatch]:
        """Yield the valid rows of a file, their texts stripped, with their places.

        Raises:
            UserError: The file cannot be read.
        """
        text = pa.large_string()
        for batch in read_rows(self.source, [file]):
            rows = [row for row in self._pairs(batch, row_filter) if _is_valid(row, row_filter)]
            self.has_negatives |= any(negatives for _, _, negatives in rows)
            queries = pa.array([query for query, _, _ in rows], text)
            documents = pa.array([document for _, document, _ in rows], text)
            negative_lists = pa.array([negatives for _, _, negatives in rows], pa.large_list(text))
            yield with_places(
                {"query": queries, "document": documents, "negatives": negative_lists},
                text_digests(queries, documents),
                seed,
                label,
            )

    def file_facts(self) -> dict[str, Any]:
        """Whether any row has negatives, and what was counted."""
        return {
            "negatives": self.has_negatives,
            "further_documents": self.further_documents,
            "removed_negatives": self.removed_negatives,
        }

    def schema(self, facts_by_file: Sequence[Mapping[str, Any]]) -> pa.Schema:
        """Triples if any file has negatives, else pairs."""
        return TRIPLE_SCHEMA if any(facts["negatives"] for facts in facts_by_file) else PAIR_SCHEMA

    def manifest_facts(self, facts_by_file: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The counts that are not 0."""
        # Files that an earlier version has partitioned lack the counts.
        totals = {
            name: sum(facts.get(name, 0) for facts in facts_by_file)
            for name in ("further_documents", "removed_negatives")
        }
        return {name: total for name, total in totals.items() if total}

    def to_published(self, rows: pa.Table) -> pa.Table:
        """Return the rows unchanged."""
        return rows

    def _pairs(self, batch: pa.RecordBatch, row_filter: RowFilter) -> Iterator[Pair]:
        """The pairs of each row, stripped: one, or one for each of several documents."""
        columns = batch.to_pydict()
        negative_lists = columns.get("negatives") or [[]] * batch.num_rows
        for query, found, texts in zip(columns["query"], columns["document"], negative_lists, strict=True):
            row_filter.rows_read += 1
            documents = [stripped(text) for text in found] if isinstance(found, list) else [stripped(found)]
            self.further_documents += len(documents) - 1
            negatives = None if texts is None else [text for text in map(stripped, texts) if text]
            if negatives:
                kept = [text for text in negatives if not any(are_same(text, document) for document in documents)]
                self.removed_negatives += len(negatives) - len(kept)
                negatives = kept
            for document in documents:
                yield stripped(query), document, negatives


Pair = tuple[str, str, list[str] | None]
"""Query, document and negatives; None for malformed negatives."""


def _is_valid(pair: Pair, row_filter: RowFilter) -> bool:
    """Whether a pair is valid; if not, count the reason."""
    query, document, negatives = pair
    reason = row_filter.reject_reason("query", query) or row_filter.reject_reason("document", document)
    if not reason and negatives is None:
        reason = "negatives are not texts"
    if reason:
        row_filter.dropped[reason] += 1
    return not reason


class ShardBuild:
    """The steps that make the shards of one source; each process creates its own instance.

    Attributes:
        spec: The spec of the shards.
        source: The source of the rows.
        row_format: How to read and write the rows.
    """

    def __init__(self, spec: Spec) -> None:
        """Open the source."""
        (name,) = spec.inputs["source"]
        self.spec, self.source = spec, Artifact.open(name)
        scored = self.source.spec.settings.get("format", "rows") == "scored"
        self.row_format: RowFormat = ScoredRows(self.source, spec.state / "texts") if scored else TextRows(self.source)

    def files(self, processes: int = 1) -> Part:
        """The first part of the work: the source's files, each as rows sorted by place."""
        return Part(
            self.spec.state / "files",
            len(self.row_format.files),
            f"files of {self.source.name} read",
            partial(_partition_file, self.spec),
            processes,
        )

    def shards(self, processes: int = 1) -> Part:
        """The second part, once all files are read: the shards."""
        facts = self.files().facts()
        size = sum(fact["bytes"] for fact in facts)
        ranges = plan_shards(self.partitions, self.spec.settings["rows_per_shard"], size)
        return Part(
            self.spec.state / "shards",
            len(ranges),
            f"shards of {self.source.name} written",
            partial(_write_shard, self.spec, self.row_format.schema(facts), ranges),
            processes,
        )

    @property
    def partitions(self) -> list[Path]:
        """The folder with the sorted rows of each file."""
        files = self.files()
        return [files.piece(number) for number in range(files.count)]

    def counts(self) -> Mapping[str, Any]:
        """The facts for the manifest, except those of the shards; all files must be partitioned.

        Raises:
            UserError: The source has no valid row.
        """
        counts = self.files().facts()
        read = sum(count["read"] for count in counts)
        dropped: Counter[str] = sum((Counter(count["dropped"]) for count in counts), Counter())
        if not any(count["rows"] for count in counts):
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none dropped"
            raise UserError(
                f"{self.source.name} gives no row: {read} read, {reasons}; correct the source or name another"
            )
        duplicates = sum(count["duplicates"] for count in counts)
        return {
            "read": read,
            "dropped": dropped + Counter(duplicate=duplicates),
            **self.row_format.manifest_facts(counts),
        }


def _partition_file(spec: Spec, number: int, folder: Path) -> Mapping[str, Any]:
    """Write the rows of the source's file with this number, sorted by place, into a folder."""
    pa.set_cpu_count(1)
    build = ShardBuild(spec)
    row_filter = RowFilter(spec.settings["minimum_characters"], spec.settings["maximum_characters"])
    file, seed, label = build.row_format.files[number], spec.settings["seed"], build.source.spec.label
    batches = build.row_format.read(file, row_filter, seed, label)
    if not spec.settings.get("deduplicate", True):
        batches = _with_own_places(batches, file, seed, label)
    batches = _first_share(batches, spec.settings.get("share", 1), row_filter)
    counts = partition(batches, folder)
    return {**counts, "read": row_filter.rows_read, "dropped": row_filter.dropped, **build.row_format.file_facts()}


def _with_own_places(batches: Iterable[pa.RecordBatch], file: str, seed: int, label: str) -> Iterator[pa.RecordBatch]:
    """Draw the places for the rows' numbers in their file, whatever their content: none is another's duplicate."""
    start = 0
    for batch in batches:
        numbers = range(start, start := start + batch.num_rows)
        digests = [hashlib.blake2b(f"{number} {file}".encode(), digest_size=16).digest() for number in numbers]
        batch = batch.drop_columns([PLACE_FIELD.name, DIGEST_FIELD.name])
        yield with_places(dict(zip(batch.schema.names, batch.columns, strict=True)), digests, seed, label)


def _first_share(batches: Iterable[pa.RecordBatch], share: float, row_filter: RowFilter) -> Iterator[pa.RecordBatch]:
    """Leave out the rows whose place is not in the first share of all places, and count them.

    The rows of a share are then the first ones of the whole source's shards, in the same order; so those of a smaller
    share are the first ones of a larger.
    """
    for batch in batches:
        if share < 1:
            whole = batch.num_rows
            batch = batch.filter(pc.less(batch[PLACE_FIELD.name], pa.scalar(int(share * 2**64), PLACE_FIELD.type)))
            row_filter.dropped["beyond the share"] += whole - batch.num_rows
        yield batch


def _write_shard(
    spec: Spec, schema: pa.Schema, ranges: Sequence[BucketRange], number: int, folder: Path
) -> Mapping[str, Any]:
    """Write the shard with this number, of those with such columns and ranges, into a folder."""
    pa.set_cpu_count(1)
    build = ShardBuild(spec)
    row_format = build.row_format
    writer = ShardWriter(folder / SHARD_FILE, schema)
    characters = 0
    dropped: Counter[str] = Counter()
    for table, left_out in merge_spills(build.partitions, ranges[number]):
        dropped += left_out
        if writer.schema == TRIPLE_SCHEMA:
            rows_before = table.num_rows
            table = table.filter(pc.greater(pc.list_value_length(table["negatives"]), 0))
            dropped["no negatives"] += rows_before - table.num_rows
        for start in range(0, table.num_rows, ROWS_PER_WRITE):
            rows = row_format.to_published(table.slice(start, ROWS_PER_WRITE))
            rows = rows.select(writer.schema.names).cast(writer.schema)
            characters += sum(map(_characters, rows.columns))
            writer.write(rows)
    writer.close()
    return {"rows": writer.rows, "dropped": dropped, "characters": characters}


def _characters(column: pa.ChunkedArray) -> int:
    """The number of characters of the texts in a column."""
    values = column.combine_chunks().flatten() if pa.types.is_list(column.type) else column
    return (pc.sum(pc.utf8_length(values)).as_py() or 0) if pa.types.is_string(values.type) else 0


def _files(job: Job) -> Part:
    build = ShardBuild(job.spec)
    build.row_format.prepare()
    return build.files(job.threads)


def _shards(job: Job) -> Part:
    return ShardBuild(job.spec).shards(job.threads)


PARTS = {"files": _files, "shards": _shards}
"""The parts of the work, which jobs can share."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `rows-*.parquet` from the source.

    Returns:
        rows, rows_by_shard, read, dropped (rows by reason), characters (of all texts in the shards); if not 0,
        further_documents (pairs beyond the first of a row) and removed_negatives. Rows read and further documents are
        together as many as rows written and rows dropped.

    Raises:
        UserError: A file cannot be read, or the source has no valid row.
    """
    _files(job).make()
    counts = ShardBuild(job.spec).counts()
    shards = _shards(job)
    shards.make()
    facts = shards.facts()
    for number in range(shards.count):
        link_or_copy(shards.piece(number) / SHARD_FILE, job.folder / shard_file_name(number))
    dropped = sum((Counter(fact["dropped"]) for fact in facts), counts["dropped"])
    return {
        **row_facts([fact["rows"] for fact in facts]),
        **counts,
        "dropped": dict(sorted(dropped.items())),
        "characters": sum(fact["characters"] for fact in facts),
    }


if __name__ == "__main__":
    step_main(make, __doc__, PARTS)
