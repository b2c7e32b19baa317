"""Laws of reading a package's docstrings: what is public, what a pair is, and that the package is never run."""

from __future__ import annotations

import base64
import hashlib
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from colbert_zero.data import beir
from colbert_zero.data.docstrings import make, make_pair, package_files, public_docstrings, read_pairs
from colbert_zero.data.text import normalise
from colbert_zero.graph import artifact
from colbert_zero.graph.artifact import Artifact, Spec
from colbert_zero.graph.console import UserError

BODY = "It walks over every vertex, marks the edges it has seen, and stops when nothing is left."

FILES = {
    "graphlike/__init__.py": f'''
"""Tools for networks of many kinds.

{BODY} One.
"""
raise SystemExit("this package must never be imported")
from ._hidden import offered
from ._star import *
''',
    "graphlike/paths.py": f'''
def shortest_path(graph):
    """Find the least costly way between two vertices. Ties are broken by name.

    ``shortest_path`` and `graphlike.paths.ShortestPath` are one: call shortest_path(). {BODY} Two.

    Parameters
    ----------
    graph : dict
    """

def again(graph):
    """Find the least costly way  between two VERTICES.

    {BODY} Another body for one and the same query.
    """

def brief():
    """Too short.

    {BODY} Three.
    """

def bodyless():
    """Give every vertex a colour of its own."""

def _private():
    """Give every edge a weight of its own.

    {BODY} Four.
    """

class Walker:
    """Walk along the edges at random.

    {BODY} Five.
    """

    def step(self):
        """Move to one of the neighbouring vertices.

        {BODY} Six.
        """

    def _turn(self):
        """Go back to where one came from.

        {BODY} Seven.
        """
''',
    "graphlike/_hidden.py": f'''
def offered():
    """Offer this to everybody who imports it.

    {BODY} Eight.
    """

def kept():
    """Keep this away from everybody outside.

    {BODY} Nine.
    """
''',
    "graphlike/_star.py": f'''
def starred():
    """Count the stars that come in this way.

    {BODY} Ten.
    """
''',
    "graphlike/_docs_newdocs.py": f'''
add_newdoc("graphlike._native", "speed", """
    speed(graph, /) -> float

    Measure how fast the compiled code is. {BODY} Eleven.
    """)
add_newdoc("graphlike._native", "_slow", """Measure how slow the compiled code is.

    {BODY} Twelve.
    """)
''',
    "graphlike/distutils/core.py": f'''
def build():
    """Build the extensions of this fine package.

    {BODY} Fourteen.
    """
''',
    "graphlike/tests/test_paths.py": f'''
def helper():
    """Help the tests of this fine package.

    {BODY} Thirteen.
    """
''',
    "graphlike/broken.py": "def (:\n",
}
PUBLIC = [
    "graphlike",
    "graphlike._hidden.offered",
    "graphlike._native.speed",
    "graphlike._star.starred",
    "graphlike.paths.Walker",
    "graphlike.paths.Walker.step",
    "graphlike.paths.again",
    "graphlike.paths.bodyless",
    "graphlike.paths.brief",
    "graphlike.paths.shortest_path",
]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on `sys.path` where the distribution `Graph-Like` 1.2 is installed."""
    folder = tmp_path / "site"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    record = folder / "graph_like-1.2.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: Graph-Like\nVersion: 1.2+cpu\n")
    (record / "RECORD").write_text("".join(f"{name},,\n" for name in reversed(FILES)) + "../../bin/tool.py,,\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def spec(kind: str, **settings: object) -> Spec:
    """A spec of the fake package."""
    leaves = {
        "package": "graph-like",
        "version": "1.2",
        "minimum_words": 8,
        "minimum_query_words": 3,
        "maximum_words": 50,
        **settings,
    }
    return Spec(kind, "package.graph-like", leaves)


def test_an_object_is_public_without_underscores_or_if_a_public_module_imports_it(site: Path) -> None:
    docstrings, unreadable = public_docstrings(package_files("graph-like", "1.2"))
    assert sorted(docstrings) == PUBLIC
    assert unreadable == 1


def test_the_package_is_never_imported(site: Path) -> None:
    read_pairs(package_files("graph-like", "1.2"), 3, 8, 50)
    assert "graphlike" not in sys.modules


def test_the_order_of_the_files_does_not_matter(site: Path) -> None:
    files = package_files("graph-like", "1.2")
    backwards = dict(reversed(files.items()))
    assert list(backwards) != list(files)
    assert read_pairs(backwards, 3, 8, 50) == read_pairs(files, 3, 8, 50)


def test_short_and_repeated_pairs_are_dropped_and_counted(site: Path) -> None:
    pairs, counts = read_pairs(package_files("graph-like", "1.2"), 3, 8, 50)
    # `again` has the same query as `shortest_path`, and its name sorts first.
    dropped = {"graphlike.paths.brief", "graphlike.paths.bodyless", "graphlike.paths.shortest_path"}
    assert [pair.name for pair in pairs] == [name for name in PUBLIC if name not in dropped]
    assert counts == {"docstrings": 10, "too_short": 2, "repeated": 1, "unreadable_files": 1}
    for texts in ([pair.query for pair in pairs], [pair.document for pair in pairs]):
        assert len({normalise(text) for text in texts}) == len(pairs)


def test_documents_are_cut_at_the_maximum(site: Path) -> None:
    files = package_files("graph-like", "1.2")
    whole = {pair.name: pair.document for pair in read_pairs(files, 3, 8, 1000)[0]}
    cut = {pair.name: pair.document for pair in read_pairs(files, 3, 8, 9)[0]}
    assert max(len(document.split()) for document in whole.values()) > 9
    assert cut.keys() <= whole.keys()
    assert all(document == " ".join(whole[name].split()[:9]) for name, document in cut.items())


@pytest.mark.parametrize(("query_words", "words", "kept"), [(2, 8, 8), (3, 8, 7), (3, 1000, 0), (100, 8, 0)])
def test_minimum_lengths_hold(site: Path, query_words: int, words: int, kept: int) -> None:
    assert len(read_pairs(package_files("graph-like", "1.2"), query_words, words, 50)[0]) == kept


def test_the_summary_sentence_is_the_query_and_the_rest_the_document() -> None:
    pair = make_pair("pkg.mod.f", "Give e.g. The first\nof many. And then `more`.\n\nA :class:`~pkg.Thing` of it.\n")
    assert pair.query == "Give e.g. The first of many"
    assert pair.document == "And then more. A pkg.Thing of it."


def test_a_summary_ends_where_prose_ends() -> None:
    pair = make_pair("pkg.f", "Count the things.\nArgs:\n    x: what to count\n")
    assert (pair.query, pair.document) == ("Count the things", "Args: x: what to count")


def test_a_signature_is_no_summary() -> None:
    assert make_pair("pkg.add", "add(x, /) -> Tensor\n\nPut two things together.\n\nBody.").query == (
        "Put two things together"
    )


@pytest.mark.parametrize(
    "written",
    [
        "shortest_path",
        "ShortestPath",
        "Shortest_Path()",
        "`shortest_path`",
        "`shortest`-path",
        "pkg.mod.shortest_path",
        "shortest-path's",
    ],
)
def test_the_own_name_is_removed_from_both_however_it_is_written(written: str) -> None:
    pair = make_pair("pkg.mod.shortest_path", f"Use {written} here.\n\nThe {written} there, too.")
    assert (pair.query, pair.document) == ("Use here", "The there, too.")


def test_words_that_only_contain_the_name_stay() -> None:
    assert make_pair("pkg.norm", "Compute a normal norm_1 form.\n\nBody.").query == "Compute a normal norm_1 form"


def test_a_source_is_the_same_bytes_twice_and_a_training_row_a_pair(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for study in ("first", "second"):
        (site.parent / study).mkdir()
        monkeypatch.chdir(site.parent / study)
        assert artifact.run_step(make, None, ["--spec", spec("sources").text]) == 0
        digests.append(Artifact.open(spec("sources").name).manifest["outputs"])
    assert digests[0] == digests[1]
    table = pq.read_table(Artifact.open(spec("sources").name).file("pairs.parquet"))
    assert table.column_names == ["query", "document"]
    assert Artifact.open(spec("sources").name).facts["rows"] == table.num_rows == 7
    assert "Walk along the edges at random" in table["query"].to_pylist()


@pytest.mark.parametrize(("queries", "expected"), [(3, 3), (None, 7), (100, 7)])
def test_a_collection_holds_every_document_and_some_queries(site: Path, queries: int | None, expected: int) -> None:
    made = spec("collections", queries=queries, seed=5)
    assert artifact.run_step(make, None, ["--spec", made.text]) == 0
    collection = beir.Collection.open(Artifact.open(made.name))
    documents = {document.id for document in collection.documents()}
    assert len(documents) == 7
    assert collection.qrels == {query: {query.removeprefix("summary:"): 1} for query in collection.queries}
    assert len(collection.judged_queries) == expected and not set(collection.judged_queries) & documents
    assert {document for row in collection.qrels.values() for document in row} <= documents


def test_which_queries_are_drawn_is_decided_by_the_seed(site: Path) -> None:
    drawn = set()
    for seed in range(6):
        made = spec("collections", queries=2, seed=seed)
        assert artifact.run_step(make, None, ["--spec", made.text]) == 0
        drawn.add(tuple(beir.Collection.open(Artifact.open(made.name)).queries))
    assert len(drawn) > 1


def test_the_bytes_that_were_read_are_on_record_and_compared_with_the_wheels(site: Path) -> None:
    """A version says what was installed, not what a user's hands or a patch made of it."""
    record = site / "graph_like-1.2.dist-info" / "RECORD"
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256((site / name).read_bytes()).digest()).decode().rstrip("=")
        for name in FILES
    }
    record.write_text("".join(f"{name},sha256={value},\n" for name, value in digests.items()))
    facts = []
    for edited in (False, True):
        if edited:
            path = site / "graphlike/paths.py"
            path.write_text(path.read_text() + "# patched\n")
        made = spec("sources", edited=edited)
        assert artifact.run_step(make, None, ["--spec", made.text]) == 0
        facts.append(Artifact.open(made.name).facts)
    assert [one["files_not_as_in_the_wheel"] for one in facts] == [0, 1]
    assert facts[0]["digest_of_files"] != facts[1]["digest_of_files"]
    assert facts[0]["files_read"] == len(package_files("graph-like", "1.2"))


def test_another_version_is_refused_with_both_named(site: Path) -> None:
    with pytest.raises(UserError, match=r"version 1\.3, installed is 1\.2\+cpu"):
        package_files("graph-like", "1.3")


def test_a_package_that_is_not_installed_is_refused(site: Path) -> None:
    with pytest.raises(UserError, match="no-such-package 1 is not installed"):
        package_files("no-such-package", "1")


def test_a_package_without_long_docstrings_is_refused(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert artifact.run_step(make, None, ["--spec", spec("sources", minimum_words=1000).text]) == 1
    assert "long enough" in capsys.readouterr().err
