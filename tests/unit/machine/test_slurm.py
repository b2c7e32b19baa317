"""What a run asks SLURM before it starts: names that it does not know are said at once, and in one line."""

import asyncio
import getpass
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as executor

from colbert_zero.graph.console import UserError
from colbert_zero.graph.provenance import RUN, Attempts
from colbert_zero.machine import slurm
from programs import laptop, program, says

JOBS = [{"slurm_partition": "gpu", "slurm_account": "Team"}, {"slurm_partition": "cpu,gpu"}, {}]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder for a site's programs; beside them there is nothing of SLURM's."""
    folder = tmp_path / "site"
    program(folder, "sbatch", "exit 1")
    program(folder, "sinfo", says("cpu\ngpu"))
    program(folder, "sacctmgr", says("team\nother"))
    monkeypatch.setenv("PATH", f"{folder}:{laptop(tmp_path / 'laptop')}")
    slurm._jobs.cache_clear()
    yield folder
    slurm._jobs.cache_clear()


def refused(resources):
    with pytest.raises(UserError) as error:
        slurm.check(resources)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_slurm_knows_passes(site):
    """Whatever the case of an account, in which SLURM does not keep it."""
    slurm.check(JOBS)


def test_no_slurm_here(site):
    (site / "sbatch").unlink()
    said = refused(JOBS)
    assert said.startswith("no sbatch on the PATH: ")
    assert "--profile local" in said


@pytest.mark.parametrize("asked", ["gpus", "cpu,gpus", "GPU"])
def test_an_unknown_partition_is_named_with_those_there_are(site, asked):
    said = refused([*JOBS, {"slurm_partition": asked}])
    wrong = asked.rpartition(",")[2]
    assert said == f"slurm_partition in slurm/profile.yaml: {wrong} is not a partition here; there are cpu, gpu"


def test_an_account_of_others_is_named_with_ones_own(site):
    said = refused([*JOBS, {"slurm_account": "theirs"}])
    assert "slurm_account in slurm/profile.yaml: theirs is not an account of yours here; there are other, team" in said


def test_accounts_are_asked_for_this_user(site):
    program(site, "sacctmgr", f'case "$*" in *user={getpass.getuser()}\\ *) echo mine;; esac')
    assert refused(JOBS).endswith("there are mine")


@pytest.mark.parametrize("accounting", [None, says("accounting is switched off", status=1), says("")])
def test_sites_without_accounting_take_any_account(site, accounting):
    (site / "sacctmgr").unlink()
    if accounting is not None:
        program(site, "sacctmgr", accounting)
    slurm.check([*JOBS, {"slurm_account": "any"}])
    refused([{"slurm_partition": "none"}])


def test_a_silent_sinfo_is_no_reason_to_refuse(site):
    program(site, "sinfo", "exit 1")
    slurm.check([{"slurm_partition": "any"}])


KEY, OTHER = "bbbbbbbbbbbb", "cccccccccccc"


def test_jobs_that_a_killed_run_left_at_an_artifact_are_found(site):
    here = os.getcwd()
    lines = [
        f"7|rule_train_stage_wildcards_unsupervised_{KEY}|{here}",
        f"12|rule_train_stage_wildcards_supervised_{OTHER}|{here}",
        f"31|rule_train_stage_on_nodes_wildcards_unsupervised_{KEY}|{here}",
        # Another study may have an artifact of the same name.
        f"32|rule_train_stage_wildcards_unsupervised_{KEY}|{here}/other",
        f"40|(null)|{here}",
        f"41|a comment | of mine\nin two lines_{KEY}|{here}",
    ]
    program(site, "squeue", says("\n".join(lines)))
    assert sorted(slurm.running_jobs(KEY)) == ["31", "7"]
    assert slurm.running_jobs(OTHER) == ["12"]
    assert slurm.running_jobs("dddddddddddd") == []


def test_slurm_is_asked_once_before_this_run_has_jobs_of_its_own(site):
    program(site, "squeue", says(f"7|rule_x_{KEY}|{os.getcwd()}"))
    assert slurm.running_jobs(KEY) == ["7"]
    program(site, "squeue", says(f"8|rule_x_{KEY}|{os.getcwd()}"))
    assert slurm.running_jobs(KEY) == ["7"]


@pytest.mark.parametrize("squeue", [None, says("slurm_load_jobs error: Unable to contact slurm controller", status=1)])
def test_without_an_answer_nothing_is_under_way(site, squeue):
    if squeue is not None:
        program(site, "squeue", squeue)
    assert slurm.running_jobs(KEY) == []


def test_states_of_jobs_are_words_that_the_executor_knows(site):
    program(site, "squeue", "exit 1")
    states = {"1": "CANCELLED by 0", "2": "COMPLETED", "3": "RUNNING", "4": "CANCELLED", "5": "OUT_OF_MEMORY"}
    assert slurm.final_states(states) == states | {"1": "CANCELLED"}


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL"])
def test_a_job_that_slurm_does_not_start_again_has_ended(site, state):
    """Where it does, the job has its number and waits in the queue."""
    program(site, "squeue", says("7\n9"))
    assert slurm.final_states({"7": state, "8": state}) == {"7": state, "8": "CANCELLED"}


def test_the_executor_sees_those(monkeypatch):
    async def query(_command, _logger):
        return {"7": "CANCELLED by 0"}, 0.1

    assert "query_job_status" in executor.Executor.check_active_jobs.__code__.co_names
    monkeypatch.setattr(executor, "query_job_status", query)
    monkeypatch.setattr(executor.Executor, "handle_job_error", executor.Executor.handle_job_error)
    slurm.patch_executor()
    assert asyncio.run(executor.query_job_status("sacct", None)) == ({"7": "CANCELLED"}, 0.1)


def test_a_job_knows_when_its_time_is_up(site, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    program(site, "squeue", says("2030-01-02T03:04:05"))
    end = float(slurm.deadline())
    assert time.localtime(end)[:6] == (2030, 1, 2, 3, 4, 5)
    monkeypatch.setenv(slurm.DEADLINE, str(end))
    for before, up in ((slurm.RESERVE_SECONDS + 1, False), (slurm.RESERVE_SECONDS - 1, True), (-1, True)):
        monkeypatch.setattr(slurm.time, "time", lambda before=before: end - before)
        assert slurm.time_is_up() == up


@pytest.mark.parametrize("said", ["NONE", "N/A", ""])
def test_without_a_limit_the_time_is_never_up(site, monkeypatch, said):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    program(site, "squeue", says(said))
    assert slurm.deadline() == ""
    monkeypatch.setenv(slurm.DEADLINE, "")
    assert not slurm.time_is_up()


@pytest.mark.parametrize("mistake", [True, False])
def test_what_ended_by_a_mistake_in_this_run_is_not_submitted_again(tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RUN, "this")
    monkeypatch.setattr(executor.Executor, "handle_job_error", lambda self, job: None)
    monkeypatch.setattr(executor, "query_job_status", executor.query_job_status)
    attempts = Attempts(Path("results/state/models/unsupervised-0123456789ab/attempts.jsonl"))
    attempts.begin()
    attempts.end("lower the learning rate", mistake=mistake)
    slurm.patch_executor()
    job = SimpleNamespace(output=["results/models/unsupervised-0123456789ab/spec.json"], attempt=1, restart_times=10)
    executor.Executor.handle_job_error(None, job)
    assert (job.restart_times > job.attempt - 1) is not mistake
    other = SimpleNamespace(output=["results/models/supervised-0123456789ab/spec.json"], attempt=1, restart_times=10)
    executor.Executor.handle_job_error(None, other)
    assert other.attempt == 1
