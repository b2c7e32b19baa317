"""The processes that train a stage together, on one or several nodes, as `torchrun` starts them; or the only one.

    torchrun --nproc-per-node 4 -m colbert_zero.training.train --spec JSON --threads 32

All processes do the same things in the same order, and meet in the methods of `Group`. The first one, of rank 0, leads:
it alone publishes, keeps checkpoints and speaks to a person; the others wait for its word and train along.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from colbert_zero.graph.console import RetryableError

T = TypeVar("T")

PATIENCE = timedelta(days=20)
"""How long the others wait for the first process's word: it may itself wait for another job's lock."""
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another in the middle of training, a checkpoint being written included."""
BUCKET = 2**25
"""How many numbers are summed over processes at once (128 MiB in fp32)."""


class PeerLostError(RetryableError):
    """Another process of the group ended, or does not answer."""


def local_size() -> int:
    """How many processes of the group this node has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_rank() -> int:
    """The number of this process on its node, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


class ProcessGroup:
    """The group of a process that is alone.

    Attributes:
        rank: The number of this process, from 0.
        size: How many processes there are.
        nodes: On how many machines.
    """

    rank: int = 0
    size: int = 1
    nodes: int = 1

    def local_slice(self, count: int) -> slice:
        """This process's part of `count` things: contiguous, and as large as any other's or smaller or larger by 1."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def compute_on(self, device: str) -> None:
        """Exchange tensors on `device`, `cpu` or `cuda`, from now on.

        Raises:
            RetryableError: It is not the same for all.
        """

    def run_on_all(self, work: Callable[[], T]) -> T:
        """Do `work`, which meets no other process: where it fails in one, it fails in all.

        Raises:
            RetryableError: It failed in another process; which one, and why.
            Exception: It failed here.
        """
        return work()

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag, whether some process has it set."""
        return flags

    def all_reduce_sum(self, *numbers: float) -> tuple[float, ...]:
        """Sums over the processes, in double precision."""
        return numbers

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes: the same bits in all of them."""

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all processes, which can be pickled, in the order of ranks."""
        return [value]

    def all_gather(self, parts: Sequence[Tensor]) -> None:
        """Fill `parts`, one per process and known to its own, in place; they need not be equally large."""

    def reduce_scatter(self, parts: Sequence[Tensor]) -> None:
        """Sum each of `parts` over the processes, in place: right afterwards in its own process alone."""

    def broadcast(self, word: object) -> None:
        """Hand `word` to the others, which are waiting in `hear`; for the first process."""

    def receive_broadcast(self) -> Any:
        """Wait for the next word of the first process; None at the end."""
        return None

    def close(self, done: bool) -> None:
        """Part; where all is `done`, the others' `hear` returns None, else it raises `Lost`."""


SINGLE_PROCESS = ProcessGroup()


class _TorchProcessGroup(ProcessGroup):
    """Processes that PyTorch's environment variables tell of each other."""

    def __init__(self) -> None:
        # Gloo carries what concerns the CPU, so that no flag ever waits for a GPU.
        dist.init_process_group("gloo", timeout=TIMEOUT)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.nodes = -(-self.size // local_size())
        self._patient: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._tensors: Any = None
        self._lost = False

    def compute_on(self, device: str) -> None:
        found = set(self.all_gather_object(device))
        if len(found) > 1:
            raise RetryableError("some processes have a GPU and some have none; give --device cpu or --device cuda")
        if device == "cuda":
            self._tensors = dist.new_group(backend="nccl", timeout=TIMEOUT)

    def run_on_all(self, work: Callable[[], T]) -> T:
        try:
            result = work()
        except Exception as error:
            self.any_rank(True)
            reason = " ".join(str(error).split()) or type(error).__name__
            self.all_gather_object(f"on {socket.gethostname()}, rank {self.rank}: {reason}")
            raise
        if not self.any_rank(False)[0]:
            return result
        raise RetryableError(next(failure for failure in self.all_gather_object("") if failure))

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        tensor = torch.tensor(flags, dtype=torch.uint8)
        with self._collective():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tuple(map(bool, tensor.tolist()))

    def all_reduce_sum(self, *numbers: float) -> tuple[float, ...]:
        tensor = torch.tensor(numbers, dtype=torch.float64)
        with self._collective():
            dist.all_reduce(tensor)
        return tuple(tensor.tolist())

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            with self._collective():
                dist.all_reduce(flat, group=self._tensors)
            for tensor, part in zip(bucket, flat.split_with_sizes([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def all_gather_object(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        with self._collective():
            dist.all_gather_object(values, value)
        return values

    def all_gather(self, parts: Sequence[Tensor]) -> None:
        with self._collective():
            for rank, part in enumerate(parts):
                dist.broadcast(part, rank, group=self._tensors)

    def reduce_scatter(self, parts: Sequence[Tensor]) -> None:
        with self._collective():
            for rank, part in enumerate(parts):
                dist.reduce(part, rank, group=self._tensors)

    def broadcast(self, word: object) -> None:
        with self._collective():
            dist.broadcast_object_list([word], src=0, group=self._patient)

    def receive_broadcast(self) -> Any:
        words: list[Any] = [None]
        with self._collective():
            dist.broadcast_object_list(words, src=0, group=self._patient)
        return words[0]

    def close(self, done: bool) -> None:
        with suppress(PeerLostError):
            if done and self.rank == 0:
                self.broadcast(None)
            if done:
                # No process is gone while another still reads what it passed on.
                self.any_rank(False)
        # To leave in good order takes all of them.
        if not self._lost:
            dist.destroy_process_group()

    @contextmanager
    def _collective(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._lost = True
            reason = " ".join(str(error).split())[:200]
            raise PeerLostError(
                f"one of the {self.size} processes ended, or does not answer: what it said is above, if anything; "
                f"the same command goes on from the last checkpoint ({reason})"
            ) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Split tensors into runs of at most `BUCKET` numbers, or of one tensor."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(map(Tensor.numel, bucket)) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def init_process_group() -> ProcessGroup:
    """Meet the other processes that the environment tells of (`torchrun` sets it), if it does."""
    return _TorchProcessGroup() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else SINGLE_PROCESS
