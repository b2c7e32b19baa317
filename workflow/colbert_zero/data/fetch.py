"""Fetch a source, a collection or a base into the study's `resources/`: the only step that may use the network.

    python -m colbert_zero.data.fetch --spec JSON [--threads N] [--path FILE_OR_FOLDER]

The first part of the artifact's label says where it comes from:

- `hub.NAME`: a repository of the Hugging Face Hub at `settings.revision`. `HF_ENDPOINT` and `HF_TOKEN` are honoured.
  The manifest records the commit that the revision stood for. After a failure, files that have arrived are kept.
- `file.NAME`, `folder.NAME`: the user's own data at `--path`, whose digest must be the one in the settings.
"""

from __future__ import annotations

import argparse
import fnmatch
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.utils.tqdm import disable_progress_bars

from colbert_zero.data import beir
from colbert_zero.data.beir import Document
from colbert_zero.data.hub import Repository, first_few, hide_addresses
from colbert_zero.data.json_lines import read_lines, read_records
from colbert_zero.data.qrels import FIELD_NAMES, Qrels, add_judgement, read_judgements
from colbert_zero.data.sources import check_file, source_columns
from colbert_zero.graph.artifact import MANIFEST_FILE, SPEC_FILE, Job, content_digest, file_digests, run_step
from colbert_zero.graph.console import UserError, progress
from colbert_zero.graph.data_files import role_of
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.local_files import DigestCache, keep_private, problem_with_file
from colbert_zero.graph.model_folder import check_model_folder
from colbert_zero.graph.registry import COUNTS

MODEL_FILES = (
    *("*.safetensors", "*.json", "artifact.metadata"),
    *("*.txt", "*.model", "*.codes", "*.bpe", "*.spm", "*.tiktoken", "*.tokenizer", "*.vocab", "*.jinja"),
)
"""The files of a model that are fetched: weights without code in them, configurations, what tokenizers read."""
PICKLE_FILES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl")
"""Weights that can run code when they are loaded."""
ROWS_ROLE, SCORED_ROWS_ROLE = "rows", "train"
"""The role of the files that hold a source's rows; the other files of a scored source hold the texts of its ids."""
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
"""Where the Hub's retrieval collections keep their parts; the first glob that matches a file is used."""
OWN_QRELS_GLOBS = ("{split}.tsv", "{split}.jsonl", "{split}.jsonl.gz", "{split}.parquet", "{split}-*.parquet")
"""Where judgements may be, too, in a repository of their own."""


def make(job: Job) -> Mapping[str, Any]:
    """Fetch the artifact that the spec describes.

    Args:
        job: Its kind is `sources`, `collections` or `bases`; its label begins with `hub.`, `file.` or `folder.`.

    Returns:
        The counts and, from the Hub, the `commit`.

    Raises:
        UserError: The data are missing, unreachable, not accessible to the user, damaged, or not as the settings say.
    """
    hide_addresses()
    disable_progress_bars()
    return FETCHERS[job.spec.kind, job.spec.label.partition(".")[0]](job)


# Sources


def fetch_source(job: Job) -> Mapping[str, Any]:
    """Fetch a source from the Hub: keep its files as they are, count its rows, and look at its columns.

    The fact `files` has the paths that match the globs, in the shape of the globs: a list, or lists by role.
    """
    repository, globs, expected = Repository.look_up(job, "dataset"), job.settings["files"], job.settings.get("rows")
    scored = job.settings["format"] == "scored"
    files = {
        role: repository.matching(globs_of_role)
        for role, globs_of_role in (globs if scored else {ROWS_ROLE: globs}).items()
    }
    paths = sorted({path for paths_of_role in files.values() for path in paths_of_role})
    repository.download(paths)
    rows = {role: sum(_count_rows(repository.folder / path) for path in files[role]) for role in files}
    count = rows[SCORED_ROWS_ROLE if scored else ROWS_ROLE]
    if expected is not None and count != expected:
        raise UserError(
            f"{repository.repo_id} at {repository.commit}: {count} rows in {first_few(paths)}, but {expected} are "
            "expected: correct the globs, the revision or the count"
        )
    _refuse_empty(count, f"{repository.repo_id} at {repository.commit}")
    for path in [] if scored else paths:
        check_file(repository.folder / path, source_columns(job.settings))
    repository.publish(paths, job.folder)
    if scored:
        return {**repository.facts, "rows": count, "rows_by_role": rows, "files": files}
    return {**repository.facts, "rows": count, "files": paths}


def copy_source(job: Job) -> Mapping[str, Any]:
    """Copy a source that is the user's own file, or several of a folder.

    The settings have `file` and `sha256`, or `files`: a list of `name` (relative to `--path`) and `sha256`.
    """
    rows, names = 0, []
    for name, original in _copied(job):
        # Read the user's own file, so that an error names a line of that file.
        rows += _count_rows(original)
        check_file(original, source_columns(job.settings))
        names.append(name)
    _refuse_empty(rows, str(_local_path(job)))
    return {"rows": rows, "files": sorted(names)}


def copy_scores(job: Job) -> Mapping[str, Any]:
    """Copy a source that is the user's own folder of a teacher's scores.

    The settings have `files`: a list of `name` and `sha256`. The fact `files` has them by role.
    """
    files: dict[str, list[str]] = {}
    rows: dict[str, int] = {}
    for name, original in _copied(job):
        role = role_of(name)
        if role is None:
            raise UserError(f"{original} is none of the tables of a teacher's scores")
        files.setdefault(role, []).append(name)
        rows[role] = rows.get(role, 0) + _count_rows(original)
    count = rows[SCORED_ROWS_ROLE]
    _refuse_empty(count, str(_local_path(job)))
    return {"rows": count, "rows_by_role": rows, "files": files}


def _copied(job: Job) -> Iterator[tuple[str, Path]]:
    """Copy the user's own files of a source, one after the other; yield each one's name and path.

    Raises:
        UserError: One cannot be read, has a name that none can have, or is not what was planned.
    """
    path, settings = _local_path(job), job.settings
    several = "files" in settings
    digests = (
        {file["name"]: file["sha256"] for file in settings["files"]}
        if several
        else {settings["file"]: settings["sha256"]}
    )
    for name, sha256 in digests.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or str(parts) != name or name in (SPEC_FILE, MANIFEST_FILE):
            raise UserError(f"{name!r} cannot be the name of a source's file: rename the file")
        original = path / name if several else path
        if problem := problem_with_file(original):
            raise UserError(f"{original} {problem}: a source is a Parquet or JSONL(.gz) file")
        if file_digest(_copy(original, job.folder, name)) != sha256:
            DigestCache(Path()).forget([original])
            raise UserError(f"{original} changed since the workflow was planned: run snakemake again")
        yield name, original


def _count_rows(path: Path) -> int:
    """The number of rows of a Parquet or JSONL(.gz) file."""
    if path.suffix == ".parquet":
        try:
            return int(pq.read_metadata(path).num_rows)
        except pa.ArrowInvalid:
            raise UserError(f"{path} is not a Parquet file, or is cut short: download or write it again") from None
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return sum(1 for _ in read_lines(path))
    raise UserError(f"{path} is neither Parquet nor JSONL(.gz): a source needs .parquet, .jsonl or .jsonl.gz files")


def _refuse_empty(rows: int, where: str) -> None:
    """Raise a UserError if there are no rows."""
    if not rows:
        raise UserError(f"{where}: no rows; leave the source out, or correct it")


# Collections


def fetch_collection(job: Job) -> Mapping[str, Any]:
    """Fetch a collection from the Hub: convert it to BEIR format, keep its judged queries, and check its counts.

    The settings may have `qrels`, the `hub` and `revision` of the repository that has the judgements, and counts of
    what the collection must have.
    """
    split, own_qrels = job.settings["split"], job.settings.get("qrels")
    repository = Repository.look_up(job, "dataset")
    corpus_paths, queries_paths = (_find_part(repository, part, CORPUS_GLOBS, split) for part in ("corpus", "queries"))
    judged = Repository.look_up(job, "dataset", own_qrels) if own_qrels else repository
    qrels_paths = _find_part(judged, "qrels", (*QRELS_GLOBS, *(OWN_QRELS_GLOBS if own_qrels else ())), split)
    repository.download([*corpus_paths, *queries_paths])
    judged.download(qrels_paths)
    qrels = _read_qrels([judged.folder / path for path in qrels_paths])
    beir.write_collection(
        job.folder,
        progress(
            _read_documents([repository.folder / path for path in corpus_paths]),
            job.settings.get("documents"),
            "documents",
        ),
        _read_judged_queries([repository.folder / path for path in queries_paths], qrels),
        qrels,
        split,
    )
    facts = beir.check_collection(job.folder, split)
    mismatches = [
        f"{facts[name]} {name} (expected {job.settings[name]})"
        for name in COUNTS
        if facts[name] != job.settings.get(name, facts[name])
    ]
    if mismatches:
        raise UserError(
            f"{repository.repo_id} at {repository.commit}, split {split}: {', '.join(mismatches).replace('_', ' ')}: "
            "correct the revision, the split or the counts"
        )
    return {**repository.facts, **({"qrels": judged.facts} if own_qrels else {}), **facts}


def copy_collection(job: Job) -> Mapping[str, Any]:
    """Copy a collection that is the user's own folder in BEIR format."""
    path, split = _local_folder(job), job.settings["split"]
    collection = beir.Collection.open(path, split)
    for file in (collection.corpus_file, collection.queries_file, collection.qrels_file):
        _copy(file, job.folder, file.relative_to(path).as_posix())
    # Check the user's own folder, so that an error names a line of a file in that folder.
    return beir.check_collection(path, split)


def _find_part(repository: Repository, part: str, globs: Iterable[str], split: str) -> list[str]:
    """The files of one part of a collection: `corpus`, `queries` or `qrels`."""
    candidates = [glob.format(part=part, split=split) for glob in globs]
    # A repository with several configurations has a folder for each, and that of `default` may hold the collection.
    for glob in [*candidates, *(f"default/{glob}" for glob in candidates)]:
        paths = fnmatch.filter(sorted(repository.files), glob)
        if paths:
            return paths
    advice = (
        "correct the split, or name the judgements' own repository: qrels: { hub: OWNER/NAME-qrels }"
        if part == "qrels"
        else "name a repository in MTEB's or BEIR's layout"
    )
    raise UserError(
        f"{repository.repo_id} at {repository.commit} has no {part} of split {split} (looked for "
        f"{', '.join(candidates)}); it has {first_few(repository.files)}: {advice}"
    )


def _read_documents(paths: Iterable[Path]) -> Iterator[Document]:
    for path in paths:
        for where, record in _read_records(path):
            yield Document(_id(record, ("_id", "id"), where), record.get("title") or "", record.get("text") or "")


def _read_judged_queries(paths: Iterable[Path], qrels: Qrels) -> dict[str, str]:
    """Query text by id, for the queries with a judgement: the files hold the queries of all splits."""
    queries: dict[str, str] = {}
    for path in paths:
        for where, record in _read_records(path):
            query = _id(record, ("_id", "id"), where)
            if query in queries:
                raise UserError(f"{where}: query {query!r} is there twice")
            if query in qrels:
                queries[query] = record.get("text") or ""
    return queries


def _read_qrels(paths: Sequence[Path]) -> Qrels:
    if paths[0].suffix == ".tsv":
        return read_judgements(paths[0])
    qrels: Qrels = {}
    for path in paths:
        for where, record in _read_records(path):
            query, document = (_id(record, FIELD_NAMES[field], where) for field in ("query-id", "corpus-id"))
            _, score = _first_value(record, FIELD_NAMES["score"], where)
            add_judgement(qrels, query, document, score, where)
    return qrels


def _read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream the records of a Parquet or JSONL(.gz) file, each with its place (file and line, or row) for messages."""
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


def _id(record: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    name, value = _first_value(record, names, where)
    return beir.checked_id(value, name, where)


def _first_value(record: Mapping[str, Any], names: Sequence[str], where: str) -> tuple[str, Any]:
    """The first of the fields `names` that the record has, and its value."""
    for name in names:
        if record.get(name) is not None:
            return name, record[name]
    raise UserError(f"{where}: no {' or '.join(names)}; it has {first_few(map(str, record))}")


# Bases


def fetch_base(job: Job) -> Mapping[str, Any]:
    """Fetch a model from the Hub: weights as safetensors, configurations, tokenizer; no file that can run code."""
    repository = Repository.look_up(job, "model")
    paths = _model_files(repository.files, f"{repository.repo_id} at {repository.commit}")
    repository.download(paths)
    check_model_folder(repository.folder, f"{repository.repo_id} at {repository.commit}")
    repository.publish(paths, job.folder)
    return repository.facts


def copy_base(job: Job) -> Mapping[str, Any]:
    """Copy a model that is the user's own folder; the fact `path` says which."""
    path = _local_folder(job)
    check_model_folder(path)
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    for name in _model_files(names, str(path)):
        _copy(path / name, job.folder, name)
    return {"path": str(path)}


def _model_files(names: Iterable[str], where: str) -> list[str]:
    """Select the files of a model that are fetched, sorted.

    Raises:
        UserError: The model, or a module folder of it, has no weights as safetensors.
    """
    names = sorted(name for name in names if name not in (SPEC_FILE, MANIFEST_FILE) and not name.startswith("."))
    selected = [name for name in names if _matches_any(name, MODEL_FILES)]
    safe_folders = {PurePosixPath(name).parent for name in selected if name.endswith(".safetensors")}
    pickled = [name for name in names if _matches_any(name, PICKLE_FILES)]
    weights = [name for name in pickled if _matches_any(name, PICKLE_FILES[:1])]
    unusable = [
        name for name in (weights if safe_folders else pickled) if PurePosixPath(name).parent not in safe_folders
    ]
    if unusable:
        raise UserError(
            f"{where} has weights only as pickle ({first_few(unusable)}), which can run code when loaded: save them as "
            "safetensors and give that folder"
        )
    if not safe_folders:
        raise UserError(
            f"{where} has no weights as safetensors, so it is no model to start from; it has {first_few(names)}"
        )
    return selected


def _matches_any(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(PurePosixPath(name).name, glob) for glob in globs)


# The user's own files


def _local_path(job: Job) -> Path:
    """The file or folder at `--path`."""
    if not job.options.path:
        raise UserError(f"{job.spec.name}: --path is missing: the local file or folder")
    return Path(job.options.path)


def _copy(path: Path, folder: Path, name: str) -> Path:
    """Copy a file into the artifact's folder under `name`; the folder becomes as private as the file."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    keep_private(folder, path)
    shutil.copyfile(path, target)
    return target


def _local_folder(job: Job) -> Path:
    """The folder at `--path`, whose digest must be the one in the settings, and whose links must stay inside it."""
    path = _local_path(job)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder")
    root = path.resolve()
    for inner in sorted(root.rglob("*")):
        if inner.is_symlink() and not inner.resolve().is_relative_to(root):
            raise UserError(f"{inner} is a link out of its folder: give a copy with the links resolved (cp -rL)")
    if content_digest(file_digests(path)) != job.settings["sha256"]:
        DigestCache(Path()).forget([path])
        raise UserError(f"{path} changed since the workflow was planned: run snakemake again")
    keep_private(job.folder, path)
    return path


FETCHERS: Mapping[tuple[str, str], Callable[[Job], Mapping[str, Any]]] = {
    ("sources", "hub"): fetch_source,
    ("sources", "file"): copy_source,
    ("sources", "folder"): copy_scores,
    ("collections", "hub"): fetch_collection,
    ("collections", "folder"): copy_collection,
    ("bases", "hub"): fetch_base,
    ("bases", "folder"): copy_base,
}
"""The function that fetches an artifact, by its kind and the first part of its label."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the step's own flag."""
    parser.add_argument("--path", default="", help="the local file or folder, for file.NAME and folder.NAME")


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_options))
