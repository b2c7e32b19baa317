# What the rule files look up; the study decides it all.
from pathlib import Path
from shlex import quote

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))

from colbert_zero.console import UserError
from colbert_zero.locks import hold
from colbert_zero.study import Study

try:
    study = Study(config, Path("."))
    if workflow.is_main_process and not workflow.dryrun:
        # In place of Snakemake's own lock, which outlives a killed Snakemake.
        study_lock = hold(
            Path(".snakemake/colbert_zero.lock"), f"a run of study {study.name}"
        )
except UserError as error:
    sys.exit(f"colbert-zero: {error}")

# Steps find the package, and stay off the network unless a fetching one says otherwise.
shell.prefix(
    f"export PATH={quote(str(Path(sys.executable).parent))}:$PATH "
    f"PYTHONPATH={quote(str(Path(workflow.basedir) / 'workflow'))} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false; "
)


wildcard_constraints:
    origin="hub|file|folder",
    label="[^/]+",
    key="[0-9a-f]{12}",


def made_from(wildcards):
    """The specs of an artifact's inputs; ancient, since names and not dates say what is up to date."""
    return [
        ancient(spec.folder / "spec.json")
        for spec in study.inputs_of(study.spec_of(wildcards.key))
    ]


def spec_of(wildcards):
    """The artifact's spec, for `--spec`."""
    return study.spec_of(wildcards.key).text


def path_of(wildcards):
    """The local file or folder that an artifact is fetched from; empty for others."""
    return str(study.paths.get(wildcards.key, ""))


def rows_of(wildcards):
    """The names of the table's rows that an artifact serves, for messages."""
    return ", ".join(sorted(study.used_by.get(wildcards.key, ())))


def asked(rule, resource):
    """What the config asks for a step: threads, mem_mb, runtime (minutes) or gpu."""
    given = study.config["resources"]
    defaults = {"threads": 1, "mem_mb": 2000, "runtime": 60, "gpu": 0}
    return (defaults | given.get("default", {}) | given.get(rule, {}))[resource]


def asked_by_stage(resource):
    """As `asked`, for the stage that a training job trains."""
    return lambda wildcards: asked(wildcards.label, resource)


def image(name):
    """The Apptainer image of a step: the config's, by path or digest-pinned address, or one put in resources/images."""
    return study.config["images"].get(name, f"resources/images/{name}.sif")
