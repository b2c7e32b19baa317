"""`colbert-zero search`: what it prints, the page that it writes, and its errors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.cli import main
from colbert_zero.data.beir import Document
from colbert_zero.evaluation.adhoc import Answer, Found
from colbert_zero.evaluation.token_matches import ReadText, Token, TokenMatches, match_tokens, read_text
from colbert_zero.evaluation.trec import read_run
from colbert_zero.evaluation.values import read_values
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.config import read_config
from colbert_zero.graph.paths import WORKFLOW
from colbert_zero.graph.study import Study
from colbert_zero.models.colbert import EncodingSettings, load_colbert
from colbert_zero.report import search
from colbert_zero.report.query_differences import largest_differences
from colbert_zero.report.search_page import page, shaded

VOID = {"meta", "br", "img", "link"}
ATTACK = "<script>alert('fox')</script> & \"dogs\" \x1b[31m fox"


@pytest.fixture
def study(copied_study: Path) -> Study:
    """The finished study's copy, planned."""
    return Study(read_config(copied_study / "config.yaml"), copied_study)


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["search", *words])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_each_document_is_followed_by_its_matches_whose_sum_is_its_score(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = ask(capsys, "all", "dev", "ykvrhpw", "aqa", "--top", "3")
    assert status == 0
    assert out.startswith("“ykvrhpw aqa” in dev, by all\nThe best 3 of 20 documents, ranked by MaxSim.\n")
    documents = re.split(r"\n(?=\d\. )", out)[1:]
    assert len(documents) == 3
    for number, document in enumerate(documents, 1):
        rank, name, score = document.splitlines()[0].split()
        assert rank == f"{number}." and re.fullmatch(r"d\d+", name)
        assert f"sum {score}" in " ".join(document.split())
        similarities = [
            float(line.split()[-1]) for line in document.splitlines() if re.search(r" \d+ +-?\d\.\d{4}$", line)
        ]
        assert sum(similarities) == pytest.approx(float(score), abs=1e-2)


def test_an_index_that_is_not_there_is_announced_and_a_large_collection_refused(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected, _ = ask(capsys, "all", "dev", "aqa")
    searched = search.Searched.find(study, "all", "dev")
    assert searched.index is not None
    shutil.rmtree(searched.index.folder)
    status, out, err = ask(capsys, "all", "dev", "aqa")
    assert (status, out) == (0, expected)
    assert err.splitlines()[0] == f"{searched.index.name} is not there: its 20 documents are encoded now, and not kept"
    monkeypatch.setattr(search, "ENCODED_MAXIMUM", 19)
    status, out, err = ask(capsys, "all", "dev", "aqa")
    assert (status, out) == (1, "")
    assert re.fullmatch(r"colbert-zero: indexes/\S+ is not there, and dev has 20 documents, more than 19 .*\n", err)


def test_models_without_tokens_have_documents_and_say_so() -> None:
    for row, said in (("bm25", "it has no tokens to compare"), ("dense", "there are no tokens to compare")):
        searched = search.Searched(row, "dev", None, None)  # type: ignore[arg-type]
        lines = list(search.describe(searched, "fox", Answer(row, 9, [Found(Document("d0", "A title", "a fox"), 2.5)])))
        assert lines[1].endswith(f"{said}.")
        assert lines[2:] == ["", "1. d0  2.5000", "   A title", "   a fox"]


def test_a_query_that_is_cut_is_said_to_be(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ask(capsys, "all", "dev", *["aqa"] * 30, "--top", "1")
    (cut,) = re.findall(r"longer than what the model reads of one: “([aq ]+)” is cut off", out.splitlines()[1])
    # A query has 40 tokens, of which 16 are markers and the prompt; each word has three.
    assert cut.count("aqa") == 30 - (40 - 16) // 3


def test_nothing_of_a_terminals_language_is_printed(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, "all", "dev", "aqa \x1b[31m\u202e red", "--top", "1")
    assert status == 0
    assert "“aqa \\x1b[31m\\u202e red”" in out
    assert all(line.isprintable() for line in out.splitlines())


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["al", "dev", "fox"], "search: al is not in the table of study kept; did you mean all?"),
        (["all", "dex", "fox"], "all: dex is not in its collections; did you mean dev?"),
        (["--queries", "all", "bm26", "dev"], "search: bm26 is not in the table of study kept; did you mean bm25?"),
        (["--queries", "all", "bm25", "def"], "all: def is not in its collections; did you mean dev?"),
        (["all", "dev", " "], "there are no words to search for; give some after the collection"),
        (["all", "dev", "\udcff"], "the words are no UTF-8 text; check the terminal's locale"),
        (["all", "dev"], 'search takes ROW COLLECTION "words"; colbert-zero search --help has examples'),
        (["--queries", "all", "dev"], "search takes ROW OTHER_ROW COLLECTION after --queries; colbert-zero search"),
        (["all", "dev", "fox", "--html", "results"], r"\S*/results is a folder; give --html the name of a file in it"),
        (["--queries", "all", "bm25", "dev", "--html", "x"], "--html shows the tokens of a document and your words"),
    ],
)
def test_a_mistake_is_one_line(
    study: Study, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    status, out, err = ask(capsys, *words)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert re.match(f"colbert-zero: {message}", err), err


def test_a_recipe_that_is_not_finished_says_what_is_missing(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = (row for row in study.rows if row.name == "all")
    shutil.rmtree(row.stages[-1].folder)
    status, out, err = ask(capsys, "all", "dev", "fox")
    assert (status, out) == (1, "")
    assert err == f"colbert-zero: all cannot search dev yet: {row.stages[-1].name} is missing; run snakemake\n"


def test_a_login_node_without_torch_is_told_where_to_search(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "find_spec", lambda name: None if name in ("torch", "pylate") else object())
    status, out, err = ask(capsys, "all", "dev", "fox")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "searching as all needs torch, pylate, which is not installed here" in err


# The queries on which two rows differ most


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.sampled_from([0.0, 0.25, 0.5, 1.0])), st.integers(1, 9)
)
def test_the_largest_differences_come_first_and_equal_ones_by_id(values: dict[str, float], number: int) -> None:
    others = {query: 1 - value if len(query) > 1 else value for query, value in values.items()}
    found = largest_differences(values, others, number)
    assert len(found) == min(number, len(values))
    keys = [(-abs(difference), query) for query, difference in found]
    assert keys == sorted(keys)
    assert all(difference == values[query] - others[query] for query, difference in found)
    left = values.keys() - dict(found)
    assert all((-abs(values[query] - others[query]), query) >= keys[-1] for query in left)


def test_queries_are_shown_with_both_values_and_the_first_documents_with_grades(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = ask(capsys, "--queries", "all", "bm25", "dev", "--top", "4")
    assert status == 0
    assert out.startswith("4 of 20 queries of dev: those on which all and bm25 differ most by nDCG@10\n")
    rows = {row.name: Artifact.open(row.measures["dev"].name) for row in study.rows}
    values = {name: read_values(of.file("measures.parquet"))["nDCG@10"] for name, of in rows.items()}
    differences = []
    for block in out.split("\n\n")[1:]:
        first, *of_rows = block.splitlines()
        query, difference, _ = first.split(maxsplit=2)
        differences.append(float(difference))
        assert len(of_rows) == 2
        for line in of_rows:
            name, value, *best = line.split()
            assert float(value) == pytest.approx(values[name][query], abs=5e-5)
            run = read_run(Artifact.open(rows[name].spec.inputs["run"][0]).file("run.trec"))
            assert best[::2] == [document for document, _ in run[query][:3]]
            # Each query of this collection has one judged document, of its own number.
            relevant = f"d{query[1:]}"
            assert best[1::2] == ["(1)" if document == relevant else "(–)" for document in best[::2]]
        assert differences[-1] == pytest.approx(values["all"][query] - values["bm25"][query], abs=5e-5)
    assert [abs(difference) for difference in differences] == sorted(map(abs, differences), reverse=True)


def test_comparing_queries_needs_no_torch(study: Study) -> None:
    program = (
        "import sys; from colbert_zero.cli import main; "
        "assert main(['search', '--queries', 'all', 'bm25', 'dev']) == 0; assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(WORKFLOW)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, stdout=subprocess.DEVNULL)


# The page


class Reader(HTMLParser):
    """The text and the elements of a page; refuses one that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == [], "every element is closed"
    return reader


def matches_of(model_folder: Path, query: str, document: str) -> TokenMatches:
    model = load_colbert(model_folder, EncodingSettings("q: ", "d: ", 14, 30), seed=3)
    texts = [read_text(model, text, is_query=is_query) for text, is_query in ((query, True), (document, False))]
    vectors = [
        model.encode([text], prompt_name=name, is_query=name == "query", show_progress_bar=False)[0]
        for text, name in ((query, "query"), (document, "document"))
    ]
    return match_tokens(texts[0], vectors[0], texts[1], vectors[1])


def test_the_page_shows_all_tokens_and_escapes_what_is_in_a_document(modernbert: Path) -> None:
    matches = matches_of(modernbert, "lazy dogs", ATTACK)
    text = page(
        "“<b>”", "about", [Found(Document("<i>", ATTACK, ATTACK), 8.5, matches), Found(Document("d", "", ""), 1)]
    )
    reader = read(text)
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"script", "b", "i", "img", "link", "iframe"}
    assert not [
        attributes for _, attributes in reader.elements if {"src", "href", "style", "onclick"} & attributes.keys()
    ]
    assert "d: <script>alert('fox')</script> & \"dogs\" \\x1b[31m fox" in reader.text
    cells = [attributes.get("class") or "" for tag, attributes in reader.elements if tag == "td"]
    met = [classes for classes in cells if classes.endswith("met")]
    assert len(met) == len(matches.query.counted), "each token of the query met one of the document's"
    assert len(cells) - len(met) > len(met) * (len(matches.document.counted) - 1), "a cell for each pair"
    assert f"{matches.score:.4f}" in reader.text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 5), st.booleans()), max_size=8),
    st.text("ab <\n", max_size=30),
)
def test_the_pieces_of_a_text_are_the_text_that_is_read(steps: list[tuple[int, int, bool]], text: str) -> None:
    tokens, place = [], 0
    for gap, length, counts in steps:
        start = min(place + gap, len(text))
        end = min(start + max(length, 0), len(text))
        tokens.append(Token("token", start, end, counts))
        place = end if length >= 0 else place
    whole = ReadText(text, tuple(tokens))
    pieces = list(shaded(whole, np.ones(len(whole.counted)).tolist()))
    assert "".join(piece.text for piece in pieces) == text[: whole.end]


def test_the_command_writes_the_page_where_it_was_asked_from(
    study: Study, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = ask(capsys, "untrained", "dev", "aqa", "--top", "2", "--html", "page.html", "--directory", "study")
    assert status == 0
    assert out.endswith(f"\nAs a page: {tmp_path / 'page.html'}\n")
    reader = read((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "“aqa” in dev, by untrained" in reader.text
    assert sum(tag == "h2" for tag, _ in reader.elements) == 2


def test_plaids_scores_are_told_from_the_sum() -> None:
    text = ReadText("fox", (Token("fox", 0, 3, True),))
    matches = TokenMatches(text, text, np.array([[0.75]], np.float32))
    found = Found(Document("d", "", "fox"), 0.5, matches)
    searched = search.Searched("row", "dev", None, None)  # type: ignore[arg-type]
    lines = list(search.describe(searched, "fox", Answer("plaid", 9, [found])))
    assert lines[-1].split("  (")[0].split() == ["sum", "0.7500"]
    assert lines[-1].endswith("PLAID's score, of quantised ones, differs by -0.2500)")
    assert "quantised" not in list(search.describe(searched, "fox", Answer("exact", 9, [found])))[-1]
