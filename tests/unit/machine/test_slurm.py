"""Queries of SLURM: unknown names are errors of one line before a run starts; jobs, states and deadlines are read."""

import asyncio
import getpass
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as executor
from snakemake.jobs import GroupJob

from colbert_zero.graph.console import UserError
from colbert_zero.graph.provenance import RUN_VARIABLE, Attempts
from colbert_zero.machine import slurm
from programs import laptop, program, says

JOBS = [{"slurm_partition": "gpu", "slurm_account": "Team"}, {"slurm_partition": "cpu,gpu"}, {}]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder for the stand-ins of a site's programs; no other SLURM program is on the PATH."""
    folder = tmp_path / "site"
    program(folder, "sbatch", "exit 1")
    program(folder, "sinfo", says("cpu\ngpu"))
    program(folder, "sacctmgr", says("team\nother"))
    monkeypatch.setenv("PATH", f"{folder}:{laptop(tmp_path / 'laptop')}")
    slurm._queued_jobs.cache_clear()
    yield folder
    slurm._queued_jobs.cache_clear()


def error_for(resources):
    with pytest.raises(UserError) as error:
        slurm.check_partitions_and_accounts(resources)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_known_partitions_and_accounts_pass(site):
    """The case of an account does not count: SLURM stores accounts in lower case."""
    slurm.check_partitions_and_accounts(JOBS)


def test_no_slurm_here(site):
    (site / "sbatch").unlink()
    message = error_for(JOBS)
    assert message.startswith("no sbatch on the PATH: ")
    assert "--profile local" in message


@pytest.mark.parametrize("partitions", ["gpus", "cpu,gpus", "GPU"])
def test_the_error_for_an_unknown_partition_lists_the_known_ones(site, partitions):
    message = error_for([*JOBS, {"slurm_partition": partitions}])
    unknown = partitions.rpartition(",")[2]
    assert message == f"slurm_partition in slurm/profile.yaml: {unknown} is not a partition here; there are cpu, gpu"


def test_the_error_for_an_unknown_account_lists_those_of_the_user(site):
    error = error_for([*JOBS, {"slurm_account": "theirs"}])
    assert "slurm_account in slurm/profile.yaml: theirs is not an account of yours here; there are other, team" in error


def test_accounts_are_those_of_this_user(site):
    program(site, "sacctmgr", f'case "$*" in *user={getpass.getuser()}\\ *) echo mine;; esac')
    assert error_for(JOBS).endswith("there are mine")


@pytest.mark.parametrize("accounting", [None, says("accounting is switched off", status=1), says("")])
def test_any_account_passes_on_a_site_without_accounting(site, accounting):
    (site / "sacctmgr").unlink()
    if accounting is not None:
        program(site, "sacctmgr", accounting)
    slurm.check_partitions_and_accounts([*JOBS, {"slurm_account": "any"}])
    error_for([{"slurm_partition": "none"}])


def test_any_partition_passes_if_sinfo_fails(site):
    program(site, "sinfo", "exit 1")
    slurm.check_partitions_and_accounts([{"slurm_partition": "any"}])


KEY, OTHER_KEY = "bbbbbbbbbbbb", "cccccccccccc"


def test_jobs_that_a_killed_run_left_behind_are_found_by_key(site):
    here = os.getcwd()
    lines = [
        f"7|rule_train_stage_wildcards_unsupervised_{KEY}|{here}",
        f"12|rule_train_stage_wildcards_supervised_{OTHER_KEY}|{here}",
        f"31|rule_train_stage_on_nodes_wildcards_unsupervised_{KEY}|{here}",
        # Another study may have an artifact of the same name.
        f"32|rule_train_stage_wildcards_unsupervised_{KEY}|{here}/other",
        f"40|(null)|{here}",
        f"41|a comment | of mine\nin two lines_{KEY}|{here}",
    ]
    program(site, "squeue", says("\n".join(lines)))
    assert sorted(slurm.leftover_jobs(KEY)) == ["31", "7"]
    assert slurm.leftover_jobs(OTHER_KEY) == ["12"]
    assert slurm.leftover_jobs("dddddddddddd") == []


def test_the_queue_is_read_once_before_this_run_submits_its_own_jobs(site):
    program(site, "squeue", says(f"7|rule_x_{KEY}|{os.getcwd()}"))
    assert slurm.leftover_jobs(KEY) == ["7"]
    program(site, "squeue", says(f"8|rule_x_{KEY}|{os.getcwd()}"))
    assert slurm.leftover_jobs(KEY) == ["7"]


@pytest.mark.parametrize("squeue", [None, says("slurm_load_jobs error: Unable to contact slurm controller", status=1)])
def test_no_job_is_found_if_squeue_is_missing_or_fails(site, squeue):
    if squeue is not None:
        program(site, "squeue", squeue)
    assert slurm.leftover_jobs(KEY) == []


def test_job_states_are_translated_to_those_that_the_executor_knows(site):
    program(site, "squeue", "exit 1")
    states = {"1": "CANCELLED by 0", "2": "COMPLETED", "3": "RUNNING", "4": "CANCELLED", "5": "OUT_OF_MEMORY"}
    assert slurm.executor_states(states) == states | {"1": "CANCELLED"}


@pytest.mark.parametrize(("state", "requeued"), [("PREEMPTED", "PREEMPTED"), ("NODE_FAIL", "PENDING")])
def test_a_job_that_slurm_does_not_requeue_has_ended(site, state, requeued):
    """A requeued job keeps its number and waits in the queue. The executor would shun a node that failed for ever."""
    program(site, "squeue", says("7\n9"))
    assert slurm.executor_states({"7": state, "8": state}) == {"7": requeued, "8": "CANCELLED"}
    program(site, "squeue", "exit 1")
    assert slurm.executor_states({"7": state}) == {"7": requeued}


def test_the_patched_executor_gets_translated_states(monkeypatch):
    async def query(_command, _logger):
        return {"7": "CANCELLED by 0"}, 0.1

    assert "query_job_status" in executor.Executor.check_active_jobs.__code__.co_names
    monkeypatch.setattr(executor, "query_job_status", query)
    monkeypatch.setattr(executor.Executor, "handle_job_error", executor.Executor.handle_job_error)
    monkeypatch.setattr(GroupJob, "log_error", GroupJob.log_error)
    slurm.patch_executor()
    assert asyncio.run(executor.query_job_status("sacct", None)) == ({"7": "CANCELLED"}, 0.1)


def test_a_job_knows_when_its_deadline_is_near(site, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    program(site, "squeue", says("2030-01-02T03:04:05"))
    end = float(slurm.job_deadline())
    assert time.localtime(end)[:6] == (2030, 1, 2, 3, 4, 5)
    monkeypatch.setenv(slurm.DEADLINE_VARIABLE, str(end))
    margin = slurm.DEADLINE_MARGIN_SECONDS
    for before, near in ((margin + 1, False), (margin - 1, True), (-1, True)):
        monkeypatch.setattr(slurm.time, "time", lambda before=before: end - before)
        assert slurm.deadline_is_near() == near


@pytest.mark.parametrize("end", ["NONE", "N/A", ""])
def test_without_a_time_limit_there_is_no_deadline(site, monkeypatch, end):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    program(site, "squeue", says(end))
    assert slurm.job_deadline() == ""
    monkeypatch.setenv(slurm.DEADLINE_VARIABLE, "")
    assert not slurm.deadline_is_near()


def failed(*output, rests_on=(), said=None):
    """A job that did not make its output."""
    return SimpleNamespace(
        output=output,
        input=rests_on,
        attempt=1,
        restart_times=10,
        is_group=lambda: False,
        log_error=lambda message, **_: said.append((output, message)),
    )


def group(*jobs):
    return SimpleNamespace(jobs=jobs, attempt=1, restart_times=10, is_group=lambda: True)


def end_attempt(attempts_file, error, mistake):
    attempts = Attempts(Path("results/state") / attempts_file)
    attempts.begin()
    attempts.end(error, mistake=mistake)


@pytest.fixture
def patched(tmp_path, monkeypatch):
    """The patched executor, in the folder of a study."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RUN_VARIABLE, "this")
    monkeypatch.setattr(executor.Executor, "handle_job_error", lambda self, job: None)
    monkeypatch.setattr(executor, "query_job_status", executor.query_job_status)
    monkeypatch.setattr(GroupJob, "log_error", GroupJob.log_error)
    slurm.patch_executor()
    return executor.Executor


@pytest.mark.parametrize("user_error", [True, False])
@pytest.mark.parametrize(
    ("output", "attempts_file"),
    [
        ("results/models/x.supervised-0123456789ab/spec.json", "models/x.supervised-0123456789ab/attempts.jsonl"),
        ("results/state/shards/x.y-0123456789ab.files-1-of-3", "shards/x.y-0123456789ab/files-1-of-3.attempts.jsonl"),
    ],
)
def test_a_job_that_failed_by_a_users_error_is_not_resubmitted(patched, output, attempts_file, user_error):
    end_attempt(attempts_file, "lower the learning rate", user_error)
    job = failed(output)
    patched.handle_job_error(None, job)
    assert (job.restart_times > job.attempt - 1) is not user_error
    other = failed("results/models/supervised-0123456789ab/spec.json")
    patched.handle_job_error(None, other)
    assert other.attempt == 1


@pytest.mark.parametrize(
    ("by_user", "resubmitted"),
    [({"one", "two"}, False), ({"one"}, True), (set(), True)],
    ids=["all by the user", "one by the machine", "none by the user"],
)
def test_a_job_of_several_is_resubmitted_as_long_as_that_may_help(patched, by_user, resubmitted):
    """What is there does not count, nor what rests on something that is missing: it was not tried."""
    said, jobs = [], []
    for name in ("one", "two"):
        output = f"results/indexes/{name}-0123456789ab/spec.json"
        end_attempt(f"indexes/{name}-0123456789ab/attempts.jsonl", "no", name in by_user)
        jobs.append(failed(output, said=said))
        jobs.append(failed(f"results/runs/{name}-0123456789ab/spec.json", rests_on=[output], said=said))
    there = Path("results/indexes/three-0123456789ab/spec.json")
    there.parent.mkdir(parents=True)
    there.touch()
    jobs.append(failed(str(there), said=said))
    job = group(*jobs)
    patched.handle_job_error(None, job)
    assert (job.restart_times > job.attempt - 1) is resubmitted
    GroupJob.log_error(job, "SLURM status is: 'TIMEOUT'", aux_logs=[])
    assert [output for (output,), _ in said] == [
        f"results/indexes/{name}-0123456789ab/spec.json" for name in ("one", "two")
    ]
    assert {message for _, message in said} == {"SLURM status is: 'TIMEOUT'"}
