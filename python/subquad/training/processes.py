"""One process or several: what ``torchrun`` starts, behind one small interface."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from subquad.training.errors import CommandError


def launched() -> bool:
    """Return whether this process is one of a distributed launch."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def first() -> bool:
    """Return whether this is the only or the first process of a launch."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: number of this process.
        world: number of processes.
        device: where this process computes.
    """

    rank: int
    world: int
    device: torch.device

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of ``value`` over the processes."""
        return self._reduce(value, dist.ReduceOp.SUM)

    def max(self, value: int) -> int:
        """Return the largest ``value`` of the processes."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        return int(self._reduce(tensor, dist.ReduceOp.MAX))

    def stack(self, value: Tensor) -> Tensor:
        """Return ``value`` of every process, ``[world, ...]``, on the CPU."""
        value = value.to(self.device)
        parts = [torch.empty_like(value) for _ in range(self.world)]
        if self.world == 1:
            parts = [value]
        else:
            dist.all_gather(parts, value)
        return torch.stack(parts).cpu()

    def _reduce(self, value: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value, operation)
        return value


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that were launched together, or stand alone.

    Args:
        device: ``"auto"`` or a name that PyTorch knows. With several processes
            ``cuda`` means one GPU for each.

    Raises:
        CommandError: an unknown or absent device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and launched():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    place = _device(device)
    if not launched():
        yield Processes(0, 1, place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CommandError(f"--device: cannot use {name!r}: {reason}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
