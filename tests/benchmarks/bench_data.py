"""From a source's files to every batch of an epoch: our shards against `datasets`, on the same rows in the same run.

    make bench-data
    python tests/benchmarks/bench_data.py [--rows N] [--growth N N ...] [--processes N] [--folder FOLDER]

The peer does as the reference does: load, shuffle, save, then read batches through a random permutation of all rows.
Both end with the same rows in batches, which is checked.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero.graph.artifact import MANIFEST_FILE, SPEC_FILE, Spec, file_digests
from measured import Measured, measure, table, work_folder

ROWS_PER_FILE = 100_000
BATCH = 16_384
QUERY_WORDS, DOCUMENT_WORDS = (8, 0.6), (60, 0.9)
"""Median and sigma of log-normal lengths: means of 10 and 90 words, as in web questions and passages."""


def texts(generator: np.random.Generator, rows: int, median: float, sigma: float, words: str) -> Iterator[str]:
    """Pieces of `words` of log-normal lengths, each from a place of its own."""
    lengths = np.exp(generator.normal(np.log(median), sigma, rows)).clip(1, 2000)
    starts = generator.integers(0, len(words) // 2, rows)
    for start, length in zip(starts.tolist(), (lengths * 6).astype(int).tolist(), strict=True):
        yield words[start : start + length].strip()


def generate(folder: Path, rows: int) -> int:
    """Write a source's files; the characters of all its texts."""
    generator = np.random.default_rng(7)
    letters = np.array(list("etaoinshrdlcumwfgypbvk"))
    spaces = np.cumsum(generator.integers(2, 10, 4_000_000))
    characters = letters[generator.integers(0, len(letters), int(spaces[-1]) + 1)]
    characters[spaces] = " "
    words = "".join(characters)
    total = 0
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, rows, ROWS_PER_FILE)):
        count = min(ROWS_PER_FILE, rows - first)
        queries = [f"{first + row} {text}" for row, text in enumerate(texts(generator, count, *QUERY_WORDS, words))]
        documents = [text or "x" for text in texts(generator, count, *DOCUMENT_WORDS, words)]
        total += sum(map(len, queries)) + sum(map(len, documents))
        file = pa.table({"query": queries, "document": documents})
        pq.write_table(file, folder / f"part-{number:04d}.parquet", compression="zstd", row_group_size=10_000)
    return total


def ours(folder: Path, processes: int) -> tuple[Measured, Measured]:
    """Shards of the files, then all batches of an epoch."""
    study = folder / "study"
    source = Spec("sources", "hub.mine", {"columns": {"query": "query", "document": "document"}, "format": "rows"})
    shutil.copytree(folder / "files", study / source.folder, copy_function=_link)
    (study / source.folder / SPEC_FILE).write_text(source.text)
    manifest = {"outputs": file_digests(study / source.folder), "facts": {}}
    (study / source.folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    settings = {"rows_per_shard": ROWS_PER_FILE, "minimum_characters": 1, "maximum_characters": None, "seed": 7}
    shards = Spec("shards", "mine", settings, {"source": [source.name]})
    plan = Spec("batches", "unsupervised", {"batch_size": BATCH, "epochs": 1, "seed": 7}, {"rows": [shards.name]})
    module = [sys.executable, "-m"]
    made = measure([*module, "colbert_zero.data.shards", "--spec", shards.text, "--threads", str(processes)], study)
    planned = measure([*module, "colbert_zero.data.batches", "--spec", plan.text], study)
    read = measure([sys.executable, str(Path(__file__).with_name("read_ours.py")), plan.text, shards.name], study)
    return made, _one_after_the_other(planned, read)


def _one_after_the_other(first: Measured, second: Measured) -> Measured:
    return Measured(
        first.seconds + second.seconds,
        max(first.resident, second.resident),
        max(first.anonymous, second.anonymous),
        max(first.largest, second.largest),
        second.output,
    )


def _link(path: str, target: str) -> None:
    Path(target).hardlink_to(path)


def theirs(folder: Path) -> tuple[Measured, Measured]:
    """The same with `datasets`."""
    script = str(Path(__file__).with_name("read_theirs.py"))
    saved = measure([sys.executable, script, "save", str(folder / "files"), str(folder / "saved")], folder)
    return saved, measure([sys.executable, script, "read", str(folder / "saved"), str(BATCH)], folder)


def check(output: str, rows: int, characters: int) -> None:
    """The batches hold all rows but those of a last, partial one."""
    found = json.loads(output.splitlines()[-1])
    assert found["rows"] == rows // BATCH * BATCH, found
    assert abs(found["characters"] / characters - found["rows"] / rows) < 0.01, (found, characters)


def line(name: str, rows: int, made: Measured, read: Measured) -> tuple[object, ...]:
    seconds = made.seconds + read.seconds
    return (
        name,
        f"{rows:,}",
        f"{made.seconds:.0f}",
        f"{read.seconds:.0f}",
        f"{rows / seconds:,.0f}",
        f"{1e6 * seconds / rows:.1f}",
        max(made.resident, read.resident),
        max(made.anonymous, read.anonymous),
        max(made.largest, read.largest),
    )


def main() -> None:
    """Measure, print the table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000, help="rows for both")
    parser.add_argument("--growth", type=int, nargs="*", default=[1_000_000, 10_000_000], help="rows for ours alone")
    parser.add_argument("--processes", type=int, default=2, help="processes that make our shards")
    parser.add_argument("--folder", type=work_folder, help="where to write some 15 GB; by default in TMPDIR")
    options = parser.parse_args()
    lines, ratios = [], ""
    for rows in sorted([options.rows, *options.growth]):
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            characters = generate(folder / "files", rows)
            made, read = ours(folder, options.processes)
            check(read.output, rows, characters)
            lines.append(line("ours", rows, made, read))
            if rows == options.rows:
                saved, walked = theirs(folder)
                check(walked.output, rows, characters)
                lines.append(line("datasets", rows, saved, walked))
                speed = (saved.seconds + walked.seconds) / (made.seconds + read.seconds)
                memory = max(made.resident, read.resident) / max(saved.resident, walked.resident)
                ratios = f"{rows:,} rows: {speed:.1f} times the rows/s, {memory:.2f} of the memory"
    header = ("", "rows", "shards, s", "batches, s", "rows/s", "us/row", "MiB", "MiB, no files", "MiB, one process")
    print(table(header, lines))
    print(ratios)


if __name__ == "__main__":
    main()
