"""What a person is told after a run, from Snakemake's log: which artifact is missing, for which rows, what to do."""

import pytest
import yaml

from colbert_zero.graph.study import Study
from colbert_zero.machine.failures import explain
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
    """A study in which nothing is made yet."""
    monkeypatch.chdir(tmp_path)
    return Study(yaml.safe_load(yaml.safe_dump(CONFIG)) | {"resources": RESOURCES}, folder)


def spec_of(study, start):
    return next(spec for spec in study.specs.values() if spec.name.startswith(start))


def ended(status, reason="Reason: Unknown"):
    """What the executor says of a SLURM job that ended badly."""
    return f"SLURM-job '2' failed, SLURM status is: '{status}'. {reason}.{FURTHER}"


def attempt(spec, rule, message="None", own=None, slurm=None):
    """A failed attempt as Snakemake's log has it; `own` is in the rule's log, `slurm` in the job's."""
    log = spec.folder.with_suffix(".log").name
    written = [spec.folder.parents[2] / "logs" / spec.kind / log]
    if slurm is not None:
        written.append(spec.folder.parents[2].absolute() / ".snakemake" / "slurm_logs" / f"rule_{rule}" / "2.log")
    for path, text in zip(written, (own, slurm), strict=False):
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
        python -m colbert_zero.x --spec '{spec.text}' 2> {written[0]}
        (command exited with non-zero exit code)
{external}Logfile {written[0]}:
================================================================================
    output: something that a step wrote
================================================================================

"""


NORM_WARMUP_STEPS = "Building DAG of jobs...\n[Sun Nov 22 07:31:10 2026]\nJob 2: Train the unsupervised stage of all\n"
LAST = "Trying to restart job 2.\nExiting because a job execution failed. Look above for error messages\n"

ENDS = {
    "a time limit": (
        ended("TIMEOUT"),
        "12:00 step 3 of 9\n",
        "",
        "ran into its time limit: train_stage had 240 minutes; raise resources.unsupervised.runtime in config.yaml",
    ),
    "memory, where SLURM knows": (
        ended("OUT_OF_MEMORY"),
        "",
        "",
        "killed for memory: train_stage had 64000 MB; raise resources.unsupervised.mem_mb in config.yaml",
    ),
    "memory, where the log knows": (
        ended("FAILED", "Reasons: NonZeroExitCode"),
        "",
        "slurmstepd: error: Job 2 exceeded memory limit (90000 > 64000), being killed\n",
        "killed for memory: train_stage had 64000 MB; raise resources.unsupervised.mem_mb in config.yaml",
    ),
    "memory, by the kernel": (
        ended("FAILED"),
        "",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=2.batch.\n",
        "killed for memory: train_stage had 64000 MB; raise resources.unsupervised.mem_mb in config.yaml",
    ),
    "a GPU's memory": (
        ended("FAILED"),
        "Traceback ...\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n",
        "",
        "the GPU's memory was too little: ask for a larger one, resources.unsupervised.gpu_model in config.yaml",
    ),
    "a mistake": (
        "None",
        "12:00 reading\ncolbert-zero: first\n12:01 reading\ncolbert-zero: data/a.jsonl, line 3: no answer\n",
        None,
        "data/a.jsonl, line 3: no answer",
    ),
    "an image that is not there": (
        ended("FAILED"),
        "",
        "FATAL:   could not open image /shared/torch.sif: no such file or directory\n",
        "the image cannot be read from this node: put it where all nodes see it (images in config.yaml)",
    ),
    "no Apptainer on a node": (
        ended("FAILED"),
        "",
        "WorkflowError:\nThe apptainer or singularity command has to be available in order to use it.\n",
        "Apptainer is not on this node's PATH: ask the site, or load its module where jobs start",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_end_has_its_line(study, end):
    message, own, slurm, line = ENDS[end]
    model = spec_of(study, "models/unsupervised")
    log = NORM_WARMUP_STEPS + attempt(model, "train_stage", message, own, slurm) + LAST
    assert explain(log, study) == [f"{model.name} (of all): {line}"]


def test_what_nobody_knows_is_looked_up_in_the_logs_that_there_are(study):
    model = spec_of(study, "models/unsupervised")
    own = f"logs/models/{model.folder.name}.log"
    log = attempt(model, "train_stage", ended("NODE_FAIL"), "Traceback ...\nKeyError: 3\n")
    assert explain(log, study) == [f"{model.name} (of all): SLURM says NODE_FAIL; see {own}"]
    log = attempt(model, "train_stage", own="Traceback ...\nKeyError: 3\n")
    assert explain(log, study) == [f"{model.name} (of all): see {own}"]
    log = attempt(model, "train_stage")
    assert explain(log, study) == [f"{model.name} (of all): see what Snakemake said of it"]


def test_what_is_there_now_is_not_mentioned(study):
    """A later attempt, or another run, has made it."""
    model, shards = spec_of(study, "models/unsupervised"), spec_of(study, "shards/lines")
    log = attempt(model, "train_stage", ended("TIMEOUT")) + attempt(shards, "build_shards", ended("TIMEOUT"))
    model.folder.mkdir(parents=True)
    (model.folder / "spec.json").write_text(model.text)
    (line,) = explain(log, study)
    assert line.startswith(f"{shards.name} (of all): ")


@pytest.mark.parametrize("times", [1, 2, 11])
def test_attempts_are_counted_and_the_last_one_says_why(study, times):
    model = spec_of(study, "models/unsupervised")
    shards = spec_of(study, "shards/lines")
    attempts = [attempt(model, "train_stage", ended("TIMEOUT"))] * (times - 1)
    attempts.append(attempt(shards, "build_shards", ended("FAILED"), "colbert-zero: no answer\n"))
    attempts.append(attempt(model, "train_stage", ended("OUT_OF_MEMORY")))
    said = explain(NORM_WARMUP_STEPS + "".join(attempts) + LAST, study)
    (line,) = [line for line in said if line.startswith(model.name)]
    again = f", {times} times" if times > 1 else ""
    assert f": killed for memory{again}: train_stage had 64000 MB; " in line
    assert f"{shards.name} (of all): no answer" in said
    assert len(said) == 2


@pytest.mark.parametrize("times", [1, 3])
def test_what_the_snakemake_inside_of_a_job_says_is_no_other_attempt(study, times):
    """Snakemake shows the failed job's log, in which the job's own Snakemake reports the same failure."""
    model = spec_of(study, "models/unsupervised")
    inside = attempt(model, "train_stage").replace("jobid: 2", "jobid: 0")
    outside = attempt(model, "train_stage", ended("OUT_OF_MEMORY"), "12:00 step 3 of 9\n", "srun: error: Killed\n")
    (line,) = explain((outside + inside) * times, study)
    again = f", {times} times" if times > 1 else ""
    assert f": killed for memory{again}: " in line


@pytest.mark.parametrize(
    ("start", "rule", "setting", "had"),
    [
        # A training's resources are its stage's, on however many nodes; another step's are its rule's.
        ("models/unsupervised", "train_stage_on_nodes", "unsupervised", ("64000 MB", "240 minutes")),
        ("models/supervised", "train_stage", "supervised", ("3000 MB", "60 minutes")),
        ("candidates/dense", "mine_dense", "mine_dense", ("3000 MB", "17 minutes")),
        ("sources/", "read_docstrings_source", "read_docstrings", ("3000 MB", "60 minutes")),
    ],
)
def test_the_setting_to_raise_is_the_one_that_decides(study, start, rule, setting, had):
    spec = spec_of(study, start)
    for status, resource, asked in zip(("OUT_OF_MEMORY", "TIMEOUT"), ("mem_mb", "runtime"), had, strict=True):
        (line,) = explain(attempt(spec, rule, ended(status)), study)
        assert f"{rule} had {asked}; raise resources.{setting}.{resource} in config.yaml" in line


SBATCH = f"""SLURM sbatch failed. The error message was '{{said}}'.
    sbatch call:
        sbatch --parsable --job-name x --output /x/.snakemake/slurm_logs/rule_train_stage/2/%j.log --wrap="python -m x"
{FURTHER}"""


@pytest.mark.parametrize(
    ("said", "why"),
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
def test_what_slurm_did_not_take_is_in_its_own_words(study, said, why):
    """Not in those of an earlier attempt, whose log is there still."""
    model, report = spec_of(study, "models/unsupervised"), study.report
    log = attempt(model, "train_stage", SBATCH.format(said=said), own="colbert-zero: something before\n")
    log += attempt(report, "write_report", own="colbert-zero: no table\n")
    assert explain(log, study) == [
        f"{model.name} (of all): SLURM did not take the job: {why}",
        f"{report.name}: no table",
    ]


def test_what_could_not_be_submitted_says_why(study):
    model = spec_of(study, "models/unsupervised")
    log = attempt(model, "train_stage", f"Job submission failed with exception: no partition has 4 nodes {FURTHER}")
    assert explain(log, study) == [f"{model.name} (of all): SLURM did not take the job: no partition has 4 nodes"]


def test_an_image_that_could_not_be_built_is_named_by_its_file(study, tmp_path):
    file = tmp_path / "images" / "torch-aaaaaaaaaaaa.sif"
    log = tmp_path / "torch.log"
    log.write_text("FATAL: ...\ncolbert-zero: the image torch could not be built: no space left\n")
    said = (
        f"Error in rule build_image:\n    message: None\n    jobid: 1\n    output: {file}\n"
        f"    log: {log} (check log file(s) for error details)\n"
    )
    assert explain(said, study) == [f"{file}: the image torch could not be built: no space left"]


@pytest.mark.parametrize("log", ["", NORM_WARMUP_STEPS + LAST, "WorkflowError:\nError in rule\n"])
def test_a_log_without_failures_has_no_lines(study, log):
    assert explain(log, study) == []
