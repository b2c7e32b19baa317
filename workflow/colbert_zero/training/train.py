"""Train one stage of a recipe: unsupervised, supervised or distillation.

    python -m colbert_zero.training.train --spec JSON [--threads N] [--device auto|cpu|cuda] [--memory-mb N]
        [--tokens-per-chunk N] [--tokens-in-memory N] [--loader-workers N] [--attention NAME] [--maxsim NAME]
        [--checkpoint-seconds N] [--tensorboard] [--evaluate JSON]
    torchrun --nproc-per-node N -m colbert_zero.training.train ...

All stages share one training loop. A stage turns the rows of a step into texts and a loss on their embeddings;
`gradcache.GradCache` computes the gradient, and AdamW with linear decay, as in the reference's trainer, updates the
parameters.

No random generator runs through the training: the seed, the step and the purpose decide every draw. A checkpoint thus
needs only parameters, optimiser and history, and a stopped and resumed run ends with the same bytes as an uninterrupted
one, on a CPU with the same number of threads and the same memory.

Several processes share the rows of each step and sum their gradients: the model equals that of one process up to
rounding (and up to dropout, see `gradcache`). Any number of processes can resume a checkpoint. `--threads` and
`--memory-mb` are what all processes of a node have together.

The model is published with `losses.jsonl`, a line per step; during training this file grows in the state folder.
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
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

import torch
from pylate import models

from colbert_zero.data.batches import BatchPlan
from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import RetryableError, UserError, log
from colbert_zero.graph.text_files import json_argument
from colbert_zero.machine.devices import add_device_option, choose_device, threads_per_process
from colbert_zero.machine.distributed import (
    SINGLE_PROCESS,
    PeerLostError,
    ProcessGroup,
    init_process_group,
    local_size,
)
from colbert_zero.machine.memory import available_memory_mb
from colbert_zero.machine.slurm import deadline_is_near
from colbert_zero.models.colbert import drawn_parts, load_colbert, save_colbert
from colbert_zero.models.loading import model_name
from colbert_zero.training.budget import TOKENS_IN_MEMORY, TOKENS_PER_CHUNK, cpu_budget, free_gpu_bytes, gpu_budget
from colbert_zero.training.checkpoints import Checkpoint, Checkpoints
from colbert_zero.training.fused import check_fused, fused_maxsim
from colbert_zero.training.gradcache import GradCache, MemoryBudget
from colbert_zero.training.loader import BatchLoader
from colbert_zero.training.losses import Scorer, maxsim
from colbert_zero.training.metrics_log import LOSSES_FILE, losses_digest, losses_text
from colbert_zero.training.monitor import TrainingMonitor
from colbert_zero.training.stages import Stage
from colbert_zero.training.trainer import DivergedError, Trainer

CHECKPOINT_SECONDS = 600.0
LOADER_WORKERS = {"cpu": 0, "cuda": 2}
"""Threads that prepare the next steps; none on a CPU, whose threads all compute."""
SCORERS: dict[str, Scorer] = {"torch": maxsim, "fused": fused_maxsim}
"""Functions that score each query with the documents of all queries of a step, by the value of --maxsim."""


@contextmanager
def catch_stop_signals(keep_handlers: bool) -> Iterator[Callable[[int], bool]]:
    """Record SIGTERM, SIGINT and SIGUSR1 instead of ending the process; with `keep_handlers` also afterwards.

    Yields:
        A function that returns whether one of these signals has arrived.
    """
    received: list[int] = []

    def record(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    previous_handlers = {number: signal.signal(number, record) for number in signals}
    try:
        yield lambda _step: bool(received)
    finally:
        if not keep_handlers:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)


def make(job: Job, group: ProcessGroup = SINGLE_PROCESS) -> Mapping[str, Any]:
    """Train the stage."""
    # Start the ranks that wait for rank 0's broadcast.
    if group.rank == 0:
        group.broadcast(job)
    # torchrun forwards a signal to processes that may have received it before. A second signal must not end a process
    # that is about to report how its training ended.
    with catch_stop_signals(keep_handlers=group.size > 1) as should_stop:
        return train(job, should_stop, group)


def train(job: Job, should_stop: Callable[[int], bool], group: ProcessGroup = SINGLE_PROCESS) -> Mapping[str, Any]:
    """Train the stage to the end, from its last checkpoint if there is one.

    Args:
        job: The job of the stage; the model is written into its folder.
        should_stop: Called after each step with the number of steps done; if it returns True in one process, all
            processes stop.
        group: The processes that train together; rank 0 writes the files.

    Returns:
        The facts of the manifest: tokens, times, and values that the report's tables show.

    Raises:
        UserError: The rows lack something that the stage needs, or the training diverged.
        RetryableError: The run was stopped, or another process of the group ended.
    """
    device = group.run_on_all(lambda: _deterministic_device(job, group))
    group.set_device(device)
    trainer = group.run_on_all(lambda: _build_trainer(job, device, group))
    checkpoints = Checkpoints(job.state / "checkpoints", job.spec.name, job.input_records)

    def save() -> None:
        if group.rank == 0:
            checkpoints.save(trainer.checkpoint())
            job.record(end_step=trainer.step, history=losses_digest(trainer.history))

    checkpoint = _last_checkpoint(checkpoints, group)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        log.info("resuming from the checkpoint of step %d of %d", checkpoint.step, len(trainer.plan))
    # Save before the first step, so that a good checkpoint exists even if that step diverges. Saving also loads into
    # memory all code that saving needs: a signal that ends the job also ends the process that mounts an Apptainer
    # image, and nothing can be read from the image afterwards.
    group.run_on_all(save)
    if group.rank == 0:
        job.record(start_step=trainer.step)
    saved_at, saved_step = time.monotonic(), trainer.step
    with ExitStack() as stack:
        stack.enter_context(closing(trainer.loader))
        monitor = group.run_on_all(lambda: stack.enter_context(closing(TrainingMonitor(job, trainer, device))))
        trainer.model.train()
        while trainer.step < len(trainer.plan):
            try:
                record = trainer.train_step()
            except DivergedError as error:
                raise UserError(
                    f"{error}; the checkpoint of step {saved_step} is kept in {checkpoints.folder}"
                ) from None
            trainer.totals.joules += group.all_reduce_sum(monitor.joules_since_last_call())[0]
            group.run_on_all(partial(monitor.on_step, record))
            stop, checkpoint_due = group.any_rank(
                should_stop(trainer.step) or deadline_is_near(),
                time.monotonic() - saved_at >= job.options.checkpoint_seconds,
            )
            if stop or checkpoint_due:
                group.run_on_all(save)
                saved_at, saved_step = time.monotonic(), trainer.step
            if stop:
                raise RetryableError(
                    f"stopped at step {trainer.step} of {len(trainer.plan)}; the same command resumes from there"
                )
    trainer.model.eval()
    if group.rank == 0:
        job.record(end_step=trainer.step, history=losses_digest(trainer.history))
        save_colbert(trainer.model, job.folder, trainer.stage.encoding)
        (job.folder / LOSSES_FILE).write_text(losses_text(trainer.history), encoding="utf-8")
    return _facts(job, trainer, device)


def _last_checkpoint(checkpoints: Checkpoints, group: ProcessGroup) -> Checkpoint | None:
    """The last intact checkpoint: rank 0 chooses it, and each process reads it from the shared folder."""
    checkpoint = group.run_on_all(lambda: checkpoints.load_last() if group.rank == 0 else None)
    step = group.all_gather_object(None if checkpoint is None else checkpoint.step)[0]
    return None if step is None else group.run_on_all(lambda: checkpoint or checkpoints.load(step))


def _build_trainer(job: Job, device: str, group: ProcessGroup = SINGLE_PROCESS) -> Trainer:
    stage, plan, options = Stage(**job.settings), BatchPlan(job), job.options
    if plan.batch_size < group.size:
        raise UserError(
            f"{job.spec.name}: its batches of {plan.batch_size} rows are too small for {group.size} processes; "
            "start fewer"
        )
    start = job.input("start")
    model = load_colbert(
        start.verified_folder(),
        stage.encoding,
        device,
        dimensions=stage.dimensions,
        seed=stage.seed,
        # A stage may encode with other settings than the stage before: a mismatched recipe tests exactly that.
        strict=False,
        attention=options.attention,
        name=model_name(start),
    )
    if options.maxsim == "fused":
        check_fused(stage.stage, device, stage.precision, stage.dimensions)
    grad_cache = GradCache(model, _memory_budget(job, model, device, stage), stage.precision, stage.seed, group)
    workers = LOADER_WORKERS[device] if options.loader_workers is None else options.loader_workers
    loader = BatchLoader(plan, stage, model, group, workers)
    return Trainer(stage, plan, model, grad_cache, loader, group, SCORERS[options.maxsim])


def _memory_budget(job: Job, model: models.ColBERT, device: str, stage: Stage) -> MemoryBudget:
    """How much to compute at once: what the flags say, else what suits the device and its memory."""
    options, budget = job.options, MemoryBudget(TOKENS_PER_CHUNK[device], TOKENS_IN_MEMORY)
    if None in (options.tokens_per_chunk, options.tokens_in_memory):
        longest, bf16 = max(stage.query_length, stage.document_length), stage.precision == "bf16"
        if device == "cpu":
            memory_mb = (options.memory_mb or available_memory_mb()) // local_size()
            budget = cpu_budget(model, memory_mb, longest, bf16)
        else:
            budget = gpu_budget(model, free_gpu_bytes(), longest, bf16)
    if options.tokens_per_chunk is not None:
        budget = replace(budget, tokens_per_chunk=options.tokens_per_chunk)
    if options.tokens_in_memory is not None:
        budget = replace(budget, tokens_in_memory=options.tokens_in_memory)
    return budget


def _deterministic_device(job: Job, group: ProcessGroup) -> str:
    """Choose the device, and make PyTorch compute deterministically."""
    # The tokenizer and the GPU library read these variables once, when they start.
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads_per_process(job)))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = choose_device(job)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    processes = f" in each of {group.size} processes" if group.size > 1 else ""
    if device == "cpu":
        log.info(
            "training on the CPU: another run with %d threads%s gives the same bytes",
            threads_per_process(job),
            processes,
        )
    else:
        log.info("training on the GPU%s: another run gives the same model up to rounding", processes)
    return device


def _facts(job: Job, trainer: Trainer, device: str) -> dict[str, Any]:
    stage, totals, plan = trainer.stage, trainer.totals, trainer.plan
    samples = len(plan) * plan.batch_size
    facts = {
        "stage": stage.stage,
        "steps": len(plan),
        "batch_size": plan.batch_size,
        "epochs": plan.epochs,
        "samples": samples,
        "query_tokens": totals.query_tokens,
        "document_tokens": totals.document_tokens,
        "seconds": round(totals.seconds, 3),
        "samples_per_second": round(samples / totals.seconds, 3),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": job.threads,
        "processes": trainer.group.size,
        "nodes": trainer.group.nodes,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "drawn_parts": drawn_parts(trainer.model),
        "tokens_per_chunk": trainer.grad_cache.budget.tokens_per_chunk,
        "tokens_in_memory": trainer.grad_cache.budget.tokens_in_memory,
        "maxsim": job.options.maxsim,
        "final_loss": json.loads(trainer.history[-1])["loss"],
        "evaluations": trainer.evaluations,
    }
    if device == "cuda":
        facts["gpu_peak_memory_mb"] = torch.cuda.max_memory_allocated() // 2**20
        facts["gpu_watt_hours"] = totals.joules / 3600
    if trainer.temperature is not None:
        facts["temperature"] = trainer.temperature.item()
    return facts


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags that decide how fast a model is trained, but not which model results."""
    add_device_option(parser)
    parser.add_argument(
        "--memory-mb",
        type=int,
        default=0,
        help="memory that the processes of a node may take together; on a CPU decides the next two (0: what is free)",
    )
    parser.add_argument(
        "--tokens-per-chunk",
        type=int,
        help=f"padded tokens to encode at once (up to {TOKENS_PER_CHUNK['cpu']} on a CPU, "
        f"{TOKENS_PER_CHUNK['cuda']} on a GPU)",
    )
    parser.add_argument(
        "--tokens-in-memory",
        type=int,
        help="maximum padded tokens of a step with one forward pass; larger steps take two passes and less memory "
        f"(up to {TOKENS_IN_MEMORY} on a CPU, what fits on a GPU)",
    )
    parser.add_argument(
        "--loader-workers",
        type=int,
        help=f"threads that prepare next steps ({LOADER_WORKERS['cpu']} on a CPU, {LOADER_WORKERS['cuda']} on a GPU)",
    )
    parser.add_argument(
        "--attention",
        choices=("sdpa", "eager", "flash_attention_2"),
        help="the attention implementation; by default, transformers chooses one for the model",
    )
    parser.add_argument(
        "--maxsim",
        choices=tuple(SCORERS),
        default="torch",
        help="how to score queries with all documents of a step: fused kernels, on a GPU in bf16, never write the "
        "similarities to memory (torch)",
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard files to logs/tensorboard")
    parser.add_argument(
        "--evaluate",
        type=lambda argument: json.loads(json_argument(argument)),
        default={},
        help='{"steps": [100, ...], "collections": {NAME: SETTINGS, ...}}, or its file: the steps after which to '
        "evaluate, and the collections, with drop_self (whether to drop a document that is the query itself), "
        "query_length and document_length",
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=CHECKPOINT_SECONDS,
        help=f"seconds between checkpoints ({CHECKPOINT_SECONDS:.0f})",
    )


def _run_other_rank(group: ProcessGroup) -> int:
    """Train with rank 0, and end as rank 0 does; only rank 0 prints messages. Return the exit status."""
    # Ctrl-C ends the process like SIGTERM: at once and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        while (job := group.receive_broadcast()) is not None:
            make(job, group)
        return 0
    except PeerLostError:
        pass
    except UserError:
        # Rank 0 raises an error, too. Wait until rank 0 has printed it: when a rank ends, torchrun ends the others.
        with suppress(PeerLostError):
            group.receive_broadcast()
    return 1


def main() -> int:
    """Train and publish the model, in one process or several; return the exit status."""
    group = init_process_group()
    status = (
        run_step(partial(make, group=group), __doc__, add_options=add_options)
        if group.rank == 0
        else _run_other_rank(group)
    )
    group.close(finished=status == 0)
    return status


if __name__ == "__main__":
    sys.exit(main())
