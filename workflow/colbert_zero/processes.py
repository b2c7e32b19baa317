"""The processes that train a stage together, on one or several nodes, as `torchrun` starts them; or the only one.

    torchrun --nproc-per-node 4 -m colbert_zero.training --spec JSON --threads 32

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

from colbert_zero.console import Passing

T = TypeVar("T")

PATIENCE = timedelta(days=20)
"""How long the others wait for the first process's word: it may itself wait for another job's lock."""
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another in the middle of training, a checkpoint being written included."""
BUCKET = 2**25
"""How many numbers are summed over processes at once (128 MiB in fp32)."""


class Lost(Passing):
    """Another process of the group ended, or does not answer."""


def local_size() -> int:
    """How many processes of the group this node has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_rank() -> int:
    """The number of this process on its node, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


class Group:
    """The group of a process that is alone.

    Attributes:
        rank: The number of this process, from 0.
        size: How many processes there are.
        nodes: On how many machines.
    """

    rank: int = 0
    size: int = 1
    nodes: int = 1

    def share(self, count: int) -> slice:
        """This process's part of `count` things: contiguous, and as large as any other's or smaller or larger by 1."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def compute_on(self, device: str) -> None:
        """Exchange tensors on `device`, `cpu` or `cuda`, from now on.

        Raises:
            Passing: It is not the same for all.
        """

    def together(self, work: Callable[[], T]) -> T:
        """Do `work`, which meets no other process: where it fails in one, it fails in all.

        Raises:
            Passing: It failed in another process; which one, and why.
            Exception: It failed here.
        """
        return work()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag, whether some process has it set."""
        return flags

    def totals(self, *numbers: float) -> tuple[float, ...]:
        """Sums over the processes, in double precision."""
        return numbers

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes: the same bits in all of them."""

    def collect(self, value: T) -> list[T]:
        """The values of all processes, which can be pickled, in the order of ranks."""
        return [value]

    def all_gather(self, parts: Sequence[Tensor]) -> None:
        """Fill `parts`, one per process and known to its own, in place; they need not be equally large."""

    def reduce_scatter(self, parts: Sequence[Tensor]) -> None:
        """Sum each of `parts` over the processes, in place: right afterwards in its own process alone."""

    def tell(self, word: object) -> None:
        """Hand `word` to the others, which are waiting in `hear`; for the first process."""

    def hear(self) -> Any:
        """Wait for the next word of the first process; None at the end."""
        return None

    def close(self, done: bool) -> None:
        """Part; where all is `done`, the others' `hear` returns None, else it raises `Lost`."""


ALONE = Group()


class _Several(Group):
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
        found = set(self.collect(device))
        if len(found) > 1:
            raise Passing("some processes have a GPU and some have none; give --device cpu or --device cuda")
        if device == "cuda":
            self._tensors = dist.new_group(backend="nccl", timeout=TIMEOUT)

    def together(self, work: Callable[[], T]) -> T:
        try:
            result = work()
        except Exception as error:
            self.any(True)
            reason = " ".join(str(error).split()) or type(error).__name__
            self.collect(f"on {socket.gethostname()}, rank {self.rank}: {reason}")
            raise
        if not self.any(False)[0]:
            return result
        raise Passing(next(failure for failure in self.collect("") if failure))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        tensor = torch.tensor(flags, dtype=torch.uint8)
        with self._meeting():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tuple(map(bool, tensor.tolist()))

    def totals(self, *numbers: float) -> tuple[float, ...]:
        tensor = torch.tensor(numbers, dtype=torch.float64)
        with self._meeting():
            dist.all_reduce(tensor)
        return tuple(tensor.tolist())

    def sum(self, tensors: Sequence[Tensor]) -> None:
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            with self._meeting():
                dist.all_reduce(flat, group=self._tensors)
            for tensor, part in zip(bucket, flat.split_with_sizes([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def collect(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        with self._meeting():
            dist.all_gather_object(values, value)
        return values

    def all_gather(self, parts: Sequence[Tensor]) -> None:
        with self._meeting():
            for rank, part in enumerate(parts):
                dist.broadcast(part, rank, group=self._tensors)

    def reduce_scatter(self, parts: Sequence[Tensor]) -> None:
        with self._meeting():
            for rank, part in enumerate(parts):
                dist.reduce(part, rank, group=self._tensors)

    def tell(self, word: object) -> None:
        with self._meeting():
            dist.broadcast_object_list([word], src=0, group=self._patient)

    def hear(self) -> Any:
        words: list[Any] = [None]
        with self._meeting():
            dist.broadcast_object_list(words, src=0, group=self._patient)
        return words[0]

    def close(self, done: bool) -> None:
        with suppress(Lost):
            if done and self.rank == 0:
                self.tell(None)
            if done:
                # No process is gone while another still reads what it passed on.
                self.any(False)
        # To leave in good order takes all of them.
        if not self._lost:
            dist.destroy_process_group()

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._lost = True
            reason = " ".join(str(error).split())[:200]
            raise Lost(
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


def join() -> Group:
    """Meet the other processes that the environment tells of (`torchrun` sets it), if it does."""
    return _Several() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ALONE
