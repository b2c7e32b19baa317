# What the rule files look up; the study decides it all.
import json
import os
import shutil
from pathlib import Path
from shlex import quote
from uuid import uuid4

from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))

from colbert_zero.machine import slurm
from colbert_zero.graph.artifact import locate
from colbert_zero.graph.console import UserError
from colbert_zero.machine.failures import explain
from colbert_zero.machine.images import NAMES, RUNS, check_apptainer, environment, images
from colbert_zero.graph.locks import acquire_lock
from colbert_zero.graph.provenance import COMMIT, RUN, commit
from colbert_zero.graph.study import Study

try:
    study = Study(config, Path("."))
    IMAGES = images(study.config["images"], Path("."))
    os.environ.update(environment(Path("."), os.environ))
except UserError as error:
    sys.exit(f"colbert-zero: {error}")

asked_images = (
    DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method
)
in_images = asked_images and shutil.which("apptainer") is not None
if workflow.is_main_process:
    os.environ[RUN] = uuid4().hex
    os.environ[COMMIT] = commit() or ""
    if asked_images and not in_images:
        # A plan needs no Apptainer; a run does, and says so when it starts.
        workflow.deployment_settings.deployment_method -= {DeploymentMethod.APPTAINER}
elif slurm.DEADLINE not in os.environ:
    os.environ[slurm.DEADLINE] = slurm.deadline()

# Steps find the package, and stay off the network unless a fetching one says otherwise. An image has its own Python.
# The shell outlives the signal that a training acts on.
shell.prefix(
    "trap : TERM; ulimit -c 0; "
    f"[ -d /.singularity.d ] || export PATH={quote(str(Path(sys.executable).parent))}:$PATH; "
    f"export PYTHONPATH={quote(str(Path(workflow.basedir) / 'workflow'))} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false; "
)

asked = study.resource
# Each attempt at a training goes on from the last checkpoint: so many time limits may it meet. The Snakemake inside of a
# job tries nothing again: that job's time may be up.
RETRIES_OF_TRAINING = 10 if workflow.is_main_process else 0
LOCKS = []


onstart:
    if workflow.is_main_process:
        try:
            # In place of Snakemake's own lock, which outlives a killed Snakemake.
            LOCKS.append(
                acquire_lock(
                    Path(".snakemake/colbert_zero.lock"),
                    f"a run of study {study.name}",
                )
            )
            if asked_images:
                check_apptainer(RUNS)
                for image in IMAGES.values():
                    image.check()
                if "://" in IMAGES["torch"].address and on_several_nodes():
                    raise UserError(
                        "several nodes need the image torch as a file: apptainer pull it, and name the file"
                    )
            if workflow.non_local_exec:
                slurm.check([job.resources for job in workflow.dag.needrun_jobs()])
                slurm.patch_executor()
            if not workflow.execution_settings.retries:
                # With `--retries 0`, and so on one's own machine, a training is not tried again either.
                for step in workflow.rules:
                    step.restart_times = None
        except UserError as error:
            sys.exit(f"colbert-zero: {error}")


onerror:
    said = "".join(Path(file).read_text(errors="replace") for file in log)
    for line in explain(said, study):
        print(f"colbert-zero: {line}", file=sys.stderr)


wildcard_constraints:
    origin="hub|file|folder",
    label="[^/]+",
    key="[0-9a-f]{12}",
    image="|".join(NAMES),


def made_from(wildcards):
    """The specs of an artifact's inputs; ancient, since names and not dates say what is up to date."""
    return [
        ancient(spec.folder / "spec.json")
        for spec in study.inputs_of(study.spec_of(wildcards.key))
    ]


def shares(wildcards, of):
    """What several jobs do of a source's shards; nothing where one is asked for, or all is made."""
    jobs, spec = asked("build_shards", "jobs"), study.spec_of(wildcards.key)
    if jobs == 1 or (spec.folder / "spec.json").is_file():
        return []
    return [f"{spec.state}.{of}-{share}-of-{jobs}" for share in range(1, jobs + 1)]


def shares_of_files(wildcards):
    """What is to be done before a share of the shards: all shares of the files."""
    return shares(wildcards, "files") if wildcards.of == "shards" else []


def shares_of_shards(wildcards):
    """What is to be done before the shards are published."""
    return shares(wildcards, "shards")


def spec_of(wildcards):
    """The artifact's spec, for `--spec`."""
    return study.spec_of(wildcards.key).text


def path_of(wildcards):
    """The local file or folder that an artifact is fetched from; empty for others."""
    return str(study.paths.get(wildcards.key, ""))


def rows_of(wildcards):
    """The names of the table's rows that an artifact serves, for messages."""
    return ", ".join(sorted(study.used_by.get(wildcards.key, ())))


def named_gpus(step):
    """GPUs that Snakemake's executor has no words for: of a model with a hyphen, or evenly on several nodes."""
    model, count = asked(step, "gpu_model"), asked(step, "gpu")
    if not count or not (model or asked(step, "nodes") > 1):
        return None
    return f"--gpus-per-node={model + ':' if model else ''}{count}"


def gpu(step):
    """The GPUs that a step's job asks for as such; 0 where `slurm_extra` asks for them."""
    return 0 if named_gpus(step) else asked(step, "gpu")


def slurm_extra(step, *more):
    """What sbatch is asked for besides."""
    return " ".join(filter(None, [named_gpus(step), *more, asked(step, "slurm_extra")]))


def slurm_extra_of_training(wildcards):
    """As `slurm_extra`, and after a job that a killed Snakemake left at it."""
    others = slurm.running_jobs(wildcards.key) if workflow.is_main_process else []
    after = f"--dependency=afterany:{':'.join(others)}" if others else None
    return slurm_extra(wildcards.label, after)


def device(step):
    """Where a step computes: where it was told to, else on the GPU that it asks for."""
    return asked(step, "device") or ("cuda" if asked(step, "gpu") else "auto")


def on_several_nodes():
    """The models that are trained on several nodes."""
    models = [spec for spec in study.specs.values() if spec.kind == "models"]
    return [spec for spec in models if asked(spec.label, "nodes") > 1]


def evaluations(wildcards):
    """What a training is evaluated on on its way, as its inputs; what is made already needs none."""
    if (study.spec_of(wildcards.key).folder / "spec.json").is_file():
        return []
    planned = study.evaluations.get(wildcards.key, {}).get("collections", {})
    return [ancient(locate(name) / "spec.json") for name in planned]


def flags_of_training(wildcards):
    """How a training is done, which decides no result."""
    step = wildcards.label
    flags = {
        "device": device(step),
        "checkpoint-seconds": asked(step, "checkpoint_seconds"),
        "attention": asked(step, "attention"),
        "maxsim": asked(step, "maxsim"),
        "loader-workers": asked(step, "loader_workers"),
        "evaluate": (
            json.dumps(study.evaluations[wildcards.key])
            if wildcards.key in study.evaluations
            else None
        ),
    }
    given = [
        word
        for name, value in flags.items()
        if value is not None
        for word in (f"--{name}", value)
    ]
    return given + ["--tensorboard"] * bool(asked(step, "tensorboard"))


def of_stage(look_up, *arguments):
    """`look_up` for the stage that a training job trains."""
    return lambda wildcards: look_up(wildcards.label, *arguments)


def image(name):
    """The Apptainer image of a step; no more than a name where there is no Apptainer."""
    return IMAGES[name].address if in_images else f"{name}.sif"


def image_file(name):
    """The image, as the input of a step whose image is to be built first; what is there already needs none."""
    image = IMAGES[name]

    def needed(wildcards):
        made = study.spec_of(wildcards.key).folder / "spec.json"
        return (
            [ancient(image.file)]
            if in_images and image.is_ours and not made.is_file()
            else []
        )

    return needed


def build_of_image(wildcards):
    """How an image is built, as flags."""
    build = IMAGES[wildcards.image].build
    return [f"--{name}={value}" for name, value in build.items() if value is not None]
