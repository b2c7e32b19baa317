"""Communication between the processes that train a stage, which `torchrun` starts on one or several nodes.

    torchrun --nproc-per-node 4 -m colbert_zero.training.train --spec JSON --threads 32

All processes execute the same steps in the same order, and call the collectives of `ProcessGroup`. Rank 0 alone
publishes, writes checkpoints and prints messages; the other ranks wait for its broadcast, then train with it. A process
that runs alone uses `SINGLE_PROCESS`, whose collectives have nothing to do.
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

BROADCAST_TIMEOUT = timedelta(days=20)
"""How long the other ranks wait for rank 0's broadcast: rank 0 may itself wait for another job's lock."""
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits in a collective during training; long enough for rank 0 to write a checkpoint."""
BUCKET_NUMEL = 2**25
"""How many elements one all-reduce sums at most, unless a single tensor is larger (128 MiB in fp32)."""


class PeerLostError(RetryableError):
    """Another process of the group ended, or does not answer."""


def local_size() -> int:
    """How many processes of the group run on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_rank() -> int:
    """The rank of this process on its node, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


class ProcessGroup:
    """The group of a process that runs alone, and the interface of larger groups.

    Attributes:
        rank: The rank of this process, from 0.
        size: The number of processes.
        nodes: The number of nodes that they run on.
    """

    rank: int = 0
    size: int = 1
    nodes: int = 1

    def local_slice(self, count: int) -> slice:
        """This rank's contiguous share of `count` items; the shares of two ranks differ by at most one item."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def set_device(self, device: str) -> None:
        """Exchange tensors on `device`, `cpu` or `cuda`, from now on.

        Raises:
            RetryableError: The ranks name different devices.
        """

    def run_on_all(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank; if it fails on one rank, every rank raises.

        Args:
            work: A function that calls no collective.

        Raises:
            RetryableError: `work` failed on another rank; the message says on which and why.
            Exception: `work` failed on this rank.
        """
        return work()

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on some rank."""
        return flags

    def all_reduce_sum(self, *numbers: float) -> tuple[float, ...]:
        """Sum each number over the ranks, in double precision."""
        return numbers

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks: every rank gets the same bits."""

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all ranks, in the order of ranks; values must be picklable."""
        return [value]

    def all_gather(self, parts: Sequence[Tensor]) -> None:
        """Copy `parts[rank]` from each rank to all others, in place; the parts may differ in size."""

    def reduce_scatter(self, parts: Sequence[Tensor]) -> None:
        """Sum each of `parts` over the ranks, in place: afterwards `parts[rank]` is valid on that rank alone."""

    def broadcast(self, value: object) -> None:
        """Send `value` to the other ranks, which wait in `receive_broadcast`; rank 0 only."""

    def receive_broadcast(self) -> Any:
        """Wait for rank 0's next broadcast; None means that there are no more."""
        return None

    def close(self, finished: bool) -> None:
        """Leave the group.

        Args:
            finished: Whether this rank did all its work. If rank 0 did, `receive_broadcast` returns None on the others;
                else it raises `PeerLostError` there.
        """


SINGLE_PROCESS = ProcessGroup()


class _TorchProcessGroup(ProcessGroup):
    """Several processes, connected by the environment variables of `torch.distributed`."""

    def __init__(self) -> None:
        # Flags and objects go over Gloo, on the CPU, so that they never wait for a GPU.
        dist.init_process_group("gloo", timeout=COLLECTIVE_TIMEOUT)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.nodes = -(-self.size // local_size())
        self._broadcast_group: Any = dist.new_group(backend="gloo", timeout=BROADCAST_TIMEOUT)
        self._tensor_group: Any = None
        self._peer_lost = False

    def set_device(self, device: str) -> None:
        if len(set(self.all_gather_object(device))) > 1:
            raise RetryableError("some processes have a GPU and some have none; give --device cpu or --device cuda")
        if device == "cuda":
            self._tensor_group = dist.new_group(backend="nccl", timeout=COLLECTIVE_TIMEOUT)

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
                dist.all_reduce(flat, group=self._tensor_group)
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
                dist.broadcast(part, rank, group=self._tensor_group)

    def reduce_scatter(self, parts: Sequence[Tensor]) -> None:
        with self._collective():
            for rank, part in enumerate(parts):
                dist.reduce(part, rank, group=self._tensor_group)

    def broadcast(self, value: object) -> None:
        with self._collective():
            dist.broadcast_object_list([value], src=0, group=self._broadcast_group)

    def receive_broadcast(self) -> Any:
        values: list[Any] = [None]
        with self._collective():
            dist.broadcast_object_list(values, src=0, group=self._broadcast_group)
        return values[0]

    def close(self, finished: bool) -> None:
        with suppress(PeerLostError):
            if finished and self.rank == 0:
                self.broadcast(None)
            if finished:
                # A barrier: no rank may exit while another still receives the data that it forwards.
                self.any_rank(False)
        # Destroying the group needs all its ranks.
        if not self._peer_lost:
            dist.destroy_process_group()

    @contextmanager
    def _collective(self) -> Iterator[None]:
        """Turn an error of `torch.distributed` into a `PeerLostError`."""
        try:
            yield
        except RuntimeError as error:
            self._peer_lost = True
            reason = " ".join(str(error).split())[:200]
            raise PeerLostError(
                f"one of the {self.size} processes ended, or does not answer: its own message, if any, is above; "
                f"the same command resumes from the last checkpoint ({reason})"
            ) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Split tensors into consecutive buckets of at most `BUCKET_NUMEL` elements, or of a single larger tensor."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(map(Tensor.numel, bucket)) + tensor.numel() > BUCKET_NUMEL:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def init_process_group() -> ProcessGroup:
    """Connect to the other processes named by torchrun's environment variables; without them, run alone."""
    return _TorchProcessGroup() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else SINGLE_PROCESS
