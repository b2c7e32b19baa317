"""Start the training of a stage: one process, or one per GPU, on one node or on several nodes of a SLURM job.

    python -m colbert_zero.machine.launch --gpus 4 --threads 8 [--nodes 2 [--image FILE]] -- --spec JSON ...

The arguments after `--` go to `colbert_zero.training.train`. A single process is started directly, several by torchrun.
On several nodes srun starts one torchrun on each, inside the image if `--image` names one; srun itself is not in the
image, so this runs outside. Outside a SLURM job there is one node. The number of processes decides how fast a model is
trained, and changes the model by no more than rounding.
"""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence

MASTER_PORTS = range(20000, 30000)
"""The job's number picks one of these: two jobs on one node must not use the same port."""
# Only the node itself knows its number.
TORCHRUN_ON_NODE = 'exec "$0" -m torch.distributed.run --node-rank="$SLURM_NODEID" "$@"'


def training_command(
    gpus: int,
    threads: int,
    nodes: int,
    apptainer: Sequence[str],
    arguments: Sequence[str],
    environment: Mapping[str, str],
) -> list[str]:
    """The command that trains.

    Args:
        gpus: GPUs per node, with a process on each; 0 for one process without a GPU.
        threads: Threads per node.
        nodes: The number of nodes.
        apptainer: Apptainer's options and the image to train in; empty to train without a new container.
        arguments: Arguments of `colbert_zero.training.train`.
        environment: Environment variables; SLURM's say which job this is.

    Returns:
        Program and arguments.
    """
    processes = max(1, gpus)
    # An image has its own Python.
    python = ["apptainer", "exec", "--home", os.getcwd(), *apptainer, "python"] if apptainer else [sys.executable]
    train = ["-m", "colbert_zero.training.train", "--threads", str(threads), *arguments]
    job = environment.get("SLURM_JOB_ID")
    if nodes > 1 and job is not None:
        srun_options = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={threads}"]
        srun_options += [
            "--cpu-bind=none",
            "--mpi=none",
            "--kill-on-bad-exit=1",
            *([f"--gpus-per-node={gpus}"] if gpus else []),
        ]
        master_port = MASTER_PORTS[int(job) % len(MASTER_PORTS)]
        master = [f"--master-addr={socket.gethostname()}", f"--master-port={master_port}"]
        *container, python_program = python
        torchrun_options = [f"--nnodes={nodes}", f"--nproc-per-node={processes}", *master]
        on_node = ["bash", "-c", TORCHRUN_ON_NODE, python_program, *torchrun_options, *train]
        return ["srun", *srun_options, *container, *on_node]
    if processes > 1:
        return [*python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *train]
    return [*python, *train]


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, and replace this process by the training command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=0, help="GPUs per node, a process on each; 0: one without (0)")
    parser.add_argument("--threads", type=int, default=1, help="threads per node (1)")
    parser.add_argument("--nodes", type=int, default=1, help="how many nodes train together (1)")
    parser.add_argument("--image", help="the Apptainer image to train in, on several nodes")
    parser.add_argument("--apptainer-args", type=shlex.split, default=[], help="more options for Apptainer")
    parser.add_argument("arguments", nargs="+", help="for colbert_zero.training.train, after --")
    options = parser.parse_args(argv)
    apptainer = [*options.apptainer_args, options.image] if options.image else []
    command = training_command(options.gpus, options.threads, options.nodes, apptainer, options.arguments, os.environ)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
