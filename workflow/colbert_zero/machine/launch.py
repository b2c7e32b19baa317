"""Start a stage's training: one process, or one per GPU, on one node or on several of a SLURM job.

    python -m colbert_zero.machine.launch --gpus 4 --threads 8 [--nodes 2 [--image FILE]] -- --spec JSON ...

What follows `--` is handed to `colbert_zero.training.train`. One process is started as such, several by torchrun; on several
nodes srun starts one torchrun on each, in the image if one is given: srun is not inside of it. Outside a SLURM job
there is one node. How many processes train decides how fast a model is there; which one, but for rounding, it does not.
"""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence

PORTS = range(20000, 30000)
"""One of these is a job's, by its number: jobs on one node must not meet."""
# The number of a node is known on it alone.
ON_A_NODE = 'exec "$0" -m torch.distributed.run --node-rank="$SLURM_NODEID" "$@"'


def command(
    gpus: int,
    threads: int,
    nodes: int,
    apptainer: Sequence[str],
    arguments: Sequence[str],
    environment: Mapping[str, str],
) -> list[str]:
    """The command that trains.

    Args:
        gpus: How many GPUs each node gives, and so processes; 0 for one process without.
        threads: How many threads each node gives.
        nodes: How many nodes.
        apptainer: Apptainer's options and the image to train in; nothing: where this runs.
        arguments: For `colbert_zero.training.train`.
        environment: Where SLURM says which job this is.

    Returns:
        Program and arguments.
    """
    processes = max(1, gpus)
    # An image has a Python of its own.
    inside = ["apptainer", "exec", "--home", os.getcwd(), *apptainer, "python"] if apptainer else [sys.executable]
    training = ["-m", "colbert_zero.training.train", "--threads", str(threads), *arguments]
    job = environment.get("SLURM_JOB_ID")
    if nodes > 1 and job is not None:
        spread = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={threads}"]
        spread += [
            "--cpu-bind=none",
            "--mpi=none",
            "--kill-on-bad-exit=1",
            *([f"--gpus-per-node={gpus}"] if gpus else []),
        ]
        master = [f"--master-addr={socket.gethostname()}", f"--master-port={PORTS[int(job) % len(PORTS)]}"]
        *place, python = inside
        crew = [f"--nnodes={nodes}", f"--nproc-per-node={processes}", *master]
        return ["srun", *spread, *place, "bash", "-c", ON_A_NODE, python, *crew, *training]
    if processes > 1:
        return [*inside, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *training]
    return [*inside, *training]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; becomes the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of a node, a process on each; 0: one without (0)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a node (1)")
    parser.add_argument("--nodes", type=int, default=1, help="how many nodes train together (1)")
    parser.add_argument("--image", help="the Apptainer image to train in, on several nodes")
    parser.add_argument("--apptainer-args", type=shlex.split, default=[], help="more options for Apptainer")
    parser.add_argument("arguments", nargs="+", help="for colbert_zero.training.train, after --")
    given = parser.parse_args(argv)
    apptainer = [*given.apptainer_args, given.image] if given.image else []
    found = command(given.gpus, given.threads, given.nodes, apptainer, given.arguments, os.environ)
    os.execvp(found[0], found)  # noqa: S606


if __name__ == "__main__":
    main()
