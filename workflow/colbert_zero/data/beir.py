"""Collections in BEIR format: `corpus.jsonl`, `queries.jsonl` (either may be `.gz`) and `qrels/SPLIT.tsv`.

Every collection passes through `check_collection`, which rejects a collection that cannot be evaluated, and counts
oddities. Only judged queries are evaluated: a query without a judgement in the split is left out of every run and mean.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from colbert_zero.data.json_lines import read_records
from colbert_zero.data.qrels import Qrels, read_judgements, write_judgements
from colbert_zero.data.text import document_text
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.console import UserError, log
from colbert_zero.graph.json_values import kind_of

CORPUS_FILE, QUERIES_FILE, DEFAULT_SPLIT = "corpus.jsonl", "queries.jsonl", "test"
BYTE_ORDER_MARK = "\ufeff"
MAXIMUM_UNKNOWN_SHARE = 0.1
"""The share of judgements of unknown documents or queries above which a collection gets a warning."""

Judgement = tuple[str, str, int]
"""Query id, document id and grade."""


class Document(NamedTuple):
    """A record of the corpus; `text.document_text` makes the text that a model sees."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Collection:
    """The files of a corpus, its queries, and the judgements of one split.

    Attributes:
        corpus_file: `corpus.jsonl` or `corpus.jsonl.gz`.
        queries_file: `queries.jsonl` or `queries.jsonl.gz`.
        qrels_file: `qrels/SPLIT.tsv`.
    """

    corpus_file: Path
    queries_file: Path
    qrels_file: Path

    @classmethod
    def open(cls, source: Artifact | Path, split: str | None = None) -> Collection:
        """Find the files of a collection.

        Args:
            source: A published collection, whose files are checked by digest, or any BEIR-format folder.
            split: The split of the judgements; by default that of the artifact, else `test`.

        Raises:
            UserError: A file is missing, or differs from the published one.
        """
        if isinstance(source, Artifact):
            split = split or source.spec.settings.get("split")
        split = split or DEFAULT_SPLIT
        folder = source.folder if isinstance(source, Artifact) else source
        files = (_find_file(folder, CORPUS_FILE), _find_file(folder, QUERIES_FILE), _qrels_file(folder, split))
        if isinstance(source, Artifact):
            files = (
                source.file(files[0].name),
                source.file(files[1].name),
                source.file(files[2].relative_to(folder).as_posix()),
            )
        return cls(*files)

    def documents(self) -> Iterator[Document]:
        """Yield the documents in the corpus's order."""
        for _, document in _read_documents(self.corpus_file):
            yield document

    @cached_property
    def queries(self) -> dict[str, str]:
        """Text by id of all queries, in the file's order."""
        return _read_queries(self.queries_file)

    @cached_property
    def qrels(self) -> Qrels:
        """The split's judgements, including those of unknown documents and queries."""
        return read_judgements(self.qrels_file)

    @property
    def judged_queries(self) -> dict[str, str]:
        """Text by id of the queries with a judgement, in the file's order: only these are evaluated."""
        return {query: text for query, text in self.queries.items() if query in self.qrels}


def read_corpus(folder: Path) -> Iterator[Document]:
    """Stream the documents of a BEIR-format folder."""
    for _, document in _read_documents(_find_file(folder, CORPUS_FILE)):
        yield document


def read_queries(folder: Path) -> dict[str, str]:
    """Text by id of all queries of a BEIR-format folder, in the file's order."""
    return _read_queries(_find_file(folder, QUERIES_FILE))


def read_qrels(folder: Path, split: str = DEFAULT_SPLIT) -> Qrels:
    """The judgements of one split of a BEIR-format folder."""
    return read_judgements(_qrels_file(folder, split))


def check_collection(folder: Path, split: str = DEFAULT_SPLIT) -> dict[str, int]:
    """Read a whole collection once: reject it if it cannot be evaluated, and count its parts.

    Args:
        folder: A BEIR-format folder.
        split: The split of the judgements.

    Returns:
        Counts: `documents`; `queries` (those with a judgement) and `unjudged_queries`; `judgements` and
        `positive_judgements` (grade above 0); `judgements_of_unknown_documents` and `judgements_of_unknown_queries`,
        which are kept and count as never retrieved; `empty_documents` and `empty_queries`.

    Raises:
        UserError: A file is missing or malformed, an id occurs twice, or there is nothing to evaluate: no judgement is
            positive and of a known query and document, or all documents or queries are empty.
    """
    collection = Collection.open(folder, split)
    document_ids: dict[str, None] = {}  # in the corpus's order, for messages
    empty_documents = 0
    for number, document in _read_documents(collection.corpus_file):
        if document.id in document_ids:
            raise UserError(f"{collection.corpus_file}:{number}: document {document.id!r} is there twice; keep one")
        document_ids[document.id] = None
        empty_documents += not document_text(document.title, document.text)
    if not document_ids:
        raise UserError(f"{collection.corpus_file}: no document in it; a collection needs at least one document")
    judged_queries, known_queries = collection.judged_queries, collection.queries.keys()
    judgements = [
        (query, document, grade) for query, row in collection.qrels.items() for document, grade in row.items()
    ]
    if not any(
        grade > 0 and document in document_ids and query in known_queries for query, document, grade in judgements
    ):
        raise UserError(_no_relevant_document(collection, document_ids, judgements))
    facts = {
        "documents": len(document_ids),
        "queries": len(judged_queries),
        "unjudged_queries": len(known_queries) - len(judged_queries),
        "judgements": len(judgements),
        "positive_judgements": sum(grade > 0 for _, _, grade in judgements),
        "judgements_of_unknown_documents": sum(document not in document_ids for _, document, _ in judgements),
        "judgements_of_unknown_queries": sum(query not in known_queries for query, _, _ in judgements),
        "empty_documents": empty_documents,
        "empty_queries": sum(not text.strip() for text in judged_queries.values()),
    }
    for path, part in ((collection.corpus_file, "documents"), (collection.queries_file, "queries")):
        if facts[f"empty_{part}"] == facts[part]:
            raise UserError(f"{path}: each of the {facts[part]} {part} is empty; their texts belong under text")
    for name in (name for name in facts if name.startswith(("unjudged", "judgements_of", "empty")) and facts[name]):
        log.info("%s (%s): %d %s", folder, split, facts[name], name.replace("_", " "))
    judged_documents = dict.fromkeys(document for _, document, _ in judgements)
    for part, judged, known in (
        ("documents", judged_documents, document_ids),
        ("queries", collection.qrels, known_queries),
    ):
        unknown = facts[f"judgements_of_unknown_{part}"]
        if unknown > MAXIMUM_UNKNOWN_SHARE * len(judgements):
            log.warning(
                "%s: warning: %d of %d judgements are of unknown %s, such as %s, where the collection has %s: "
                "they count as never retrieved",
                *(collection.qrels_file, unknown, len(judgements), part),
                *(_first_ids(name for name in judged if name not in known), _first_ids(known)),
            )
    return facts


def _no_relevant_document(collection: Collection, document_ids: Mapping[str, None], judgements: list[Judgement]) -> str:
    """Why no judgement is positive and of a known query and document, with the first ids of both sides."""
    path = collection.qrels_file
    if not judgements:
        return f"{path}: no judgement in it: nothing to evaluate"
    positive = [(query, document) for query, document, grade in judgements if grade > 0]
    if not positive:
        return f"{path}: none of its {len(judgements)} scores is above 0: nothing to evaluate"
    sides = (
        ("query", [query for query, _ in positive], collection.queries_file, collection.queries),
        ("document", [document for _, document in positive], collection.corpus_file, document_ids),
    )
    for part, judged, file, known in sides:
        if not any(name in known for name in judged):
            return (
                f"{path}: judges no {part} of {file.name}: it has {_first_ids(dict.fromkeys(judged))}, {file.name} has "
                f"{_first_ids(known)}: nothing to evaluate; ids are compared as texts"
            )
    return (
        f"{path}: none of its {len(positive)} positive judgements is of a known query and a known document, such as "
        f"{positive[0]}: nothing to evaluate"
    )


def _first_ids(names: Iterable[str]) -> str:
    return ", ".join(f"{name!r:.60}" for name in islice(names, 3)) or "none"


def write_collection(
    folder: Path,
    documents: Iterable[Document],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    split: str = DEFAULT_SPLIT,
) -> None:
    """Write a BEIR-format folder: the same arguments give the same bytes.

    Args:
        folder: The folder to write into; it exists.
        documents: The corpus, written while it is iterated.
        queries: Text by id.
        qrels: Grade by query id and document id.
        split: The split of the judgements, which names the qrels file.
    """
    with (folder / CORPUS_FILE).open("w", encoding="utf-8", newline="\n") as file:
        for document in documents:
            file.write(_json_line({"_id": document.id, "title": document.title, "text": document.text}))
    with (folder / QUERIES_FILE).open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_json_line({"_id": query, "text": text}) for query, text in queries.items())
    path = _qrels_path(folder, split)
    path.parent.mkdir(exist_ok=True)
    write_judgements(path, qrels)


def _read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, record in read_records(path):
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(f"{path}:{number}: half a surrogate pair, which is JSON but not text; correct it") from None
        yield number, record


def _read_documents(path: Path) -> Iterator[tuple[int, Document]]:
    for number, record in _read_records(path):
        where = f"{path}:{number}"
        yield number, Document(_id(record, where), _string(record, "title", where), _text(record, where))


def _read_queries(path: Path) -> dict[str, str]:
    queries: dict[str, str] = {}
    for number, record in _read_records(path):
        where = f"{path}:{number}"
        query = _id(record, where)
        if query in queries:
            raise UserError(f"{where}: query {query!r} is there twice; keep one")
        queries[query] = _text(record, where)
    return queries


def _id(record: Mapping[str, Any], where: str) -> str:
    return checked_id(record.get("_id"), "_id", where)


def checked_id(value: object, field: str, where: str) -> str:
    """An id as text: one that a file has as text or as a whole number.

    Raises:
        UserError: It is neither, or cannot be written into a run.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or value == "":
        raise UserError(f"{where}: no {field}, or an empty one")
    if not isinstance(value, str):
        raise UserError(f"{where}: {field} is {value!r:.60}, not a string; write ids as strings")
    if value.startswith(BYTE_ORDER_MARK):
        raise UserError(f"{where}: {field} {value!r:.200} begins with a byte order mark; remove it")
    # Only ASCII white space separates the fields of a TREC run; names of Wikipedia pages contain other white space.
    if any(space in value for space in string.whitespace):
        raise UserError(
            f"{where}: {field} {value!r:.200} contains white space, which a TREC run cannot hold; rename it"
        )
    return value


def _text(record: Mapping[str, Any], where: str) -> str:
    if "text" not in record:
        raise UserError(f"{where}: no text; write an empty text as an empty string")
    return _string(record, "text", where)


def _string(record: Mapping[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {field} must be a text or null, not {kind_of(value)}")
    return value or ""


def _find_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(f"{folder / name} is missing, and so is its .gz: a BEIR-format folder needs one of them")


def _qrels_path(folder: Path, split: str) -> Path:
    if split in ("", "..") or PurePosixPath(split).name != split or not split.isprintable():
        raise UserError(f"split {split!r} cannot be the name of a file in {folder / 'qrels'}; correct it")
    return folder / "qrels" / f"{split}.tsv"


def _qrels_file(folder: Path, split: str) -> Path:
    path = _qrels_path(folder, split)
    if not path.is_file():
        splits = ", ".join(sorted(other.stem for other in path.parent.glob("*.tsv"))) or "none"
        raise UserError(f"{path} is missing; the folder has the splits: {splits}")
    return path


def _json_line(record: Mapping[str, str]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
