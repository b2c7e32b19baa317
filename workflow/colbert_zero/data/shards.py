"""Make the shards of one source: its rows validated, deduplicated, shuffled, in files of about one size.

    python -m colbert_zero.data.shards --spec JSON [--threads N]

Rows of texts (`query`, `document`, perhaps `negatives`) keep their columns. Rows of teacher scores (format `scored`)
are joined with the texts their ids stand for. A row's place is decided by a digest of seed, source and what the row
says: neither the order of a source's files, nor how many they are, nor any number of workers can change it.

However large the source, a process holds less than 1 GiB (see `shuffle`). Each file, then each shard, is worked on by
itself, by `--threads` processes. What is done is kept in the state folder until all is, so that whoever comes next does
only what is left. `shares` has other jobs do a part of it first.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from colbert_zero.data.row_filter import RowFilter
from colbert_zero.data.rows import PAIRS, TRIPLES, ShardWriter, row_facts, shard_name, text_digests
from colbert_zero.data.scored import ScoredRows
from colbert_zero.data.shuffle import Range, gather, partition, placed, plan_shards, read_counts
from colbert_zero.data.sources import read_source
from colbert_zero.data.text import stripped
from colbert_zero.graph.artifact import Artifact, Job, Spec, step_main
from colbert_zero.graph.console import UserError
from colbert_zero.graph.local_files import link
from colbert_zero.graph.locks import acquire_lock
from colbert_zero.machine.pool import run_parallel

ROWS_AT_ONCE = 512
"""Rows put together at a time: with 32 documents each they stay far below the 2 GB that an Arrow column may hold."""
EVERYTHING = slice(None)
PATIENCE = 3600.0
"""Seconds to wait for another job that does what all need."""


class Rows(Protocol):
    """What the rows of a format are."""

    @property
    def files(self) -> list[str]:
        """The source's files that hold rows."""

    def prepare(self) -> None:
        """Do what reading takes, once."""

    def read(self, file: str, row_filter: RowFilter, seed: int, label: str) -> Iterator[pa.RecordBatch]:
        """The valid rows of a file, with their places."""

    def noted(self) -> dict[str, Any]:
        """What reading a file has told, for `schema`."""

    def schema(self, notes: Sequence[Mapping[str, Any]]) -> pa.Schema:
        """The columns that are published, given what was noted of all files."""

    def facts(self, notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the manifest is to tell besides, given the same."""

    def write(self, rows: pa.Table) -> pa.Table:
        """A few hundred rows as they are published."""


@dataclass
class TextRows:
    """The rows of a source of texts.

    Attributes:
        source: Whose.
        has_negatives: Whether any row read so far brings some.
    """

    source: Artifact
    has_negatives: bool = False

    @property
    def files(self) -> list[str]:
        """All of them."""
        return self.source.files()

    def prepare(self) -> None:
        """Nothing."""

    def read(self, file: str, row_filter: RowFilter, seed: int, label: str) -> Iterator[pa.RecordBatch]:
        """The valid rows of a file, stripped, with their places.

        Raises:
            UserError: The file cannot be read.
        """
        text = pa.large_string()
        for batch in read_source(self.source, [file]):
            rows = [row for row in _texts_in(batch) if _is_valid(row, row_filter)]
            self.has_negatives |= any(others for _, _, others in rows)
            queries = pa.array([query for query, _, _ in rows], text)
            documents = pa.array([document for _, document, _ in rows], text)
            negatives = pa.array([others for _, _, others in rows], pa.large_list(text))
            yield placed(
                {"query": queries, "document": documents, "negatives": negatives},
                text_digests(queries, documents),
                seed,
                label,
            )

    def noted(self) -> dict[str, Any]:
        """Whether there are negatives."""
        return {"negatives": self.has_negatives}

    def schema(self, notes: Sequence[Mapping[str, Any]]) -> pa.Schema:
        """Pairs, or triples where any file brings negatives."""
        return TRIPLES if any(note["negatives"] for note in notes) else PAIRS

    def facts(self, notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Nothing."""
        return {}

    def write(self, rows: pa.Table) -> pa.Table:
        """As they are."""
        return rows


def _texts_in(batch: pa.RecordBatch) -> Iterator[tuple[str, str, list[str] | None]]:
    """Query, document and negatives of each row, stripped; blank negatives left out; None where they are no texts."""
    columns = batch.to_pydict()
    negatives = columns.get("negatives") or [[]] * batch.num_rows
    for query, document, others in zip(columns["query"], columns["document"], negatives, strict=True):
        if others is not None:
            others = None if None in others else [text for text in map(stripped, others) if text]
        yield stripped(query), stripped(document), others


def _is_valid(row: tuple[str, str, list[str] | None], row_filter: RowFilter) -> bool:
    """Whether a row is; if not, it is counted why."""
    query, document, negatives = row
    finding = row_filter.reject_reason("query", query) or row_filter.reject_reason("document", document)
    if not finding and negatives is None:
        finding = "negatives are not texts"
    row_filter.read += 1
    if finding:
        row_filter.dropped[finding] += 1
    return not finding


class ShardBuild:
    """What there is to do for the shards of one source; a process has one of its own.

    Attributes:
        spec: What to make.
        source: Where the rows come from.
        rows: What they are.
        parts: The folder of each file, partitioned.
    """

    def __init__(self, spec: Spec) -> None:
        """Open the source."""
        (name,) = spec.inputs["source"]
        self.spec, self.source = spec, Artifact.open(name)
        scored = self.source.spec.settings.get("format", "rows") == "scored"
        self.rows: Rows = ScoredRows(self.source, spec.state / "texts") if scored else TextRows(self.source)
        self.parts = [spec.state / "parts" / f"{number:05d}" for number in range(len(self.rows.files))]

    def prepare(self) -> None:
        """Have what all files need; one job does it, others wait."""
        with acquire_lock(self.spec.state / "prepare.lock", f"reading the texts of {self.source.name}", wait=PATIENCE):
            self.rows.prepare()

    def partition(self, processes: int, share: slice = EVERYTHING) -> None:
        """Partition the files, or a share of them."""
        numbers = list(range(len(self.parts)))[share]
        run_parallel(partial(_partition, self.spec), numbers, processes, f"files of {self.source.name} read")

    def sort(self, processes: int, share: slice = EVERYTHING) -> None:
        """Make the shards, or a share of them; all files are partitioned by now."""
        shards = list(enumerate(plan_shards(self.parts, self.spec.settings["rows_per_shard"])))[share]
        run_parallel(partial(_sort, self.spec), shards, processes, f"shards of {self.source.name} written")

    def counts(self) -> Mapping[str, Any]:
        """The facts for the manifest, but those of the shards; all files are partitioned by now.

        Raises:
            UserError: No row is left.
        """
        counts = [read_counts(part) for part in self.parts]
        read = sum(count["read"] for count in counts)
        dropped: Counter[str] = sum((Counter(count["dropped"]) for count in counts), Counter())
        if not any(count["rows"] for count in counts):
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none dropped"
            raise UserError(f"{self.source.name} gives no row: {read} read, {reasons}; mend the source or name another")
        duplicates = sum(count["duplicates"] for count in counts)
        return {"read": read, "dropped": dropped + Counter(duplicate=duplicates), **self.rows.facts(counts)}

    def shard(self, number: int) -> Path:
        """Where a shard is until all are."""
        return self.spec.state / "shards" / shard_name(number)


def _partition(spec: Spec, number: int) -> None:
    """Partition the file of this number."""
    pa.set_cpu_count(1)
    work = ShardBuild(spec)
    row_filter = RowFilter(spec.settings["minimum_characters"], spec.settings["maximum_characters"])
    batches = work.rows.read(work.rows.files[number], row_filter, spec.settings["seed"], work.source.spec.label)
    partition(
        batches,
        work.parts[number],
        lambda: {"read": row_filter.read, "dropped": row_filter.dropped, **work.rows.noted()},
    )


def _sort(spec: Spec, shard: tuple[int, Range]) -> None:
    """Write a shard, and what there is to say of it beside it."""
    pa.set_cpu_count(1)
    work, (number, places) = ShardBuild(spec), shard
    path = work.shard(number)
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process's own, so that two that make the same shard do not meet.
    unfinished = path.with_suffix(f".{socket.gethostname()}-{os.getpid()}")
    writer = ShardWriter(unfinished, work.rows.schema([read_counts(part) for part in work.parts]))
    characters = duplicates = 0
    for table, left_out in gather(work.parts, places):
        duplicates += left_out
        for start in range(0, table.num_rows, ROWS_AT_ONCE):
            rows = work.rows.write(table.slice(start, ROWS_AT_ONCE)).select(writer.schema.names).cast(writer.schema)
            characters += sum(map(_characters, rows.columns))
            writer.write(rows)
    writer.close()
    facts = {"rows": writer.rows, "duplicates": duplicates, "characters": characters}
    path.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
    os.replace(unfinished, path)


def _characters(column: pa.ChunkedArray) -> int:
    """Of the texts in a column."""
    values = column.combine_chunks().flatten() if pa.types.is_list(column.type) else column
    return (pc.sum(pc.utf8_length(values)).as_py() or 0) if pa.types.is_string(values.type) else 0


def make(job: Job) -> Mapping[str, Any]:
    """Write `rows-*.parquet` from the source.

    Returns:
        rows, rows_by_shard, read, dropped (rows by reason), characters (of all texts kept).

    Raises:
        UserError: A file cannot be read, or no valid row is left.
    """
    work = ShardBuild(job.spec)
    work.prepare()
    work.partition(job.threads)
    counts = work.counts()
    work.sort(job.threads)
    facts = []
    for path in sorted(job.state.glob("shards/*.parquet")):
        link(path, job.folder / path.name)
        facts.append(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    dropped = counts["dropped"] + Counter(duplicate=sum(fact["duplicates"] for fact in facts))
    return {
        **row_facts([fact["rows"] for fact in facts]),
        **counts,
        "dropped": dict(sorted(dropped.items())),
        "characters": sum(fact["characters"] for fact in facts),
    }


if __name__ == "__main__":
    step_main(make, __doc__)
