"""The lines after a failed run, from Snakemake's log: which artifact is missing, for which rows, what to do."""

import pytest
import yaml

from colbert_zero.graph.study import Study
from colbert_zero.machine.failures import explain_failures
from own_study import CONFIG, write_data

RESOURCES = {
    "default": {"mem_mb": 3000},
    "unsupervised": {"mem_mb": 64000, "runtime": 240},
    "mine_dense": {"runtime": 17},
}
FURTHER = "For further error details see the cluster/cloud log and the log files of the involved rule(s)."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "data").mkdir()
    write_data(folder / "data")
    return folder


@pytest.fixture
def study(folder, tmp_path, monkeypatch):
    """A study without artifacts."""
    monkeypatch.chdir(tmp_path)
    return Study(yaml.safe_load(yaml.safe_dump(CONFIG)) | {"resources": RESOURCES}, folder)


def spec_of(study, start):
    return next(spec for spec in study.specs.values() if spec.name.startswith(start))


def slurm_message(status, reason="Reason: Unknown"):
    """The executor's message about a SLURM job that failed."""
    return f"SLURM-job '2' failed, SLURM status is: '{status}'. {reason}.{FURTHER}"


def attempt(spec, rule, message="None", rule_log=None, slurm_log=None):
    """Snakemake's report of a failed attempt; writes the log of the rule, and that of the SLURM job."""
    log = spec.folder.with_suffix(".log").name
    written = [spec.folder.parents[2] / "logs" / spec.kind / log]
    if slurm_log is not None:
        written.append(spec.folder.parents[2].absolute() / ".snakemake" / "slurm_logs" / f"rule_{rule}" / "2.log")
    for path, text in zip(written, (rule_log, slurm_log), strict=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
    listed = ", ".join(map(str, written))
    external = "    external_jobid: 2\n" if "SLURM-job" in message else ""
    return f"""[Sun Nov 22 07:31:20 2026]
Error in rule {rule}:
    message: {message}
    jobid: 2
    input: results/batches/x-aaaaaaaaaaaa/spec.json
    output: {spec.folder}/spec.json
    log: {listed} (check log file(s) for error details)
    shell:
        python -m colbert_zero.x --spec {spec.argument_file("spec")} 2> {written[0]}
        (command exited with non-zero exit code)
{external}Logfile {written[0]}:
================================================================================
    output: something that a step wrote
================================================================================

"""


LOG_START = "Building DAG of jobs...\n[Sun Nov 22 07:31:10 2026]\nJob 2: Train the unsupervised stage of all\n"
LOG_END = "Trying to restart job 2.\nExiting because a job execution failed. Look above for error messages\n"

CAUSES = {
    "a time limit": (
        slurm_message("TIMEOUT"),
        "12:00 step 3 of 9\n",
        "",
        "ran into its time limit: train_stage had 240 minutes; raise resources.unsupervised.runtime in config.yaml",
    ),
    "memory, from SLURM's status": (
        slurm_message("OUT_OF_MEMORY"),
        "",
        "",
        "killed for memory: train_stage had 64000 MB; raise resources.unsupervised.mem_mb in config.yaml",
    ),
    "memory, from the log": (
        slurm_message("FAILED", "Reasons: NonZeroExitCode"),
        "",
        "slurmstepd: error: Job 2 exceeded memory limit (90000 > 64000), being killed\n",
        "killed for memory: train_stage had 64000 MB; raise resources.unsupervised.mem_mb in config.yaml",
    ),
    "memory, by the kernel": (
        slurm_message("FAILED"),
        "",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=2.batch.\n",
        "killed for memory: train_stage had 64000 MB; raise resources.unsupervised.mem_mb in config.yaml",
    ),
    "a GPU's memory": (
        slurm_message("FAILED"),
        "Traceback ...\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n",
        "",
        "out of GPU memory: request a GPU with more memory, resources.unsupervised.gpu_model in config.yaml",
    ),
    "a user's error": (
        "None",
        "12:00 reading\ncolbert-zero: first\n12:01 reading\ncolbert-zero: data/a.jsonl, line 3: no answer\n",
        None,
        "data/a.jsonl, line 3: no answer",
    ),
    "a missing image": (
        slurm_message("FAILED"),
        "",
        "FATAL:   could not open image /shared/torch.sif: no such file or directory\n",
        "the image cannot be read from this node: put it where all nodes see it (images in config.yaml)",
    ),
    "no Apptainer on a node": (
        slurm_message("FAILED"),
        "",
        "WorkflowError:\nThe apptainer or singularity command has to be available in order to use it.\n",
        "Apptainer is not on this node's PATH: ask the site, or load its module where jobs start",
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_has_its_line(study, cause):
    message, rule_log, slurm_log, line = CAUSES[cause]
    model = spec_of(study, "models/unsupervised")
    log = LOG_START + attempt(model, "train_stage", message, rule_log, slurm_log) + LOG_END
    assert explain_failures(log, study) == [f"{model.name} (of all): {line}"]


def test_a_step_that_was_killed_on_this_machine(study):
    """Its log is empty; only the status of its shell tells, and Snakemake prints that with the command."""
    model, shards = spec_of(study, "models/unsupervised"), spec_of(study, "shards/lines")
    status = "Command 'trap : TERM; python -m x --spec {} 2> logs/x.log' returned non-zero exit status {}.\n"
    killed, failed = status.format(model.argument_file("spec"), 137), status.format(shards.argument_file("spec"), 1)
    log = killed + attempt(model, "train_stage", rule_log="") + failed + attempt(shards, "build_shards", rule_log="")
    of_model, of_shards = explain_failures(LOG_START + log + LOG_END, study)
    assert of_model == (
        f"{model.name} (of all): killed, as the system does when memory runs out: train_stage had 64000 MB; "
        "raise resources.unsupervised.mem_mb in config.yaml, so that less runs beside it"
    )
    assert of_shards == f"{shards.name} (of all): see logs/shards/{shards.folder.name}.log"


@pytest.mark.parametrize(
    "last_words",
    [
        "terminate called after throwing an instance of 'std::bad_alloc'\n",
        "memory allocation of 4096 bytes failed\n",
        "java.lang.OutOfMemoryError: Java heap space\n",
    ],
)
def test_code_that_ends_the_process_for_lack_of_memory(study, last_words):
    model = spec_of(study, "models/unsupervised")
    (line,) = explain_failures(attempt(model, "train_stage", rule_log=last_words), study)
    assert ": killed for memory: train_stage had 64000 MB; " in line


def test_a_step_that_ended_before_it_could_report_errors(study):
    """With too little address space, the import of torch fails."""
    model = spec_of(study, "models/unsupervised")
    log = "Traceback ...\nImportError: libtorch_cpu.so: failed to map segment from shared object\n"
    (line,) = explain_failures(attempt(model, "train_stage", rule_log=log), study)
    assert line.startswith(f"{model.name} (of all): not enough memory: ")


def test_of_many_rows_a_line_names_some(study):
    model = spec_of(study, "models/unsupervised")
    study.used_by[model.key] = {f"row{number:04}" for number in range(5000)}
    (line,) = explain_failures(attempt(model, "train_stage", rule_log=""), study)
    assert line.startswith(f"{model.name} (of row0000, row0001, ")
    assert "row0007 and 4992 more): " in line
    assert len(line) < 300


def test_an_unknown_cause_refers_to_the_logs_that_exist(study):
    model = spec_of(study, "models/unsupervised")
    log_file = f"logs/models/{model.folder.name}.log"
    log = attempt(model, "train_stage", slurm_message("NODE_FAIL"), "Traceback ...\nKeyError: 3\n")
    assert explain_failures(log, study) == [f"{model.name} (of all): SLURM says NODE_FAIL; see {log_file}"]
    log = attempt(model, "train_stage", rule_log="Traceback ...\nKeyError: 3\n")
    assert explain_failures(log, study) == [f"{model.name} (of all): see {log_file}"]
    log = attempt(model, "train_stage")
    assert explain_failures(log, study) == [f"{model.name} (of all): see the message of Snakemake"]


def test_an_artifact_that_exists_now_is_not_mentioned(study):
    """A later attempt, or another run, has made it."""
    model, shards = spec_of(study, "models/unsupervised"), spec_of(study, "shards/lines")
    log = attempt(model, "train_stage", slurm_message("TIMEOUT")) + attempt(
        shards, "build_shards", slurm_message("TIMEOUT")
    )
    model.folder.mkdir(parents=True)
    (model.folder / "spec.json").write_text(model.text)
    (line,) = explain_failures(log, study)
    assert line.startswith(f"{shards.name} (of all): ")


@pytest.mark.parametrize("times", [1, 2, 11])
def test_attempts_are_counted_and_the_last_one_gives_the_cause(study, times):
    model = spec_of(study, "models/unsupervised")
    shards = spec_of(study, "shards/lines")
    attempts = [attempt(model, "train_stage", slurm_message("TIMEOUT"))] * (times - 1)
    attempts.append(attempt(shards, "build_shards", slurm_message("FAILED"), "colbert-zero: no answer\n"))
    attempts.append(attempt(model, "train_stage", slurm_message("OUT_OF_MEMORY")))
    lines = explain_failures(LOG_START + "".join(attempts) + LOG_END, study)
    (line,) = [line for line in lines if line.startswith(model.name)]
    again = f", {times} times" if times > 1 else ""
    assert f": killed for memory{again}: train_stage had 64000 MB; " in line
    assert f"{shards.name} (of all): no answer" in lines
    assert len(lines) == 2


@pytest.mark.parametrize("times", [1, 3])
def test_a_report_by_the_snakemake_inside_of_a_job_is_not_another_attempt(study, times):
    """Snakemake prints the failed job's log, in which the job's own Snakemake reports the same failure."""
    model = spec_of(study, "models/unsupervised")
    inside = attempt(model, "train_stage").replace("jobid: 2", "jobid: 0")
    outside = attempt(
        model, "train_stage", slurm_message("OUT_OF_MEMORY"), "12:00 step 3 of 9\n", "srun: error: Killed\n"
    )
    (line,) = explain_failures((outside + inside) * times, study)
    again = f", {times} times" if times > 1 else ""
    assert f": killed for memory{again}: " in line


@pytest.mark.parametrize(
    ("start", "rule", "section", "values"),
    [
        # The config sets a training's resources by stage, on any number of nodes, and another step's by rule.
        ("models/unsupervised", "train_stage_on_nodes", "unsupervised", ("64000 MB", "240 minutes")),
        ("models/supervised", "train_stage", "supervised", ("3000 MB", "60 minutes")),
        ("candidates/dense", "mine_dense", "mine_dense", ("3000 MB", "17 minutes")),
        ("sources/", "read_docstrings_source", "read_docstrings", ("3000 MB", "60 minutes")),
    ],
)
def test_the_line_names_the_setting_to_raise(study, start, rule, section, values):
    spec = spec_of(study, start)
    for status, resource, value in zip(("OUT_OF_MEMORY", "TIMEOUT"), ("mem_mb", "runtime"), values, strict=True):
        (line,) = explain_failures(attempt(spec, rule, slurm_message(status)), study)
        assert f"{rule} had {value}; raise resources.{section}.{resource} in config.yaml" in line


def test_a_job_that_shares_the_work_is_told_by_the_step_whose_work_it_is(study):
    spec = spec_of(study, "shards/")
    report = attempt(spec, "share_work", slurm_message("TIMEOUT"))
    report = report.replace(f"output: {spec.folder}/spec.json", f"output: {spec.state}.files-1-of-3")
    (line,) = explain_failures(report, study)
    assert line.startswith(f"{spec.name} (of ")
    assert "build_shards had 60 minutes; raise resources.build_shards.runtime in config.yaml" in line


SBATCH = f"""SLURM sbatch failed. The error message was '{{stderr}}'.
    sbatch call:
        sbatch --parsable --job-name x --output /x/.snakemake/slurm_logs/rule_train_stage/2/%j.log --wrap="python -m x"
{FURTHER}"""


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (
            "sbatch: error: invalid partition specified: nope\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified",
            "invalid partition specified: nope",
        ),
        (
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            "Batch job submission failed: Requested node configuration is not available",
        ),
        (
            "sbatch: lua: this site wants a project\nsite says: no\nsbatch: error: Unspecified error",
            "Unspecified error",
        ),
    ],
)
def test_the_line_for_a_refused_job_quotes_sbatch(study, stderr, reason):
    """It does not quote the log of an earlier attempt, which still exists."""
    model, report = spec_of(study, "models/unsupervised"), study.report
    log = attempt(model, "train_stage", SBATCH.format(stderr=stderr), rule_log="colbert-zero: something before\n")
    log += attempt(report, "write_report", rule_log="colbert-zero: no table\n")
    assert explain_failures(log, study) == [
        f"{model.name} (of all): SLURM did not take the job: {reason}",
        f"{report.name}: no table",
    ]


def test_the_line_for_a_failed_submission_quotes_the_exception(study):
    model = spec_of(study, "models/unsupervised")
    log = attempt(model, "train_stage", f"Job submission failed with exception: no partition has 4 nodes {FURTHER}")
    assert explain_failures(log, study) == [
        f"{model.name} (of all): SLURM did not take the job: no partition has 4 nodes"
    ]


def test_an_image_that_could_not_be_built_is_named_by_its_file(study, tmp_path):
    file = tmp_path / "images" / "torch-aaaaaaaaaaaa.sif"
    log = tmp_path / "torch.log"
    log.write_text("FATAL: ...\ncolbert-zero: the image torch could not be built: no space left\n")
    report = (
        f"Error in rule build_image:\n    message: None\n    jobid: 1\n    output: {file}\n"
        f"    log: {log} (check log file(s) for error details)\n"
    )
    assert explain_failures(report, study) == [f"{file}: the image torch could not be built: no space left"]


@pytest.mark.parametrize("log", ["", LOG_START + LOG_END, "WorkflowError:\nError in rule\n"])
def test_a_log_without_failures_has_no_lines(study, log):
    assert explain_failures(log, study) == []
