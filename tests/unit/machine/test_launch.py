"""Starting a training: what Snakemake hands over arrives word for word, on every process of every node."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.machine import launch as launching
from colbert_zero.machine.launch import PORTS, command
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
    """Programs that start what they are told to, and a Python that says what it was told."""
    folder = tmp_path / "the programs"
    for name, script in (("srun", SRUN), ("apptainer", APPTAINER), ("python", PYTHON)):
        program(folder, name, script)
    monkeypatch.setenv("PATH", f"{folder}:{laptop(tmp_path / 'laptop')}")
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    return folder


def started(words):
    """What each Python was told, in the order of nodes."""
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("environment", [{}, JOB])
def test_one_process_is_started_as_such(gpus, environment):
    found = command(gpus, 8, 1, [], ARGUMENTS, environment)
    assert found == [sys.executable, "-m", "colbert_zero.training.train", "--threads", "8", *ARGUMENTS]


@pytest.mark.parametrize(("nodes", "environment"), [(1, {}), (1, JOB), (2, {})])
def test_several_processes_are_torchruns(nodes, environment):
    """Outside of a SLURM job there is one node, whatever was asked for."""
    found = command(4, 8, nodes, [], ARGUMENTS, environment)
    assert found[:5] == [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    assert found[5:] == ["-m", "colbert_zero.training.train", "--threads", "8", *ARGUMENTS]


@pytest.mark.parametrize("image", [None, "/images of/torch-aaaaaaaaaaaa.sif"])
def test_each_node_starts_the_same_and_knows_its_number(node, monkeypatch, image):
    monkeypatch.setenv("EXPECTED_IMAGE", str(image))
    monkeypatch.setattr(sys, "executable", str(node / "python"))
    found = started(command(4, 8, 3, [image] if image else [], ARGUMENTS, JOB))
    assert [one["rank"] for one in found] == ["0", "1", "2"]
    for rank, one in enumerate(found):
        torchrun, training = one["words"][:7], one["words"][7:]
        assert torchrun[:2] == ["-m", "torch.distributed.run"]
        assert set(torchrun[2:]) == {
            f"--node-rank={rank}",
            "--nnodes=3",
            "--nproc-per-node=4",
            f"--master-addr={socket.gethostname()}",
            f"--master-port={PORTS[4711]}",
        }
        assert training == ["-m", "colbert_zero.training.train", "--threads", "8", *ARGUMENTS]


@pytest.mark.parametrize("gpus", [0, 2])
def test_srun_asks_for_the_whole_job(gpus):
    options = [word for word in command(gpus, 8, 2, [], [], JOB)[1:] if word.startswith("--")]
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=8", "--kill-on-bad-exit=1"} <= {*options}
    assert [word for word in options if word.startswith("--gpus")] == (["--gpus-per-node=2"] if gpus else [])
    assert f"--nproc-per-node={max(1, gpus)}" in options


@given(st.integers(1, 2**32 - 1), st.integers(1, len(PORTS) - 1))
def test_jobs_on_one_node_do_not_meet(job, distance):
    def port(number):
        words = command(1, 1, 2, [], [], JOB | {"SLURM_JOB_ID": str(number)})
        (found,) = [word.partition("=")[2] for word in words if word.startswith("--master-port=")]
        return int(found)

    assert port(job) in PORTS
    assert port(job) != port(job + distance)


def test_the_command_line_becomes_the_training(node):
    """As Snakemake's shell starts it; what follows `--` is not the launcher's, though it looks alike."""
    arguments = [*ARGUMENTS, "--threads-of-mine", "--gpus", "9"]
    launcher = [sys.executable, "-m", "colbert_zero.machine.launch", "--gpus", "1", "--threads", "3", "--nodes", "2"]
    environment = {"PYTHONPATH": str(WORKFLOW), "PATH": os.environ["PATH"], "EXPECTED_IMAGE": "torch.sif"}
    words = [*launcher, "--image=torch.sif", "--", *arguments]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["words"] == ["-m", "colbert_zero.training.train", "--threads", "3", *arguments]


def test_an_image_that_was_not_named_is_none(monkeypatch):
    """The rule always has the flag, empty where there are no images."""
    become = []
    monkeypatch.setattr(os, "execvp", lambda program, words: become.append((program, words)))
    launching.main(["--nodes", "2", "--image=", "--", *ARGUMENTS])
    words = [sys.executable, "-m", "colbert_zero.training.train", "--threads", "1", *ARGUMENTS]
    assert become == [(sys.executable, words)]
