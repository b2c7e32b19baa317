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
from pathlib import Path
from typing import Any, NamedTuple

from colbert_zero.data.json_lines import read_lines, read_records
from colbert_zero.data.text import document_text
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.console import UserError, log

CORPUS_FILE, QUERIES_FILE, DEFAULT_SPLIT = "corpus.jsonl", "queries.jsonl", "test"
QRELS_HEADER = ("query-id", "corpus-id", "score")

Qrels = dict[str, dict[str, int]]
"""Grade by query id and document id, both in the file's order."""


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
        return _read_qrels(self.qrels_file)

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
    return _read_qrels(_qrels_file(folder, split))


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
        UserError: A file is missing or malformed, an id occurs twice, or there is nothing to evaluate.
    """
    collection = Collection.open(folder, split)
    document_ids: set[str] = set()
    empty_documents = 0
    for number, document in _read_documents(collection.corpus_file):
        if document.id in document_ids:
            raise UserError(f"{collection.corpus_file}:{number}: document {document.id!r} is there twice; keep one")
        document_ids.add(document.id)
        empty_documents += not document_text(document.title, document.text)
    if not document_ids:
        raise UserError(f"{collection.corpus_file}: no document in it; a collection needs at least one document")
    judged_queries = collection.judged_queries
    if not judged_queries:
        raise UserError(
            f"{collection.qrels_file}: judges no query of {collection.queries_file.name}: nothing to evaluate"
        )
    judgements = [
        (query, document, grade) for query, row in collection.qrels.items() for document, grade in row.items()
    ]
    facts = {
        "documents": len(document_ids),
        "queries": len(judged_queries),
        "unjudged_queries": len(collection.queries) - len(judged_queries),
        "judgements": len(judgements),
        "positive_judgements": sum(grade > 0 for _, _, grade in judgements),
        "judgements_of_unknown_documents": sum(document not in document_ids for _, document, _ in judgements),
        "judgements_of_unknown_queries": sum(query not in collection.queries for query, _, _ in judgements),
        "empty_documents": empty_documents,
        "empty_queries": sum(not text.strip() for text in judged_queries.values()),
    }
    for name in (name for name in facts if name.startswith(("unjudged", "judgements_of", "empty")) and facts[name]):
        log.info("%s (%s): %d %s", folder, split, facts[name], name.replace("_", " "))
    return facts


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
    path = folder / "qrels" / f"{split}.tsv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(QRELS_HEADER) + "\n")
        for query, row in qrels.items():
            file.writelines(f"{query}\t{document}\t{grade}\n" for document, grade in row.items())


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


def _read_qrels(path: Path) -> Qrels:
    qrels: Qrels = {}
    for position, (number, line) in enumerate(read_lines(path)):
        fields = [field.strip() for field in line.split("\t")]
        if position == 0 and tuple(fields) == QRELS_HEADER:
            continue
        if len(fields) != len(QRELS_HEADER) or not all(fields):
            raise UserError(f"{path}:{number}: {line[:80]!r} is not query-id, corpus-id and score with tabs between")
        query, document, score = fields
        try:
            grade = float(score)
            is_whole = grade.is_integer()
        except ValueError:
            is_whole = False
        if not is_whole:
            raise UserError(f"{path}:{number}: score {score[:80]!r} is not a whole number")
        row = qrels.setdefault(query, {})
        if row.setdefault(document, int(grade)) != int(grade):
            raise UserError(
                f"{path}:{number}: query {query!r} and document {document!r} have two different scores; keep one"
            )
    return qrels


def _id(record: Mapping[str, Any], where: str) -> str:
    value = record.get("_id")
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: no _id, or not a string")
    # Only ASCII white space separates the fields of a TREC run; names of Wikipedia pages contain other white space.
    if any(space in name for space in string.whitespace):
        raise UserError(f"{where}: _id {name!r} contains white space, which a TREC run cannot hold; rename it")
    return name


def _text(record: Mapping[str, Any], where: str) -> str:
    if "text" not in record:
        raise UserError(f"{where}: no text; write an empty text as an empty string")
    return _string(record, "text", where)


def _string(record: Mapping[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {field} must be a string or null, not {type(value).__name__}")
    return value or ""


def _find_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(f"{folder / name} is missing, and so is its .gz: a BEIR-format folder needs one of them")


def _qrels_file(folder: Path, split: str) -> Path:
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        splits = ", ".join(sorted(other.stem for other in path.parent.glob("*.tsv"))) or "none"
        raise UserError(f"{path} is missing; the folder has the splits: {splits}")
    return path


def _json_line(record: Mapping[str, str]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
