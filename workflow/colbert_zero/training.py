"""Train one stage of a recipe: unsupervised, supervised or distillation.

    python -m colbert_zero.training --spec JSON [--threads N] [--device auto|cpu|cuda] [--tokens-per-chunk N]
        [--tokens-in-memory N] [--checkpoint-seconds N]
    torchrun --nproc-per-node N -m colbert_zero.training ...

All stages are one loop. A batch is a range of rows: its texts, and a loss on their embeddings. `gradcache.Engine`
turns them into a gradient; AdamW with linear decay, as the reference's trainer has it, makes a step of it.

Nothing is drawn from a running random state: what is drawn is decided by the seed, the step and what it is for. So
parameters, optimiser and history are all that a checkpoint needs, and a run that was stopped ends with the bytes of one
that was not, on a CPU with the same number of threads.

Several processes share the rows of each step, and make the same step of the sum of their gradients: the model is that
of one process up to rounding (and up to dropout, see `gradcache`). A checkpoint can be gone on from with any number of
them. `--threads` is what all processes of a node have together.

The model is published with `losses.jsonl`, a line per step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pylate import models

from colbert_zero.artifact import Artifact, Job, run_step
from colbert_zero.checkpoints import Checkpoint, Checkpoints
from colbert_zero.colbert import Tokens, load_colbert, save_colbert, tokenize
from colbert_zero.console import SECONDS_BETWEEN_LINES, Passing, UserError, log
from colbert_zero.devices import add_device_option, choose_device, threads
from colbert_zero.gradcache import Engine, Limits, Loss
from colbert_zero.processes import ALONE, Group, Lost, join
from colbert_zero.rows import RowReader
from colbert_zero.slurm import time_is_up
from colbert_zero.stages import Batch, Stage

LOSSES = "losses.jsonl"
CHECKPOINT_SECONDS = 600.0
CHUNK = {"cpu": 2048, "cuda": 16384}
"""Padded tokens at once: what stays in a CPU's cache, what fills a GPU."""
KEPT = 65536
"""Padded tokens whose activations are kept: about 1 GB for 2 layers of 128, 70 GB for ModernBERT-base in bf16."""


class NotFinite(UserError):
    """A step whose loss or gradient is infinite or not a number."""


class Plan:
    """The batches of a stage, read from `batches` and `rows`."""

    def __init__(self, job: Job) -> None:
        """Open the job's plan and rows."""
        batches = job.input("batches")
        self.readers = [RowReader(artifact) for artifact in job.inputs("rows")]
        self.size: int = batches.spec.settings["batch_size"]
        self.epochs: int = batches.spec.settings["epochs"]
        table = pq.read_table(batches.file("plan.parquet"), columns=["rows", "start"])
        self._rows, self._start = table["rows"].to_numpy(), table["start"].to_numpy()

    def __len__(self) -> int:
        """The number of steps."""
        return len(self._rows)

    def source(self, step: int) -> Artifact:
        """Where the rows of a step come from."""
        return self.readers[int(self._rows[step])].artifact

    def where(self, step: int) -> str:
        """Which rows a step has, for a message."""
        return f"{self.source(step).name}, {self.size} rows from row {self._start[step]}"

    def table(self, step: int) -> pa.Table:
        """The rows of a step."""
        start = int(self._start[step])
        return self.readers[int(self._rows[step])].read(start, start + self.size)


@dataclass
class Counts:
    """What a run has done so far, over all its attempts; tokens are without padding."""

    query_tokens: int = 0
    document_tokens: int = 0
    seconds: float = 0.0


@dataclass
class Trainer:
    """A stage on its way: all that a checkpoint holds, and what makes a step.

    Attributes:
        stage: The settings.
        plan: The batches.
        model: What is trained.
        engine: What computes its gradients.
        optimiser: What moves its parameters.
        group: The processes that share each step.
        step: How many steps are done.
        history: A line of JSON for each.
        counts: What that took.
    """

    stage: Stage
    plan: Plan
    model: models.ColBERT
    engine: Engine
    optimiser: torch.optim.Optimizer
    group: Group = ALONE
    step: int = 0
    history: list[str] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def advance(self) -> float:
        """Do the next step, and return its loss.

        Raises:
            NotFinite: Its loss or gradient is not finite; the parameters are those before the step.
            UserError: Its rows lack what the stage needs.
        """
        started = time.monotonic()
        queries, documents, loss_of = self.group.together(self._share)
        rate = self.stage.rate(self.step, len(self.plan))
        self.optimiser.zero_grad()
        part = self.engine.backward(self.step, queries, documents, loss_of, self.plan.size)
        self.group.sum([parameter.grad for parameter in self.model.parameters() if parameter.grad is not None])
        loss, query_tokens, document_tokens = self.group.totals(part, len(queries.ids), len(documents.ids))
        clip = self.stage.gradient_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFinite(
                f"{self.stage.stage}: loss {loss}, gradient norm {norm} at step {self.step + 1} of {len(self.plan)} "
                f"({self.plan.where(self.step)}; learning rate {rate:.3g}): lower the learning rate or mend the rows"
            )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.step += 1
        line = {
            "step": self.step,
            "source": self.plan.source(self.step - 1).spec.label,
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": norm,
        }
        self.history.append(json.dumps(line))
        self.counts.query_tokens += int(query_tokens)
        self.counts.document_tokens += int(document_tokens)
        self.counts.seconds += time.monotonic() - started
        return loss

    def _share(self) -> tuple[Tokens, Tokens, Loss]:
        """What this process does of the next step: its queries, their documents, and a loss on these."""
        # All rows are read, since the poorest of them decides how many negatives each has.
        batch = self.stage.batch(self.plan.table(self.step), self.plan.where(self.step))
        batch = part_of(batch, self.group.share(len(batch.queries)))
        return (
            tokenize(self.model, batch.queries, True, self.stage.query_prompt),
            tokenize(self.model, batch.documents, False, self.stage.document_prompt),
            self.stage.loss(batch, self.engine.device),
        )

    def checkpoint(self) -> Checkpoint:
        """What is needed to go on from here."""
        tensors = {f"model.{name}": parameter for name, parameter in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            state = self.optimiser.state.get(parameter, {})
            tensors |= {f"optimiser.{key}.{name}": value for key, value in state.items()}
        notes = {"history": self.history, "counts": asdict(self.counts)}
        return Checkpoint(self.step, tensors, notes)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same stage."""
        self.step = checkpoint.step
        self.history = list(checkpoint.notes["history"])
        self.counts = Counts(**checkpoint.notes["counts"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(checkpoint.tensors[f"model.{name}"])
        for name, parameter in self.model.named_parameters():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = checkpoint.tensors.get(f"optimiser.{key}.{name}")
                if value is not None:
                    self.optimiser.state[parameter][key] = value.to(parameter.device)


def part_of(batch: Batch, rows: slice) -> Batch:
    """Some of the queries of a batch, with their documents."""
    per_query = len(batch.documents) // len(batch.queries)
    return replace(
        batch,
        queries=batch.queries[rows],
        documents=batch.documents[rows.start * per_query : rows.stop * per_query],
        teacher=None if batch.teacher is None else batch.teacher[rows],
    )


def adamw(model: torch.nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW as the reference's trainer sets it up; biases and norms do not decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.999), eps=1e-8, fused=True)


class Meter:
    """Shows how a run goes: a bar on a terminal, a line a minute elsewhere; the first process's alone."""

    def __init__(self, trainer: Trainer) -> None:
        """Measure from where `trainer` is."""
        self.trainer = trainer
        self._first = trainer.step
        self._started = self._last = time.monotonic()
        self._tokens = self._tokens_done()
        self._bar: Any = None
        if trainer.group.rank == 0 and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=len(trainer.plan), initial=trainer.step, unit=" steps", dynamic_ncols=True)

    def show(self, loss: float) -> None:
        """Show the step just done."""
        now = time.monotonic()
        if self._bar is None and now - self._last < SECONDS_BETWEEN_LINES:
            return
        trainer, seconds = self.trainer, now - self._started
        done = trainer.step - self._first
        rates = (
            f"{done * trainer.plan.size / seconds:.1f} samples/s, "
            f"{(self._tokens_done() - self._tokens) / seconds:.0f} tokens/s"
        )
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rates}", refresh=False)
            self._bar.update()
        else:
            steps = len(trainer.plan)
            left = (steps - trainer.step) * seconds / done
            log.info("step %d of %d, loss %.4f, %s, %.0f s left", trainer.step, steps, loss, rates, left)
            self._last = now

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _tokens_done(self) -> int:
        return self.trainer.counts.query_tokens + self.trainer.counts.document_tokens


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


def make(job: Job, group: Group = ALONE) -> Mapping[str, Any]:
    """Train the stage."""
    # What waits for the first process's word starts here.
    if group.rank == 0:
        group.tell(job)
    # torchrun hands a signal on to processes that may have had it already, and are about to say how they ended.
    with stop_signals(lasting=group.size > 1) as stopped:
        return train(job, stopped, group)


def train(job: Job, stopped: Callable[[int], bool], group: Group = ALONE) -> Mapping[str, Any]:
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
        Passing: The run was stopped, or another process of the group ended.
    """
    device = group.together(lambda: _device(job, group))
    group.compute_on(device)
    trainer = group.together(lambda: _trainer(job, device, group))
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
    # the process that mounts its image, and code that was never used could then not be read any more.
    group.together(save)
    if group.rank == 0:
        job.note(start_step=trainer.step)
    meter, saved, kept = Meter(trainer), time.monotonic(), trainer.step
    trainer.model.train()
    try:
        while trainer.step < len(trainer.plan):
            try:
                meter.show(trainer.advance())
            except NotFinite as error:
                raise UserError(f"{error}; the checkpoint of step {kept} is kept in {checkpoints.folder}") from None
            stop, due = group.any(
                stopped(trainer.step) or time_is_up(), time.monotonic() - saved >= job.options.checkpoint_seconds
            )
            if stop or due:
                group.together(save)
                saved, kept = time.monotonic(), trainer.step
            if stop:
                raise Passing(
                    f"stopped at step {trainer.step} of {len(trainer.plan)}; the same command goes on from there"
                )
    finally:
        meter.close()
    trainer.model.eval()
    if group.rank == 0:
        job.note(end_step=trainer.step)
        save_colbert(trainer.model, job.folder, trainer.stage.encoding)
        (job.folder / LOSSES).write_text("".join(line + "\n" for line in trainer.history), encoding="utf-8")
    return _facts(job, trainer, device)


def _last(checkpoints: Checkpoints, group: Group) -> Checkpoint | None:
    """The last checkpoint that the first process finds intact, as each reads it in the folder they share."""
    found = group.together(lambda: checkpoints.last() if group.rank == 0 else None)
    step = group.collect(None if found is None else found.step)[0]
    return None if step is None else group.together(lambda: found or checkpoints.of(step))


def _trainer(job: Job, device: str, group: Group = ALONE) -> Trainer:
    stage, plan = Stage(**job.settings), Plan(job)
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
    )
    limits = Limits(job.options.tokens_per_chunk or CHUNK[device], job.options.tokens_in_memory)
    engine = Engine(model, limits, stage.precision, stage.seed, group)
    return Trainer(stage, plan, model, engine, adamw(model, stage.weight_decay), group)


def _device(job: Job, group: Group) -> str:
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
    return {
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
        "final_loss": json.loads(trainer.history[-1])["loss"],
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Flags that decide how fast the model is there, not which."""
    add_device_option(parser)
    parser.add_argument(
        "--tokens-per-chunk",
        type=int,
        help=f"padded tokens that are encoded at once ({CHUNK['cpu']} on a CPU, {CHUNK['cuda']} on a GPU)",
    )
    parser.add_argument(
        "--tokens-in-memory",
        type=int,
        default=KEPT,
        help=f"padded tokens up to which a step takes one forward pass; above, two, in less memory ({KEPT})",
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=CHECKPOINT_SECONDS,
        help=f"seconds between checkpoints ({CHECKPOINT_SECONDS:.0f})",
    )


def _assist(group: Group) -> int:
    """What the processes behind the first one do: train along with it, end as it does, and leave the talking to it."""
    # Ends by Ctrl-C as by SIGTERM: at once, and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        while (job := group.hear()) is not None:
            make(job, group)
        return 0
    except Lost:
        pass
    except UserError:
        # The first process has it too. Whoever ended before it has said so might have torchrun end it meanwhile.
        with suppress(Lost):
            group.hear()
    return 1


def main() -> int:
    """Train and publish, in one process or several; return the exit status."""
    group = join()
    status = (
        run_step(partial(make, group=group), __doc__, add_options=add_options) if group.rank == 0 else _assist(group)
    )
    group.close(done=status == 0)
    return status


if __name__ == "__main__":
    sys.exit(main())
