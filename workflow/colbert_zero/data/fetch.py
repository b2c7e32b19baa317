"""Bring what comes from outside into the study's `resources/`: the one step that may use the network.

    python -m colbert_zero.data.fetch --spec JSON [--threads N] [--path FILE_OR_FOLDER]

What is fetched is a source, a collection or a base; where from is the first part of its label:

- `hub.NAME`: a repository of the Hugging Face Hub at `settings.revision`. `HF_ENDPOINT` and `HF_TOKEN` are honoured.
  The commit that the revision stood for is in the manifest. After a failure, files that had arrived stay.
- `file.NAME`, `folder.NAME`: one's own data at `--path`, whose digest must be the one in the settings.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.utils.tqdm import disable_progress_bars

from colbert_zero.data import beir
from colbert_zero.data.beir import Document, Qrels
from colbert_zero.data.hub import Repository, first_few
from colbert_zero.data.json_lines import read_lines, read_records
from colbert_zero.graph.artifact import MANIFEST, SPEC, Job, content_digest, file_digests, run_step
from colbert_zero.graph.console import UserError, progress
from colbert_zero.graph.digests import file_digest

MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
"""What a model needs: weights without code in them, configurations, tokenizers."""
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl")
"""Weights that could run code when loaded."""
ROWS, SCORED_ROWS = "rows", "train"
"""The role of the files that hold a source's rows; a scored source's others hold the texts those refer to."""
COUNTS = ("documents", "queries", "positive_judgements")
"""What a registered collection is checked for."""

CORPUS_GLOBS = (
    "{part}.jsonl",
    "{part}.jsonl.gz",
    "{part}.parquet",
    "{part}/{part}-*.parquet",
    "{part}/{split}-*.parquet",
    "{part}/*.parquet",
    "{part}/*.jsonl",
    "{part}/*.jsonl.gz",
)
QRELS_GLOBS = (
    "qrels/{split}.tsv",
    "qrels/{split}.jsonl",
    "qrels/{split}.jsonl.gz",
    "qrels/{split}.parquet",
    "qrels/{split}-*.parquet",
    "qrels/{split}/*.parquet",
    "data/{split}-*.parquet",
    "default/{split}.jsonl",
    "default/{split}-*.parquet",
    "default/{split}/*.parquet",
)
"""Where the Hub's retrieval collections keep their parts; the first glob that finds anything counts."""


def make(job: Job) -> Mapping[str, Any]:
    """Fetch the artifact that the spec describes.

    Args:
        job: Its kind is `sources`, `collections` or `bases`, its label begins with `hub.`, `file.` or `folder.`.

    Returns:
        What was counted and, from the Hub, the `commit`.

    Raises:
        UserError: It is not there, not reachable, not allowed, damaged, or not what the settings say it is.
    """
    for noisy in ("httpx", "huggingface_hub"):
        # Their lines would hold the signed addresses of files.
        logging.getLogger(noisy).setLevel(logging.ERROR)
    disable_progress_bars()
    return FETCHERS[job.spec.kind, job.spec.label.partition(".")[0]](job)


# Sources


def fetch_source(job: Job) -> Mapping[str, Any]:
    """A source from the Hub: its files as they are, its rows counted.

    The facts have `files`, the paths behind the globs, shaped as the globs are: a list, or lists by role.
    """
    repository, globs, expected = Repository.of(job, "dataset"), job.settings["files"], job.settings["rows"]
    scored = job.settings["format"] == "scored"
    files = {role: repository.matching(given) for role, given in (globs if scored else {ROWS: globs}).items()}
    paths = sorted({path for found in files.values() for path in found})
    repository.download(paths)
    rows = {role: sum(_rows(repository.folder / path) for path in found) for role, found in files.items()}
    count = rows[SCORED_ROWS if scored else ROWS]
    if expected is not None and count != expected:
        raise UserError(
            f"{repository.hub} at {repository.commit}: {count} rows in {first_few(paths)}, but {expected} are expected: "
            "correct the globs, the revision or the count"
        )
    _refuse_empty(count, f"{repository.hub} at {repository.commit}")
    repository.publish(paths, job.folder)
    if scored:
        return {**repository.facts, "rows": count, "rows_by_role": rows, "files": files}
    return {**repository.facts, "rows": count, "files": paths}


def copy_source(job: Job) -> Mapping[str, Any]:
    """A source that is one's own file."""
    path = _local_path(job)
    name = job.settings["file"]
    if PurePosixPath(name).name != name or name in (SPEC, MANIFEST):
        raise UserError(f"{name!r} cannot be a source's file name: rename the file")
    if not path.is_file():
        raise UserError(f"{path} is not a file: a source is a Parquet or JSONL(.gz) file")
    copy = job.folder / name
    shutil.copyfile(path, copy)
    if file_digest(copy) != job.settings["sha256"]:
        raise UserError(f"{path} changed since the workflow was planned: run snakemake again")
    # Counted where the user has it, so that a bad line is named there.
    rows = _rows(path)
    _refuse_empty(rows, str(path))
    return {"rows": rows, "files": [name]}


def _rows(path: Path) -> int:
    """How many rows a Parquet or JSONL(.gz) file has."""
    if path.suffix == ".parquet":
        try:
            return int(pq.read_metadata(path).num_rows)
        except pa.ArrowInvalid:
            raise UserError(f"{path} is not a Parquet file, or is cut short: get or write it again") from None
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return sum(1 for _ in read_lines(path))
    raise UserError(f"{path} is neither Parquet nor JSONL(.gz): a source needs .parquet, .jsonl or .jsonl.gz files")


def _refuse_empty(rows: int, where: str) -> None:
    if not rows:
        raise UserError(f"{where}: no rows; leave the source out, or correct it")


# Collections


def fetch_collection(job: Job) -> Mapping[str, Any]:
    """A collection from the Hub: brought into BEIR format, its judged queries kept, its counts checked."""
    split = job.settings["split"]
    repository = Repository.of(job, "dataset")
    corpus, queries, qrels = (
        _part(repository, part, globs, split)
        for part, globs in (("corpus", CORPUS_GLOBS), ("queries", CORPUS_GLOBS), ("qrels", QRELS_GLOBS))
    )
    repository.download([*corpus, *queries, *qrels])
    judgements = _judgements([repository.folder / path for path in qrels], split)
    beir.write_collection(
        job.folder,
        progress(_documents([repository.folder / path for path in corpus]), job.settings["documents"], "documents"),
        _judged([repository.folder / path for path in queries], judgements),
        judgements,
        split,
    )
    facts = beir.check(job.folder, split)
    wrong = [
        f"{facts[field]} {field} (expected {job.settings[field]})"
        for field in COUNTS
        if facts[field] != job.settings[field]
    ]
    if wrong:
        raise UserError(
            f"{repository.hub} at {repository.commit}, split {split}: {', '.join(wrong).replace('_', ' ')}: another "
            "revision or split than the one that was counted?"
        )
    return {**repository.facts, **facts}


def copy_collection(job: Job) -> Mapping[str, Any]:
    """A collection that is one's own folder in BEIR format."""
    path, split = _local_folder(job), job.settings["split"]
    collection = beir.Collection.open(path, split)
    (job.folder / "qrels").mkdir()
    for file in (collection.corpus, collection.queries_file, collection.qrels_file):
        shutil.copyfile(file, job.folder / file.relative_to(path))
    # Checked where the user has it, so that a bad line is named there.
    return beir.check(path, split)


def _part(repository: Repository, part: str, globs: Iterable[str], split: str) -> list[str]:
    tried = [glob.format(part=part, split=split) for glob in globs]
    # Repositories with several configurations keep each in a folder, of which `default` may be the top.
    for glob in [*tried, *(f"default/{glob}" for glob in tried)]:
        found = fnmatch.filter(sorted(repository.files), glob)
        if found:
            return found
    raise UserError(
        f"{repository.hub} at {repository.commit} has no {part} of split {split} (looked for {', '.join(tried)}); "
        f"it has {first_few(repository.files)}"
    )


def _documents(paths: Iterable[Path]) -> Iterator[Document]:
    for path in paths:
        for where, record in _records(path):
            yield Document(_field(record, ("_id", "id"), where), record.get("title") or "", record.get("text") or "")


def _judged(paths: Iterable[Path], qrels: Qrels) -> dict[str, str]:
    """Text by id of the queries that have a judgement: a repository's file holds those of all its splits."""
    queries: dict[str, str] = {}
    for path in paths:
        for where, record in _records(path):
            query = _field(record, ("_id", "id"), where)
            if query in queries:
                raise UserError(f"{where}: query {query!r} is there twice")
            if query in qrels:
                queries[query] = record.get("text") or ""
    return queries


def _judgements(paths: Sequence[Path], split: str) -> Qrels:
    if paths[0].suffix == ".tsv":
        return beir.read_qrels(paths[0].parents[1], split)
    qrels: Qrels = {}
    for path in paths:
        for where, record in _records(path):
            query, document = _field(record, ("query-id",), where), _field(record, ("corpus-id",), where)
            score = _field(record, ("score",), where)
            try:
                grade = float(score)
            except ValueError:
                grade = math.nan
            if not grade.is_integer() or qrels.setdefault(query, {}).setdefault(document, int(grade)) != int(grade):
                raise UserError(
                    f"{where}: the score of {document!r} for {query!r} is not a whole number, or there are two"
                )
    return qrels


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of a Parquet or JSONL(.gz) file, streamed."""
    if path.suffix != ".parquet":
        yield from ((f"{path}:{number}", record) for number, record in read_records(path))
        return
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=4096):
            for record in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", record
    except pa.ArrowInvalid:
        raise UserError(f"{path} is not a Parquet file, or is damaged after row {number}") from None


def _field(record: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    for name in names:
        if record.get(name) is not None:
            return str(record[name])
    raise UserError(f"{where}: no {' or '.join(names)}")


# Bases


def fetch_base(job: Job) -> Mapping[str, Any]:
    """A model from the Hub: weights as safetensors, configurations, tokenizer; nothing that can run."""
    repository = Repository.of(job, "model")
    paths = _model_files(repository.files, f"{repository.hub} at {repository.commit}")
    repository.download(paths)
    repository.publish(paths, job.folder)
    return repository.facts


def copy_base(job: Job) -> Mapping[str, Any]:
    """A model that is one's own folder."""
    path = _local_folder(job)
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    for name in _model_files(names, str(path)):
        target = job.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / name, target)
    return {}


def _model_files(names: Iterable[str], where: str) -> list[str]:
    """Those of a model's files that are used, sorted.

    Raises:
        UserError: It has no weights as safetensors, or a part of it has not.
    """
    names = sorted(name for name in names if name not in (SPEC, MANIFEST) and not name.startswith("."))
    used = [name for name in names if _matches_any(name, MODEL_FILES)]
    whole = {PurePosixPath(name).parent for name in used if name.endswith(".safetensors")}
    pickled = [name for name in names if _matches_any(name, PICKLES)]
    weights = [name for name in pickled if _matches_any(name, PICKLES[:1])]
    unusable = [name for name in (weights if whole else pickled) if PurePosixPath(name).parent not in whole]
    if unusable:
        raise UserError(
            f"{where} has weights only as pickle ({first_few(unusable)}), which can run code when loaded: save them as "
            "safetensors and give that folder"
        )
    if not whole:
        raise UserError(
            f"{where} has no weights as safetensors, so it is no model to start from; it has {first_few(names)}"
        )
    return used


def _matches_any(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(PurePosixPath(name).name, glob) for glob in globs)


# One's own files


def _local_path(job: Job) -> Path:
    if not job.options.path:
        raise UserError(f"{job.spec.name}: --path is missing: the local file or folder")
    return Path(job.options.path)


def _local_folder(job: Job) -> Path:
    """The folder at `--path`, if it is the one that was planned with and keeps to itself."""
    path = _local_path(job)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder")
    root = path.resolve()
    for inner in sorted(root.rglob("*")):
        if inner.is_symlink() and not inner.resolve().is_relative_to(root):
            raise UserError(f"{inner} is a link out of its folder: give a copy with the links resolved (cp -rL)")
    if content_digest(file_digests(path)) != job.settings["sha256"]:
        raise UserError(f"{path} changed since the workflow was planned: run snakemake again")
    return path


FETCHERS: Mapping[tuple[str, str], Callable[[Job], Mapping[str, Any]]] = {
    ("sources", "hub"): fetch_source,
    ("sources", "file"): copy_source,
    ("collections", "hub"): fetch_collection,
    ("collections", "folder"): copy_collection,
    ("bases", "hub"): fetch_base,
    ("bases", "folder"): copy_base,
}
"""By an artifact's kind and the first part of its label, how it is fetched."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", default="", help="the local file or folder, for file.NAME and folder.NAME")


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=_add_options))
