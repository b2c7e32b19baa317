"""What `colbert-zero plan` says: jobs as Snakemake counts them, the paper's GPU-hours, and no more than is known."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from colbert_zero.cli import main
from colbert_zero.graph.artifact import LET_GO_FILE, Spec
from colbert_zero.graph.config import CONFIG_FILE, LOCK_FILE, read_config
from colbert_zero.graph.paths import REPOSITORY
from colbert_zero.report.costs import Entry, entry_of
from colbert_zero.report.forecast import Disk, Source, Sum
from colbert_zero.report.ledger import Ledger
from colbert_zero.report.offline_study import offline_study
from colbert_zero.report.plan import Plan, changes
from colbert_zero.report.sizes import Manifests, characters_per_token
from own_study import CONFIG, write_data
from recorded import record

PAPER = read_config(REPOSITORY / CONFIG_FILE)


def plan_of(config: Any, measured: list[Entry] | None = None) -> Plan:
    return Plan(offline_study(config)[0], Manifests(), measured or [])


def trainings(plan: Plan, row_name: str) -> Sum:
    (row,) = (row for row in plan.study.rows if row.name == row_name)
    return plan.gpu_hours(spec for spec in plan.ancestors(row) if spec.kind == "models")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own(empty: Path) -> Path:
    write_data(empty / "data")
    (empty / CONFIG_FILE).write_text(yaml.safe_dump(CONFIG))
    return empty


@pytest.fixture
def paper(empty: Path) -> Plan:
    return plan_of(PAPER)


def finish(plan: Plan) -> None:
    for spec in plan.study.specs.values():
        record(spec)


# GPU-hours


def test_the_papers_pipelines_cost_what_the_paper_says(paper: Plan) -> None:
    assert trainings(paper, "colbert-zero") == Sum(408.0)
    assert trainings(paper, "supervised-distillation") == Sum(40.0)
    assert trainings(paper, "distillation-only") == Sum(8.0)


def test_a_stage_that_rows_share_is_trained_and_paid_once(paper: Plan) -> None:
    models = [spec for spec in paper.missing if spec.kind == "models"]
    alone = sum(trainings(paper, row.name).known for row in paper.study.rows)
    together = paper.gpu_hours(models)
    stages = Counter(spec.label for spec in models if paper.estimates[spec.name].source == Source.PAPER)
    assert stages["unsupervised"] < sum(spec.label == "unsupervised" for row in paper.study.rows for spec in row.stages)
    assert together.known < alone
    assert together.known == pytest.approx(sum(paper.estimates[spec.name].gpu_hours or 0 for spec in models))


def test_a_share_of_the_rows_costs_that_share(empty: Path) -> None:
    tenth = plan_of({**PAPER, "shards": {**PAPER["shards"], "share": 0.1}})
    assert trainings(tenth, "colbert-zero").known == pytest.approx(40.8)


def test_what_nobody_has_measured_is_unknown_and_a_sum_says_so(
    paper: Plan, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    indexes = [spec for spec in paper.missing if spec.kind == "indexes" and not spec.label.startswith("dense.")]
    assert {paper.estimates[spec.name].source for spec in indexes} == {Source.UNKNOWN}
    assert (Sum(3.0, 1).words(), Sum(0.0, 2).words(), Sum(3.0).words()) == ("at least 3.00", "unknown", "3.00")
    (empty / CONFIG_FILE).write_text((REPOSITORY / CONFIG_FILE).read_text())
    assert main(["plan"]) == 0
    assert not (empty / LOCK_FILE).exists(), "a commit that nobody has looked up is left open, and not written down"
    assert re.search(r"^GPU-hours to go: at least [\d,]+, [\d,]+ of them by the paper's GH200s; \d+ jobs nobody has "
                     r"measured yet$", capsys.readouterr().out, re.MULTILINE)  # fmt: skip


def test_what_was_measured_here_goes_before_the_paper_and_by_its_amount(empty: Path) -> None:
    before = plan_of(PAPER)
    row = next(row for row in before.study.rows if row.name == "colbert-zero")
    unsupervised, supervised = row.stages[:2]
    entries = []
    for model, gpus, samples in ((unsupervised, 4, 238_998_494), (supervised, 2, 1_695_819)):
        record(model, {"device": "NVIDIA H200", "processes": gpus, "samples": samples}, seconds=36_000)
        manifest = Manifests()(model.name)
        assert manifest is not None
        entries.append(entry_of(model, manifest))
    half = {**PAPER, "shards": {**PAPER["shards"], "share": 0.5}}
    after = plan_of(half, entries)
    for model in next(row for row in after.study.rows if row.name == "colbert-zero").stages[:2]:
        estimate = after.estimates[model.name]
        assert estimate.source == Source.MEASURED
        assert estimate.gpu_hours == pytest.approx({"unsupervised": 20, "supervised": 10}[model.label])
    assert plan_of(PAPER, entries).estimates.get(unsupervised.name) is None, "it is there"


def test_a_model_of_another_size_than_the_papers_has_no_hours_yet(empty: Path) -> None:
    models = {**PAPER["models"], "large": {"hub": "answerdotai/ModernBERT-large", "revision": "1" * 40}}
    recipes = {"large": {"base": "large", "stages": ["unsupervised"]}}
    assert trainings(plan_of({**PAPER, "models": models, "recipes": recipes}), "large") == Sum(0.0, 1)


def test_the_ledger_puts_the_papers_hours_beside_rows_that_train_as_much(empty: Path) -> None:
    def beside(config: Any) -> dict[str, str]:
        return {line[0]: line[-1] for line in Ledger(offline_study(config)[0], Manifests()).by_row()}

    rows = beside(PAPER)
    names = ("colbert-zero", "supervised-distillation", "distillation-only", "colbert-zero-unsupervised", "bm25")
    assert [rows[name] for name in names] == ["408", "40", "8.00", "368", "–"]
    assert set(beside({**PAPER, "shards": {**PAPER["shards"], "share": 0.1}}).values()) == {"paper", "–"}


# Disk


def of_kind(plan: Plan, kind: str, label: str) -> Spec:
    return next(spec for spec in plan.study.specs.values() if spec.kind == kind and spec.label == label)


def test_an_index_of_ms_marco_has_the_published_size(paper: Plan) -> None:
    """691 M tokens: 177 GB in half precision, 50 GB as PLAID keeps them at four bits (72 bytes a token)."""
    disk, index = Disk(paper.sizes), of_kind(paper, "indexes", "msmarco")
    assert paper.sizes.tokens(index) == pytest.approx(691e6, rel=0.01)
    assert disk.vectors(index) == pytest.approx(177e9, rel=0.01)
    assert disk.bytes(index) == pytest.approx(50e9, rel=0.01)


def test_a_small_index_is_exact_and_a_model_has_four_bytes_a_parameter(paper: Plan) -> None:
    disk, index = Disk(paper.sizes), of_kind(paper, "indexes", "scifact")
    tokens = paper.sizes.tokens(index)
    assert tokens is not None
    assert disk.bytes(index) == disk.vectors(index) == tokens * 256
    model = of_kind(paper, "models", "unsupervised")
    assert disk.bytes(model) == 596e6
    assert disk.state(model) == pytest.approx(3 * 1.8e9, rel=0.01), "two checkpoints with AdamW's state, and a third"


def test_mining_takes_the_corpus_what_is_searched_and_what_is_made_beside_the_rest(own: Path) -> None:
    plan = plan_of(CONFIG)
    disk, shards = Disk(plan.sizes), of_kind(plan, "shards", "lines")
    assert disk.mining(of_kind(plan, "candidates", "dense.lines")) is None, "the source is not there"
    record(shards, outputs={"rows-00000.parquet": 1000}, facts={"rows": 100})
    record(of_kind(plan, "sources", "file.lines"), outputs={"rows.parquet": 10}, facts={"rows": 100})
    plan = plan_of(CONFIG)
    disk = Disk(plan.sizes)
    dense, bm25 = (of_kind(plan, "candidates", f"{kind}.lines") for kind in ("dense", "bm25"))
    texts, found = 3 * 1000, 100 * 20 * 8
    assert disk.mining(dense) == texts + found + 100 * 8 * 4
    assert disk.mining(bm25) == texts + found + texts
    assert disk.mining(of_kind(plan, "negatives", "lines")) == texts + 1000 * 3


def test_what_is_there_counts_by_its_own_size_and_the_peak_is_no_less_than_the_end(paper: Plan) -> None:
    before = paper.space
    assert before.now == Sum(0.0) and before.peak.known >= before.end.known and before.end.unknown
    model = of_kind(paper, "models", "unsupervised")
    record(model, outputs={"model.safetensors": 10, "config.json": 5})
    after = plan_of(PAPER).space
    assert after.now == Sum(15.0)
    assert after.end.known == pytest.approx(before.end.known - 596e6 + 15)


# Jobs


def test_indexes_that_are_let_go_take_no_room_at_the_end(paper: Plan) -> None:
    kept = plan_of({**PAPER, "evaluation": {**PAPER["evaluation"], "keep_indexes": True}}).space
    going, disk = paper.space, Disk(paper.sizes)
    assert kept.passing == Sum()
    assert kept.end.known == pytest.approx(going.end.known + going.passing.known)
    assert going.peak.known < kept.peak.known <= going.peak.known + going.passing.known
    # That of MS MARCO, of all models of 128 dimensions alike.
    assert going.largest == disk.bytes(of_kind(paper, "indexes", "msmarco"))


def test_jobs_are_those_that_snakemake_counts(own: Path) -> None:
    jobs_of = {"build_shards": {"jobs": 2}, "mine_bm25": {"jobs": 3}, "mine_dense": {"jobs": 2}}
    config = CONFIG | {"resources": {**jobs_of, "supervised": {"nodes": 2}}}
    (own / CONFIG_FILE).write_text(yaml.safe_dump(config))
    plan = plan_of(config)
    done = [spec for spec in plan.study.specs.values() if spec.kind in ("sources", "bases") or spec.label == "lines"]
    assert len(done) > 4
    for spec in done:
        record(spec)
    command = [sys.executable, "-m", "snakemake", "--profile", "local", "--directory", str(own), "--dry-run"]
    environment = os.environ | {"PYTHONPATH": ""}
    output = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True).stdout
    counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}
    jobs = plan_of(config).jobs
    assert counts.pop("total") - counts.pop("all") == sum(counts.values())
    assert dict(jobs) == counts
    assert {"share_work", "share_lucene_work", "train_stage_on_nodes"} <= jobs.keys()


def test_an_index_that_was_let_go_is_made_again_for_another_depth_and_for_nothing_else(own: Path) -> None:
    finished = plan_of(CONFIG)
    finish(finished)
    indexes = {spec.name for spec in finished.study.specs.values() if spec.kind == "indexes"}
    for spec in finished.study.specs.values():
        if spec.name in indexes:
            record(spec, outputs={"documents.safetensors": 1000})
            (spec.folder / LET_GO_FILE).touch()
    assert sum(plan_of(CONFIG).jobs.values()) == 0
    assert plan_of(CONFIG).space.now.known == plan_of(CONFIG).space.end.known == 0
    measures = CONFIG | {"evaluation": {"measures": ["R@10"]}}
    assert plan_of(measures).jobs.keys() == {"measure_run", "write_report"}, "runs are there"
    deeper = CONFIG | {"evaluation": {"depth": 200}}
    assert {spec.name for spec in plan_of(deeper).missing if spec.kind == "indexes"} == indexes
    assert plan_of(deeper).space.end.known >= 1000 * len(indexes)
    (own / CONFIG_FILE).write_text(yaml.safe_dump(deeper))
    command = [sys.executable, "-m", "snakemake", "--profile", "local", "--directory", str(own), "--dry-run"]
    output = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True
    ).stdout
    counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}
    assert counts["make_again"] == len(indexes)
    assert dict(plan_of(deeper).jobs) == {rule: counts[rule] for rule in counts.keys() - {"total", "all"}}


def test_a_finished_study_has_nothing_to_do(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(plan_of(CONFIG))
    assert main(["plan"]) == 0
    output = capsys.readouterr().out
    count = len(offline_study(CONFIG)[0].specs)
    assert output.startswith(f"study own: {count} of {count} artifacts are there, nothing to do\n")
    assert "GPU-hours to go: 0\n" in output
    for spec in offline_study(CONFIG)[0].specs.values():
        (spec.folder / "spec.json").unlink()
    assert plan_of(CONFIG).missing == [], "what lacks its spec.json alone is a job that costs nothing"
    assert sum(plan_of(CONFIG).jobs.values()) == count


# Changes


def text(lines: Any) -> str:
    return "\n".join(line if isinstance(line, str) else "\n".join("  ".join(cells) for cells in line) for line in lines)


def test_a_setting_that_stays_what_it_is_changes_nothing(own: Path) -> None:
    plan = plan_of(CONFIG)
    count = len(plan.study.specs)
    output = text(changes(plan, CONFIG, ["stages.supervised.learning_rate=1.0e-3", "seed=7"]))
    assert f"{count} artifacts unchanged\n0 artifacts new\n0 artifacts no longer needed\n" in output
    assert "all  unchanged  unchanged  unchanged  unchanged  0  0" in output


def test_a_change_says_what_is_new_and_what_stays_on_disk(own: Path) -> None:
    plan = plan_of(CONFIG)
    for spec in plan.study.specs.values():
        record(spec, outputs={"file": 1_000_000})
    output = text(changes(plan_of(CONFIG), CONFIG, ["stages.distillation.learning_rate=2.0e-3"]))
    assert "all  unchanged  unchanged  new  1 of 1 new  0  0" in output
    new = "1 indexes, 1 measures, 1 models, 1 reports, 1 runs"
    assert f"5 artifacts new: {new}\n5 artifacts no longer needed (5 are there), and stay on disk: 5 MB" in output
    assert "without the change: 0 jobs, GPU-hours to go 0\nwith it: 5 jobs, GPU-hours to go 0" in output


def test_a_change_that_the_schema_refuses_is_one_line(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--set", "stages.supervised.learning_rte=1"]) == 1
    assert capsys.readouterr().err == (
        "colbert-zero: --set stages.supervised: learning_rte is not a setting; did you mean learning_rate?\n"
    )
    assert main(["plan", "--set", "stages.supervised"]) == 1
    assert "stages.supervised: write a setting and its value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoder", "settings", "expected"),
    [
        # 1,000 documents of 16 components of 4 bytes; an inverted file has one more, and a pool is a copy.
        ({"kind": "lsa", "dimensions": 16}, {}, 64_000),
        ({"kind": "lsa", "dimensions": 16}, {"approximate": {}}, 80_000),
        ({"kind": "lsa", "dimensions": 16}, {"pool": {"documents": 250}}, 80_000),
        ({"kind": "lsa", "dimensions": 16}, {"pool": {"documents": 5000}}, 128_000),
        ({"kind": "lsa", "dimensions": 16}, {"pool": {"documents": 250}, "approximate": {}}, 84_000),
        # 2,000 tokens of 128 components of 2 bytes; PLAID's files have 8 bytes and 4 bits of each, twice.
        ({"kind": "late-interaction"}, {}, 512_000),
        ({"kind": "late-interaction"}, {"approximate": {}}, 512_000 + 2 * 2000 * (8 + 64)),
    ],
)
def test_what_a_miner_searches_is_counted(encoder: dict[str, Any], settings: dict[str, Any], expected: int) -> None:
    candidates = Spec("candidates", "dense.a", {"encoder": encoder, **settings})
    shards = Spec("shards", "a", {})
    sizes: Any = SimpleNamespace(rows=lambda spec: 1000 if spec == shards else None)
    assert Disk(sizes)._mined_vectors(candidates, shards, 2000 * characters_per_token()) == pytest.approx(expected)
