"""Names of a Hub, from a config to what is fetched: looked up, planned, fetched, read; or one line says why not."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from colbert_zero.data import fetch, hub, shards
from colbert_zero.data.rows import RowReader
from colbert_zero.graph.artifact import Artifact, Spec, run_step
from colbert_zero.graph.config import LOCK_FILE
from colbert_zero.graph.console import UserError
from colbert_zero.graph.study import Study
from hub_server import Hub, serve_hub

TOKEN = "hf_secretsecretsecretsecret"
LENGTHS = {"query_length": 32, "document_length": 64}
STAGE = {"prompts": "none", **LENGTHS, "batch_size": 2, "learning_rate": 1.0e-3, "temperature": 0.2}


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    return folder


def ask(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library, which reads its environment once, ask another Hub."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub() as served:
        ask(served.address, monkeypatch)
        yield served


def config(
    source: dict[str, Any] | None = None, collection: dict[str, Any] | None = None, stage: str = "unsupervised"
) -> dict[str, Any]:
    """A study that trains on a source and is evaluated on a collection, both of the Hub."""
    settings = {"unsupervised": STAGE, "supervised": {**STAGE, "negatives": 1}}
    settings["distillation"] = {**STAGE, "documents": 2}
    del settings["distillation"]["temperature"]
    return {
        "study": "named",
        "prompts": {"none": {"query": "", "document": ""}},
        "sources": {"pairs": source or {"hub": "someone/pairs", "files": "*", "revision": "0" * 40}},
        "shards": {"rows_per_shard": 4},
        "models": {"base": {"hub": "someone/model", "revision": "0" * 40}},
        "stages": {stage: {**settings[stage], "sources": ["pairs"]}},
        "recipes": {"mine": {"base": "base", "stages": [stage]}},
        "collections": {"dev": collection or {"hub": "someone/collection", "revision": "0" * 40}},
    }


def planned(what: dict[str, Any], kind: str) -> Spec:
    (spec,) = [spec for spec in Study(what, Path(), resolve=hub.resolve_commit).specs.values() if spec.kind == kind]
    return spec


def made(spec: Spec, step: Any, capsys: pytest.CaptureFixture[str], refused: bool = False) -> str:
    """Run a step; what it says on stderr."""
    options = fetch.add_options if step is fetch else None
    status = run_step(step.make, None, ["--spec", spec.text], options)
    said = capsys.readouterr().err
    assert status == int(refused), said
    return said


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def as_lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_parquet(records: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue().to_pybytes()


# Looking up


@pytest.mark.parametrize(("kind", "of_server"), [("dataset", "datasets"), ("model", "models")])
def test_a_revision_is_the_commit_that_the_hub_says(server: Hub, tmp_path: Path, kind: str, of_server: str) -> None:
    old = server.add("someone/thing", write(tmp_path / "old", {"a.txt": b"old"}), of_server)
    server.tag("someone/thing", "v1.0", old, of_server)
    new = server.add("someone/thing", write(tmp_path / "new", {"a.txt": b"new"}), of_server)
    assert hub.resolve_commit(kind, "someone/thing", "main") == new != old
    assert hub.resolve_commit(kind, "someone/thing", "v1.0") == hub.resolve_commit(kind, "someone/thing", old) == old


def test_what_the_hub_moves_on_to_is_not_what_was_planned(server: Hub, tmp_path: Path, study: Path) -> None:
    source = {"hub": "someone/pairs", "files": "*.jsonl"}
    first = server.add("someone/pairs", write(tmp_path / "old", {"a.jsonl": b"old"}))
    spec = planned(config(source), "sources")
    assert spec.settings["revision"] == first
    server.add("someone/pairs", write(tmp_path / "new", {"a.jsonl": b"new"}))
    assert planned(config(source), "sources") == spec
    assert server.lookups == [("datasets", "someone/pairs", "main")]
    assert first in (study / LOCK_FILE).read_text()


def test_a_plan_with_the_names_in_the_lock_file_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"hub": "someone/pairs", "files": "*.jsonl"}
    with serve_hub() as served:
        ask(served.address, monkeypatch)
        served.add("someone/pairs", write(tmp_path / "data", {"a.jsonl": b"x"}))
        spec = planned(config(source), "sources")
    assert planned(config(source), "sources") == spec
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert planned(config(source), "sources") == spec


def look_up_refused(name: str = "someone/pairs", revision: str = "main") -> str:
    source = {"hub": name, "files": "*.jsonl", "revision": revision}
    with pytest.raises(UserError) as caught:
        planned(config(source), "sources")
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith("config.yaml: sources.pairs: ")
    assert not Path(LOCK_FILE).exists()
    return message


def test_what_cannot_be_looked_up_is_one_line(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("someone/pairs", write(tmp_path / "data", {"a.jsonl": b"x"}))
    server.gated.add("someone/gated")
    assert "someone/nothing is not on the Hub, or is private" in look_up_refused("someone/nothing")
    assert "someone/gated is gated: accept its terms" in look_up_refused("someone/gated")
    assert "someone/pairs has no revision v9" in look_up_refused(revision="v9")
    assert "'some..one/pairs' is not the name of a repository" in look_up_refused("some..one/pairs")
    for answer in ("../../escaped", "main", "\x1b[2J", None, [], {"a": 1}):
        server.answers["sha"] = answer
        assert "not 40 hex digits: check HF_ENDPOINT" in look_up_refused()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be looked up while HF_HUB_OFFLINE is set: unset it, or give" in look_up_refused()


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ask("http://127.0.0.1:9", monkeypatch)
    message = look_up_refused()
    assert "someone/pairs: the Hub cannot be reached" in message
    assert "files that have arrived" not in message


def test_the_token_is_used_and_never_written(
    server: Hub, tmp_path: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("someone/pairs", write(tmp_path / "data", {"a.jsonl": b"x"}))
    server.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrong")
    assert "wrongwrong" not in look_up_refused()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    planned(config({"hub": "someone/pairs", "files": "*.jsonl"}), "sources")
    assert TOKEN not in (study / LOCK_FILE).read_text()


# Sources

PAIRS = [{"question": f"question {row}", "texts": {"good": f"answer {row}", "bad": [f"no {row}"]}} for row in range(9)]
COLUMNS = {"query": "question", "document": "texts.good", "negatives": "texts.bad"}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".jsonl.gz"])
def test_rows_of_any_repository_become_shards(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    encode = {".parquet": as_parquet, ".jsonl": as_lines, ".jsonl.gz": lambda rows: gzip.compress(as_lines(rows))}
    files = {f"data/train-{part}{suffix}": encode[suffix](PAIRS[part::2]) for part in (0, 1)}
    files[f"data/test-0{suffix}"] = encode[suffix](PAIRS[:1])
    server.add("someone/pairs", write(tmp_path / "data", files))
    source = {"hub": "someone/pairs", "files": f"data/train-*{suffix}", "columns": COLUMNS, "rows": 9}
    what = config(source, stage="supervised")
    made(planned(what, "sources"), fetch, capsys)
    spec = planned(what, "shards")
    made(spec, shards, capsys)
    reader = RowReader(Artifact.open(spec.name))
    rows = sorted(reader.read(0, len(reader)).to_pylist(), key=lambda row: row["query"])
    held = [
        {"query": row["question"], "document": row["texts"]["good"], "negatives": row["texts"]["bad"]} for row in PAIRS
    ]
    assert [{name: row[name] for name in held[0]} for row in rows] == held


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns": {"query": "title"}}, ("has no column 'title'", "it has question, texts")),
        ({"columns": {"query": "question", "document": "texts.none"}}, ("no column 'texts.none'",)),
        ({"columns": COLUMNS | {"query": "texts"}}, ("a.parquet", "records with the fields")),
        ({"rows": 8}, ("9 rows", "but 8 are expected: correct the globs, the revision or the count")),
        ({"files": ["b*"]}, ("has no file that matches b*; it has a.parquet: correct the globs",)),
        ({"files": "../*"}, ("has no file that matches ../*",)),
    ],
)
def test_a_source_that_is_not_as_its_settings_say_is_refused_when_it_is_fetched(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: tuple[str, ...]
) -> None:
    server.add("someone/pairs", write(tmp_path / "data", {"a.parquet": as_parquet(PAIRS)}))
    spec = planned(config({"hub": "someone/pairs", "files": "*", "columns": COLUMNS} | change), "sources")
    said = made(spec, fetch, capsys, refused=True)
    assert all(word in said for word in words), said
    assert not spec.folder.exists()


def test_scores_of_any_repository_become_shards(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [{"document_id": str(number), "text": f"text {number}"} for number in range(5)]
    scores = [
        {"query_id": str(query), "document_ids": ["3", str(query), "4"], "scores": [0.5, 0.25, 1.0]} for query in (0, 1)
    ]
    files = {
        "train.parquet": as_parquet(scores),
        "raw/train.parquet": as_parquet(scores),
        "queries.jsonl": as_lines([{"query_id": str(query), "text": f"query {query}"} for query in (0, 1)]),
        "documents/a.parquet": as_parquet(texts[:3]),
        "documents/b.parquet": as_parquet(texts[3:]),
    }
    server.add("someone/scores", write(tmp_path / "data", files))
    roles = {"train": "train.parquet", "queries": "queries.jsonl", "documents": ["documents/*"]}
    source = {"hub": "someone/scores", "files": roles, "documents": 2, "rows": 2}
    what = config(source, stage="distillation")
    spec = planned(what, "sources")
    assert spec.settings["files"] == {
        name: [globs] if isinstance(globs, str) else globs for name, globs in roles.items()
    }
    made(spec, fetch, capsys)
    spec = planned(what, "shards")
    made(spec, shards, capsys)
    reader = RowReader(Artifact.open(spec.name))
    rows = {row["query"]: row["documents"] for row in reader.read(0, len(reader)).to_pylist()}
    assert rows == {f"query {query}": ["text 3", f"text {query}"] for query in (0, 1)}


# Collections

DOCUMENTS = [{"_id": "d1", "title": "", "text": "one"}, {"_id": "d2", "title": "Two", "text": ""}]
QUERIES = [{"_id": "q1", "text": "which is one"}, {"_id": "q2", "text": "of another split"}]
JUDGED = [{"query-id": "q1", "corpus-id": "d1", "score": 2}, {"query-id": "q1", "corpus-id": "d2", "score": 0}]
TSV = b"query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n"
MTEB = {
    "corpus/test-00000-of-00001.parquet": as_parquet(
        [{"id": row["_id"], "title": row["title"], "text": row["text"]} for row in DOCUMENTS]
    ),
    "queries/test-00000-of-00001.parquet": as_parquet([{"id": row["_id"], "text": row["text"]} for row in QUERIES]),
    "qrels/test-00000-of-00001.parquet": as_parquet(JUDGED),
}
BEIR = {
    "corpus/corpus-00000-of-00001.parquet": as_parquet(DOCUMENTS),
    "queries/queries-00000-of-00001.parquet": as_parquet(QUERIES),
    "README.md": b"A card.",
}
OLDER_BEIR = {
    "corpus.jsonl.gz": gzip.compress(as_lines(DOCUMENTS)),
    "queries.jsonl.gz": gzip.compress(as_lines(QUERIES)),
}


@pytest.mark.parametrize("files", [MTEB, BEIR, OLDER_BEIR], ids=["mteb", "beir", "older beir"])
@pytest.mark.parametrize("counts", [{}, {"documents": 2, "queries": 1, "positive_judgements": 1}], ids=["", "counts"])
def test_a_collection_of_any_repository_is_fetched_and_counted(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, bytes], counts: dict[str, int]
) -> None:
    commit = server.add("someone/set", write(tmp_path / "data", files))
    collection = {"hub": "someone/set", **counts}
    facts = {"hub": "someone/set", "commit": commit}
    if files is not MTEB:
        own = server.add("someone/set-qrels", write(tmp_path / "qrels", {"test.tsv": TSV, "train.tsv": b"x"}))
        collection["qrels"] = {"hub": "someone/set-qrels"}
        facts["qrels"] = {"hub": "someone/set-qrels", "commit": own}
    spec = planned(config(collection=collection), "collections")
    made(spec, fetch, capsys)
    artifact = Artifact.open(spec.name)
    assert [json.loads(line) for line in artifact.file("corpus.jsonl").read_text().splitlines()] == DOCUMENTS
    assert [json.loads(line) for line in artifact.file("queries.jsonl").read_text().splitlines()] == QUERIES[:1]
    assert artifact.file("qrels/test.tsv").read_bytes() == TSV
    assert artifact.facts.items() >= {**facts, "documents": 2, "queries": 1, "judgements": 2}.items()


@pytest.mark.parametrize(
    ("files", "change", "words"),
    [
        (BEIR, {}, ("has no qrels of split test", "qrels: { hub: OWNER/NAME-qrels }")),
        (MTEB, {"split": "dev"}, ("has no qrels of split dev",)),
        ({"data.csv": b""}, {}, ("has no corpus", "it has data.csv: name a repository in MTEB's or BEIR's layout")),
        (MTEB, {"documents": 3}, ("2 documents (expected 3): correct",)),
        (BEIR, {"qrels": {"hub": "someone/nothing", "revision": "f" * 40}}, ("someone/nothing is not on the Hub",)),
        (BEIR, {"qrels": {"hub": "someone/set"}}, ("has no qrels of split test",)),
    ],
)
def test_a_collection_that_cannot_be_read_says_what_to_write(
    server: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, bytes],
    change: dict[str, Any],
    words: tuple[str, ...],
) -> None:
    server.add("someone/set", write(tmp_path / "data", files))
    spec = planned(config(collection={"hub": "someone/set", **change}), "collections")
    said = made(spec, fetch, capsys, refused=True)
    assert all(word in said for word in words), said
    assert len(said.splitlines()) == 1


# Models


def test_a_model_of_any_repository_is_fetched(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], bert: Path
) -> None:
    commit = server.add("someone/model", bert, "models")
    spec = planned(config() | {"models": {"base": {"hub": "someone/model"}}}, "bases")
    assert spec.settings == {"hub": "someone/model", "revision": commit}
    made(spec, fetch, capsys)
    artifact = Artifact.open(spec.name)
    assert artifact.file("model.safetensors").read_bytes() == (bert / "model.safetensors").read_bytes()


def test_a_model_of_the_hub_can_be_whatever_a_model_is_needed_for(server: Hub, bert: Path) -> None:
    commit = server.add("someone/model", bert, "models")
    what = config() | {
        "models": {name: {"hub": "someone/model"} for name in ("base", "miner", "teacher", "late")},
        "miners": {"dense": {"encoder": {"model": "miner"}, "depth": 5}},
        "mining": {"hard": {"miners": ["dense"], "negatives": 1}},
        "teachers": {"cross": {"miners": ["dense"], "documents": 2, "cross-encoder": {"model": "teacher"}}},
        "baselines": {"late": {"late_interaction": {"model": "late"}}},
    }
    source = {"sources": ["pairs"], **STAGE}
    distillation = {name: value for name, value in source.items() if name != "temperature"}
    what["stages"] = {
        "supervised": {**source, "mining": "hard", "negatives": 1},
        "distillation": {**distillation, "teacher": "cross", "documents": 2},
    }
    what["recipes"] = {"mine": {"base": "base", "stages": ["supervised", "distillation"]}}
    specs = Study(what, Path(), resolve=hub.resolve_commit).specs.values()
    bases = {spec.label: spec.settings["revision"] for spec in specs if spec.kind == "bases"}
    assert bases == dict.fromkeys(("hub.base", "hub.miner", "hub.teacher", "hub.late"), commit)
    assert len(server.lookups) == 1
