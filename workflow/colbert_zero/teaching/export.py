"""Write a teacher's scores as a dataset: the tables of lightonai/ms-marco-en-bge-gemma, so that it can replace that.

colbert-zero export scores/neural.msmarco-0123456789ab --output FOLDER --directory STUDY

`datasets` and PyLate load the folder, or the repository that it is uploaded to; a study names that under `hub`. Its
`train` has the scores that a distillation learns from, min-max normalised per query; raw ones stay in the study.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import pyarrow as pa

from colbert_zero.data.rows import RowReader, ShardWriter
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.console import UserError, one_line
from colbert_zero.graph.local_files import absolute_path, keep_private, new_folder

CARD_FILE = "README.md"
CARD = """\
---
configs:
{configs}---

# Scores of a teacher

`train` has {train} rows of a query and {per_row} documents of it, the first of them its own, with a teacher's scores,
min-max normalised per query; `queries` and `documents` have the texts of the ids. They are the artifact `{name}`,
whose spec has the SHA-256 {spec}.
"""
CONFIG = """\
- config_name: {table}
  data_files: {table}.parquet
"""
"""What `load_dataset(FOLDER, TABLE)` reads, in the card."""
IDS = pa.int64()
TRAIN_SCHEMA = pa.schema([("query_id", IDS), ("document_ids", pa.list_(IDS)), ("scores", pa.list_(pa.float32()))])


class TextTable:
    """A table of texts, each once, with ids that count from 0. Memory holds a digest of each text."""

    def __init__(self, path: Path, identifier: str) -> None:
        """Begin the table at `path`; `identifier` is the name of its column of ids."""
        self._file = ShardWriter(path, pa.schema([(identifier, IDS), ("text", pa.string())]))
        self._ids: dict[bytes, int] = {}

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self._ids)

    def ids(self, texts: Sequence[str]) -> list[int]:
        """The ids of some texts, of which the table gets those that it does not have yet."""
        before = len(self)
        found, new = [], []
        for text in texts:
            known = len(self)
            found.append(self._ids.setdefault(hashlib.blake2b(text.encode(), digest_size=16).digest(), known))
            if len(self) > known:
                new.append(text)
        self._file.write(pa.table([range(before, len(self)), new], schema=self._file.schema))
        return found

    def close(self) -> None:
        """Write what is pending."""
        self._file.close()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which scores, and where they go."""
    parser.add_argument("scores", help="the artifact: scores/LABEL-KEY, as its folder is called in results/")
    parser.add_argument("--output", type=absolute_path, required=True, help="a new folder")


def run(options: argparse.Namespace) -> int:
    """Write the folder, and say what is in it; return 0.

    Raises:
        UserError: There are no such scores, a file of theirs is damaged, or there is something where the folder goes.
    """
    name = options.scores.removeprefix("results/").rstrip("/")
    if not name.startswith("scores/"):
        raise UserError(f"{options.scores} is no teacher's scores: give the name of a folder of results/scores")
    scores = Artifact.open(name)
    with new_folder(options.output) as folder:
        keep_private(folder, scores.folder)
        counts = write_tables(scores, folder)
        (folder / CARD_FILE).write_text(card(scores, counts), encoding="utf-8")
    told = ", ".join(f"{count} rows of {table}" for table, count in counts.items())
    sys.stdout.write(one_line(f"{options.output}: {told}") + "\n")
    return 0


def write_tables(scores: Artifact, folder: Path) -> dict[str, int]:
    """Write `train.parquet`, `queries.parquet` and `documents.parquet` into a folder.

    Args:
        scores: An artifact that `scoring.write_rows` made.
        folder: An empty folder.

    Returns:
        How many rows each table has.

    Raises:
        UserError: A file of the scores is missing, truncated or edited.
    """
    with ExitStack() as files:
        queries, documents = (
            files.enter_context(closing(TextTable(folder / f"{table}.parquet", identifier)))
            for table, identifier in (("queries", "query_id"), ("documents", "document_id"))
        )
        train = files.enter_context(closing(ShardWriter(folder / "train.parquet", TRAIN_SCHEMA)))
        per_row = scores.spec.settings["documents"]
        for batch in RowReader(scores).scan(["query", "documents", "scores"]):
            ids = documents.ids(batch.column("documents").flatten().to_pylist())
            starts = range(0, len(ids) + 1, per_row)
            columns = [
                pa.array(queries.ids(batch.column("query").to_pylist()), IDS),
                pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(ids, IDS)),
                batch.column("scores"),
            ]
            train.write(pa.table(columns, schema=TRAIN_SCHEMA))
        return {"train": train.rows, "queries": len(queries), "documents": len(documents)}


def card(scores: Artifact, counts: Mapping[str, int]) -> str:
    """The dataset's card: which file is which table, for `datasets` and the Hub, and where the scores come from."""
    return CARD.format(
        configs="".join(CONFIG.format(table=table) for table in counts),
        train=counts["train"],
        per_row=scores.spec.settings["documents"],
        name=scores.name,
        spec=scores.spec.digest,
    )
