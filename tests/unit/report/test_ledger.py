"""The ledger: every attempt counts, a shared stage once in a total, and what SLURM says of jobs that left nothing."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
import yaml

from colbert_zero.audit.records import problem_with_form
from colbert_zero.cli import main
from colbert_zero.graph.artifact import Job, Spec, run_step
from colbert_zero.graph.config import CONFIG_FILE
from colbert_zero.graph.console import RetryableError
from colbert_zero.machine.accounting import ask_sacct
from colbert_zero.report.costs import Cost, entry_of, total
from colbert_zero.report.ledger import Ledger
from colbert_zero.report.ledger_section import ReportLedger
from colbert_zero.report.offline_study import offline_study
from colbert_zero.report.results import Lineage, Replicate
from colbert_zero.report.sizes import Manifests, number
from own_study import CONFIG, write_data
from recorded import HOUR, attempt, record, record_attempts

MODEL = Spec(
    "models", "supervised", {"stage": "supervised", "negatives": 2}, {"start": ["bases/random.x-0123456789ab"]}
)
"""The spec of a model."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cost(spec: Spec = MODEL, *attempts: object, **record_more: object) -> Cost:
    record(spec, attempts=list(attempts), **record_more)  # type: ignore[arg-type]
    manifest = Manifests()(spec.name)
    assert manifest is not None
    return entry_of(spec, manifest).cost


# One artifact


def test_an_attempt_that_failed_adds_its_time_and_says_that_it_was_lost(folder: Path) -> None:
    found = cost(MODEL, attempt(0, 30, end="MemoryError: "), attempt(60), seconds=HOUR)
    assert found == Cost(2, 1.5 * HOUR, 2 * 1.5 * HOUR, lost_seconds=0.5 * HOUR)


def test_an_attempt_that_was_killed_counts_until_it_was_last_heard_of(folder: Path) -> None:
    killed = attempt(0, None, end="killed")
    found = cost(MODEL, killed | {"seen": "2026-01-01T10:20:00+00:00"}, killed, attempt(60))
    assert found.lost_seconds == HOUR / 3
    assert found.untimed == 2
    assert cost(MODEL, {"end": "its record cannot be read"}, attempt(60)).attempts == 2


def test_a_job_that_did_its_share_of_the_work_lost_nothing(folder: Path) -> None:
    run, used = Spec("runs", "colbert.mine", {}, {}), ["--device", "cuda"]
    shares = [attempt(0, 30, end="RetryableError: time"), attempt(0, 60, end="done"), attempt(60, 15, end="done")]
    found = cost(run, attempt(80, 5), seconds=300.0, arguments=used, shares=shares)
    assert (found.attempts, found.gpu_seconds, found.lost_gpu_seconds) == (4, HOUR * (30 + 60 + 15 + 5) / 60, HOUR / 2)


def test_gpus_are_those_of_the_job_or_those_that_the_training_used(folder: Path) -> None:
    gpu = {"device": "NVIDIA H200", "processes": 4, "nodes": 1}
    assert cost(MODEL, facts=gpu).gpu_hours == 4
    job = {"job": "17", "gpus": "0,1,2,3,4,5,6,7"}
    lost = attempt(0, 30, end="stopped", **job)
    found = cost(MODEL, lost, attempt(60, **job), facts=gpu | {"nodes": 2, "processes": 16})
    assert (found.gpu_hours, found.lost_gpu_hours) == (16 * 1.5, 16 * 0.5)
    assert cost(MODEL, attempt(**job), facts={"device": "cpu", "processes": 1}).gpu_hours == 8, "allocated is paid for"
    assert cost(MODEL, attempt(job="17", gpus="NoDevFiles"), facts={"device": "cpu"}).gpu_hours == 0
    shards = Spec("shards", "lines", {}, {"source": ["sources/file.lines-0123456789ab"]})
    assert cost(shards, attempt(**job)).gpu_hours == 0, "a step that computes on no GPU"
    run = Spec("runs", "colbert.mine", {}, {})
    assert cost(run, arguments=["--threads", "2", "--device", "cuda"]).gpu_hours == 1
    assert cost(run, arguments=["--threads", "2", "--device", "auto"]).gpu_hours == 0


def test_energy_is_what_the_gpus_of_a_training_counted(folder: Path) -> None:
    assert cost(MODEL, facts={"gpu_watt_hours": 1500.0}).watt_hours == 1500
    assert cost(MODEL).watt_hours == 0


@pytest.mark.parametrize("value", ["x", None, [], {}, True, -1, float("nan"), float("inf"), 10**400])
def test_facts_that_are_no_numbers_count_as_none(value: object) -> None:
    assert number(value) is None
    damaged = dict.fromkeys(("nodes", "processes", "gpu_watt_hours"), value)
    assert cost(MODEL, facts=damaged | {"device": "NVIDIA H200"}) == cost(MODEL, facts={"device": "NVIDIA H200"})


def test_a_step_writes_down_what_the_ledger_needs(folder: Path) -> None:
    spec, failing = Spec("bases", "random.x", {}), [True]

    def make(job: Job) -> dict[str, int]:
        job.record(end_step=1)
        if failing.pop():
            raise RetryableError("stopped")
        return {}

    assert [run_step(make, None, ["--spec", spec.text, "--threads", "3"]) for failing[:] in ([True], [False])] == [1, 0]
    text = (spec.folder / "manifest.json").read_text()
    manifest = json.loads(text)
    assert problem_with_form(manifest, text) is None
    for one in manifest["attempts"]:
        assert one["threads"] == 3
        assert one["started"] <= one["seen"] <= one["ended"]
    assert entry_of(spec, manifest).cost.attempts == 2


# A study


def recorded_study(folder: Path) -> tuple[Ledger, Spec]:
    """A study of two recipes that share their first stage; an hour for each artifact, of the models on four GPUs."""
    write_data(folder / "data")
    recipes = {"all": CONFIG["recipes"]["all"]}  # type: ignore[index]
    recipes["short"] = recipes["all"] | {"stages": ["unsupervised"]}
    config = CONFIG | {"recipes": recipes}
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(config))
    study, _ = offline_study(config)
    for spec in study.specs.values():
        facts = {"device": "NVIDIA H200", "processes": 4, "seconds": 1.0} if spec.kind == "models" else {}
        record(spec, facts | {"rows": 120, "documents": 10})
    shared = next(row for row in study.rows if row.name == "short").stages[0]
    return Ledger(study, Manifests()), shared


def test_a_shared_stage_counts_once_in_a_total_and_in_full_for_each_row(folder: Path) -> None:
    ledger, shared = recorded_study(folder)
    whole = total(ledger.planned)
    assert whole.attempts == len(ledger.study.specs)
    assert whole.gpu_hours == 3 * 4, "three trainings, though the rows name four"
    lines = {line[0]: line for line in ledger.by_row()}
    assert (lines["all"][-2], lines["short"][-2]) == ("12", "4.00")
    assert lines["short"][-1] == "–", "a study of its own has no counterpart in the paper"
    by_rule = {line[0]: line for line in ledger.by_rule()}
    assert by_rule["train_stage unsupervised"][1:3] == ["1", "1"]
    assert by_rule["all"][5] == "12"
    assert total([*ledger.planned, ledger.entries[shared.name]]) == whole


def test_the_command_counts_what_is_begun_and_leaves_out_other_configs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shared = recorded_study(folder)
    monkeypatch.setenv("PATH", "/nowhere")
    (shared.folder / "manifest.json").unlink()
    record_attempts(
        shared, attempt(0, 90, end="stopped", job="7", gpus="0,1", threads=8), attempt(0, None, end="killed")
    )
    record(MODEL, {"device": "NVIDIA H200", "processes": 1})
    assert main(["ledger"]) == 0
    output = capsys.readouterr().out
    (line,) = (line.split() for line in output.splitlines() if line.startswith("train_stage unsupervised"))
    assert line == ["train_stage", "unsupervised", "1", "2", "1", "h", "30", "min", "12", "3.00", "3.00", "–"]
    assert "1 attempts were killed: they count until they were last heard of" in output
    assert "not in these numbers: 1 artifacts of other configs, 1.00 GPU-hours and 2.00 CPU-hours" in output
    assert "SLURM" not in output


def test_the_report_has_the_same_ledger_from_its_manifests_alone(folder: Path) -> None:
    ledger, _ = recorded_study(folder)
    study = ledger.study
    lineage = Lineage(spec.name for row in study.rows for spec in row.measures.values())
    replicates = [
        Replicate(
            row.name,
            [lineage.artifacts[spec.name] for spec in row.stages],
            {label: lineage.artifacts[spec.name] for label, spec in row.measures.items()},
            "nDCG@10",
        )
        for row in study.rows
    ]
    made = ReportLedger(lineage, replicates, {})
    lines = list(csv.DictReader(io.StringIO(made.csv())))
    assert len(lines) == len(study.specs) - 1, "all but the report itself"
    assert sum(float(line["gpu_seconds"]) for line in lines) == 12 * HOUR
    section = made.section()
    by_rule, by_row = section.tables
    assert [cell.text for cell in by_rule.rows[-1].cells][1] == str(len(study.specs) - 1)
    hours = {row.name: row.cells[5].text for row in by_row.rows}
    assert hours == {"all": "12", "bm25": "–", "short": "4.00"}
    assert section.figures[0].svg == ReportLedger(lineage, replicates[::-1], {}).section().figures[0].svg
    assert "training" in section.figures[0].svg and "mining" in section.figures[0].svg


# SLURM


SACCT = """\
#!/bin/sh
echo "$@" >> {calls}
cat <<END
7|COMPLETED|3600|8|billing=8,cpu=8,gres/gpu:a100=2,gres/gpu=2,mem=1G,node=1|
7.batch|COMPLETED|3600|8|cpu=8,gres/gpu=2|1800000
7.0|COMPLETED|3600|8|cpu=8|1800000
8|NODE_FAIL|600|8|cpu=8,gres/gpu:a100=4,node=1|0
8|CANCELLED by 0|1200|8|cpu=8,gres/gpu:a100=4,node=1|0
9|FAILED|36|1|cpu=1,node=1|18446744073709551614
END
"""


@pytest.fixture
def sacct(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with a line for each call of a sacct that knows the jobs 7 to 9."""
    programs, calls = folder / "programs", folder / "calls"
    programs.mkdir()
    (programs / "sacct").write_text(SACCT.format(calls=calls))
    (programs / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return calls


def test_one_call_of_sacct_has_time_devices_and_energy_of_all_jobs(sacct: Path) -> None:
    accounts = ask_sacct({"9", "7", "8", "11", "no number; rm"})
    assert accounts is not None
    assert accounts.jobs["7"].gpu_seconds == 2 * 3600, "a GPU counts once, under whatever name"
    assert accounts.jobs["7"].joules == 3_600_000, "its steps know the energy that the job's line does not"
    assert accounts.jobs["8"].seconds == 1800, "a job that was requeued ran twice"
    assert (accounts.jobs["8"].state, accounts.jobs["8"].gpu_seconds) == ("CANCELLED", 4 * 1800)
    assert accounts.jobs["9"].joules == 0, "SLURM's number for energy that it could not measure"
    assert list(accounts.unknown) == ["11"]
    (call,) = sacct.read_text().splitlines()
    assert "--jobs=11,7,8,9" in call


def test_the_command_says_what_slurm_has_on_its_books_and_what_was_lost(
    folder: Path, sacct: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, shared = recorded_study(folder)
    record(shared, attempts=[attempt(0, 30, end="stopped", job="8"), attempt(60, job="7")])
    log = folder / ".snakemake" / "slurm_logs" / "rule_train_stage" / "x" / "9.log"
    log.parent.mkdir(parents=True)
    log.write_text("")
    assert main(["ledger"]) == 0
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == [
        "SLURM: 3 jobs, 1.51 hours elapsed, 12.01 CPU-hours and 4.00 GPU-hours allocated, 1.00 kWh of energy",
        "of these lost, since they left no manifest: 2 jobs, 0.51 hours elapsed, 4.01 CPU-hours and 2.00 GPU-hours "
        "allocated (CANCELLED, FAILED)",
    ]
    assert len(sacct.read_text().splitlines()) == 1


def test_a_site_without_accounting_is_one_line(folder: Path, sacct: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, shared = recorded_study(folder)
    record(shared, attempts=[attempt(job="7")])
    (folder / "programs" / "sacct").write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    assert main(["ledger"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "SLURM: sacct does not say what the jobs took (Slurm accounting storage is disabled)"
