"""Laws of contamination: a judged text is found in training rows if, and only if, a plain reading of them finds it."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_zero.audit import find_contamination, ngrams
from colbert_zero.audit.find_contamination import SIDES, DigestTable
from colbert_zero.audit.ngrams import ngram_digests, text_chunks
from colbert_zero.cli import main
from colbert_zero.data.beir import Document, write_collection
from colbert_zero.data.rows import PAIR_SCHEMA, SCORED_SCHEMA, TRIPLE_SCHEMA, RowWriter
from colbert_zero.data.text import normalise
from colbert_zero.graph.artifact import Artifact, Spec, run_step
from colbert_zero.graph.config import read_config
from colbert_zero.graph.study import Study
from colbert_zero.report.overlaps import FOUND_FILE, by_sources, overlaps
from finished_study import make
from publishing import publish

WORDS = [f"word{number}" for number in range(15)]
TEXTS = st.lists(st.text("aB 1,.-_\t\x1f\x7fé“\u2003ß½中\u0301", max_size=9), max_size=6)


def words(text: str) -> list[str]:
    """The words of a text, letter by letter."""
    kept = "".join(c if c.isalnum() or 0x300 <= ord(c) < 0x370 else " " for c in normalise(text))
    return kept.split()


def grams(text: str, size: int) -> list[tuple[str, ...]]:
    found = words(text)
    return [tuple(found[at : at + size]) for at in range(max(len(found) - size + 1, min(len(found), 1)))]


def digests_by_text(texts: Sequence[str], size: int) -> list[list[int]]:
    digests: list[list[int]] = [[] for _ in texts]
    for first, chunk in text_chunks(pa.array(texts, pa.large_string())):
        for digest, place in zip(*(values.tolist() for values in ngram_digests(chunk, size)), strict=True):
            digests[first + place].append(digest)
    return digests


@settings(max_examples=150)
@given(texts=TEXTS, size=st.integers(1, 4), chunk=st.sampled_from([1, 7, 2**20]))
def test_ngrams_have_equal_digests_if_their_words_are_equal(texts: list[str], size: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "CHUNK_BYTES", chunk)
        digests = digests_by_text(texts, size)
    known: dict[tuple[str, ...], int] = {}
    for text, of_text in zip(texts, digests, strict=True):
        for gram, digest in zip(grams(text, size), of_text, strict=True):
            assert known.setdefault(gram, digest) == digest
    assert len(set(known.values())) == len(known)


def test_case_punctuation_and_white_space_are_no_part_of_words() -> None:
    one, other, joined, empty = digests_by_text(
        ["“Don't!” ﬁx — it\u2003now", "don t FIX it, now", "dont fix it now", "!?"], 3
    )
    assert one == other != joined
    assert empty == []


def test_a_text_of_fewer_words_matches_only_a_text_of_just_these() -> None:
    short, longer, same = digests_by_text([" ".join(WORDS[:5]), " ".join(WORDS), "Word0 word1, word2 word3: WORD4"], 13)
    assert short == same and not set(short) & set(longer)


@settings(max_examples=100)
@given(
    known=st.lists(st.integers(0, 12), max_size=12),
    looked_up=st.lists(st.lists(st.integers(0, 12), max_size=8), max_size=4),
    spread=st.sampled_from([1, 2**60]),
)
def test_a_table_gives_each_text_the_first_row_that_has_one_of_its_digests(
    known: list[int], looked_up: list[list[int]], spread: int
) -> None:
    table = DigestTable(np.array(known, np.uint64) * np.uint64(spread), np.arange(len(known), dtype=np.int32))
    first: dict[int, int] = {}
    row = 0
    for values in looked_up:
        rows = np.arange(row, row + len(values))
        owners, found = table.first_rows("query", np.array(values, np.uint64) * np.uint64(spread), rows)
        for owner, at in zip(owners.tolist(), found.tolist(), strict=True):
            first[owner] = min(at, first.get(owner, at))
        row += len(values)
    flat = [value for values in looked_up for value in values]
    assert first == {owner: flat.index(value) for owner, value in enumerate(known) if value in flat}


# The step

LONG = " ".join(WORDS)
"""More words than an n-gram has."""
QUERIES = {"q1": "What is a cat?", "q2": "how long", "q3": LONG, "unjudged": "see"}
DOCUMENTS = {
    "d1": ("Cats", "A cat is an animal."),
    "d2": ("", f"{LONG} and more"),
    "d3": ("", "not relevant"),
    "d4": ("", ""),
    "unjudged": ("", "see"),
}
QRELS = {
    "q1": {"d1": 1, "d3": 0, "d4": 1},
    "q2": {"d2": 2, "d1": 0, "missing": 1},
    "q3": {"d3": 0},
    "missing": {"d3": 0},
}


def collection(name: str = "dev") -> Artifact:
    documents = [Document(identifier, title, text) for identifier, (title, text) in DOCUMENTS.items()]
    spec = Spec("collections", f"folder.{name}", {"split": "test"})
    return publish(spec, lambda folder: write_collection(folder, documents, QUERIES, QRELS), {"documents": 5})


def shards(rows: Iterable[Mapping[str, Any]], schema: pa.Schema = PAIR_SCHEMA, rows_per_shard: int = 100) -> Artifact:
    def write(folder: Path) -> dict[str, Any]:
        with RowWriter(folder, schema, rows_per_shard) as writer:
            writer.write_records(rows)
        return writer.facts

    return publish(Spec("shards", "mine", {"rows_per_shard": rows_per_shard}), write)


def find(source: Artifact, *collections: Artifact) -> Artifact:
    names = [collection.name for collection in collections]
    spec = Spec("contamination", source.spec.label, {}, {"shards": [source.name], "collections": names})
    assert run_step(find_contamination.make, None, ["--spec", spec.text]) == 0
    return Artifact.open(spec.name)


def found(artifact: Artifact) -> set[tuple[str, str, str, int]]:
    rows = pq.read_table(artifact.file(FOUND_FILE)).to_pylist()
    return {(row["id"], row["match"], row["side"], row["row"]) for row in rows}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_judged_text_is_found_with_its_first_row_on_each_side() -> None:
    rows = [
        {"query": "nothing", "document": "of the test", "negatives": ["see"]},
        {"query": "WHAT  is a cat?", "document": "Cats A cat is an animal.", "negatives": []},
        {"query": "cats", "document": "A cat is an animal.", "negatives": ["what is a cat?", "x", "Not\u2003relevant"]},
        {"query": "what is a cat", "document": f"it says {LONG.upper()}, and so on", "negatives": ["how long", "long"]},
    ]
    artifact = find(shards(rows, TRIPLE_SCHEMA), collection())
    assert found(artifact) == {
        ("q1", "exact", "query", 1),
        ("q1", "ngram", "query", 1),
        ("q1", "exact", "negatives", 2),
        ("q1", "ngram", "negatives", 2),
        ("d1", "exact", "document", 1),
        ("d1", "ngram", "document", 1),
        ("d3", "exact", "negatives", 2),
        ("d3", "ngram", "negatives", 2),
        ("q2", "exact", "negatives", 3),
        ("q2", "ngram", "negatives", 3),
        ("q3", "ngram", "document", 3),
        ("d2", "ngram", "document", 3),
    }
    (name,) = artifact.facts["judged"]
    # Empty documents, and those that the corpus lacks, cannot be found.
    assert artifact.facts["judged"][name] == {"queries": 3, "relevant_documents": 2, "documents": 3}
    counts = overlaps([artifact])[name]
    assert (counts["queries"].exact, counts["queries"].ngram) == (2, 3)
    assert (counts["relevant_documents"].exact, counts["relevant_documents"].ngram) == (1, 2)
    assert (counts["documents"].exact, counts["documents"].ngram) == (2, 3)


def test_documents_with_teacher_scores_are_training_texts_too() -> None:
    rows = [{"query": "x", "documents": ["y", "Cats A cat is an animal."], "raw": [0, 1], "scores": [0, 1]}]
    artifact = find(shards(rows, SCORED_SCHEMA), collection())
    assert found(artifact) == {("d1", match, "documents", 0) for match in ("exact", "ngram")}
    assert artifact.facts["texts"] == 3


def test_a_source_without_rows_holds_nothing() -> None:
    artifact = find(shards([]), collection())
    assert found(artifact) == set()
    assert overlaps([artifact])


TRAINING_WORDS = st.lists(st.sampled_from(["a", "b", "c", "A,"]), max_size=16).map(" ".join)


@settings(max_examples=25, deadline=None)
@given(
    test=st.lists(TRAINING_WORDS, min_size=1, max_size=4),
    train=st.lists(st.tuples(TRAINING_WORDS, TRAINING_WORDS), max_size=12),
    rows_per_shard=st.integers(1, 12),
    chunk=st.sampled_from([5, 2**20]),
)
def test_what_is_found_is_what_a_plain_reading_finds_however_rows_are_stored(
    tmp_path_factory: pytest.TempPathFactory,
    test: list[str],
    train: list[tuple[str, str]],
    rows_per_shard: int,
    chunk: int,
) -> None:
    expected = set()
    for number, text in enumerate(test):
        for side, texts in zip(("query", "document"), zip(*train, strict=True), strict=False):
            for match, same in (
                ("exact", lambda one, other: normalise(one) == normalise(other)),
                ("ngram", lambda one, other: bool(set(grams(one, 13)) & set(grams(other, 13)))),
            ):
                rows = [row for row, other in enumerate(texts) if text and same(text, other)]
                expected |= {(f"q{number}", match, side, row) for row in rows[:1]}
    queries = {f"q{number}": text for number, text in enumerate(test)}
    qrels = {query: {"d": 1} for query in queries}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("study"))
        patch.setattr(ngrams, "CHUNK_BYTES", chunk)
        published = publish(
            Spec("collections", "folder.dev", {}),
            lambda folder: write_collection(folder, [Document("d", "", "only here")], queries, qrels),
            {"documents": 1},
        )
        rows = [{"query": query, "document": document} for query, document in train]
        assert found(find(shards(rows, rows_per_shard=rows_per_shard), published)) == expected


def test_the_sides_are_all_columns_of_texts_that_rows_have() -> None:
    fields = {name: schema.field(name).type for schema in (TRIPLE_SCHEMA, SCORED_SCHEMA) for name in schema.names}
    assert set(SIDES) == {name for name, type_ in fields.items() if "string" in str(type_)}


# The command


@pytest.fixture
def looked_for(finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished study, in whose sources the test's texts were looked for."""
    folder = shutil.copytree(finished_study, tmp_path / "study", symlinks=True)
    monkeypatch.chdir(folder)
    study = Study(read_config(Path("config.yaml"), {"audit": True}), Path())
    for spec in {spec.name: spec for specs in study.contamination.values() for spec in specs}.values():
        make(study, spec)
    return folder


def test_the_command_counts_for_each_recipe_and_collection(
    looked_for: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["contamination", "--directory", str(looked_for), "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    assert [table["recipes"] for table in tables] == [["all"], ["distillation-only"]]
    assert [len(table["sources"]) for table in tables] == [2, 1]
    for table in tables:
        (parts,) = table["collections"].values()
        assert parts["queries"] == {"judged": 20, "exact": 0, "ngram": 0}
    assert main(["contamination", "--directory", str(looked_for)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^all \(2 sources\)\ncollection +queries +exact +13-gram ", text)
    assert re.search(r"^dev +20 +0 \(0\.0 %\)", text, re.MULTILINE)


def test_the_command_says_what_to_run_where_nothing_was_looked_for(
    finished_study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["contamination", "--directory", str(finished_study)]) == 1
    error = capsys.readouterr().err
    assert "snakemake audit --config audit=True" in error and error.count("\n") == 1


def test_recipes_of_the_same_sources_share_a_table() -> None:
    sources = {"b": ["x", "y"], "a": ["y", "x"], "c": ["x"]}
    tables = list(by_sources(sources))
    assert tables == [(["a", "b"], ["x", "y"]), (["c"], ["x"])]
    assert all(one[0] <= other[0] for one, other in pairwise(tables))
