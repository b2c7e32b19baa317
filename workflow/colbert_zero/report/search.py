"""Search a collection as a row of the table does, and see which token of the query met which token of the document.

colbert-zero search colbert-zero numpy "invert a matrix" --directory local
colbert-zero search colbert-zero numpy "invert a matrix" --html matches.html --directory local
colbert-zero search --queries colbert-zero bm25 numpy --directory local

Of a late-interaction model, each document is followed by a line for each token of the query: the document's token that
it met, which of the document's tokens that is, and how similar they are. The sum is the document's score. ▁ stands for
a space before a token. A row whose index is not there yet is searched all the same if its collection is small.

With --queries, the queries of the collection on which two rows differ most, by the table's measure, with the documents
that both rank first and their grades (– where nobody judged).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from colbert_zero.graph.artifact import MANIFEST_FILE, Artifact, Spec, is_let_go
from colbert_zero.graph.config import CONFIG_FILE, read_config, require_known
from colbert_zero.graph.console import UserError, one_line
from colbert_zero.graph.planners.evaluation import Row
from colbert_zero.graph.study import Study
from colbert_zero.graph.text_files import replace_text

if TYPE_CHECKING:
    from colbert_zero.evaluation.adhoc import Answer, Found

SHOWN, SHOWN_QUERIES = 5, 10
"""Documents or queries that are shown unless another number is asked for."""
ENCODED_MAXIMUM, INDEXED_MAXIMUM = 5_000, 500_000
"""Documents of a collection that are encoded, or indexed for BM25, to answer one query: minutes on a laptop."""
SNIPPET_WIDTH = 200
NEEDED = {"bm25": ("pyserini", "jnius"), "dense": ("torch", "sentence_transformers"), "colbert": ("torch", "pylate")}
"""The packages that a search needs, by the first part of the run's label; a login node lacks some."""
HOW = {
    "bm25": "by BM25",
    "dense": "by the inner product of their vectors with the query's",
    "exact": "by MaxSim",
    "plaid": "by PLAID, from quantised vectors",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what is searched, how many documents or queries to show, and the page to write."""
    parser.usage = (
        '%(prog)s [options] ROW COLLECTION "words"\n       %(prog)s [options] --queries ROW OTHER_ROW COLLECTION'
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--queries", action="store_true", help="the queries on which two rows differ most")
    parser.add_argument(
        "--top", type=_positive, metavar="N", help=f"documents ({SHOWN}) or queries ({SHOWN_QUERIES}) to show"
    )
    # The command changes into the study's folder before it runs: a path is one of the folder that it was given in.
    parser.add_argument(
        "--html", type=_absolute, metavar="FILE", help="also write a page with a heat map of the tokens"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def run(options: argparse.Namespace) -> int:
    """Write what was found; return 0.

    Raises:
        UserError: Something that was named is unknown, not finished or too large to search now; there are no words; or
            the page cannot be written.
    """
    asked = "ROW OTHER_ROW COLLECTION after --queries" if options.queries else 'ROW COLLECTION "words"'
    if len(options.names) < 3 or (options.queries and len(options.names) > 3):
        raise UserError(f"search takes {asked}; colbert-zero search --help has examples")
    if options.html is not None and options.queries:
        raise UserError("--html shows the tokens of a document and your words: leave out --queries, or --html")
    if options.html is not None and options.html.is_dir():
        raise UserError(f"{options.html} is a folder; give --html the name of a file in it")
    study = Study(read_config(Path(CONFIG_FILE)), Path())
    if options.queries:
        from colbert_zero.report.query_differences import describe_differences

        row, other, collection = options.names
        rows = (_row(study, row), _row(study, other))
        for of in rows:
            require_known(collection, of.measures, of.name, "its collections")
        measure = study.report.settings["measure"]
        for line in describe_differences(*rows, collection, measure, options.top or SHOWN_QUERIES):
            sys.stdout.write(one_line(line) + "\n")
        return 0
    row, collection, *words = options.names
    searched = Searched.find(study, row, collection)
    query = _checked_words(" ".join(words))
    answer = searched.search(query, options.top or SHOWN)
    for line in describe(searched, query, answer):
        sys.stdout.write(one_line(line) + "\n")
    if options.html is not None:
        from colbert_zero.report.search_page import page

        replace_text(options.html, page(heading(searched, query), about(answer), answer.found))
        sys.stdout.write(f"\nAs a page: {one_line(str(options.html))}\n")
    return 0


def _row(study: Study, name: str) -> Row:
    rows = {row.name: row for row in study.rows}
    return rows[require_known(name, rows, "search", f"the table of study {study.name}")]


def _checked_words(words: str) -> str:
    """Words that a tokenizer can read.

    Raises:
        UserError: There are none, or they are no text.
    """
    if not words.strip():
        raise UserError("there are no words to search for; give some after the collection")
    try:
        words.encode()
    except UnicodeEncodeError:
        raise UserError("the words are no UTF-8 text; check the terminal's locale") from None
    return words


@dataclass(frozen=True)
class Searched:
    """A row on a collection.

    Attributes:
        row: The row's name.
        collection: The collection's name.
        run: The spec of its run.
        index: The spec of its index; None for BM25, which keeps none.
    """

    row: str
    collection: str
    run: Spec
    index: Spec | None

    @classmethod
    def find(cls, study: Study, row_name: str, collection: str) -> Searched:
        """Find a row of the table on a collection.

        Raises:
            UserError: There is no such row or collection, or the row's model or the collection is not there yet.
        """
        row = _row(study, row_name)
        measures = row.measures[require_known(collection, row.measures, row_name, "its collections")]
        (run_spec,) = (spec for spec in study.inputs_of(measures) if spec.kind == "runs")
        indexes = [spec for spec in study.inputs_of(run_spec) if spec.kind == "indexes"]
        searched = cls(row_name, collection, run_spec, indexes[0] if indexes else None)
        for spec in (spec for made in (*indexes, run_spec) for spec in study.inputs_of(made)):
            if spec.kind != "indexes" and not _is_there(spec):
                raise UserError(f"{row_name} cannot search {collection} yet: {spec.name} is missing; run snakemake")
        return searched

    def search(self, words: str, depth: int) -> Answer:
        """Search for words, and say beforehand on stderr if an index has to be made for that.

        Raises:
            UserError: A package is not installed here, or there are too many documents to index them now.
        """
        missing = [name for name in NEEDED[self.run.label.partition(".")[0]] if find_spec(name) is None]
        if missing:
            raise UserError(
                f"searching as {self.row} needs {', '.join(missing)}, which is not installed here: search where steps "
                "run (make .venv/installed); --queries needs neither"
            )
        from colbert_zero.evaluation.adhoc import search_words

        documents = Artifact.open(self.run.inputs["collection"][0]).facts["documents"]
        if self.index is None:
            self._refuse_many(documents, INDEXED_MAXIMUM, "BM25 keeps no index")
        elif not _is_there(self.index):
            why = "was let go" if is_let_go(self.index.folder) else "is not there"
            self._refuse_many(documents, ENCODED_MAXIMUM, f"{self.index.name} {why}")
            said = f"{self.index.name} {why}: its {documents} documents are encoded now, and not kept"
            sys.stderr.write(one_line(said) + "\n")
        return search_words(words, depth, self.run, self.index)

    def _refuse_many(self, documents: int, maximum: int, why: str) -> None:
        if documents > maximum:
            advice = "choose a smaller collection" if self.index is None else _how_to_make(self.index)
            raise UserError(
                f"{why}, and {self.collection} has {documents} documents, more than {maximum} to do so now: {advice}"
            )


def _is_there(spec: Spec) -> bool:
    return (spec.folder / MANIFEST_FILE).is_file() and not is_let_go(spec.folder)


def _how_to_make(index: Spec) -> str:
    again = f"to have it again: snakemake --profile PROFILE {index.again_file}"
    return again if is_let_go(index.folder) else "run snakemake to make it"


def heading(searched: Searched, words: str) -> str:
    """What was asked, and of what."""
    return f"“{words}” in {searched.collection}, by {searched.row}"


def about(answer: Answer) -> str:
    """How many documents were ranked, and by what."""
    text = f"The best {len(answer.found)} of {answer.documents} documents, ranked {HOW[answer.kind]}."
    if answer.kind == "bm25":
        text += " BM25 matches words of an inverted index: it has no tokens to compare."
    if answer.kind == "plaid":
        text += " Tokens are compared by the vectors themselves, whose sum may differ from that score."
    if answer.kind == "dense":
        text += " A dense model has one vector for a text: there are no tokens to compare."
    read = next((found.matches.query for found in answer.found if found.matches is not None), None)
    if read is not None and read.end < len(read.text):
        text += f" The query is longer than what the model reads of one: “{read.text[read.end :].strip()}” is cut off."
    return text


def describe(searched: Searched, words: str, answer: Answer) -> Iterator[str]:
    """The lines of an answer, for a terminal."""
    yield heading(searched, words)
    yield about(answer)
    for rank, found in enumerate(answer.found, 1):
        yield ""
        yield f"{rank}. {found.document.id}  {found.score:.4f}"
        if found.document.title:
            yield f"   {found.document.title}"
        yield f"   {snippet(found.document.text)}"
        yield from _match_lines(found, answer.kind)


def snippet(text: str) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= SNIPPET_WIDTH else line[: SNIPPET_WIDTH - 1].rstrip() + "…"


def _match_lines(found: Found, kind: str) -> Iterator[str]:
    """A line for each token of the query, and their sum."""
    if found.matches is None:
        return
    met = found.matches.met
    places = [str(position + 1) for position in found.matches.best]
    lines = [("query token", "document token", "at", "similarity")]
    lines += [
        (one_line(token.name), one_line(other.name), place, f"{similarity:.4f}")
        for (token, other, similarity), place in zip(met, places, strict=True)
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    yield ""
    for first, second, place, similarity in lines:
        yield (
            f"   {first.ljust(widths[0])}  {second.ljust(widths[1])}  "
            f"{place.rjust(widths[2])}  {similarity.rjust(widths[3])}"
        )
    total = f"{found.matches.score:.4f}".rjust(sum(widths) + 6 - len("sum"))
    yield f"   sum{total}{sum_note(found, kind)}"


def sum_note(found: Found, kind: str) -> str:
    """What to say of a sum that is not the score: that of PLAID is approximate."""
    if found.matches is None or kind != "plaid":
        return ""
    difference = found.score - found.matches.score
    return f"  (the vectors themselves; PLAID's score, of quantised ones, differs by {difference:+.4f})"
