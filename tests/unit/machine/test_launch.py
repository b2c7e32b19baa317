"""Starting a training: each process of each node gets Snakemake's arguments unchanged."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.machine.launch import MASTER_PORTS, main, training_command
from programs import laptop, program

WORKFLOW = Path(__file__).parents[3] / "workflow"
SPEC = '{"query_prompt":"it\'s a \\"query\\": $HOME `date` * ","document":"\u00e4 \\n "} '
ARGUMENTS = ["--spec", SPEC, "--device", "cuda", "--checkpoint-seconds", "600"]
JOB = {"SLURM_JOB_ID": "4711", "SLURMD_NODENAME": "n1"}

WRITE = "json.dump({'words': words, 'rank': os.environ.get('SLURM_NODEID')}, sys.stdout); print(flush=True)"
PYTHON = f"#!python\nimport json, os, sys\nwords = sys.argv[1:]\n{WRITE}"
SRUN = """#!python
import os, subprocess, sys
words = sys.argv[1:]
first = next(place for place, word in enumerate(words) if not word.startswith("--"))
options = dict(word.partition("=")[::2] for word in words[:first])
assert "SLURM_NODEID" not in os.environ
for node in range(int(options["--nodes"])):
    subprocess.run(words[first:], env=os.environ | {"SLURM_NODEID": str(node)}, check=True)
"""
APPTAINER = """#!python
import os, sys
action, flag, home, image, *command = sys.argv[1:]
assert (action, flag, home) == ("exec", "--home", os.getcwd()), sys.argv
assert image == os.environ["EXPECTED_IMAGE"], image
os.execvp(command[0], command)
"""


@pytest.fixture
def node(tmp_path, monkeypatch):
    """Stand-ins for srun and Apptainer that start their command, and a Python that prints its arguments."""
    folder = tmp_path / "the programs"
    for name, script in (("srun", SRUN), ("apptainer", APPTAINER), ("python", PYTHON)):
        program(folder, name, script)
    monkeypatch.setenv("PATH", f"{folder}:{laptop(tmp_path / 'laptop')}")
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    return folder


def arguments_by_node(command):
    """Run the command; the arguments that Python gets on each node, in the order of nodes."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("environment", [{}, JOB])
def test_one_process_is_started_directly(gpus, environment):
    command = training_command(gpus, 8, 1, [], ARGUMENTS, environment)
    assert command == [sys.executable, "-m", "colbert_zero.training.train", "--threads", "8", *ARGUMENTS]


@pytest.mark.parametrize(("nodes", "environment"), [(1, {}), (1, JOB), (2, {})])
def test_several_processes_are_started_by_torchrun(nodes, environment):
    """Outside of a SLURM job there is one node, whatever `nodes` says."""
    command = training_command(4, 8, nodes, [], ARGUMENTS, environment)
    assert command[:5] == [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    assert command[5:] == ["-m", "colbert_zero.training.train", "--threads", "8", *ARGUMENTS]


@pytest.mark.parametrize("image", [None, "/images of/torch-aaaaaaaaaaaa.sif"])
def test_every_node_starts_the_same_command_with_its_own_rank(node, monkeypatch, image):
    monkeypatch.setenv("EXPECTED_IMAGE", str(image))
    monkeypatch.setattr(sys, "executable", str(node / "python"))
    nodes = arguments_by_node(training_command(4, 8, 3, [image] if image else [], ARGUMENTS, JOB))
    assert [on_node["rank"] for on_node in nodes] == ["0", "1", "2"]
    for rank, on_node in enumerate(nodes):
        torchrun, training = on_node["words"][:7], on_node["words"][7:]
        assert torchrun[:2] == ["-m", "torch.distributed.run"]
        assert set(torchrun[2:]) == {
            f"--node-rank={rank}",
            "--nnodes=3",
            "--nproc-per-node=4",
            f"--master-addr={socket.gethostname()}",
            f"--master-port={MASTER_PORTS[4711]}",
        }
        assert training == ["-m", "colbert_zero.training.train", "--threads", "8", *ARGUMENTS]


@pytest.mark.parametrize("gpus", [0, 2])
def test_srun_asks_for_the_whole_job(gpus):
    options = [word for word in training_command(gpus, 8, 2, [], [], JOB)[1:] if word.startswith("--")]
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=8", "--kill-on-bad-exit=1"} <= {*options}
    assert [word for word in options if word.startswith("--gpus")] == (["--gpus-per-node=2"] if gpus else [])
    assert f"--nproc-per-node={max(1, gpus)}" in options


@given(st.integers(1, 2**32 - 1), st.integers(1, len(MASTER_PORTS) - 1))
def test_jobs_on_one_node_use_different_ports(job, distance):
    def master_port(job_number):
        words = training_command(1, 1, 2, [], [], JOB | {"SLURM_JOB_ID": str(job_number)})
        (port,) = [word.partition("=")[2] for word in words if word.startswith("--master-port=")]
        return int(port)

    assert master_port(job) in MASTER_PORTS
    assert master_port(job) != master_port(job + distance)


def test_the_launcher_passes_on_all_arguments_after_the_dashes(node):
    """Started as Snakemake's shell does; the launcher reads no flag after `--`, even one that it knows."""
    arguments = [*ARGUMENTS, "--threads-of-mine", "--gpus", "9"]
    launcher = [sys.executable, "-m", "colbert_zero.machine.launch", "--gpus", "1", "--threads", "3", "--nodes", "2"]
    environment = {"PYTHONPATH": str(WORKFLOW), "PATH": os.environ["PATH"], "EXPECTED_IMAGE": "torch.sif"}
    words = [*launcher, "--image=torch.sif", "--", *arguments]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["words"] == ["-m", "colbert_zero.training.train", "--threads", "3", *arguments]


def test_an_empty_image_flag_means_no_image(monkeypatch):
    """The rule always sets the flag; it is empty where no images are used."""
    executed = []
    monkeypatch.setattr(os, "execvp", lambda program, words: executed.append((program, words)))
    main(["--nodes", "2", "--image=", "--", *ARGUMENTS])
    words = [sys.executable, "-m", "colbert_zero.training.train", "--threads", "1", *ARGUMENTS]
    assert executed == [(sys.executable, words)]
