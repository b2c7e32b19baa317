"""Train one stage of a recipe: unsupervised, supervised or distillation.

    python -m colbert_zero.training.train --spec JSON [--threads N] [--device auto|cpu|cuda] [--tokens-per-chunk N]
        [--tokens-in-memory N] [--loader-workers N] [--attention NAME] [--checkpoint-seconds N] [--tensorboard]
        [--evaluate JSON]
    torchrun --nproc-per-node N -m colbert_zero.training.train ...

All stages are one loop. A batch is a range of rows: its texts, and a loss on their embeddings. `gradcache.GradCache`
turns them into a gradient; AdamW with linear decay, as the reference's trainer has it, makes a step of it.

Nothing is drawn from a running random state: what is drawn is decided by the seed, the step and what it is for. So
parameters, optimiser and history are all that a checkpoint needs, and a run that was stopped ends with the bytes of one
that was not, on a CPU with the same number of threads.

Several processes share the rows of each step, and make the same step of the sum of their gradients: the model is that
of one process up to rounding (and up to dropout, see `gradcache`). A checkpoint can be gone on from with any number of
them. `--threads` is what all processes of a node have together.

The model is published with `losses.jsonl`, a line per step; while it is trained, that file grows in the state folder.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import torch

from colbert_zero.data.batches import Plan
from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import RetryableError, UserError, log
from colbert_zero.machine.devices import add_device_option, choose_device, threads
from colbert_zero.machine.distributed import SINGLE_PROCESS, PeerLostError, ProcessGroup, init_process_group
from colbert_zero.machine.slurm import time_is_up
from colbert_zero.models.colbert import load_colbert, save_colbert
from colbert_zero.training.checkpoints import Checkpoint, Checkpoints
from colbert_zero.training.fused import check_fused, fused_maxsim
from colbert_zero.training.gradcache import GradCache, MemoryBudget
from colbert_zero.training.loader import BatchLoader
from colbert_zero.training.losses import Scorer, maxsim
from colbert_zero.training.metrics_log import LOSSES
from colbert_zero.training.monitor import TrainingMonitor
from colbert_zero.training.stages import Stage
from colbert_zero.training.trainer import DivergedError, Trainer

CHECKPOINT_SECONDS = 600.0
TOKENS_PER_CHUNK = {"cpu": 2048, "cuda": 16384}
"""Padded tokens at once: what stays in a CPU's cache, what fills a GPU."""
TOKENS_IN_MEMORY = 65536
"""Padded tokens whose activations are kept: about 1 GB for 2 layers of 128, 70 GB for ModernBERT-base in bf16."""
LOADER_WORKERS = {"cpu": 0, "cuda": 2}
"""Threads that prepare coming steps: a CPU that computes has none to spare."""
SCORERS: dict[str, Scorer] = {"torch": maxsim, "fused": fused_maxsim}
"""By what queries are scored with the documents of all of a step."""


@contextmanager
def stop_signals(lasting: bool = False) -> Iterator[Callable[[int], bool]]:
    """Note SIGTERM, SIGINT and SIGUSR1 instead of dying of them; afterwards as well, where that is `lasting`.

    Yields:
        Whether one has come.
    """
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield lambda _step: bool(seen)
    finally:
        if not lasting:
            for number, handler in before.items():
                signal.signal(number, handler)


def make(job: Job, group: ProcessGroup = SINGLE_PROCESS) -> Mapping[str, Any]:
    """Train the stage."""
    # What waits for the first process's word starts here.
    if group.rank == 0:
        group.broadcast(job)
    # torchrun hands a signal on to processes that may have had it already, and are about to say how they ended.
    with stop_signals(lasting=group.size > 1) as stopped:
        return train(job, stopped, group)


def train(job: Job, stopped: Callable[[int], bool], group: ProcessGroup = SINGLE_PROCESS) -> Mapping[str, Any]:
    """Train the stage from its last checkpoint, if there is one, to the end.

    Args:
        job: What to train; the model is written into its folder.
        stopped: Asked after each step, given the number of steps done, whether to stop there; one process's yes stops
            all.
        group: The processes that do this together; the first one writes.

    Returns:
        Counts, times and what a table shows.

    Raises:
        UserError: The data lack what the stage needs, or the loss is not finite.
        RetryableError: The run was stopped, or another process of the group ended.
    """
    device = group.run_on_all(lambda: _device(job, group))
    group.compute_on(device)
    trainer = group.run_on_all(lambda: _trainer(job, device, group))
    checkpoints = Checkpoints(job.state / "checkpoints")

    def save() -> None:
        if group.rank == 0:
            checkpoints.save(trainer.checkpoint())
            job.note(end_step=trainer.step)

    found = _last(checkpoints, group)
    if found is not None:
        trainer.restore(found)
        log.info("going on from the checkpoint of step %d of %d", found.step, len(trainer.plan))
    # There is then always a good one to keep. And what saving takes is in memory: a signal that ends the job also ends
    # the process that mounts an Apptainer image, from which nothing can be read afterwards.
    group.run_on_all(save)
    if group.rank == 0:
        job.note(start_step=trainer.step)
    saved, kept = time.monotonic(), trainer.step
    with ExitStack() as closed:
        closed.enter_context(closing(trainer.loader))
        watch = group.run_on_all(lambda: closed.enter_context(closing(TrainingMonitor(job, trainer, device))))
        trainer.model.train()
        while trainer.step < len(trainer.plan):
            try:
                line = trainer.train_step()
            except DivergedError as error:
                raise UserError(f"{error}; the checkpoint of step {kept} is kept in {checkpoints.folder}") from None
            trainer.counts.joules += group.all_reduce_sum(watch.joules())[0]
            group.run_on_all(partial(watch.look, line))
            stop, due = group.any_rank(
                stopped(trainer.step) or time_is_up(), time.monotonic() - saved >= job.options.checkpoint_seconds
            )
            if stop or due:
                group.run_on_all(save)
                saved, kept = time.monotonic(), trainer.step
            if stop:
                raise RetryableError(
                    f"stopped at step {trainer.step} of {len(trainer.plan)}; the same command goes on from there"
                )
    trainer.model.eval()
    if group.rank == 0:
        job.note(end_step=trainer.step)
        save_colbert(trainer.model, job.folder, trainer.stage.encoding)
        (job.folder / LOSSES).write_text("".join(line + "\n" for line in trainer.history), encoding="utf-8")
    return _facts(job, trainer, device)


def _last(checkpoints: Checkpoints, group: ProcessGroup) -> Checkpoint | None:
    """The last checkpoint that the first process finds intact, as each reads it in the folder they share."""
    found = group.run_on_all(lambda: checkpoints.last() if group.rank == 0 else None)
    step = group.all_gather_object(None if found is None else found.step)[0]
    return None if step is None else group.run_on_all(lambda: found or checkpoints.of(step))


def _trainer(job: Job, device: str, group: ProcessGroup = SINGLE_PROCESS) -> Trainer:
    stage, plan, options = Stage(**job.settings), Plan(job), job.options
    if plan.size < group.size:
        raise UserError(
            f"{job.spec.name}: its batches of {plan.size} rows are too small for {group.size} processes; start fewer"
        )
    start = job.input("start")
    model = load_colbert(
        start.model_folder(),
        stage.encoding,
        device,
        dimensions=stage.dimensions,
        seed=stage.seed,
        # A stage may encode otherwise than the one before it did; that is what a mismatched recipe is about.
        strict=False,
        attention=options.attention,
    )
    if options.maxsim == "fused":
        check_fused(stage.stage, device, stage.precision, model.get_sentence_embedding_dimension() or stage.dimensions)
    budget = MemoryBudget(options.tokens_per_chunk or TOKENS_PER_CHUNK[device], options.tokens_in_memory)
    engine = GradCache(model, budget, stage.precision, stage.seed, group)
    workers = LOADER_WORKERS[device] if options.loader_workers is None else options.loader_workers
    loader = BatchLoader(plan, stage, model, group, workers)
    return Trainer(stage, plan, model, engine, loader, group, SCORERS[options.maxsim])


def _device(job: Job, group: ProcessGroup) -> str:
    """Choose the device, and have it compute the same way every time."""
    # Read once, when the tokenizer and the GPU library start.
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads(job)))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = choose_device(job)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device == "cpu":
        each = f" in each of {group.size} processes" if group.size > 1 else ""
        log.info("on the CPU: byte for byte the same model again with %d threads%s", threads(job), each)
    else:
        each = f" in each of {group.size} processes" if group.size > 1 else ""
        log.info("on the GPU%s: another run gives the same model up to rounding", each)
    return device


def _facts(job: Job, trainer: Trainer, device: str) -> dict[str, Any]:
    stage, counts, plan = trainer.stage, trainer.counts, trainer.plan
    samples = len(plan) * plan.size
    facts = {
        "stage": stage.stage,
        "steps": len(plan),
        "batch_size": plan.size,
        "epochs": plan.epochs,
        "samples": samples,
        "query_tokens": counts.query_tokens,
        "document_tokens": counts.document_tokens,
        "seconds": round(counts.seconds, 3),
        "samples_per_second": round(samples / counts.seconds, 3),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": job.threads,
        "processes": trainer.group.size,
        "nodes": trainer.group.nodes,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "tokens_per_chunk": trainer.engine.budget.tokens_per_chunk,
        "tokens_in_memory": trainer.engine.budget.tokens_in_memory,
        "maxsim": job.options.maxsim,
        "final_loss": json.loads(trainer.history[-1])["loss"],
        "evaluations": trainer.evaluations,
    }
    if device == "cuda":
        facts["gpu_peak_memory_mb"] = torch.cuda.max_memory_allocated() // 2**20
        facts["gpu_watt_hours"] = counts.joules / 3600
    if trainer.temperature is not None:
        facts["temperature"] = trainer.temperature.item()
    return facts


def add_options(parser: argparse.ArgumentParser) -> None:
    """Flags that decide how fast the model is there, not which."""
    add_device_option(parser)
    parser.add_argument(
        "--tokens-per-chunk",
        type=int,
        help=f"padded tokens that are encoded at once ({TOKENS_PER_CHUNK['cpu']} on a CPU, {TOKENS_PER_CHUNK['cuda']} on a GPU)",
    )
    parser.add_argument(
        "--tokens-in-memory",
        type=int,
        default=TOKENS_IN_MEMORY,
        help=f"padded tokens up to which a step takes one forward pass; above, two, in less memory ({TOKENS_IN_MEMORY})",
    )
    parser.add_argument(
        "--loader-workers",
        type=int,
        help=f"threads that prepare coming steps ({LOADER_WORKERS['cpu']} on a CPU, {LOADER_WORKERS['cuda']} on a GPU)",
    )
    parser.add_argument(
        "--attention",
        choices=("sdpa", "eager", "flash_attention_2"),
        help="its implementation, by default what transformers takes for the model",
    )
    parser.add_argument(
        "--maxsim",
        choices=tuple(SCORERS),
        default="torch",
        help="by what queries are scored with all documents of a step: fused, on a GPU in bf16, writes no similarity "
        "down (torch)",
    )
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard files to logs/tensorboard, too")
    parser.add_argument(
        "--evaluate",
        type=json.loads,
        default={},
        help='{"steps": [100, ...], "collections": {NAME: DROP_SELF, ...}}: after which steps to evaluate on what, and '
        "whether a document that is the query is dropped",
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=CHECKPOINT_SECONDS,
        help=f"seconds between checkpoints ({CHECKPOINT_SECONDS:.0f})",
    )


def _run_other_rank(group: ProcessGroup) -> int:
    """What the processes behind the first one do: train along with it, end as it does, and leave the talking to it."""
    # Ends by Ctrl-C as by SIGTERM: at once, and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        while (job := group.receive_broadcast()) is not None:
            make(job, group)
        return 0
    except PeerLostError:
        pass
    except UserError:
        # The first process has it too. Whoever ended before it has said so might have torchrun end it meanwhile.
        with suppress(PeerLostError):
            group.receive_broadcast()
    return 1


def main() -> int:
    """Train and publish, in one process or several; return the exit status."""
    group = init_process_group()
    status = (
        run_step(partial(make, group=group), __doc__, add_options=add_options)
        if group.rank == 0
        else _run_other_rank(group)
    )
    group.close(done=status == 0)
    return status


if __name__ == "__main__":
    sys.exit(main())
