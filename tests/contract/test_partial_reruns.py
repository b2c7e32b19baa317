"""The contract of partial reruns: each row changes a config; a real dry run of Snakemake shows what would run."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from colbert_zero.graph.study import Study

ROOT = Path(__file__).parents[2]
EMBEDDED = yaml.safe_load((ROOT / "local" / "config.yaml").read_text())
PROMPTED = {"colbert-zero", "colbert-zero-mismatched"}
"""The recipes whose unsupervised stage has the prompts of stages.unsupervised."""


def complete(study, folder):
    """Write every artifact's `spec.json`: to Snakemake, the study is complete."""
    for spec in study.specs.values():
        path = folder / spec.folder / "spec.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(spec.text)


def planned(folder):
    """Names of the artifacts that `snakemake --profile local` would make."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--profile", "local", "--directory", str(folder), "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "random"},
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    if "Nothing to be done" in output:
        return set()
    names = set(re.findall(r"Missing output files: (?:results|resources)/(\S+)/spec\.json", output))
    jobs = int(re.findall(r"^total +(\d+)$", output, re.MULTILINE)[-1])
    # Every job but `all` runs because its artifact is missing; none runs for another reason.
    assert jobs == len(names) + 1, output
    return names


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study in which everything has been made."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "config.yaml").write_text(yaml.safe_dump(EMBEDDED))
    complete(Study(EMBEDDED, folder), folder)
    return folder


@pytest.fixture
def study(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "study")


def of_kinds(study, *kinds):
    return {spec.name for spec in study.specs.values() if spec.kind in kinds}


def evaluation(study, rows, collections=None):
    """Names of the indexes, runs and measures of some rows, and of the audit and the report."""
    names = {study.audit.name, study.report.name}
    for row in study.rows:
        if row.name in rows:
            for collection, measure in row.measures.items():
                if collections is None or collection in collections:
                    (run,) = [spec for spec in study.inputs_of(measure) if spec.kind == "runs"]
                    names |= {measure.name, run.name}
                    names |= {spec.name for spec in study.inputs_of(run) if spec.kind == "indexes"}
    return names


def stages(study, rows, names):
    return {spec.name for row in study.rows if row.name in rows for spec in row.stages if spec.label in names}


RECIPES = set(EMBEDDED["recipes"])
ROWS = RECIPES | set(EMBEDDED["baselines"])
LATER = ("supervised", "distillation")
SUPERVISED = RECIPES - {"distillation-only"}


def allow_mismatches(config):
    for recipe in config["recipes"].values():
        recipe["mismatch"] = "allowed"


def prompt_from_supervised_on(config):
    allow_mismatches(config)
    config["prompts"]["other"] = {"query": "search_query:", "document": "search_document: "}
    other = {"prompts": "other"}
    config["recipes"]["colbert-zero"]["stages"] = ["unsupervised", {"supervised": other}, {"distillation": other}]


def prompt_of_unsupervised(config):
    allow_mismatches(config)
    config["prompts"]["other"] = {"query": "query: ", "document": "passage: "}
    config["stages"]["unsupervised"]["prompts"] = "other"


def length_of_one_distillation(config):
    config["recipes"]["distillation-only"]["stages"] = [{"distillation": {"document_length": 63}}]


def the_filter(config):
    config["mining"]["fused"]["p"] = 0.9


def the_teacher(config):
    config["teachers"]["bm25"]["bm25"] = {"k1": 1.2, "b": 0.75}


def a_collection(config):
    config["collections"]["tqdm"] = {"package": "tqdm"}


def swap(config):
    allow_mismatches(config)
    stage = config["stages"]["supervised"]
    stage["query_length"], stage["document_length"] = stage["document_length"], stage["query_length"]


def reorder(config):
    for section in ("prompts", "sources", "miners", "stages", "recipes", "baselines", "collections"):
        config[section] = dict(reversed(config[section].items()))
    for stage, settings in config["stages"].items():
        config["stages"][stage] = dict(reversed(settings.items()))


CONTRACT = {
    "a prompt of one recipe from the supervised stage on": (
        prompt_from_supervised_on,
        lambda s: stages(s, {"colbert-zero"}, LATER) | evaluation(s, {"colbert-zero"}),
    ),
    "a prompt of the unsupervised stage": (
        prompt_of_unsupervised,
        lambda s: stages(s, PROMPTED, ("unsupervised", *LATER)) | evaluation(s, PROMPTED),
    ),
    "document length of one distillation": (
        length_of_one_distillation,
        lambda s: stages(s, {"distillation-only"}, LATER) | evaluation(s, {"distillation-only"}),
    ),
    "the filter's p": (
        the_filter,
        lambda s: (
            of_kinds(s, "negatives")
            | {name for name in of_kinds(s, "batches") if name.startswith("batches/supervised-")}
            | stages(s, SUPERVISED, LATER)
            | evaluation(s, SUPERVISED)
        ),
    ),
    "the teacher": (
        the_teacher,
        lambda s: (
            of_kinds(s, "scores")
            | {name for name in of_kinds(s, "batches") if name.startswith("batches/distillation-")}
            | stages(s, RECIPES, ("distillation",))
            | evaluation(s, RECIPES)
        ),
    ),
    "one collection added": (
        a_collection,
        lambda s: (
            {name for name in of_kinds(s, "collections") if ".tqdm-" in name}
            # Its texts are looked for too.
            | of_kinds(s, "contamination")
            | evaluation(s, ROWS, {"tqdm"})
        ),
    ),
    "two settings swap values": (
        swap,
        lambda s: stages(s, SUPERVISED, LATER) | evaluation(s, SUPERVISED),
    ),
    "config keys reordered": (reorder, lambda s: set()),
}


@pytest.mark.parametrize("change", CONTRACT)
def test_exactly_these_run_again(study, change):
    apply, expected = CONTRACT[change]
    config = copy.deepcopy(EMBEDDED)
    apply(config)
    (study / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert planned(study) == expected(Study(config, study))


def test_change_taken_back_runs_nothing(study):
    config = copy.deepcopy(EMBEDDED)
    prompt_of_unsupervised(config)
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    assert planned(study)
    complete(Study(config, study), study)
    (study / "config.yaml").write_text(yaml.safe_dump(EMBEDDED))
    assert planned(study) == set()


def test_comments_and_touched_files_run_nothing(study):
    text = "# a comment\n" + yaml.safe_dump(EMBEDDED) + "# another\n"
    (study / "config.yaml").write_text(text)
    for path in (study / "resources").rglob("spec.json"):
        path.touch()
    assert planned(study) == set()


def test_deleted_snakemake_folder_runs_nothing(study):
    shutil.rmtree(study / ".snakemake", ignore_errors=True)
    assert planned(study) == set()


def test_deleted_intermediate_is_made_again_only_if_something_needs_it(study):
    """Shards may be deleted to free space: what was made of them stays up to date."""
    shutil.rmtree(study / "results" / "shards")
    assert planned(study) == set()
