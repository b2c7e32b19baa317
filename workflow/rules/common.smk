# Helper functions for the rules, which look up what the study plans.
import json
import os
import shutil
from pathlib import Path
from shlex import quote
from uuid import uuid4

from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))

from colbert_zero.machine import slurm
from colbert_zero.graph.artifact import artifact_folder, is_let_go
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.arguments import delete_used_arguments, write_arguments
from colbert_zero.graph.let_go import let_go_finished
from colbert_zero.graph.digests import canonical_json, digest
from colbert_zero.graph.console import RetryableError, UserError, exit_on_error
from colbert_zero.machine.failures import explain_failures
from colbert_zero.machine.memory import available_memory_mb, steps_beyond_memory
from colbert_zero.machine.images import (
    APPTAINER_TO_RUN,
    IMAGE_NAMES,
    check_apptainer,
    check_paths,
    image_environment,
    planned_images,
)
from colbert_zero.graph.local_files import refuse_links
from colbert_zero.graph.locks import acquire_lock
from colbert_zero.graph.code import COMMIT_VARIABLE, source_commit
from colbert_zero.graph.provenance import RUN_VARIABLE
from colbert_zero.graph.rules import rule_of
from colbert_zero.graph.evaluation_jobs import EvaluationJobs
from colbert_zero.graph.shared_documents import SharedDocuments
from colbert_zero.graph.study import Study
from colbert_zero.graph.text_files import check_writable

unreachable = []


def resolve_commit(*name):
    """The commit that a name of the Hub stands for; None if the Hub cannot be reached, which a dry-run need not."""
    from colbert_zero.data import hub  # here, since most plans look none up

    if not unreachable:
        try:
            return hub.resolve_commit(*name)
        except RetryableError as error:
            unreachable.append(error)
    return None


with exit_on_error():
    # There is no `configfile:`, since Snakemake runs expressions that it finds in one (YTE). `config` has what --config
    # gives, in the Snakemake of each job too.
    if (
        workflow.config_settings.configfiles
        or workflow.config_settings.replace_workflow_config
    ):
        raise UserError(
            "a study has one config, its folder's config.yaml: leave out --configfile and --replace-workflow-config, "
            "and name the folder with --directory"
        )
    study = Study(
        read_config(Path(CONFIG_FILE), config),
        Path("."),
        # A job plans what was planned before it.
        resolve=resolve_commit if workflow.is_main_process else None,
    )
    for error in unreachable:
        print(
            f"colbert-zero: {error}; until then, what rests on names without a commit has other keys than it will have",
            file=sys.stderr,
        )
    IMAGES = planned_images(study.config["images"], Path("."))
    images_requested = (
        DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method
    )
    if images_requested:
        check_paths(Path("."), IMAGES.values())
    os.environ.update(
        image_environment(
            Path("."), os.environ, study.resource("search_index", "scratch")
        )
    )
    if workflow.is_main_process:
        # Snakemake writes there, a dry run too.
        check_writable(Path(".snakemake"))

# No Python that is started from here on, such as a job's Snakemake, imports modules from the study's folder.
os.environ.update(PYTHONSAFEPATH="1")
use_images = images_requested and shutil.which("apptainer") is not None
if workflow.is_main_process:
    os.environ[RUN_VARIABLE] = uuid4().hex
    os.environ[COMMIT_VARIABLE] = source_commit() or ""
    if images_requested and not use_images:
        # A dry run needs no Apptainer. A real run does: onstart, below, stops it if there is none.
        workflow.deployment_settings.deployment_method -= {DeploymentMethod.APPTAINER}
elif slurm.DEADLINE_VARIABLE not in os.environ:
    os.environ[slurm.DEADLINE_VARIABLE] = slurm.job_deadline()

# Every step gets the package on its path, not the study's folder, and is offline, unless it is a fetch. Outside of an
# image, use this Python; an image has its own. The shell survives SIGTERM, on which a training acts.
shell.prefix(
    "trap : TERM; ulimit -c 0; "
    f"[ -d /.singularity.d ] || export PATH={quote(str(Path(sys.executable).parent))}:$PATH; "
    f"export PYTHONPATH={quote(str(Path(workflow.basedir) / 'workflow'))} PYTHONSAFEPATH=1 HF_HUB_OFFLINE=1; "
    "export TOKENIZERS_PARALLELISM=false; "
)

resource = study.resource
evaluation_jobs = EvaluationJobs(study)
shared_documents = SharedDocuments(study)
submits_jobs = workflow.is_main_process and workflow.resource_settings.nodes is not None
# On this machine, no more jobs run at once than its memory holds, unless the user says `--resources mem_mb=...`. A job
# that asks for more than there is gets what there is, and so runs alone.
MEMORY_MB = None
if (
    workflow.is_main_process
    and not submits_jobs
    and not {"mem", "mem_mb", "mem_mib"} & set(workflow.global_resources)
):
    MEMORY_MB = available_memory_mb()
    workflow.register_resource("mem_mb", MEMORY_MB)
# A job that has several evaluations to do does one after the other, and asks for what one of them needs.
workflow.resource_scopes.update({"evaluations": "local"})
if submits_jobs or not workflow.is_main_process:
    workflow.register_resource("evaluations", 1)
# Each attempt at a training resumes from the last checkpoint, and one at work in pieces from those that are there, so
# they may run into their time limit this often. The Snakemake inside of a job retries nothing: that job's time may be up.
RESUMING_RETRIES = 10 if workflow.is_main_process else 0
held_locks = []


onstart:
    if workflow.is_main_process:
        with exit_on_error():
            for error in unreachable:
                raise error
            # Replaces Snakemake's own lock, which a killed Snakemake leaves behind.
            held_locks.append(
                acquire_lock(
                    Path(".snakemake/colbert_zero.lock"),
                    f"a run of study {study.name}",
                )
            )
            if images_requested:
                check_apptainer(APPTAINER_TO_RUN)
                for image in IMAGES.values():
                    image.check()
                if "://" in IMAGES["torch"].address and multi_node_models():
                    raise UserError(
                        "training on several nodes needs the image torch as a file: apptainer pull it, and name the file"
                    )
            if workflow.non_local_exec:
                slurm.check_partitions_and_accounts(
                    [job.resources for job in workflow.dag.needrun_jobs()]
                )
                slurm.patch_executor()
            if not workflow.execution_settings.retries:
                # With `--retries 0`, as with the local profile, do not retry what resumes either.
                for step in workflow.rules:
                    step.restart_times = None
            for folder in ("benchmarks", "logs", "resources", "results"):
                check_writable(Path(folder))
            for folder in ("benchmarks", "logs"):
                refuse_links(Path(folder))
            jobs = list(workflow.dag.needrun_jobs())
            keys = [
                job.wildcards.key for job in jobs if "key" in job.wildcards.keys()
            ]
            write_arguments(study, keys)
            if freed := let_go_finished(study, keys):
                print(
                    f"colbert-zero: indexes of runs that are there were let go: {freed / 1e9:.3f} GB",
                    file=sys.stderr,
                )
            steps = {getattr(job.wildcards, "label", None) for job in jobs}
            steps |= {job.rule.name for job in jobs}
            for line in steps_beyond_memory(
                study.config["resources"], steps, MEMORY_MB
            ):
                print(f"colbert-zero: {line}", file=sys.stderr)


onsuccess:
    delete_used_arguments()


onerror:
    delete_used_arguments()
    log_text = "".join(Path(file).read_text(errors="replace") for file in log)
    for line in explain_failures(log_text, study):
        print(f"colbert-zero: {line}", file=sys.stderr)


wildcard_constraints:
    origin="hub|file|folder",
    label="[^/]+",
    key="[0-9a-f]{12}",
    image="|".join(IMAGE_NAMES),


def input_specs(wildcards):
    """The `spec.json` of each input of an artifact; ancient, since names decide what is up to date, not dates."""
    # In a job, which the profile's setting does not reach either, what fails keeps nothing else from being done. There
    # are no settings before there are inputs.
    if not workflow.is_main_process:
        workflow.execution_settings.keep_going = True
    return [
        ancient(spec.folder / "spec.json")
        for spec in study.inputs_of(study.spec_of(wildcards.key))
    ]


def files_again(wildcards):
    """What must be made again before an artifact is made: the files of those of its inputs that were let go."""
    spec = study.spec_of(wildcards.key)
    if (spec.folder / "manifest.json").is_file():
        return []
    return [
        index.again_file for index in study.inputs_of(spec) if is_let_go(index.folder)
    ]


def own_spec(wildcards):
    """The `spec.json` of the artifact whose other files are made again."""
    return ancient(study.spec_of(wildcards.key).folder / "spec.json")


def let_go_command(wildcards):
    """What follows a search: letting go of the index's files, unless the config keeps indexes."""
    if study.config["evaluation"]["keep_indexes"]:
        return ""
    return (
        f"&& python -m colbert_zero.graph.let_go --spec {quote(spec_file(wildcards))}"
    )


def shares_of(spec, parts):
    """The shares of the last of some parts of a step's work, a file for each job; none if one job does all, or all is
    done."""
    jobs = resource(rule_of(spec).step, "jobs")
    if jobs == 1 or not parts or (spec.folder / "spec.json").is_file():
        return []
    return [
        f"{spec.state}.{parts[-1]}-{share}-of-{jobs}" for share in range(1, jobs + 1)
    ]


def shares(wildcards):
    """What must be done before an artifact is published: all shares of the last part of its work."""
    spec = study.spec_of(wildcards.key)
    return shares_of(spec, rule_of(spec).parts)


def shares_before(wildcards):
    """What must be done before a share of a part: all shares of the part before it."""
    spec = study.spec_of(wildcards.key)
    parts = rule_of(spec).parts
    return shares_of(spec, parts[: parts.index(wildcards.part)])


def for_step(look_up, *arguments):
    """A function of the wildcards that calls `look_up` with the name of the step that makes the artifact."""
    return lambda wildcards: look_up(
        rule_of(study.spec_of(wildcards.key)).step, *arguments
    )


def beside(wildcards):
    """The flag that names the indexes which encode the same documents as an index; none if there are none."""
    names = shared_documents.beside(study.spec_of(wildcards.key))
    return ["--beside", *names] if names else []


def scratch():
    """The folder where a search merges what PLAID writes; empty for `TMPDIR`."""
    return resource("search_index", "scratch") or ""


def step_command(wildcards):
    """The module and the flags of a job that another rule than the artifact's own starts for a step."""
    made_by = rule_of(study.spec_of(wildcards.key))
    flags = ["--device", device(made_by.step)] if made_by.may_use_gpu else []
    if wildcards.kind == "indexes":
        flags += beside(wildcards)
    if made_by.step == "search_index":
        flags.append(f"--scratch={scratch()}")
    return [f"colbert_zero.{made_by.module}", *flags]


def sized(step, name):
    """A function of the wildcards: what a step of the evaluation asks for, by the size of the collection."""
    return lambda wildcards, attempt: evaluation_jobs.resource(
        study.spec_of(wildcards.key), step, name, attempt
    )


def evaluation_group(step):
    """A function of the wildcards: the job that a step of the evaluation is part of; None if it has one of its own, or
    no jobs are submitted.

    Steps that ask SLURM for different things, such as partitions, are not one job.
    """
    overwritten = workflow.resource_settings._parsed_overwrite_resources.get(step, {})
    asked = [
        slurm_extra(step),
        *sorted(f"{name}={value.raw}" for name, value in overwritten.items()),
    ]

    def group(wildcards):
        if workflow.local_exec:
            return None
        if not workflow.is_main_process:
            # In the job, which the profile's setting does not reach.
            workflow.group_settings.group_components = {"evaluation": sys.maxsize}
        name = evaluation_jobs.group(study.spec_of(wildcards.key))
        if name is None:
            return None
        name = f"{name}-{digest(canonical_json(asked))[:4]}"
        # By this name, slurm/profile.yaml says how many collections one job takes.
        workflow.parent_groupids[name] = "evaluation"
        return name

    return group


def heap_mb(wildcards, resources):
    """Java's heap: half of a job's memory. The rest is Python's and, for the pages of an index, the system's."""
    return resources.mem_mb // 2


def spec_file(wildcards):
    """The file with an artifact's spec, for `--spec`."""
    return str(study.spec_of(wildcards.key).argument_file("spec"))


def local_path(wildcards):
    """The local file or folder that an artifact is fetched from; empty if it is not fetched from one."""
    return str(study.paths.get(wildcards.key, ""))


def row_names(wildcards):
    """The names of the table's rows that an artifact is needed for, for messages."""
    return study.rows_using(wildcards.key)


def gpus_per_node_flag(step):
    """sbatch's flag for GPUs that Snakemake's executor cannot request: a model with a hyphen, or on several nodes."""
    model, count = resource(step, "gpu_model"), resource(step, "gpu")
    if not count or not (model or resource(step, "nodes") > 1):
        return None
    return f"--gpus-per-node={f'{model}:' if model else ''}{count}"


def gpu(step):
    """The number of GPUs that Snakemake's executor requests for a step; 0 if `slurm_extra` requests them."""
    return 0 if gpus_per_node_flag(step) else resource(step, "gpu")


def slurm_extra(step, *flags):
    """Further flags of sbatch for a step; quoted, for a list of nodes such as `node[1-4]` is a glob to a shell."""
    own = map(quote, (resource(step, "slurm_extra") or "").split())
    return " ".join(filter(None, [gpus_per_node_flag(step), *flags, *own]))


def training_slurm_extra(wildcards):
    """`slurm_extra` of a training, which starts after any job that a killed Snakemake left training that model."""
    others = slurm.leftover_jobs(wildcards.key) if workflow.is_main_process else []
    after = f"--dependency=afterany:{':'.join(others)}" if others else None
    return slurm_extra(wildcards.label, after)


def device(step):
    """Where a step computes: on its `device` in the config, else on a GPU if it has any."""
    return resource(step, "device") or ("cuda" if resource(step, "gpu") else "auto")


def multi_node_models():
    """The specs of the models that are trained on several nodes."""
    models = [spec for spec in study.specs.values() if spec.kind == "models"]
    return [spec for spec in models if resource(spec.label, "nodes") > 1]


def evaluation_inputs(wildcards):
    """The collections that a model is evaluated on during its training, as inputs; none if the model is finished."""
    if (study.spec_of(wildcards.key).folder / "spec.json").is_file():
        return []
    planned = study.evaluations.get(wildcards.key, {}).get("collections", {})
    return [ancient(artifact_folder(name) / "spec.json") for name in planned]


def training_flags(wildcards, resources):
    """Flags that say how to train a stage; they decide no result."""
    step = wildcards.label
    flags = {
        "device": device(step),
        "memory-mb": resources.mem_mb,
        "checkpoint-seconds": resource(step, "checkpoint_seconds"),
        "attention": resource(step, "attention"),
        "maxsim": resource(step, "maxsim"),
        "loader-workers": resource(step, "loader_workers"),
        "evaluate": (
            study.spec_of(wildcards.key).argument_file("evaluate")
            if wildcards.key in study.evaluations
            else None
        ),
    }
    words = [
        word
        for name, value in flags.items()
        if value is not None
        for word in (f"--{name}", str(value))
    ]
    return words + ["--tensorboard"] * bool(resource(step, "tensorboard"))


def for_stage(look_up, *arguments):
    """A function of the wildcards that calls `look_up` with the stage's name, which is the label."""
    return lambda wildcards: look_up(wildcards.label, *arguments)


def image(name):
    """The Apptainer image of a step; a placeholder if images are not used."""
    return IMAGES[name].address if use_images else f"{name}.sif"


def image_file(name, again=False):
    """The image as an input, for a step whose image must be built first; none if the step's artifact is finished, and
    not made `again`."""
    image = IMAGES[name]

    def needed(wildcards):
        made = study.spec_of(wildcards.key).folder / "spec.json"
        return (
            [ancient(image.file)]
            if use_images and image.is_built_here and (again or not made.is_file())
            else []
        )

    return needed


def build_flags(wildcards):
    """The config's settings for building an image, as flags."""
    build = IMAGES[wildcards.image].build_options
    return [f"--{name}={value}" for name, value in build.items() if value is not None]
