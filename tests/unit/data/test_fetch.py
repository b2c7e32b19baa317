"""Laws of fetching: the requested data are published whole and counted, or nothing is, and one line says why."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colbert_zero.data import fetch
from colbert_zero.data.hub import _check_paths, _checked_commit, _data_file_globs
from colbert_zero.graph.artifact import Artifact, Job, Spec, content_digest, file_digests, run_step
from colbert_zero.graph.console import UserError
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.local_files import DigestCache
from hub_server import Hub, serve_hub

WORKFLOW = Path(__file__).parents[3] / "workflow"
COLUMNS = {"query": "query", "document": "document"}
TOKEN = "hf_secretsecretsecretsecret"


@dataclass
class Outcome:
    """The result of a run of the step."""

    spec: Spec
    status: int
    stderr: str

    @property
    def artifact(self) -> Artifact:
        assert self.status == 0, self.stderr
        return Artifact.open(self.spec.name)

    def refused(self, *words: str) -> str:
        """Assert that nothing was published, and that stderr has one line with `words`; return the line."""
        assert self.status == 1, self.stderr
        assert not self.spec.folder.exists()
        (line,) = [line for line in self.stderr.splitlines() if line.strip()]
        assert line.startswith("colbert-zero: ")
        for word in words:
            assert word in line
        return line


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


def from_hub(hub: Hub | None, study: Path, kind: str, settings: dict[str, Any], **environment: str) -> Outcome:
    """Run the step as a rule does; huggingface_hub reads its environment when it is imported."""
    spec = Spec(kind, "hub.small", settings)
    completed = subprocess.run(
        [sys.executable, "-m", "colbert_zero.data.fetch", "--spec", spec.text, "--path", ""],
        cwd=study,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(WORKFLOW),
            "HF_HOME": str(study.parent / "home"),
            "HF_ENDPOINT": hub.address if hub else "http://127.0.0.1:9",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [line for line in completed.stderr.splitlines() if "published" not in line and "files of" not in line]
    return Outcome(spec, completed.returncode, "\n".join(lines))


def from_path(
    kind: str, label: str, settings: dict[str, Any], path: Path, capsys: pytest.CaptureFixture[str]
) -> Outcome:
    spec = Spec(kind, label, settings)
    status = run_step(fetch.make, "", ["--spec", spec.text, "--path", str(path)], fetch.add_options)
    return Outcome(spec, status, capsys.readouterr().err)


def write_rows(path: Path, rows: int, padding: int = 0) -> None:
    """A Parquet file of `rows` pairs; incompressible, `padding` bytes in each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "query": [f"query {row}" for row in range(rows)],
            "document": [os.urandom(padding // 2).hex() or f"document {row}" for row in range(rows)],
        }
    )
    pq.write_table(table, path, compression="none", use_dictionary=False)


def source_settings(
    hub: str, revision: str, rows: int | None, files: Any = ("data/squad-*.parquet",)
) -> dict[str, Any]:
    kind = "scored" if isinstance(files, dict) else "rows"
    return {"hub": hub, "revision": revision, "files": files, "rows": rows, "columns": COLUMNS, "format": kind}


def test_a_source_arrives_byte_for_byte_at_its_commit(hub: Hub, study: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, sizes in ((old, (3, 4)), (new, (5, 6))):
        for number, rows in enumerate(sizes):
            write_rows(folder / f"data/squad-{number:05d}-of-00002.parquet", rows)
        write_rows(folder / "data/simplesquad-00000-of-00001.parquet", 9)
    commit = hub.add("someone/pairs", old)
    head = hub.add("someone/pairs", new)

    artifact = from_hub(hub, study, "sources", source_settings("someone/pairs", commit, 7)).artifact
    assert artifact.files() == [f"data/squad-0000{number}-of-00002.parquet" for number in (0, 1)]
    for name in artifact.files():
        assert artifact.file(name).read_bytes() == (old / name).read_bytes()
    assert artifact.facts == {"hub": "someone/pairs", "commit": commit, "rows": 7, "files": artifact.files()}

    unpinned = from_hub(hub, study, "sources", source_settings("someone/pairs", "main", None)).artifact
    assert (unpinned.facts["commit"], unpinned.facts["rows"]) == (head, 11)


def test_an_interrupted_download_is_resumed_within_the_attempt(hub: Hub, study: Path, tmp_path: Path) -> None:
    name = "data/squad-00000-of-00001.parquet"
    write_rows(tmp_path / "data" / name, 120, padding=100_000)
    commit = hub.add("someone/pairs", tmp_path / "data")
    hub.cut_after[name] = [11_000_000]
    artifact = from_hub(hub, study, "sources", source_settings("someone/pairs", commit, 120)).artifact
    assert [path for path, _ in hub.range_requests] == [name]
    assert artifact.file(name).read_bytes() == (tmp_path / "data" / name).read_bytes()


@pytest.mark.parametrize("status", [503, 400])
def test_a_failed_attempt_keeps_the_files_that_had_arrived(hub: Hub, study: Path, tmp_path: Path, status: int) -> None:
    first, second = (f"data/squad-{number:05d}-of-00002.parquet" for number in (0, 1))
    write_rows(tmp_path / "data" / first, 3)
    write_rows(tmp_path / "data" / second, 4)
    settings = source_settings("someone/pairs", hub.add("someone/pairs", tmp_path / "data"), 7)
    hub.statuses[second] = [status]

    failed = from_hub(hub, study, "sources", settings)
    failed.refused("someone/pairs", f"HTTP {status}", "kept")
    (arrived,) = failed.spec.state.rglob(Path(first).name)
    assert arrived.read_bytes() == (tmp_path / "data" / first).read_bytes()
    artifact = from_hub(hub, study, "sources", settings).artifact
    assert artifact.file(second).read_bytes() == (tmp_path / "data" / second).read_bytes()
    assert hub.downloads == [first, second]
    assert not artifact.spec.state.exists()
    assert [attempt["end"] == "published" for attempt in artifact.manifest["attempts"]] == [False, True]


def test_a_partial_file_of_a_killed_attempt_is_removed(hub: Hub, study: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "data/data/squad-00000-of-00001.parquet", 3)
    settings = source_settings("someone/pairs", hub.add("someone/pairs", tmp_path / "data"), 99)
    refused = from_hub(hub, study, "sources", settings)
    (arrived,) = refused.spec.state.rglob("*.parquet")
    partial = arrived.with_name("left.incomplete")
    partial.write_bytes(b"half a file")
    from_hub(hub, study, "sources", settings).refused("99 are expected")
    assert arrived.exists()
    assert not partial.exists()


def test_a_file_with_other_bytes_than_listed_is_refused_and_downloaded_again(
    hub: Hub, study: Path, tmp_path: Path
) -> None:
    name = "data/squad-00000-of-00001.parquet"
    write_rows(tmp_path / "data" / name, 3)
    settings = source_settings("someone/pairs", hub.add("someone/pairs", tmp_path / "data"), 3)
    hub.corrupt.add(name)
    from_hub(hub, study, "sources", settings).refused(name, "damaged", "again")
    hub.corrupt.clear()
    assert from_hub(hub, study, "sources", settings).artifact.facts["rows"] == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 4}, ("3 rows", "4 are expected")),
        ({"revision": "f" * 40}, ("someone/pairs has no revision", "f" * 40)),
        ({"hub": "someone/nothing"}, ("someone/nothing is not on the Hub",)),
        ({"hub": "someone/gated"}, ("gated", "HF_TOKEN")),
        ({"files": ["data/quora-*.parquet"]}, ("data/quora-*.parquet", "squad", "globs")),
    ],
    ids=["count", "revision", "repository", "gated", "globs"],
)
def test_a_source_that_differs_from_its_settings_is_refused_in_one_line(
    hub: Hub, study: Path, tmp_path: Path, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    write_rows(tmp_path / "data/data/squad-00000-of-00001.parquet", 3)
    commit = hub.add("someone/pairs", tmp_path / "data")
    hub.gated.add("someone/gated")
    from_hub(hub, study, "sources", source_settings("someone/pairs", commit, 3) | change).refused(*words)


FILE = "data/squad-0.parquet"


def pinned_source(hub: Hub, folder: Path) -> dict[str, Any]:
    """Serve a source of one file; return settings that pin its commit."""
    write_rows(folder / FILE, 3)
    return source_settings("someone/pairs", hub.add("someone/pairs", folder), 3)


def tree_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    "sha",
    [
        "../../escaped",
        "/tmp/escaped",
        f"{COMMIT}\n",
        COMMIT.upper(),
        "٠" * 40,
        "main",
        "",
        COMMIT[:39],
        None,
        7,
        [COMMIT],
    ],
)
@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_commit_is_40_hex_digits(sha: Any, revision: str) -> None:
    with pytest.raises(UserError, match=r"someone/pairs: the Hub answers .* not 40 hex digits"):
        _checked_commit("someone/pairs", revision, sha)


def test_a_commit_is_the_pinned_one() -> None:
    assert _checked_commit("someone/pairs", "main", COMMIT) == COMMIT
    assert _checked_commit("someone/pairs", COMMIT.upper(), COMMIT) == COMMIT
    with pytest.raises(UserError, match=f"{COMMIT}, but {'0' * 40} was asked for"):
        _checked_commit("someone/pairs", "0" * 40, COMMIT)


@pytest.mark.parametrize(
    "answers",
    [
        {"sha": "../../../../../escaped"},
        {"sha": "0" * 40},
        {"tree": {"error": "no listing"}},
        {"tree": [{"type": "file", "path": 5}]},
        {"tree": b"[" * 100_000},
        {"next": "http://[::1"},
        {"etag": "x/../../../../../escaped"},
        {"refresh": "http://[::1"},
        {"refresh": "/api/datasets/someone/pairs/revision/main"},
    ],
    ids=[
        *("sha is a path", "another commit", "no listing", "no path", "an abyss", "next page nowhere"),
        *("ETag is a path", "token nowhere", "token without one"),
    ],
)
def test_a_hostile_answer_is_one_line_and_writes_nothing(
    hub: Hub, study: Path, tmp_path: Path, answers: dict[str, Any]
) -> None:
    settings = pinned_source(hub, tmp_path / "data")
    hub.answers = answers
    before = sorted(tmp_path.iterdir())
    from_hub(hub, study, "sources", settings).refused("HF_ENDPOINT")
    assert not hub.downloads
    assert sorted(path for path in tmp_path.iterdir() if path.name != "home") == before
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("../escaped.parquet", "out of its folder"),
        ("data/../../escaped.parquet", "out of its folder"),
        ("/etc/escaped.parquet", "out of its folder"),
        ("data/..\\escaped.parquet", "out of its folder"),
        ("C:/escaped.parquet", "out of its folder"),
        ("data//0.parquet", "out of its folder"),
        ("data/./0.parquet", "out of its folder"),
        ("data/", "out of its folder"),
        ("", "out of its folder"),
        ("data/\x1b[2J\ncolbert-zero: forged", r"\\x1b\[2J\\ncolbert-zero: forged"),
        ("data/\u202e.parquet", "cannot be a file's name"),
        ("data/\ud800.parquet", "cannot be a file's name"),
        (f"data/{'x' * 250}.parquet", "cannot be a file's name"),
        ("data/a.parquet/b.parquet", "cannot be a file's name"),
        ("data/A.parquet", "one file on some systems"),
        ("data/e\u0301.parquet", "one file on some systems"),
        ("spec.json", "kept for other files"),
        ("manifest.json", "kept for other files"),
        (".cache/huggingface/download/a.metadata", "kept for other files"),
    ],
)
def test_a_path_that_cannot_be_a_file_of_the_folder_is_refused(path: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        _check_paths("someone/pairs", ["data/a.parquet", "data/\xe9.parquet", path])


def test_a_hostile_path_is_fetched_neither_alone_nor_with_others(hub: Hub, study: Path, tmp_path: Path) -> None:
    settings = pinned_source(hub, tmp_path / "data")
    hub.phantom_paths = ["data/squad-../../../../escaped.parquet", "data/squad-\x1b[2J\ncolbert-zero: forged.parquet"]
    # Listed but not asked for, they do no harm.
    from_hub(hub, study, "sources", settings | {"files": [FILE]}).artifact.file(FILE)
    hub.downloads.clear()
    from_hub(hub, study, "sources", settings | {"files": ["*escaped*"]}).refused("escaped.parquet", "out of its folder")
    line = from_hub(hub, study, "sources", settings | {"files": ["nothing"]}).refused("\\x1b[2J\\ncolbert-zero: forged")
    assert line.isprintable()
    assert not hub.downloads


@pytest.mark.parametrize("answer", ["next", "refresh", "location"])
def test_the_token_is_sent_to_no_other_server(hub: Hub, study: Path, tmp_path: Path, answer: str) -> None:
    settings = pinned_source(hub, tmp_path / "data")
    hub.token = TOKEN
    with serve_hub() as other:
        other.add("someone/pairs", tmp_path / "data")
        path = f"datasets/someone/pairs/resolve/{settings['revision']}/{FILE}"
        hub.answers[answer] = f"{other.address.replace('127.0.0.1', 'localhost')}/{path}"
        outcome = from_hub(hub, study, "sources", settings, HF_TOKEN=TOKEN)
        if answer == "location":  # a storage server, which needs no token
            assert outcome.artifact.facts["rows"] == 3
        else:
            assert TOKEN not in outcome.refused("asks to send the token to localhost")
        assert not other.authorizations


@pytest.mark.parametrize("score", [0.5, None, "high", True, 2**31, float("nan")])
def test_a_grade_that_is_no_small_whole_number_is_refused(tmp_path: Path, score: Any) -> None:
    path = tmp_path / "test.jsonl"
    path.write_bytes(as_lines([{"query-id": "q1", "corpus-id": "d1", "score": score}]))
    with pytest.raises(UserError, match=r"test\.jsonl:1: .*score"):
        fetch._read_qrels([path])


@pytest.mark.parametrize("name", [1.0, True, ["d1"], {"id": 1}, b"d1"])
def test_an_id_that_is_neither_text_nor_a_whole_number_is_refused(tmp_path: Path, name: Any) -> None:
    path = tmp_path / "test.parquet"
    path.write_bytes(as_parquet([{"query-id": "q1", "corpus-id": name, "score": 1}]))
    with pytest.raises(UserError, match=r"test\.parquet, row 1: corpus-id is .*, not a string"):
        fetch._read_qrels([path])


@pytest.mark.parametrize("names", [("query-id", "corpus-id", "score"), ("query_id", "doc_id", "relevance")])
def test_ids_that_are_whole_numbers_are_read_as_texts(tmp_path: Path, names: tuple[str, str, str]) -> None:
    path = tmp_path / "test.parquet"
    path.write_bytes(as_parquet([dict(zip(names, (7, 2**60, 1.0), strict=True))]))
    assert fetch._read_qrels([path]) == {"7": {str(2**60): 1}}


def test_offline_is_one_clear_line(study: Path) -> None:
    settings = source_settings("someone/pairs", "0" * 40, None)
    from_hub(None, study, "sources", settings).refused("someone/pairs", "cannot be reached")
    from_hub(None, study, "sources", settings, HF_HUB_OFFLINE="1").refused("someone/pairs", "HF_HUB_OFFLINE")


def test_the_token_is_used_and_never_written(hub: Hub, study: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "data/data/squad-00000-of-00001.parquet", 3)
    settings = source_settings("someone/pairs", hub.add("someone/pairs", tmp_path / "data"), 3)
    hub.token = TOKEN
    refused = from_hub(hub, study, "sources", settings, HF_TOKEN="hf_wrongwrongwrongwrong")
    assert "wrongwrong" not in refused.refused("HF_TOKEN")
    completed = from_hub(hub, study, "sources", settings, HF_TOKEN=TOKEN)
    assert completed.artifact.facts["rows"] == 3
    assert f"Bearer {TOKEN}" in hub.authorizations
    assert TOKEN not in completed.stderr
    written = [path for path in study.rglob("*") if path.is_file()]
    assert written
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)


def test_scored_files_are_found_by_the_cards_configurations(hub: Hub, study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name, rows in (("scores", 2), ("raw_scores", 2), ("texts/a", 3), ("texts/b", 4), ("q", 5)):
        write_rows(folder / f"{name}.parquet", rows)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: train\n  data_files: scores.parquet\n- config_name: raw\n"
        "  data_files: raw_scores.parquet\n- config_name: documents\n  data_files:\n  - split: train\n"
        "    path: texts/*.parquet\n- config_name: queries\n  data_files: [q.parquet]\n---\nA card.\n"
    )
    commit = hub.add("someone/scores", folder)
    files = {role: [f"config:{role}"] for role in ("train", "queries", "documents")}
    artifact = from_hub(hub, study, "sources", source_settings("someone/scores", commit, 2, files)).artifact
    assert artifact.facts["files"] == {
        "train": ["scores.parquet"],
        "queries": ["q.parquet"],
        "documents": ["texts/a.parquet", "texts/b.parquet"],
    }
    assert artifact.facts["rows_by_role"] == {"train": 2, "queries": 5, "documents": 7}
    assert artifact.files() == ["q.parquet", "scores.parquet", "texts/a.parquet", "texts/b.parquet"]

    files["train"] = ["config:trains"]
    from_hub(hub, study, "sources", source_settings("someone/scores", commit, 2, files)).refused("trains", "documents")


@pytest.mark.parametrize(
    "value", [5, {"split": "train"}, [{"path": 5}], [[[[["x"]]]]]], ids=["number", "no path", "no text", "deep"]
)
def test_data_files_that_are_none_are_an_error(value: Any) -> None:
    with pytest.raises((TypeError, KeyError)):
        list(_data_file_globs(value))


BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    + ["configs: [{config_name: train, data_files: *a8}]"]
)


@pytest.mark.parametrize("card", ["configs: [5]", "configs: {", BOMB], ids=["no map", "no YAML", "aliases"])
def test_a_card_that_is_none_is_one_line(hub: Hub, study: Path, tmp_path: Path, card: str) -> None:
    write_rows(tmp_path / "data/scores.parquet", 2)
    (tmp_path / "data/README.md").write_text(f"---\n{card}\n---\nA card.\n")
    commit = hub.add("someone/scores", tmp_path / "data")
    from_hub(hub, study, "sources", source_settings("someone/scores", commit, 2, ["config:train"])).refused("card")


DOCUMENTS = [
    {"_id": "d1", "title": None, "text": "of a title that is null"},
    {"_id": "d2", "title": "Ä", "text": ""},
    {"_id": "d3", "title": "", "text": "three"},
]
QUERIES = [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}, {"_id": "q3", "text": "of another split"}]
QRELS = [
    {"query-id": "q1", "corpus-id": "d1", "score": 2},
    {"query-id": "q1", "corpus-id": "d2", "score": 0},
    {"query-id": "q2", "corpus-id": "d3", "score": 1},
]


def as_lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_parquet(records: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue().to_pybytes()


TSV = b"query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td3\t1\n"
LAYOUTS = {
    "jsonl": {
        "corpus.jsonl": as_lines(DOCUMENTS),
        "queries.jsonl": as_lines(QUERIES),
        "qrels/dev.jsonl": as_lines(QRELS),
        "qrels/test.jsonl": as_lines(QRELS[:1]),
    },
    "gzip and tsv": {
        "corpus.jsonl.gz": gzip.compress(as_lines(DOCUMENTS)),
        "queries.jsonl.gz": gzip.compress(as_lines(QUERIES)),
        "qrels/dev.tsv": TSV,
    },
    "parquet": {
        "corpus/corpus-00000-of-00002.parquet": as_parquet(DOCUMENTS[:2]),
        "corpus/corpus-00001-of-00002.parquet": as_parquet(DOCUMENTS[2:]),
        "queries/queries-00000-of-00001.parquet": as_parquet(QUERIES),
        "data/dev-00000-of-00001.parquet": as_parquet(QRELS),
        "data/test-00000-of-00001.parquet": as_parquet(QRELS[:1]),
    },
}


def collection_settings(hub: Hub, folder: Path, layout: str, **change: Any) -> dict[str, Any]:
    for name, content in LAYOUTS[layout].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    commit = hub.add("someone/collection", folder)
    counts = {"documents": 3, "queries": 2, "positive_judgements": 2}
    return {"hub": "someone/collection", "revision": commit, "split": "dev", **counts, **change}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_collection_becomes_beir_whatever_its_layout(hub: Hub, study: Path, tmp_path: Path, layout: str) -> None:
    artifact = from_hub(hub, study, "collections", collection_settings(hub, tmp_path / "data", layout)).artifact
    assert artifact.files() == ["corpus.jsonl", "qrels/dev.tsv", "queries.jsonl"]
    documents = [json.loads(line) for line in artifact.file("corpus.jsonl").read_text().splitlines()]
    assert documents == [document | {"title": document["title"] or ""} for document in DOCUMENTS]
    # The query of another split is left out.
    assert [json.loads(line) for line in artifact.file("queries.jsonl").read_text().splitlines()] == QUERIES[:2]
    assert artifact.file("qrels/dev.tsv").read_bytes() == TSV
    assert (artifact.facts["judgements"], artifact.facts["positive_judgements"]) == (3, 2)


def test_a_collection_with_other_counts_is_refused(hub: Hub, study: Path, tmp_path: Path) -> None:
    settings = collection_settings(hub, tmp_path / "data", "jsonl", documents=97, queries=98, positive_judgements=99)
    outcome = from_hub(hub, study, "collections", settings)
    outcome.refused("3 documents (expected 97)", "2 queries (expected 98)", "2 positive judgements (expected 99)")


def write_model(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}" if name.endswith(".json") else name.encode())
    return folder


def test_only_the_files_of_a_model_that_cannot_run_code_are_fetched(hub: Hub, study: Path, tmp_path: Path) -> None:
    selected = [
        "1_Dense/config.json",
        "1_Dense/model.safetensors",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    # What the tokenizers of PhoBERT, T5, Qwen and ProphetNet read, and the settings of a Stanford checkpoint.
    selected += ["artifact.metadata", "bpe.codes", "spiece.model", "qwen.tiktoken", "prophetnet.tokenizer", "vocab.txt"]
    others = ["README.md", "modeling.py", "onnx/model.onnx", "optimizer.pt", "pytorch_model.bin", "training_args.bin"]
    commit = hub.add("someone/model", write_model(tmp_path / "model", *selected, *others), "models")
    artifact = from_hub(hub, study, "bases", {"hub": "someone/model", "revision": commit}).artifact
    assert artifact.files() == sorted(selected)
    assert artifact.facts["commit"] == commit


def test_a_model_whose_config_names_code_is_not_fetched(
    hub: Hub, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "model", "config.json", "model.safetensors")
    (folder / "modules.json").write_text('[{"type": "models/m--mod.Evil", "path": ""}]')
    commit = hub.add("someone/model", folder, "models")
    hubs = from_hub(hub, study, "bases", {"hub": "someone/model", "revision": commit})
    hubs.refused(f"someone/model at {commit}", "models/m--mod.Evil")
    settings = {"sha256": content_digest(file_digests(folder))}
    from_path("bases", "folder.mine", settings, folder, capsys).refused(f"{folder}: modules.json", "models/m--mod.Evil")


def test_a_model_of_pickles_is_refused(hub: Hub, study: Path, tmp_path: Path) -> None:
    commit = hub.add("someone/model", write_model(tmp_path / "model", "config.json", "pytorch_model.bin"), "models")
    settings = {"hub": "someone/model", "revision": commit}
    from_hub(hub, study, "bases", settings).refused("pickle", "pytorch_model.bin", "safetensors")


@pytest.mark.parametrize(
    "names",
    [
        ("config.json", "pytorch_model.bin"),
        ("config.json", "model.pt"),
        ("config.json", "model.safetensors", "1_Dense/pytorch_model.bin"),
        ("config.json",),
    ],
    ids=["bin", "pt", "one part", "no weights"],
)
def test_a_model_folder_that_lacks_safetensors_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...]
) -> None:
    folder = write_model(tmp_path / "model", *names)
    settings = {"sha256": content_digest(file_digests(folder))}
    from_path("bases", "folder.mine", settings, folder, capsys).refused("safetensors")


def test_a_model_folder_is_copied_without_another_artifacts_spec(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "model", "config.json", "model.safetensors", "spec.json", "manifest.json", "run.py")
    settings = {"sha256": content_digest(file_digests(folder))}
    artifact = from_path("bases", "folder.mine", settings, folder, capsys).artifact
    assert artifact.files() == ["config.json", "model.safetensors"]
    assert artifact.facts == {"path": str(folder)}


def test_a_local_file_is_the_one_that_was_planned_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"query": "a", "document": "b"}\n\n{"query": "c", "document": "d"}\n'))
    settings = {"file": path.name, "sha256": file_digest(path), "columns": COLUMNS}
    artifact = from_path("sources", "file.mine", settings, path, capsys).artifact
    assert artifact.facts == {"rows": 2, "files": [path.name]}
    assert artifact.file(path.name).read_bytes() == path.read_bytes()

    changed = settings | {"sha256": "0" * 64}
    from_path("sources", "file.mine", changed, path, capsys).refused(str(path), "changed", "run snakemake again")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("pairs.jsonl", b"", ("no rows",)),
        ("pairs.parquet", b"PAR1 and no more", ("not a Parquet file",)),
        ("pairs.jsonl", b'{"query": "a"}\n\xff\n', ("pairs.jsonl:2", "UTF-8")),
        ("pairs.csv", b"a,b\n", ("neither Parquet nor JSONL",)),
    ],
    ids=["empty", "cut short", "not UTF-8", "another format"],
)
def test_a_local_file_that_is_not_a_source_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, words: tuple[str, ...]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    settings = {"file": name, "sha256": file_digest(path), "columns": COLUMNS}
    from_path("sources", "file.mine", settings, path, capsys).refused(*words)


def several_files(folder: Path, files: dict[str, bytes]) -> dict[str, Any]:
    """Write the files of a source; its settings."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    digests = [{"name": name, "sha256": file_digest(folder / name)} for name in sorted(files)]
    return {"files": digests, "columns": COLUMNS}


def test_a_source_of_several_local_files_keeps_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = b'{"query": "a", "document": "b"}\n'
    settings = several_files(tmp_path / "own", {"b.jsonl": line, "a/1.jsonl": 2 * line, "a/2.jsonl": line})
    artifact = from_path("sources", "file.mine", settings, tmp_path / "own", capsys).artifact
    assert artifact.facts == {"rows": 4, "files": ["a/1.jsonl", "a/2.jsonl", "b.jsonl"]}
    assert artifact.file("a/1.jsonl").read_bytes() == 2 * line
    # The columns of each file are looked at: the last one's mistake is found now.
    settings = several_files(tmp_path / "own", {"a.jsonl": line, "b.jsonl": b'{"query": "a", "text": "b"}\n'})
    from_path("sources", "file.mine", settings, tmp_path / "own", capsys).refused(
        "b.jsonl", "'document'", "query, text"
    )


def test_a_source_of_several_local_files_is_the_one_that_was_planned_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = b'{"query": "a", "document": "b"}\n'
    settings = several_files(tmp_path / "own", {"a.jsonl": line, "b.jsonl": line})
    (tmp_path / "own" / "b.jsonl").write_bytes(2 * line)
    from_path("sources", "file.mine", settings, tmp_path / "own", capsys).refused("own/b.jsonl changed", "snakemake")
    (tmp_path / "own" / "b.jsonl").unlink()
    from_path("sources", "file.mine", settings, tmp_path / "own", capsys).refused("own/b.jsonl does not exist")
    os.mkfifo(tmp_path / "own" / "b.jsonl")
    from_path("sources", "file.mine", settings, tmp_path / "own", capsys).refused("own/b.jsonl is a pipe")


@pytest.mark.parametrize("name", ["../out.jsonl", "/etc/passwd", "a/../../out.jsonl", "spec.json", "a//b.jsonl"])
def test_a_name_that_leads_out_of_the_source_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    settings = {"files": [{"name": name, "sha256": "0" * 64}], "columns": COLUMNS}
    from_path("sources", "file.mine", settings, tmp_path, capsys).refused("cannot be the name of a source's file")


def beir_folder(folder: Path) -> Path:
    for name, content in LAYOUTS["jsonl"].items():
        if name.startswith(("corpus", "queries")):
            (folder / "qrels").mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    (folder / "qrels" / "test.tsv").write_bytes(TSV)
    (folder / "notes.txt").write_text("not of the format")
    return folder


def test_a_beir_folder_is_copied_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = beir_folder(tmp_path / "mine")
    settings = {"split": "test", "sha256": content_digest(file_digests(folder))}
    artifact = from_path("collections", "folder.mine", settings, folder, capsys).artifact
    assert artifact.files() == ["corpus.jsonl", "qrels/test.tsv", "queries.jsonl"]
    for name in artifact.files():
        assert artifact.file(name).read_bytes() == (folder / name).read_bytes()
    assert (artifact.facts["documents"], artifact.facts["unjudged_queries"]) == (3, 1)


def test_a_folder_that_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = beir_folder(tmp_path / "mine")
    settings = {"split": "test", "sha256": content_digest(file_digests(folder))}
    (folder / "corpus.jsonl").write_bytes(as_lines([*DOCUMENTS, {"_id": "d4", "text": "new"}]))
    from_path("collections", "folder.mine", settings, folder, capsys).refused(str(folder), "changed")


@pytest.mark.parametrize("kind", ["sources", "collections"])
def test_what_changed_unseen_is_read_anew_by_the_next_plan(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """A file system that shows no change to a file must not keep a study from going on for ever."""
    folder = beir_folder(tmp_path / "mine")
    path = folder / "queries.jsonl" if kind == "sources" else folder
    settings = {"sha256": "0" * 64, "file": path.name, "columns": COLUMNS, "split": "test"}
    cache = DigestCache(study)
    assert cache.get(path, lambda path: "0" * 64) == cache.get(path, lambda path: "new") == "0" * 64
    cache.save()
    label = "file.mine" if kind == "sources" else "folder.mine"
    from_path(kind, label, settings, path, capsys).refused("changed since the workflow was planned: run snakemake")
    assert DigestCache(study).get(path, lambda path: "new") == "new"


def test_links_are_followed_inside_a_folder_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = beir_folder(tmp_path / "mine")
    (folder / "corpus.jsonl").rename(folder / "documents.jsonl")
    (folder / "corpus.jsonl").symlink_to("documents.jsonl")
    settings = {"split": "test", "sha256": content_digest(file_digests(folder))}
    artifact = from_path("collections", "folder.mine", settings, folder, capsys).artifact
    assert not artifact.file("corpus.jsonl").is_symlink()

    (tmp_path / "elsewhere.jsonl").write_bytes(as_lines(QUERIES[:2]))
    (folder / "queries.jsonl").unlink()
    (folder / "queries.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    settings = {"split": "test", "sha256": content_digest(file_digests(folder))}
    from_path("collections", "folder.mine", settings, folder, capsys).refused("queries.jsonl", "link")


def permissions(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def umask() -> Iterator[None]:
    """The usual umask: others may read what is written."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize(
    ("original", "copied", "folder"),
    [(0o600, 0o600, 0o700), (0o640, 0o640, 0o750), (0o644, 0o644, 0o755), (0o400, 0o600, 0o700)],
)
@pytest.mark.usefixtures("umask")
def test_a_copy_is_as_private_as_its_original_and_so_is_what_is_made_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], original: int, copied: int, folder: int
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"query": "a", "document": "b"}\n')
    path.chmod(original)
    settings = {"file": path.name, "sha256": file_digest(path), "columns": COLUMNS}
    artifact = from_path("sources", "file.mine", settings, path, capsys).artifact
    assert permissions(artifact.file(path.name)) == permissions(artifact.folder / "manifest.json") == copied
    assert permissions(artifact.folder) == folder
    assert permissions(path) == original

    def derive(job: Job) -> dict[str, int]:
        (job.folder / "texts").write_bytes(job.input("source").file(path.name).read_bytes())
        return {}

    spec = Spec("shards", "mine", {}, {"source": [artifact.name]})
    assert run_step(derive, "", ["--spec", spec.text]) == 0
    assert (permissions(spec.folder), permissions(spec.folder / "texts")) == (folder, copied)


@pytest.mark.parametrize("private", ["corpus.jsonl", "qrels/test.tsv", "."])
@pytest.mark.usefixtures("umask")
def test_one_private_file_makes_the_whole_copy_private(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], private: str
) -> None:
    folder = beir_folder(tmp_path / "mine")
    (folder / private).chmod(0o700)
    settings = {"split": "test", "sha256": content_digest(file_digests(folder))}
    artifact = from_path("collections", "folder.mine", settings, folder, capsys).artifact
    assert permissions(artifact.folder) == 0o700
    assert {permissions(artifact.file(name)) for name in artifact.files()} == {0o600}


def test_a_bad_line_is_named_in_the_users_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own.jsonl"
    own.write_bytes(b'{"query": "a", "document": "b"}\n{"query": "caf\xe9"}\n')
    columns = {"query": "query", "document": "document"}
    spec = Spec("sources", "file.own", {"file": own.name, "sha256": file_digest(own), "columns": columns})
    arguments = ["--spec", spec.text, "--path", str(own)]
    assert run_step(fetch.make, None, arguments, fetch.add_options) == 1
    assert capsys.readouterr().err.startswith(f"colbert-zero: {own}:2: not UTF-8")
    assert not spec.folder.exists()
