"""Laws of shards: each valid row once, in an order that only seed, source and content decide; every loss counted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pytest import CaptureFixture, MonkeyPatch

from colbert_zero.audit.records import problem_with_form, problems_with_history
from colbert_zero.data.rows import RowReader, min_max, shard_file_name
from colbert_zero.data.shards import PARTS, make
from colbert_zero.data.shuffle import BucketRange, merge_spills
from colbert_zero.graph.artifact import MANIFEST_FILE, SPEC_FILE, Artifact, Spec, file_digests, run_step

COLUMNS = {"query": "query", "document": "document", "negatives": "negatives"}
LIMITS = {"rows_per_shard": 10, "minimum_characters": 1, "maximum_characters": None, "seed": 7}
ROWS = [{"query": f"question {number}", "document": f"answer {number}"} for number in range(37)]


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def publish(spec: Spec, files: dict[str, Any], facts: dict[str, Any] | None = None) -> str:
    """Publish a source without a step: dictionaries as JSON lines, tables as Parquet."""
    for name, content in files.items():
        (spec.folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pa.Table):
            pq.write_table(content, spec.folder / name)
        else:
            (spec.folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    (spec.folder / SPEC_FILE).write_text(spec.text)
    (spec.folder / MANIFEST_FILE).write_text(json.dumps({"outputs": file_digests(spec.folder), "facts": facts or {}}))
    return spec.name


def sharded(source: str, threads: int = 1, **changes: Any) -> Artifact:
    spec = Spec("shards", "mine", LIMITS | changes, {"source": [source]})
    assert run_step(make, None, ["--spec", spec.text, "--threads", str(threads)]) == 0
    return Artifact.open(spec.name)


def shards_of(files: dict[str, Any], revision: int = 0, **changes: Any) -> Artifact:
    settings = {"columns": COLUMNS, "format": "rows", "revision": revision}
    return sharded(publish(Spec("sources", "hub.mine", settings), files), **changes)


def rows_in(artifact: Artifact) -> list[dict[str, Any]]:
    reader = RowReader(artifact)
    rows: list[dict[str, Any]] = reader.read(0, len(reader)).to_pylist()
    return rows


def pairs_in(artifact: Artifact) -> list[tuple[str, str]]:
    return [(row["query"], row["document"]) for row in rows_in(artifact)]


def test_every_row_is_kept_once() -> None:
    artifact = shards_of({"a.jsonl": ROWS})
    assert sorted(pairs_in(artifact)) == sorted((row["query"], row["document"]) for row in ROWS)
    assert pairs_in(artifact) != [(row["query"], row["document"]) for row in ROWS]
    assert artifact.files() == [f"rows-0000{number}.parquet" for number in range(4)]
    assert artifact.facts == {
        "rows": 37,
        "rows_by_shard": [10, 10, 10, 7],
        "read": 37,
        "dropped": {},
        "characters": sum(len(row["query"]) + len(row["document"]) for row in ROWS),
    }


def test_files_and_their_order_do_not_matter() -> None:
    whole = shards_of({"a.jsonl": ROWS})
    backwards = pa.Table.from_pylist(ROWS[:20:-1])
    parts = shards_of({"a.parquet": backwards, "b.jsonl": ROWS[:21]}, revision=1)
    assert whole.manifest["outputs"] == parts.manifest["outputs"]


def test_the_size_of_shards_does_not_change_the_order() -> None:
    assert pairs_in(shards_of({"a.jsonl": ROWS})) == pairs_in(shards_of({"a.jsonl": ROWS}, 1, rows_per_shard=3))


def test_threads_do_not_change_a_byte() -> None:
    one = shards_of({"a.jsonl": ROWS})
    four = shards_of({"a.jsonl": ROWS}, 1, threads=4)
    assert one.manifest["outputs"] == four.manifest["outputs"]


def test_the_seed_changes_the_order() -> None:
    one, other = shards_of({"a.jsonl": ROWS}), shards_of({"a.jsonl": ROWS}, 1, seed=8)
    assert pairs_in(one) != pairs_in(other)
    assert sorted(pairs_in(one)) == sorted(pairs_in(other))


def test_losses_are_counted_by_reason() -> None:
    rows = [
        {"query": " Question", "document": "An answer\n"},
        {"query": "question", "document": "AN  ANSWER"},
        {"query": "question", "document": "another answer"},
        {"query": "  ", "document": "an answer"},
        {"query": "question"},
        {"query": 7, "document": "an answer"},
        {"query": "why", "document": "an answer"},
        {"query": "question", "document": "because" * 3},
        {"query": "question", "document": "the answer", "negatives": "[1]"},
    ]
    artifact = shards_of({"a.jsonl": rows}, minimum_characters=4, maximum_characters=20)
    # Among duplicates, the row whose content sorts first is kept, in whatever order they are read.
    assert sorted(pairs_in(artifact)) == [("question", "AN  ANSWER"), ("question", "another answer")]
    assert artifact.facts["read"] == 9
    assert artifact.facts["dropped"] == {
        "document is too long": 1,
        "duplicate": 1,
        "negatives are not texts": 1,
        "no document": 1,
        "no query": 2,
        "query is too short": 1,
    }


def test_negatives_stay_with_their_row_and_blank_ones_are_removed() -> None:
    rows = [{**row, "negatives": [row["document"] + " not", " ", "other "]} for row in ROWS]
    for row in rows_in(shards_of({"a.jsonl": rows})):
        assert row["negatives"] == [row["document"] + " not", "other"]


@pytest.mark.parametrize("none", [None, [], [" ", None], ["ANSWER  a"]])
def test_a_row_without_a_negative_is_dropped_in_a_source_with_negatives(none: Any) -> None:
    rows = [
        {"query": "a", "document": "answer a", "negatives": none},
        {"query": "b", "document": "b", "negatives": "c"},
    ]
    artifact = shards_of({"a.jsonl": rows})
    assert rows_in(artifact) == [{"query": "b", "document": "b", "negatives": ["c"]}]
    assert artifact.facts["dropped"] == {"no negatives": 1}
    assert artifact.facts["read"] == 2
    alone = shards_of({"a.jsonl": [rows[0]]}, revision=1)
    assert rows_in(alone) == [{"query": "a", "document": "answer a"}]


def test_negatives_that_are_a_document_of_their_row_are_removed_and_counted() -> None:
    rows = [
        {"query": "a", "document": "One  \uff21", "negatives": ["one a", "other", "ONE A", "one b"]},
        {"query": "b", "document": ["first", "second"], "negatives": ["Second", "third"]},
    ]
    artifact = shards_of({"a.jsonl": rows})
    assert {(row["query"], row["document"]): row["negatives"] for row in rows_in(artifact)} == {
        ("a", "One  \uff21"): ["other", "one b"],
        ("b", "first"): ["third"],
        ("b", "second"): ["third"],
    }
    assert artifact.facts["removed_negatives"] == 3
    # Rows read and further documents are rows written and rows dropped.
    assert (artifact.facts["read"], artifact.facts["further_documents"], artifact.facts["rows"]) == (2, 1, 3)


def test_one_pair_with_many_negatives_is_one_row_however_the_files_are_split() -> None:
    rows = [{**row, "negatives": f"negative {number} of {row['query']}"} for number in range(3) for row in ROWS]
    whole = shards_of({"a.jsonl": rows})
    parts = shards_of({"a.jsonl": rows[50:], "b.jsonl": rows[:20][::-1], "c.jsonl": rows[20:50]}, revision=1, threads=2)
    assert whole.manifest["outputs"] == parts.manifest["outputs"]
    assert whole.facts == parts.facts
    assert (whole.facts["rows"], whole.facts["dropped"]) == (37, {"merged": 74})
    for row in rows_in(whole):
        assert sorted(row["negatives"]) == [f"negative {number} of {row['query']}" for number in range(3)]


def test_without_deduplication_every_row_stays_and_copies_are_no_neighbours(monkeypatch: MonkeyPatch) -> None:
    rows = [{**row, "negatives": [f"negative {number}"]} for number in range(3) for row in ROWS]
    artifact = shards_of({"a.jsonl": rows}, rows_per_shard=1000, deduplicate=False)
    assert (artifact.facts["rows"], artifact.facts["dropped"]) == (111, {})
    assert sorted(map(str, rows_in(artifact))) == sorted(map(str, rows))
    pairs = pairs_in(artifact)
    assert sum(one == other for one, other in pairwise(pairs)) < 10
    spec = spec_of(next(iter(artifact.spec.inputs["source"])), rows_per_shard=1000, deduplicate=False, seed=8)
    assert run_step(make, None, ["--spec", spec.text, "--threads", "2"]) == 0
    assert pairs_in(Artifact.open(spec.name)) != pairs


def test_without_deduplication_scored_rows_stay_too() -> None:
    rows = [scored_row(10, [0, 1], [1, 2])] * 5
    assert scored(rows, documents=2).facts["rows"] == 1
    artifact = sharded(scored_source(rows, revision=1), deduplicate=False)
    assert (artifact.facts["rows"], artifact.facts["dropped"]) == (5, {})


@pytest.mark.parametrize("deduplicate", [True, False])
def test_a_share_is_the_beginning_of_all_rows_and_of_a_larger_share(deduplicate: bool) -> None:
    rows = [{"query": f"question {number}", "document": f"answer {number}"} for number in range(1000)]
    options = {"rows_per_shard": 150, "deduplicate": deduplicate}
    whole = pairs_in(shards_of({"a.jsonl": rows}, **options))
    for share in (0.01, 0.1, 0.5, 0.999):
        artifact = shards_of({"a.jsonl": rows}, share=share, **options)
        pairs = pairs_in(artifact)
        assert pairs == whole[: len(pairs)]
        # Four standard deviations of as many independent draws.
        assert abs(len(pairs) - 1000 * share) <= 4 * (1000 * share * (1 - share)) ** 0.5 + 1
        assert artifact.facts["dropped"].get("beyond the share", 0) == 1000 - len(pairs)
        assert artifact.facts["read"] == 1000


def test_files_and_processes_do_not_change_a_share() -> None:
    one = shards_of({"a.jsonl": ROWS}, share=0.4)
    other = shards_of({"a.jsonl": ROWS[20:], "b.jsonl": ROWS[:20]}, revision=1, share=0.4, threads=2)
    assert one.manifest["outputs"] == other.manifest["outputs"]


def test_a_share_without_a_row_is_one_clear_line(capsys: CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError):
        shards_of({"a.jsonl": ROWS[:3]}, share=1e-9)
    assert "gives no row: 3 read, 3 beyond the share" in capsys.readouterr().err


def test_a_source_without_negatives_has_no_such_column() -> None:
    assert RowReader(shards_of({"a.jsonl": ROWS})).schema.names == ["query", "document"]


def fails_with(capsys: CaptureFixture[str], source: str, **changes: Any) -> str:
    spec = Spec("shards", "mine", LIMITS | changes, {"source": [source]})
    assert run_step(make, None, ["--spec", spec.text]) == 1
    assert not spec.folder.exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "0 read, none dropped"),
        ([{"query": "why", "document": ""}, {"query": "a", "document": "x"}], "2 read, 1 no document, 1 query is too"),
    ],
)
def test_a_source_without_a_valid_row_is_refused(
    capsys: CaptureFixture[str], rows: list[dict[str, Any]], message: str
) -> None:
    source = publish(Spec("sources", "file.mine", {"columns": COLUMNS}), {"a.jsonl": rows})
    error = fails_with(capsys, source, minimum_characters=2)
    assert f"{source} gives no row: {message}" in error


def forbid_reading(monkeypatch: MonkeyPatch) -> None:
    """From now on, any attempt to read a source's files fails."""

    def read(*_: Any) -> Iterator[Any]:
        raise AssertionError("read again")

    monkeypatch.setattr("colbert_zero.data.shards.read_rows", read)
    monkeypatch.setattr("colbert_zero.data.scored.read_files", read)


def spec_of(source: str, **changes: Any) -> Spec:
    return Spec("shards", "mine", LIMITS | changes, {"source": [source]})


FILES = {"a.jsonl": ROWS[:10], "b.jsonl": ROWS[8:30], "c.jsonl": ROWS[30:]}


def test_a_killed_run_is_resumed(monkeypatch: MonkeyPatch) -> None:
    expected = shards_of({"a.jsonl": [row for part in FILES.values() for row in part]}, revision=1).manifest["outputs"]
    source = publish(Spec("sources", "hub.mine", {"columns": COLUMNS, "format": "rows"}), FILES)
    spec = spec_of(source)
    merged: list[BucketRange] = []

    def merge_or_exit(folders: list[Path], buckets: BucketRange) -> Any:
        merged.append(buckets)
        if len(merged) == 3:
            raise SystemExit
        return merge_spills(folders, buckets)

    monkeypatch.setattr("colbert_zero.data.shards.merge_spills", merge_or_exit)
    with pytest.raises(SystemExit):
        run_step(make, None, ["--spec", spec.text])
    kept = {int(path.parent.name): path.stat().st_ino for path in spec.state.glob("shards/0*/*.parquet")}
    assert sorted(kept) == [0, 1]
    forbid_reading(monkeypatch)
    assert run_step(make, None, ["--spec", spec.text]) == 0
    artifact = Artifact.open(spec.name)
    assert len(merged) == 5
    assert {number: artifact.file(shard_file_name(number)).stat().st_ino for number in kept} == kept
    assert artifact.manifest["outputs"] == expected
    assert artifact.facts["dropped"] == {"duplicate": 2}
    assert not spec.state.exists()


def test_a_run_killed_again_and_again_ends_with_the_same_bytes() -> None:
    files = {
        f"{file:02d}.jsonl": [{"query": f"question {row}", "document": f"answer {row}"} for row in range(file, 9000, 9)]
        for file in range(9)
    }
    limits = {"rows_per_shard": 500}
    expected = shards_of({"a.jsonl": [row for rows in files.values() for row in rows]}, revision=1, **limits)
    spec = spec_of(publish(Spec("sources", "hub.mine", {"columns": COLUMNS, "format": "rows"}), files), **limits)
    for pattern in ("files/.0*", "files/00000[0-8]", "files/000007", "shards/.0*/*.parquet", "shards/0*"):
        command = [sys.executable, "-m", "colbert_zero.data.shards", "--spec", spec.text, "--threads", "2"]
        running = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        while running.poll() is None and not any(spec.state.glob(pattern)):
            time.sleep(0.001)
        os.killpg(running.pid, signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        assert not spec.folder.exists()
    assert run_step(make, None, ["--spec", spec.text]) == 0
    artifact = Artifact.open(spec.name)
    assert artifact.manifest["outputs"] == expected.manifest["outputs"]
    assert (artifact.facts["read"], artifact.facts["rows"], artifact.facts["dropped"]) == (9000, 9000, {})
    assert not spec.state.exists()


def do_share(spec: Spec, part: str, share: int, jobs: int) -> int:
    arguments = ["--spec", spec.text, "--part", part, "--share", str(share), "--jobs", str(jobs)]
    return run_step(make, None, arguments, parts=PARTS)


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_several_jobs_make_the_same_shards(monkeypatch: MonkeyPatch, jobs: int) -> None:
    expected = shards_of({"a.jsonl": [row for part in FILES.values() for row in part]}, revision=1)
    spec = spec_of(publish(Spec("sources", "hub.mine", {"columns": COLUMNS, "format": "rows"}), FILES))
    for of in ("files", "shards"):
        for share in range(jobs, 0, -1):
            assert do_share(spec, of, share, jobs) == 0
    forbid_reading(monkeypatch)
    monkeypatch.setattr("colbert_zero.data.shards.merge_spills", None)
    assert run_step(make, None, ["--spec", spec.text]) == 0
    artifact = Artifact.open(spec.name)
    assert artifact.manifest["outputs"] == expected.manifest["outputs"]
    assert [(record["name"], record["end"]) for record in artifact.manifest["shares"]] == 2 * jobs * [
        (spec.name, "done")
    ]
    assert problem_with_form(artifact.manifest, (artifact.folder / "manifest.json").read_text()) is None
    assert not list(problems_with_history(artifact.manifest, spec.name))
    # A share that starts after the shards are published does nothing.
    assert do_share(spec, "files", 1, 2) == 0
    assert not spec.state.exists()


@pytest.mark.parametrize(("share", "jobs"), [(0, 2), (3, 2), (1, 0), (-1, 2)])
def test_a_share_that_is_none_is_refused_before_anything_is_written(
    share: int, jobs: int, capsys: CaptureFixture[str]
) -> None:
    spec = spec_of(publish(Spec("sources", "hub.mine", {"columns": COLUMNS, "format": "rows"}), FILES))
    assert do_share(spec, "files", share, jobs) == 1
    assert f"there is no share {share} of {jobs}" in capsys.readouterr().err
    assert not spec.state.exists()


def test_a_damaged_file_is_named_by_a_process_of_several(capsys: CaptureFixture[str]) -> None:
    source = publish(Spec("sources", "hub.mine", {"columns": COLUMNS, "format": "rows"}), FILES)
    next(Path("resources/sources").glob("*/b.jsonl")).write_text("{}")
    assert run_step(make, None, ["--spec", spec_of(source).text, "--threads", "2"]) == 1
    assert "b.jsonl has 2 bytes, its manifest says" in capsys.readouterr().err


# Teacher scores

QUERIES = pa.table({"query_id": [10, 11, 12, 13], "text": ["ten", "eleven ", " ", "Ten"]})
DOCUMENTS = pa.table({"document_id": list(range(8)), "text": [f"document {number}" for number in range(7)] + [None]})


def scored(train: Any, name: str = "train.jsonl", revision: int = 0, **settings: Any) -> Artifact:
    return sharded(scored_source(train, name, revision, **settings))


def scored_source(train: Any, name: str = "train.jsonl", revision: int = 0, **settings: Any) -> str:
    files = {"queries/a.parquet": QUERIES, "documents/a.parquet": DOCUMENTS[:3], "documents/b.parquet": DOCUMENTS[3:]}
    roles = {
        "train": [name],
        "queries": ["queries/a.parquet"],
        "documents": ["documents/a.parquet", "documents/b.parquet"],
    }
    spec = Spec("sources", "hub.marco", {"format": "scored", "revision": revision, **settings})
    return publish(spec, {name: train, **files}, {"files": roles})


def scored_row(query: Any, documents: Any, scores: Any) -> dict[str, Any]:
    return {"query_id": query, "document_ids": documents, "scores": scores}


LISTS = ("document_ids", "scores")


def texts_in_lists(row: dict[str, Any]) -> list[list[str]]:
    """The lists of a row, each item a text."""
    return [list(map(str, row[name])) for name in LISTS]


def python_lists(row: dict[str, Any]) -> list[str]:
    """The lists of a row as Python prints them."""
    return list(map(str, texts_in_lists(row)))


def test_ids_are_joined_with_their_texts_and_scores_normalised() -> None:
    train = [scored_row(10, "[3, 1, 2]", "[4.0, 2.0, 3.0]"), scored_row("11", [0, "5", 6], [-1, 0.5, -2.5])]
    artifact = scored(train)
    rows = {row["query"]: row for row in rows_in(artifact)}
    assert rows["ten"]["documents"] == ["document 3", "document 1", "document 2"]
    assert rows["ten"]["raw"] == [4.0, 2.0, 3.0]
    assert rows["ten"]["scores"] == [1.0, 0.0, 0.5]
    assert rows["eleven"]["documents"] == ["document 0", "document 5", "document 6"]
    assert rows["eleven"]["scores"] == [0.5, 1.0, 0.0]
    assert artifact.facts["documents"] == 3
    assert artifact.facts["characters"] == len("ten") + len("eleven") + 6 * len("document 0")


def test_lists_stored_as_strings_or_lists_or_in_parquet_are_the_same() -> None:
    lists = [scored_row(10, [3, 1], [4.0, 2.0]), scored_row(11, [0, 5], [0.25, 1.0])]
    strings = [scored_row(row["query_id"], str(row["document_ids"]), str(row["scores"])) for row in lists]
    outputs = [
        scored(lists).manifest["outputs"],
        scored(strings, revision=1).manifest["outputs"],
        scored(pa.Table.from_pylist(lists), "train.parquet", 2).manifest["outputs"],
        scored(pa.Table.from_pylist(strings), "train.parquet", 3).manifest["outputs"],
        scored([scored_row(row["query_id"], *python_lists(row)) for row in lists], revision=4).manifest["outputs"],
        scored([scored_row(row["query_id"], *texts_in_lists(row)) for row in lists], revision=5).manifest["outputs"],
        scored([scored_row(float(row["query_id"]), *map(row.get, LISTS)) for row in lists], revision=6).manifest[
            "outputs"
        ],
    ]
    assert outputs[1:] == outputs[:-1]


def test_scored_losses_are_counted_by_reason() -> None:
    nan = float("nan")
    train = [
        scored_row(10, [0, 1, 2], [1, 2, 3]),
        scored_row(13, [0, 1, 2], [3, 2, 1]),
        scored_row(11, [0, 1, 99], [1, 2, 3]),
        scored_row(11, [0, 1, 7], [1, 2, 3]),
        scored_row(11, [0, 1], [1, 2]),
        scored_row(11, [0, 1, 2], [1, 1, 1]),
        scored_row(11, [0, 1, 2, 3], [1, 1, 1, 2]),
        scored_row(11, [0, 1, 2], [1, nan, 1]),
        scored_row(11, [0, 1, 2], [1, 1]),
        scored_row(11, "__import__('os')", [1, 1]),
        scored_row(11, [0, 1, 2], None),
        scored_row(12, [0, 1, 2], [1, 2, 3]),
        scored_row(99, [0, 1, 2], [1, 2, 3]),
        scored_row(None, [0, 1, 2], [1, 2, 3]),
    ]
    artifact = scored(train, documents=3)
    assert [row["query"] for row in rows_in(artifact)] == ["ten"]
    assert artifact.facts["read"] == 14
    assert artifact.facts["dropped"] == {
        "a score is not finite": 1,
        "all scores are equal": 2,
        "documents or scores are not lists": 2,
        "duplicate": 1,
        "no document": 2,
        "no query": 3,
        "not as many scores as documents": 1,
        "too few documents": 1,
    }


def test_rows_with_different_numbers_of_documents_need_the_setting(capsys: CaptureFixture[str]) -> None:
    train = [scored_row(10, [0, 1, 2], [1, 2, 3]), scored_row(11, [0, 1], [1, 2])]
    assert "query 11 has 2 documents, others 3; say in" in fails_with(capsys, scored_source(train))
    artifact = scored(train, revision=1, documents=2)
    assert {len(row["documents"]) for row in rows_in(artifact)} == {2}
    assert artifact.facts["rows"] == 2


def test_every_query_has_its_lowest_score_at_0_and_its_highest_at_1() -> None:
    rng = np.random.default_rng(3)
    rows = [scored_row(10, rng.permutation(7)[:4].tolist(), rng.normal(size=4).tolist()) for _ in range(50)]
    for row in rows_in(scored(rows)):
        raw = np.array(row["raw"], dtype=np.float32)
        assert row["scores"] == min_max(raw).tolist()
        assert (min(row["scores"]), max(row["scores"])) == (0.0, pytest.approx(1.0))
        assert np.argsort(row["scores"]).tolist() == np.argsort(raw).tolist()


def test_a_source_without_a_usable_scored_row_is_refused(capsys: CaptureFixture[str]) -> None:
    source = scored_source([scored_row(10, [0, 1], [1, 1])])
    assert "1 read, 1 all scores are equal" in fails_with(capsys, source)


def test_files_with_different_numbers_of_documents_need_the_setting(capsys: CaptureFixture[str]) -> None:
    parts = {"1.jsonl": [scored_row(10, [0, 1, 2], [1, 2, 3])], "2.jsonl": [scored_row(11, [0, 1], [1, 2])]}
    files = {**parts, "queries/a.parquet": QUERIES, "documents/a.parquet": DOCUMENTS}
    roles = {"train": list(parts), "queries": ["queries/a.parquet"], "documents": ["documents/a.parquet"]}
    source = publish(Spec("sources", "hub.marco", {"format": "scored"}), files, {"files": roles})
    assert "its files have [2, 3] documents for a query; say in the registry" in fails_with(capsys, source)


def test_several_jobs_make_the_same_scored_shards(monkeypatch: MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    rows = [scored_row(10 + at % 2, rng.permutation(7)[:4].tolist(), rng.normal(size=4).tolist()) for at in range(40)]
    expected = scored(rows)
    spec = spec_of(scored_source(rows, revision=1))
    for of in ("files", "shards"):
        for share in (1, 2):
            assert do_share(spec, of, share, 2) == 0
    forbid_reading(monkeypatch)
    assert run_step(make, None, ["--spec", spec.text]) == 0
    assert Artifact.open(spec.name).manifest["outputs"] == expected.manifest["outputs"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (scored_row(10, "[0 1]", [1, 2]), r"column 'document_ids' holds text such as '[0 1]', where a list of ids"),
        (
            scored_row(10, [0, 1], "[0.5 0.1]"),
            "column 'scores' holds text such as '[0.5 0.1]', where a list of numbers",
        ),
        (
            scored_row(10, [0, 1], ["high", "low"]),
            "column 'scores' holds lists of text such as 'high', where a list of",
        ),
        (scored_row([10], [0, 1], [1, 2]), "column 'query_id' holds lists of numbers such as 10, where an id"),
        (
            {"query_id": 10, "docs": [0, 1], "scores": [1, 2]},
            "has the column 'document_ids'; they have query_id, docs,",
        ),
    ],
)
def test_scored_rows_of_which_none_can_be_used_are_refused_at_the_first(
    capsys: CaptureFixture[str], row: dict[str, Any], message: str
) -> None:
    assert message in fails_with(capsys, scored_source([row] * 3))


def test_a_source_of_scores_without_texts_is_refused(capsys: CaptureFixture[str]) -> None:
    empty = pa.table({"query_id": [10], "text": [" "]})
    files = {"1.jsonl": [scored_row(10, [0, 1], [1, 2])], "q.parquet": empty, "d.parquet": DOCUMENTS}
    roles = {"train": ["1.jsonl"], "queries": ["q.parquet"], "documents": ["d.parquet"]}
    source = publish(Spec("sources", "hub.marco", {"format": "scored"}), files, {"files": roles})
    assert "none of its queries has an id and a text" in fails_with(capsys, source)


def test_unfinished_work_is_on_disk_before_its_name_is(monkeypatch: MonkeyPatch) -> None:
    """After a power loss, files of zeros under a finished name would be taken for finished work."""
    synced: set[int] = set()
    renamed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    rename = os.replace

    def replace(one: Path, other: Path) -> None:
        if Path(other).is_relative_to("results/state/shards") and not str(other).endswith(".jsonl"):
            files = [path for path in Path(one).rglob("*") if path.is_file()] if Path(one).is_dir() else [Path(one)]
            renamed.extend(path.stat().st_ino for path in files)
            assert synced >= {path.stat().st_ino for path in files}
        rename(one, other)

    monkeypatch.setattr(os, "replace", replace)
    shards_of({"a.jsonl": [{"query": f"question {row}", "document": f"answer {row}"} for row in range(10)]})
    assert len(renamed) >= 4
