"""Laws of reading, checking and writing BEIR-format collections."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from colbert_zero.data import beir
from colbert_zero.data.beir import Collection, Document
from colbert_zero.graph import artifact
from colbert_zero.graph.artifact import Artifact, Job, Spec
from colbert_zero.graph.console import UserError

DOCUMENTS = [
    Document("d1", "Trees", "A tree is a graph without cycles."),
    Document("d2", "", "Straße, 木"),
    Document("d3", "", ""),
]
QUERIES = {"q2": "what is a tree", "q1": "streets", "q3": "nobody judged this"}
QRELS = {"q2": {"d1": 2, "d2": 0}, "q1": {"d2": 1}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A valid collection of three documents and three queries, of which two are judged."""
    beir.write_collection(tmp_path, DOCUMENTS, QUERIES, QRELS)
    return tmp_path


def write_lines(path: Path, *records: object) -> None:
    """Write records as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def refusal(folder: Path, split: str = "test") -> str:
    """The message with which `check_collection` refuses a folder, one line."""
    with pytest.raises(UserError) as caught:
        beir.check_collection(folder, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read_back_in_order(folder: Path) -> None:
    collection = Collection.open(folder)
    assert list(collection.documents()) == list(beir.read_corpus(folder)) == DOCUMENTS
    assert list(collection.queries.items()) == list(beir.read_queries(folder).items()) == list(QUERIES.items())
    assert collection.qrels == beir.read_qrels(folder) == QRELS


def test_only_judged_queries_are_evaluated(folder: Path) -> None:
    assert list(Collection.open(folder).judged_queries) == ["q2", "q1"]


def test_a_collection_is_counted(folder: Path) -> None:
    assert beir.check_collection(folder) == {
        "documents": 3,
        "queries": 2,
        "unjudged_queries": 1,
        "judgements": 3,
        "positive_judgements": 2,
        "judgements_of_unknown_documents": 0,
        "judgements_of_unknown_queries": 0,
        "empty_documents": 1,
        "empty_queries": 0,
    }


def test_unknown_ids_in_qrels_are_counted_reported_and_kept(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (folder / "qrels/test.tsv").open("a", encoding="utf-8") as file:
        file.write("q1\tgone\t1\nnobody\td1\t1\nnobody\td2\t1\n")
    with caplog.at_level(logging.INFO, "colbert_zero"):
        facts = beir.check_collection(folder)
    assert (facts["judgements_of_unknown_documents"], facts["judgements_of_unknown_queries"]) == (1, 2)
    assert "1 judgements of unknown documents" in caplog.text
    collection = Collection.open(folder)
    assert collection.qrels["q1"] == {"d2": 1, "gone": 1}
    assert "nobody" in collection.qrels and "nobody" not in collection.judged_queries


def test_the_same_collection_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        beir.write_collection(tmp_path / name, iter(DOCUMENTS), QUERIES, QRELS)
    assert artifact.file_digests(tmp_path / "a") == artifact.file_digests(tmp_path / "b")


def test_title_may_be_absent_null_or_empty_and_text_null(folder: Path) -> None:
    write_lines(
        folder / "corpus.jsonl",
        {"_id": "d1", "text": "a"},
        {"_id": "d2", "title": None, "text": "b"},
        {"_id": "d3", "title": "", "text": None},
    )
    assert list(beir.read_corpus(folder)) == [Document("d1", "", "a"), Document("d2", "", "b"), Document("d3", "", "")]
    assert beir.check_collection(folder)["empty_documents"] == 1


def test_a_gzipped_corpus_reads_as_a_plain_one(folder: Path) -> None:
    plain = folder / "corpus.jsonl"
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert list(beir.read_corpus(folder)) == DOCUMENTS


def test_a_truncated_gzip_is_refused(folder: Path) -> None:
    plain = folder / "corpus.jsonl"
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes())[:-12])
    plain.unlink()
    assert "corpus.jsonl.gz: damaged" in refusal(folder)


JUDGED = {"q1": {"d2": 1}, "q2": {"d1": 2, "d2": 0}}
LAYOUTS = {
    "no header": "q1\td2\t1\nq2\td1\t2\nq2\td2\t0\n",
    "quoted by csv": '"query-id"\t"corpus-id"\t"score"\n"q1"\t"d2"\t"1"\n"q2"\t"d1"\t"2"\n"q2"\t"d2"\t"0"\n',
    "other words": "Query_ID\tdoc_id\trelevance\nq1\td2\t1\nq2\td1\t2\nq2\td2\t0\n",
    "other order": "score\tqid\tdocid\n1\tq1\td2\n2\tq2\td1\n0\tq2\td2\n",
    "pandas with index": "\tquery-id\tcorpus-id\tscore\n0\tq1\td2\t1\n1\tq2\td1\t2\n2\tq2\td2\t0\n",
    "TREC with spaces": "q1 0 d2 1\nq2 0  d1 2\nq2 0 d2 0\n",
    "TREC with tabs": "q1\tQ0\td2\t1\nq2\tQ0\td1\t2\nq2\tQ0\td2\t0\n",
    "TREC with a header": "query_id\titeration\tdoc_id\trelevance\nq1\t0\td2\t1\nq2\t0\td1\t2\nq2\t0\td2\t0\n",
    "padded": "q1 \t d2\t1 \nq2\td1\t 2\nq2\td2\t0\n",
    "Windows": "\ufeffquery-id\tcorpus-id\tscore\r\nq1\td2\t1.0\r\nq2\td1\t2e0\r\nq2\td2\t-0\r\n\r\n",
}


@pytest.mark.parametrize("content", LAYOUTS.values(), ids=LAYOUTS)
def test_judgements_are_the_same_in_every_layout(folder: Path, content: str) -> None:
    (folder / "qrels/test.tsv").write_text(content, encoding="utf-8", newline="")
    assert beir.read_qrels(folder) == JUDGED


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("query\tpassage\tlabel", "the header query-id corpus-id score"),
        ("query-id\tcorpus-id\tscore\tlabel", "the header query-id corpus-id score"),
        ("q1\t1\td2\t1", "neither a judgement"),
        ("query-id,corpus-id,score", "with tabs between"),
        ("q1 d2 1", "with tabs between"),
    ],
)
def test_a_first_line_of_another_kind_is_refused_with_what_is_expected(folder: Path, line: str, complaint: str) -> None:
    (folder / "qrels/test.tsv").write_text(f"{line}\nq1\td2\t1\n")
    message = refusal(folder)
    assert "test.tsv:1: " in message and complaint in message


ODD_IDS = [
    '"',
    '"d"',
    'd"',
    '""',
    "\u3000d",
    "d\xa0",
    "d\u2028e",
    "\x85",
    "d\x1c",
    "'d'",
    "\x1b[2J",
    "007",
    "1.0",
]


@pytest.mark.parametrize("name", ODD_IDS)
def test_an_id_is_the_same_text_in_every_file(folder: Path, name: str) -> None:
    beir.write_collection(folder, [Document(name, "", "text"), DOCUMENTS[0]], {name: "query"}, {name: {name: 1}})
    collection = Collection.open(folder)
    assert [document.id for document in collection.documents()] == [name, "d1"]
    assert (list(collection.judged_queries), collection.qrels) == ([name], {name: {name: 1}})
    assert beir.check_collection(folder)["judgements_of_unknown_documents"] == 0


def test_only_an_id_that_begins_with_a_quote_is_quoted(folder: Path) -> None:
    beir.write_collection(folder, DOCUMENTS, QUERIES, {"q1": {'<dbpedia:"Heroes">': 1, '"Heroes"': 2}})
    lines = (folder / "qrels/test.tsv").read_text().splitlines()
    assert lines[1:] == ['q1\t<dbpedia:"Heroes">\t1', 'q1\t"""Heroes"""\t2']


@pytest.mark.parametrize(
    ("judgements", "words"),
    [
        ("q1\t007\t1\nq1\t008\t1\n", ("judges no document of corpus.jsonl", "'007', '008'", "'d1', 'd2', 'd3'")),
        ("1.0\td1\t1\n", ("judges no query of queries.jsonl", "'1.0'", "'q2', 'q1', 'q3'")),
        ("q1\td1\t0\nq2\td1\t-1\n", ("none of its 2 scores is above 0",)),
        ("q1\tgone\t1\nnobody\td1\t1\n", ("none of its 2 positive judgements", "('q1', 'gone')")),
        ("q1\td1\t0\nq1\tgone\t1\n", ("judges no document", "'gone'")),
        ("", ("no judgement in it",)),
        ("query-id\tcorpus-id\tscore\n", ("no judgement in it",)),
    ],
)
def test_judgements_of_which_none_is_positive_and_known_are_refused(
    folder: Path, judgements: str, words: tuple[str, ...]
) -> None:
    (folder / "qrels/test.tsv").write_text(judgements)
    message = refusal(folder)
    for word in (str(folder / "qrels/test.tsv"), "nothing to evaluate", *words):
        assert word in message


@pytest.mark.parametrize(("unknown", "warned"), [(1, False), (2, True)])
def test_a_large_part_of_unknown_ids_is_a_warning_that_shows_both_sides(
    folder: Path, caplog: pytest.LogCaptureFixture, unknown: int, warned: bool
) -> None:
    documents = [Document(f"d{number}", "", "text") for number in range(10)]
    judged = [f"d{number}" for number in range(10 - unknown)] + [f"0{number}" for number in range(unknown)]
    beir.write_collection(folder, documents, QUERIES, {"q1": dict.fromkeys(judged, 1)})
    with caplog.at_level(logging.WARNING, "colbert_zero"):
        assert beir.check_collection(folder)["judgements_of_unknown_documents"] == unknown
    assert caplog.messages == (
        [
            f"{folder / 'qrels/test.tsv'}: warning: 2 of 10 judgements are of unknown documents, such as '00', '01', "
            "where the collection has 'd0', 'd1', 'd2': they count as never retrieved"
        ]
        if warned
        else []
    )


def test_texts_that_are_all_empty_are_refused(folder: Path) -> None:
    write_lines(folder / "queries.jsonl", {"_id": "q1", "text": " "}, {"_id": "q2", "text": ""})
    assert "each of the 2 queries is empty" in refusal(folder)
    write_lines(folder / "corpus.jsonl", {"_id": "d1", "text": "", "body": "a"}, {"_id": "d2", "text": None})
    assert "each of the 2 documents is empty" in refusal(folder)


@pytest.mark.parametrize("split", ["../../x", "/etc/x", "a/b", "", ".", "..", "x\n", "x\x1b[2J"])
def test_a_split_stays_in_its_folder(folder: Path, split: str) -> None:
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError, match="cannot be the name of a file"):
        beir.read_qrels(folder, split)
    with pytest.raises(UserError, match="cannot be the name of a file"):
        beir.write_collection(folder, DOCUMENTS, QUERIES, QRELS, split)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\tscore\r\n", "\ufeffquery-id\tcorpus-id\tscore\n"])
def test_qrels_read_with_or_without_header_and_with_scores_as_floats(folder: Path, header: str) -> None:
    (folder / "qrels/test.tsv").write_text(f"{header}q1\td2\t1.0\r\n\nq2\td1\t-1\n", encoding="utf-8", newline="")
    assert beir.read_qrels(folder) == {"q1": {"d2": 1}, "q2": {"d1": -1}}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("q1 d2 1", "with tabs between"),
        ("q1\td2", "with tabs between"),
        ("q1\t\t1", "with tabs between"),
        ("q1\td2\tyes", "'yes' is not a whole number"),
        ("q1\td2\t0.5", "'0.5' is not a whole number"),
        ("q1\td2\tnan", "'nan' is not a whole number"),
        ("q2\td1\t1", "two different scores"),
        ("q1\td2\t1_0", "'1_0' is not a whole number"),
        ("q1\td2\t\u0661", "is not a whole number"),
        ("q1\td2\tinf", "'inf' is not a whole number"),
        ("q1\td2\t1e999", "'1e999' is not a whole number"),
        ("q1\td2\t2147483648", "beyond 1000000"),
        ("q1\td2\t-1e20", "beyond 1000000"),
        ('q1\t"d2\t1', "does not end"),
        ('q1\t"d"2\t1', "does not end"),
        ("q1\t0\td2\t1", "with tabs between"),
    ],
)
def test_a_malformed_judgement_is_refused_with_its_line(folder: Path, row: str, complaint: str) -> None:
    path = folder / "qrels/test.tsv"
    path.write_text(path.read_text() + row + "\n")
    message = refusal(folder)
    assert f"{path}:5: " in message and complaint in message


def test_a_judgement_repeated_with_the_same_score_counts_once(folder: Path) -> None:
    path = folder / "qrels/test.tsv"
    path.write_text(path.read_text() + "q1\td2\t1.0\n")
    assert beir.check_collection(folder)["judgements"] == 3


@pytest.mark.parametrize(
    ("encode", "complaint"),
    [
        (gzip.compress, "is gzip: let its name end in .gz"),
        (bz2.compress, "is bzip2: decompress it"),
        (lzma.compress, "is xz: decompress it"),
        (lambda data: data.decode().encode("utf-16"), "is UTF-16: convert it to UTF-8"),
        (lambda data: b"PAR1" + bytes([0x15, 0x84]) + data, "is Parquet: let its name end in .parquet"),
    ],
)
def test_a_file_of_another_format_says_which(folder: Path, encode: Callable[[bytes], bytes], complaint: str) -> None:
    path = folder / "corpus.jsonl"
    path.write_bytes(encode(path.read_bytes()))
    assert refusal(folder).startswith(f"{path} {complaint}")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"_id": "d1", "text": "again"}', "document 'd1' is there twice"),
        (b'{"_id": "d9", "text": "\xe9t\xe9"}', "not UTF-8 at byte 24"),
        (b'{"_id": "d9", "text": "\\ud800"}', "surrogate"),
        (b'{"_id": "d9", "text": "cut', "not JSON"),
        (b'{"_id": "d9", "text": "a", "_id": "d8"}', "the key '_id' stands there twice"),
        (b'{"_id": "d9", "text": "a", "metadata": {"x": 1, "x": 1}}', "the key 'x' stands there twice"),
        (b"[" * 100_000, "not JSON"),
        (b"null", "null, where a JSON object is needed"),
        (b'["d9", "text"]', "a list, where a JSON object is needed"),
        (b'{"id": "d9", "text": "a"}', "no _id"),
        (b'{"_id": "", "text": "a"}', "no _id"),
        (b'{"_id": "d 9", "text": "a"}', "white space"),
        (b'{"_id": "d9\\n", "text": "a"}', "white space"),
        (b'{"_id": "\\ufeffd9", "text": "a"}', "byte order mark"),
        (b'{"_id": 1.0, "text": "a"}', "_id is 1.0, not a string"),
        (b'{"_id": true, "text": "a"}', "_id is True, not a string"),
        (b'{"_id": null, "text": "a"}', "no _id"),
        (b'{"_id": ["d9"], "text": "a"}', "_id is ['d9'], not a string"),
        (b'{"_id": "d9", "body": "a"}', "no text"),
        (b'{"_id": "d9", "text": ["a"]}', "text must be a text or null, not a list"),
        (b'{"_id": "d9", "text": "a", "title": 3}', "title must be a text or null, not a number"),
    ],
)
def test_a_malformed_document_is_refused_with_its_line(folder: Path, line: bytes, complaint: str) -> None:
    path = folder / "corpus.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    message = refusal(folder)
    assert f"{path}:4: " in message and complaint in message


def test_a_repeated_query_is_refused_with_its_line(folder: Path) -> None:
    write_lines(folder / "queries.jsonl", {"_id": "q1", "text": "a"}, {"_id": "q1", "text": "b"})
    assert f"{folder / 'queries.jsonl'}:2: query 'q1' is there twice" in refusal(folder)


def test_an_empty_corpus_is_refused(folder: Path) -> None:
    (folder / "corpus.jsonl").write_text("\n")
    assert "no document in it" in refusal(folder)


def test_a_collection_without_a_judged_query_is_refused(folder: Path) -> None:
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nelsewhere\td1\t1\n")
    assert "nothing to evaluate" in refusal(folder)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{folder / name} is missing" in refusal(folder)


def test_a_missing_split_names_the_splits_of_the_folder(folder: Path) -> None:
    assert "the folder has the splits: test" in refusal(folder, "dev")


def test_a_published_collection_knows_its_split_and_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(job: Job) -> dict[str, int]:
        beir.write_collection(job.folder, DOCUMENTS, QUERIES, QRELS, "dev")
        return beir.check_collection(job.folder, "dev")

    monkeypatch.chdir(tmp_path)
    spec = Spec("collections", "folder.mine", {"split": "dev"})
    assert artifact.run_step(make, None, ["--spec", spec.text]) == 0
    assert Collection.open(Artifact.open(spec.name)).qrels == QRELS
    path = spec.folder / "corpus.jsonl"
    path.write_bytes(path.read_bytes().replace(b"cycles", b"circle"))
    with pytest.raises(UserError, match="was changed"):
        Collection.open(Artifact.open(spec.name))
