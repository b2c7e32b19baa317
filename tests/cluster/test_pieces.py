"""Every step that works in pieces, interrupted as clusters do it: the bytes are those of steps that were left alone."""

import json
import subprocess
import time

import pytest

from colbert_zero.graph.artifact import file_digests
from colbert_zero.graph.config import read_config
from colbert_zero.graph.rules import RULES
from colbert_zero.graph.study import Study
from slurm_cluster import SCRIPT, Cluster, image_settings, slurm, wait_for
from tiny_models import dense_model, late_interaction_model, tiny_modernbert

MANY, FEW, DOCUMENTS, QUERIES = 36_000, 3_000, 9_000, 16_000
"""Rows to mine for, rows to teach, documents to encode and queries to search for: three or more pieces of each."""
WORDS = ["amber", "birch", "cedar", "daisy", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "lagoon"]
INTERRUPTIONS = {
    "candidates/bm25": "cancelled",
    "candidates/dense": "requeued",
    "negatives/": "cancelled",
    "scores/neural": "node down",
    "indexes/dense": "cancelled",
    "indexes/": "time limit",
    "runs/colbert": "requeued",
}
"""What happens to the first job that has made a piece of a step's work, by kind and kind of label."""


def place(spec):
    word = spec.label.partition(".")[0]
    return f"{spec.kind}/{word if (spec.kind, word) in RULES else ''}"


def write_study(folder):
    def text(number, size):
        return " ".join(WORDS[(number * step + number // 7) % len(WORDS)] for step in range(1, size + 1)) + f" {number}"

    data = folder / "data"
    (data / "mine" / "qrels").mkdir(parents=True)
    for name, rows in {"many": MANY, "few": FEW}.items():
        with (data / f"{name}.jsonl").open("w") as file:
            file.writelines(json.dumps({"query": text(row, 3), "document": text(row, 8)}) + "\n" for row in range(rows))
    with (data / "mine" / "corpus.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"_id": f"d{row}", "title": "", "text": text(row, 8)}) + "\n" for row in range(DOCUMENTS)
        )
    with (data / "mine" / "queries.jsonl").open("w") as file:
        file.writelines(json.dumps({"_id": f"q{row}", "text": text(row, 3)}) + "\n" for row in range(QUERIES))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{row}\td{row}\t1" for row in range(QUERIES))]
    (data / "mine" / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    base = tiny_modernbert(folder / "models" / "base", [*WORDS, "search_query: search_document:"], positions=1024)
    dense_model(folder / "models" / "dense", base)
    late_interaction_model(folder / "models" / "late", base, has_prompts=True)


def config(resources):
    sources = ("many", "few")
    stage = {"batch_size": 64, "learning_rate": 1.0e-3}
    return {
        "study": "pieces",
        "prompts": {"search": {"query": "search_query: ", "document": "search_document: "}},
        "sources": {name: {"file": f"data/{name}.jsonl"} for name in sources},
        "models": {name: {"folder": f"models/{name}"} for name in ("base", "dense", "late")},
        "miners": {"bm25": {"bm25": {}, "depth": 4}, "lsa": {"lsa": {"dimensions": 4}, "depth": 4}},
        "mining": {"fused": {"miners": ["bm25", "lsa"], "filter": ["bm25"], "negatives": 2}},
        "teachers": {"late": {"late-interaction": {"model": "late"}, "miners": ["bm25"], "documents": 3}},
        "stages": {
            "supervised": stage | {"temperature": 0.1, "mining": "fused", "negatives": 2, "sources": ["many"]},
            "distillation": stage | {"teacher": "late", "documents": 3, "sources": ["few"]},
        },
        "recipes": {
            "all": {
                "base": "base",
                "every_stage": {"prompts": "search", "query_length": 16, "document_length": 24},
                "stages": ["supervised", "distillation"],
            }
        },
        "baselines": {"late": {"late_interaction": {"model": "late"}}, "dense": {"dense": {"model": "dense"}}},
        "collections": {"mine": {"folder": "data/mine"}},
        "images": image_settings(),
        "resources": {"default": {"mem_mb": 1500, "runtime": 10}, **resources},
    }


def in_pieces(folder):
    """The artifacts whose steps work in pieces, but for the evaluation of what is trained."""
    specs = Study(read_config(folder / "config.yaml"), folder).known.values()
    trained = {spec.name for spec in specs if any(name.startswith("models/") for name in spec.inputs.get("model", ()))}
    ours = [spec for spec in specs if place(spec) in INTERRUPTIONS]
    return [spec for spec in ours if not trained & {spec.name, *spec.inputs.get("index", ())}]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces") / "study"
    write_study(folder)
    cluster = Cluster(folder)
    # A time limit that leaves no time but for a piece, and a search that is not the same job for what it asks.
    cluster.write(config({"build_index": {"runtime": 1}, "search_index": {"slurm_extra": "--nice=1"}}))
    yield cluster
    cluster.clean_up()


def interrupt(how, attempt):
    """Do to a job what happens on clusters; its node comes back by itself."""
    job = attempt["job"]
    if how == "cancelled":
        slurm("scancel", job)
    elif how == "requeued":
        slurm("scontrol", "requeue", job)
    else:
        subprocess.run([SCRIPT, "down", attempt["node"]], check=True)
        wait_for(lambda: "PENDING" in slurm("scontrol", "show", "job", job), 120, "the job to be requeued")
        subprocess.run([SCRIPT, "up", attempt["node"]], check=True)


def test_all_work_in_pieces_survives_what_clusters_do(cluster, tmp_path):
    specs = in_pieces(cluster.folder)
    process = cluster.start("--", *(str(spec.folder / "spec.json") for spec in specs))
    # Of the teacher's source too few rows are mined for to be interrupted.
    interrupted = [spec for spec in specs if spec.kind != "candidates" or "many" in spec.label]
    assert sorted(map(place, interrupted)) == sorted(INTERRUPTIONS)
    to_do = [spec for spec in interrupted if place(spec) != "indexes/"]
    while process.poll() is None:
        for spec in [spec for spec in to_do if list((cluster.folder / spec.state).glob("*/000000"))]:
            lines = (cluster.folder / spec.state / "attempts.jsonl").read_text().splitlines()
            interrupt(INTERRUPTIONS[place(spec)], json.loads(lines[-1]))
            to_do.remove(spec)
        time.sleep(0.1)
    assert process.returncode == 0, cluster.read_output()[-5000:]
    assert to_do == []
    for spec in interrupted:
        manifest = json.loads((cluster.folder / spec.folder / "manifest.json").read_text())
        assert len(manifest["attempts"]) > 1, spec.name
    # In the same images: another C library rounds otherwise.
    alone = Cluster(tmp_path / "alone")
    write_study(alone.folder)
    alone.write(config({}))
    status, output = alone.run("--", *(str(spec.folder / "spec.json") for spec in specs))
    assert status == 0, output[-5000:]
    for spec in specs:
        assert file_digests(cluster.folder / spec.folder) == file_digests(alone.folder / spec.folder), spec.name
