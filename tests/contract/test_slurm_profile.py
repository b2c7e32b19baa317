"""`snakemake --profile slurm` without a cluster, and the exact options that it passes to sbatch."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from colbert_zero.graph.code import COMMIT_VARIABLE, source_commit
from colbert_zero.graph.config import validate
from colbert_zero.graph.locks import acquire_lock
from colbert_zero.graph.provenance import RUN_VARIABLE
from colbert_zero.graph.study import Study
from colbert_zero.machine.images import IMAGE_NAMES, planned_images
from own_study import CONFIG, write_data
from programs import laptop, program, says

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))
ON_THE_HOST = {"fetch_source", "fetch_collection", "fetch_base", "build_image", "train_stage_on_nodes", "audit_study"}
"""Fetching needs the network, building Apptainer, auditing the plan's packages, and an image has no srun."""
APPTAINER = says("apptainer version 1.4.5")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The PATH of a machine without SLURM and Apptainer, even if this one has them."""
    folder = tmp_path_factory.mktemp("laptop")
    laptop(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def begin(folder, data, **sections):
    """A study of one's own in a new folder."""
    folder.mkdir(exist_ok=True)
    (folder / "data").symlink_to(data)
    # Through JSON, so that YAML has no aliases.
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(CONFIG | sections))))
    return folder


@pytest.fixture
def study(tmp_path, data):
    return begin(tmp_path / "study", data)


def snakemake(study, path, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--profile", "slurm", "--directory", str(study), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": os.fspath(path)},
    )
    return done.returncode, done.stdout + done.stderr


def planned(study, path):
    """How many jobs of each rule a dry run plans."""
    status, output = snakemake(study, path, "--dry-run")
    assert status == 0, output
    table = re.findall(r"^(\w+) +(\d+)$", output.split("Job stats:")[-1], re.MULTILINE)
    return {rule: int(count) for rule, count in table}


def made(folder):
    """The names of all files that jobs have left in a study's folder."""
    return {path.name for top in ("logs", "resources", "results") for path in folder.glob(f"{top}/*/*")}


def test_any_machine_can_plan(study, programs):
    """Without SLURM, Apptainer or an image, and while another run holds the study's lock."""
    with acquire_lock(study / ".snakemake" / "colbert_zero.lock", "a run of study own"):
        counts = planned(study, programs)
    assert counts["train_stage"] == 3
    assert not {"build_image", "train_stage_on_nodes"} & counts.keys()
    assert made(study) == set()


def test_with_apptainer_images_are_planned_once_each(programs, data, tmp_path):
    program(tmp_path / "site", "apptainer", APPTAINER)
    path = f"{tmp_path / 'site'}:{programs}"
    settings = {"folder": "images"}
    assert planned(begin(tmp_path / "none", data, images=settings), path)["build_image"] == 2
    # One image is built already, the config gives the other.
    study = begin(tmp_path / "all", data, images=settings | {"torch": "elsewhere/torch.sif"})
    built = planned_images(validate(CONFIG | {"images": settings})["images"], study)["lucene"].file
    built.parent.mkdir()
    built.touch()
    assert "build_image" not in planned(study, path)


@pytest.mark.parametrize(
    ("there", "line"),
    [
        ([], "no apptainer on the PATH: "),
        (["apptainer"], "no sbatch on the PATH: "),
        (
            ["apptainer", "sbatch", "squeue"],
            "slurm_partition in slurm/profile.yaml: nope is not a partition here; there are cpu",
        ),
    ],
)
def test_a_missing_requirement_is_one_line_before_anything_runs(study, programs, tmp_path, there, line):
    site = tmp_path / "site"
    site.mkdir()
    for name in there:
        program(site, name, APPTAINER)
    if "squeue" in there:
        program(site, "sinfo", says("cpu"))
    flags = ["--default-resources", "slurm_partition=nope", "nodes=1"]
    status, output = snakemake(study, f"{site}:{programs}", *flags)
    assert status == 1
    ours = [found for found in output.splitlines() if "colbert-zero: " in found]
    assert len(ours) == 1, output
    assert ours[0].startswith(f"colbert-zero: {line}")
    assert "Traceback" not in output
    assert "Shell command" not in output
    assert made(study) == set()


# The options of sbatch


RESOURCES = {
    "default": {"mem_mb": 3000},
    "unsupervised": {"gpu": 2, "gpu_model": "nvidia-a100-80gb", "runtime": 90, "slurm_extra": "--exclusive"},
    "supervised": {"gpu": 1, "threads": 3, "tensorboard": True},
    "distillation": {"nodes": 2, "gpu": 4, "threads": 16},
    "search_bm25": {"slurm_extra": "--nice=100"},
}

EVALUATE = {"steps": [2], "collections": ["mine"]}


SBATCH = """#!python
import json, os, sys
with open({asked!r}, "a") as file:
    file.write(json.dumps([sys.argv[1:], dict(os.environ)]) + "\\n")
sys.exit("sbatch: error: No more jobs today\\nsbatch: error: Batch job submission failed: Unspecified error")
"""


class Submitted(NamedTuple):
    """What Snakemake passed to an sbatch that refuses every job, by rule and label; the environments; its output."""

    folder: Path
    asked: dict
    environments: list
    said: str
    models: dict


@pytest.fixture(scope="module")
def submitted(tmp_path_factory, programs, data):
    folder = tmp_path_factory.mktemp("submitted")
    # Each stage alone, so that all can start at once.
    alone = {stage: CONFIG["recipes"]["all"] | {"stages": [stage]} for stage in CONFIG["stages"]}
    alone["supervised"]["every_stage"] = alone["supervised"]["every_stage"] | {"evaluate": EVALUATE}
    begin(folder / "study", data, recipes=alone, resources=RESOURCES)
    (folder / "large").mkdir()
    (folder / "study" / "results").symlink_to(folder / "large")
    study = Study(yaml.safe_load((folder / "study" / "config.yaml").read_text()), folder / "study")
    models = {row.name: row.stages[0] for row in study.rows if row.stages}
    (run,) = [spec for spec in study.specs.values() if spec.name.startswith("runs/bm25.")]
    targets = [*models.values(), run]
    for spec in {spec.key: spec for target in targets for spec in study.inputs_of(target)}.values():
        path = folder / "study" / spec.folder / "spec.json"
        path.parent.mkdir(parents=True)
        path.write_text(spec.text)
    site = folder / "site"
    program(site, "sbatch", SBATCH.format(asked=str(folder / "asked")))
    # A killed run has left two jobs behind: one trains a model of this study.
    left = f"77|rule_train_stage_wildcards_supervised_{models['supervised'].key}|{folder / 'study'}"
    program(site, "squeue", says(f"{left}\n78|rule_train_stage_wildcards_supervised_bbbbbbbbbbbb|{folder / 'study'}"))
    for name in ("sinfo", "sacctmgr", "sacct", "scontrol"):
        program(site, name, "exit 0")
    files = [str(spec.folder / "spec.json") for spec in targets]
    flags = ["--sdm", "env-modules", "--retries", "0"]
    status, said = snakemake(folder / "study", f"{site}:{programs}", *flags, "--", *files)
    assert status == 1, said
    asked, environments = {}, []
    for line in (folder / "asked").read_text().splitlines():
        words, environment = json.loads(line)
        environments.append(environment)
        ((rule, label),) = re.findall(r"'(\w+):label=([^,']+)", words[-1])
        asked[rule, label] = words
    return Submitted(folder / "study", asked, environments, said, models)


def gpus(words):
    return [word for word in words if word.startswith(("--gpus", "--gres", "--ntasks-per-gpu"))]


def test_a_stage_on_several_nodes_has_its_own_rule(submitted):
    asked = submitted.asked
    assert asked.keys() == {
        ("search_bm25", "mine"),
        ("train_stage", "unsupervised"),
        ("train_stage", "supervised"),
        ("train_stage_on_nodes", "distillation"),
    }


def test_gpus_are_requested_by_number_or_by_model(submitted):
    """A GPU model's name may have hyphens, which Snakemake's own resource does not allow."""
    asked = submitted.asked
    assert gpus(asked["train_stage", "supervised"]) == ["--gpus=1"]
    assert gpus(asked["train_stage", "unsupervised"]) == ["--gpus-per-node=nvidia-a100-80gb:2"]
    assert gpus(asked["train_stage_on_nodes", "distillation"]) == ["--gpus-per-node=4"]
    assert gpus(asked["search_bm25", "mine"]) == []


def test_nodes_have_one_task_each(submitted):
    asked = submitted.asked
    words = asked["train_stage_on_nodes", "distillation"]
    assert {"--nodes=2", "--ntasks=2", "--cpus-per-task=16"} <= {*words}
    assert {"--nodes=1", "--ntasks=1"} <= {*asked["train_stage", "unsupervised"]}


def test_time_memory_and_threads_are_the_configs(submitted):
    asked = submitted.asked
    words = asked["train_stage", "unsupervised"]
    assert words[words.index("-t") + 1] == "90"
    assert words[words.index("--mem") + 1] == "3000"
    assert "--cpus-per-task=3" in asked["train_stage", "supervised"]


def test_jobs_are_requeued_and_get_no_signal(submitted):
    for words in submitted.asked.values():
        # A signal would kill the process that mounts the image: a training checks the time instead.
        assert not [word for word in words if word.startswith("--signal")]
        assert "--requeue" in words


def test_more_options_reach_sbatch(submitted):
    asked = submitted.asked
    assert "--exclusive" in asked["train_stage", "unsupervised"]
    assert "--nice=100" in asked["search_bm25", "mine"]


def test_a_training_waits_for_a_job_that_a_killed_run_left_training_the_same_model(submitted):
    asked = submitted.asked
    waits = {label: [word for word in words if "--dependency" in word] for (_, label), words in asked.items()}
    assert waits == {"unsupervised": [], "supervised": ["--dependency=afterany:77"], "distillation": [], "mine": []}


def test_jobs_know_run_and_commit_and_what_images_see(submitted):
    """An image has no git, and sees only the host folders that are bound: here, also the target of results/."""
    # With `--retries 0`, one submission for each job.
    assert len(submitted.environments) == 4
    assert len({environment[RUN_VARIABLE] for environment in submitted.environments}) == 1
    assert {environment[COMMIT_VARIABLE] for environment in submitted.environments} == {source_commit() or ""}
    for environment in submitted.environments:
        # The Snakemake inside of a job starts in the study's folder: it must not import modules from there.
        assert environment["PYTHONSAFEPATH"] == "1"
        visible = environment["APPTAINER_BIND"].split(",")
        assert str(ROOT / "workflow") in visible
        assert [path for path in visible if path.endswith("/large")]


def test_each_job_that_slurm_refuses_is_one_line(submitted):
    """The lines are read from the log that the installed Snakemake and its executor write."""
    said, models = submitted.said, submitted.models
    lines = [line for line in said.splitlines() if line.startswith("colbert-zero: ")]
    assert len(lines) == 4
    for name, spec in models.items():
        assert f"colbert-zero: {spec.name} (of {name}): SLURM did not take the job: No more jobs today" in lines


def test_a_training_waits_for_its_collections_and_gets_their_names(submitted):
    words = next(
        words for words in map(shlex.split, submitted.said.splitlines()) if "--evaluate" in words and "--spec" in words
    )
    asked = json.loads((submitted.folder / words[words.index("--evaluate") + 1]).read_text())
    (name,) = asked["collections"]
    assert asked == {
        "steps": [2],
        "collections": {name: {"drop_self": False, "query_length": 32, "document_length": 64}},
    }
    assert name.startswith("collections/folder.mine-")
    assert f"resources/{name}/spec.json" in submitted.said


def test_a_training_gets_the_whole_spec_and_its_flags(submitted):
    """Read from the command of the job's shell."""
    said, models = submitted.said, submitted.models
    commands = [shlex.split(line) for line in said.splitlines() if line.startswith("Shell command: ")]
    launches = [words for words in commands if "colbert_zero.machine.launch" in words]
    trainings = {(submitted.folder / words[words.index("--spec") + 1]).read_text(): words for words in launches}
    assert trainings.keys() == {spec.text for spec in models.values()}
    for stage, gpus_of_node in (("supervised", "1"), ("distillation", "4")):
        words = trainings[models[stage].text]
        assert words[words.index("--gpus") + 1] == gpus_of_node
        assert words[words.index("--device") + 1] == "cuda"
        assert ("--tensorboard" in words) == ("--evaluate" in words) == (stage == "supervised")
        assert ("--image=" in words) == (stage == "distillation")


# The rules


def rules():
    """Each rule's text, by name."""
    found = {}
    for file in RULES:
        _, *rest = re.split(r"^rule (\w+):\n", file.read_text(), flags=re.MULTILINE)
        found |= dict(zip(rest[::2], rest[1::2], strict=True))
    return found


def test_every_rule_that_computes_does_so_in_an_image():
    stepping = {name: text for name, text in rules().items() if "python -m colbert_zero." in text}
    assert stepping.keys() >= ON_THE_HOST
    contained = {name for name, text in stepping.items() if re.search(r"^    container:$", text, re.MULTILINE)}
    assert stepping.keys() - contained == ON_THE_HOST
    for name in contained:
        image, file = (re.findall(rf'{function}\("(\w+)"\)', stepping[name]) for function in ("image", "image_file"))
        assert image[-1:] == file
        assert set(file) <= set(IMAGE_NAMES)
    for name in ON_THE_HOST:
        assert re.search(r'^    conda:\n        "../../envs/host.yaml"$', stepping[name], re.MULTILINE)


@pytest.fixture(scope="module")
def evaluated_in(tmp_path_factory, programs, data):
    """A function of Snakemake's options: the words of each sbatch for a model's evaluation on three small collections
    and a large one, and the output."""
    folder = tmp_path_factory.mktemp("evaluated")
    asks = {"threads": 2, "mem_mb": 64_000, "runtime": 240, "gpu": 1}
    study = begin(
        folder / "study",
        data,
        collections={name: {"folder": "data/mine"} for name in ("one", "two", "three", "large")},
        resources={"default": {"runtime": 60}, "build_index": asks, "search_index": asks},
    )
    planned = Study(yaml.safe_load((study / "config.yaml").read_text()), study)
    (row,) = [row for row in planned.rows if row.stages]
    for spec in [row.stages[-1], *(spec for spec in planned.specs.values() if spec.kind == "collections")]:
        path = study / spec.folder
        path.mkdir(parents=True)
        (path / "spec.json").write_text(spec.text)
        documents = 9_000_000 if spec.label == "folder.large" else 4000
        (path / "manifest.json").write_text(json.dumps({"outputs": {}, "facts": {"documents": documents}}))
    site = folder / "site"
    program(site, "sbatch", SBATCH.format(asked=str(folder / "asked")))
    for name in ("squeue", "sinfo", "sacctmgr", "sacct", "scontrol"):
        program(site, name, "exit 0")
    targets = [str(spec.folder / "spec.json") for spec in row.measures.values()]

    def run(*options):
        (folder / "asked").unlink(missing_ok=True)
        flags = ["--sdm", "env-modules", "--retries", "0"]
        status, said = snakemake(study, f"{site}:{programs}", *flags, *options, "--", *targets)
        assert status == 1, said
        return [json.loads(line)[0] for line in (folder / "asked").read_text().splitlines()], said

    return run


@pytest.fixture(scope="module")
def evaluated(evaluated_in):
    return evaluated_in()


def test_a_models_small_collections_are_one_job_that_asks_for_what_one_of_them_needs(evaluated):
    commands, _ = evaluated
    jobs = {
        re.search(r"--target-jobs (.*?) --allowed-rules", words[-1])[1].count("label="): words for words in commands
    }
    assert jobs.keys() == {9, 1}, "index, run and measures of three collections; and the large one's index"
    for count, minutes, megabytes in ((9, 9 * 5, 16_000), (1, 240, 64_000)):
        words = jobs[count]
        assert words[words.index("-t") + 1] == str(minutes)
        assert words[words.index("--mem") + 1] == str(megabytes)
        assert {"--gpus=1", "--nodes=1", "--cpus-per-task=2"} <= {*words}


def test_steps_in_several_partitions_are_not_one_job(evaluated_in):
    """Snakemake refuses a job whose parts ask for several; measuring takes no GPU, so sites may have it elsewhere."""
    commands, said = evaluated_in(
        "--set-resources", "build_index:slurm_partition=gpus", "search_index:slurm_partition=gpus"
    )
    jobs = [re.search(r"--target-jobs (.*?) --allowed-rules", words[-1])[1].count("label=") for words in commands]
    assert sorted(jobs) == [1, 6], said


def test_what_a_job_of_several_could_not_make_has_its_line(evaluated):
    """What rests on it was not tried, and has none."""
    _, said = evaluated
    lines = sorted(re.findall(r"^colbert-zero: (\w+/\w+)-\w+ \(of all\): (.*)$", said, re.MULTILINE))
    expected = [f"indexes/{name}" for name in ("large", "one", "three", "two")]
    assert lines == [(name, "SLURM did not take the job: No more jobs today") for name in expected]
