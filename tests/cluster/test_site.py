"""A site's GPU models, constraints and reservations reach SLURM; each missing thing is an error of one line."""

import subprocess
import time

from colbert_zero.machine.images import planned_images
from slurm_cluster import SCRIPT, short_study, slurm, wait_for

GPU_MODEL = "pretend-gpu-80gb"


def error_lines(output):
    """The lines of the output that are error messages of this package."""
    return [line for line in output.splitlines() if line.startswith("colbert-zero: ")]


def test_gpu_model_constraint_qos_and_reservation_reach_slurm(training):
    name = f"test-{int(time.time())}"
    slurm("scontrol", "create", "reservation", f"ReservationName={name}", "Users=root", "Nodes=n2",
          "StartTime=now", "Duration=10", "Flags=IGNORE_JOBS")  # fmt: skip
    try:
        training.write(short_study(gpu=2, gpu_model=GPU_MODEL, device="cpu", mem_mb=4000, slurm_extra="--nice=1"))
        options = [
            "--slurm-qos",
            "high",
            "--slurm-reservation",
            name,
            "--set-resources",
            "train_stage:constraint=nvlink",
        ]
        process = training.start(*options, "--", training.target)
        (job,) = wait_for(training.jobs, 120, f"the job\n{training.read_output()}")
        shown = slurm("scontrol", "show", "job", job)
        record = training.state / "attempts.jsonl"
        wait_for(lambda: record.is_file() and '"gpus":"0,1"' in record.read_text(), 120, "a step that sees two GPUs")
        process.terminate()
        slurm("scancel", job)
        process.wait(timeout=120)
    finally:
        wait_for(lambda: not training.jobs("running,completing"), 60, "the job to end")
        slurm("scontrol", "delete", f"ReservationName={name}")
    for text in (
        f"Reservation={name}",
        "QOS=high",
        "Features=nvlink",
        f"gres:gpu:{GPU_MODEL}:2",
        "NumNodes=1",
        "Nice=1",
    ):
        assert text in shown, shown


def test_unknown_partition_and_account_are_errors_of_one_line(training):
    for resource, description in (
        ("slurm_partition", "a partition here"),
        ("slurm_account", "an account of yours here"),
    ):
        options = ["--default-resources", "nodes=1", f"{resource}=nowhere"]
        status, output = training.run(*options, "--", training.target, seconds=120)
        assert status == 1
        (line,) = error_lines(output)
        assert f"{resource} in slurm/profile.yaml: nowhere is not {description}; there are" in line
        assert "Traceback" not in output
        assert "has been submitted" not in output


def test_image_of_other_contents_is_refused(training):
    config = short_study()
    lucene = planned_images({"torch": None, "lucene": None, **config["images"]}, training.folder)["lucene"]
    training.write(config | {"images": config["images"] | {"torch": str(lucene.file)}})
    status, output = training.run(training.target, seconds=120)
    assert status == 1
    (line,) = error_lines(output)
    assert "images.torch" in line
    assert "was built from other contents" in line


def test_killed_for_memory_says_what_to_raise(training):
    training.write(short_study(mem_mb=250))
    status, output = training.run("--retries", "0", "--", training.target)
    assert status == 1
    (line,) = error_lines(output)
    assert "(of all): killed for memory: train_stage had 250 MB; raise resources.unsupervised.mem_mb" in line


def test_the_error_for_an_invisible_gpu_says_what_slurm_gave(training):
    training.write(short_study(gpu=2, mem_mb=4000))
    status, output = training.run("--retries", "0", "--", training.target)
    assert status == 1
    # The line is also in the job's log, which Snakemake prints before.
    *_, line = error_lines(output)
    assert "SLURM gave job" in line
    assert "0,1" in line


def test_no_job_reaches_the_network(prepared):
    """Compute nodes of this cluster have no route to the network: no job of any test used it, in an image or not."""
    config = short_study()
    image = planned_images({"torch": None, "lucene": None, **config["images"]}, prepared.folder)["lucene"].address
    script = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=3)"
    command = ["srun", "apptainer", "exec", image, "python", "-c", script]
    assert "Network is unreachable" in subprocess.run(command, capture_output=True, text=True).stderr
    assert "default" not in slurm("srun", "ip", "route")


def test_an_ordinary_user_runs_the_images(prepared):
    config = short_study()
    for name, module in (("torch", "pylate"), ("lucene", "jnius_config")):
        image = planned_images({"torch": None, "lucene": None, **config["images"]}, prepared.folder)[name]
        environment = subprocess.run([SCRIPT, "env"], capture_output=True, text=True, check=True).stdout
        command = f"{environment}\ncd /tmp && srun apptainer exec {image.file} python -c 'import {module}'"
        done = subprocess.run(["runuser", "-u", "reader", "--", "bash", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
