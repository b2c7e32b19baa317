"""What a site asks and gives: GPUs by name, constraints, reservations; and a line for each thing that is not there."""

import subprocess
import time

from colbert_zero.machine.images import images as planned_images
from slurm_cluster import SCRIPT, short_study, slurm, wait_for

MODEL = "pretend-gpu-80gb"


def last_lines(said):
    """What the run said at its end, to a person."""
    return [line for line in said.splitlines() if line.startswith("colbert-zero: ")]


def test_gpu_model_constraint_qos_and_reservation_reach_slurm(training):
    name = f"test-{int(time.time())}"
    slurm("scontrol", "create", "reservation", f"ReservationName={name}", "Users=root", "Nodes=n2",
          "StartTime=now", "Duration=10", "Flags=IGNORE_JOBS")  # fmt: skip
    try:
        training.write(short_study(gpu=2, gpu_model=MODEL, device="cpu", mem_mb=4000, slurm_extra="--nice=1"))
        wishes = [
            "--slurm-qos",
            "high",
            "--slurm-reservation",
            name,
            "--set-resources",
            "train_stage:constraint=nvlink",
        ]
        process = training.start(*wishes, "--", training.target)
        (job,) = wait_for(training.jobs, 120, f"the job\n{training.said()}")
        shown = slurm("scontrol", "show", "job", job)
        record = training.state / "attempts.jsonl"
        wait_for(lambda: record.is_file() and '"gpus":"0,1"' in record.read_text(), 120, "a step that sees two GPUs")
        process.terminate()
        slurm("scancel", job)
        process.wait(timeout=120)
    finally:
        wait_for(lambda: not training.jobs("running,completing"), 60, "the job to end")
        slurm("scontrol", "delete", f"ReservationName={name}")
    for words in (f"Reservation={name}", "QOS=high", "Features=nvlink", f"gres:gpu:{MODEL}:2", "NumNodes=1", "Nice=1"):
        assert words in shown, shown


def test_unknown_partition_and_account_are_one_line(training):
    for resource, word in (("slurm_partition", "a partition here"), ("slurm_account", "an account of yours here")):
        wishes = ["--default-resources", "nodes=1", f"{resource}=nowhere"]
        status, said = training.run(*wishes, "--", training.target, seconds=120)
        assert status == 1
        (line,) = last_lines(said)
        assert f"{resource} in slurm/profile.yaml: nowhere is not {word}; there are" in line
        assert "Traceback" not in said
        assert "has been submitted" not in said


def test_image_of_other_contents_is_refused(training):
    config = short_study()
    lucene = planned_images({"torch": None, "lucene": None, **config["images"]}, training.folder)["lucene"]
    training.write(config | {"images": config["images"] | {"torch": str(lucene.file)}})
    status, said = training.run(training.target, seconds=120)
    assert status == 1
    (line,) = last_lines(said)
    assert "images.torch" in line
    assert "was built from other contents" in line


def test_killed_for_memory_says_what_to_raise(training):
    training.write(short_study(mem_mb=250))
    status, said = training.run("--retries", "0", "--", training.target)
    assert status == 1
    (line,) = last_lines(said)
    assert "(of all): killed for memory: train_stage had 250 MB; raise resources.unsupervised.mem_mb" in line


def test_gpu_asked_for_and_none_visible_says_what_slurm_gave(training):
    training.write(short_study(gpu=2, mem_mb=4000))
    status, said = training.run("--retries", "0", "--", training.target)
    assert status == 1
    # The job's log, which has it too, is shown before.
    *_, line = last_lines(said)
    assert "SLURM gave job" in line
    assert "0,1" in line


def test_no_job_reaches_the_network(prepared):
    """Compute nodes here have no way out: whatever a test's jobs did, in an image, they did without one."""
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
