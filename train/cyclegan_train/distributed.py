"""Several processes that train one model: their ranks, and what they exchange.

torchrun starts the processes and sets their ranks in the environment. Each has images, pools and
random states of its own, and a copy of the networks that stays equal in all of them: they begin
with the same weights, and before every step of an optimiser the gradients are replaced by their
mean over the processes, which is what DistributedDataParallel computes. This module does it in one
flat exchange, because that class does not support a step in which a generator runs three times and
the discriminators are frozen for one half.

On the CPU (gloo) two processes are tested against one with both images as a batch. CUDA (nccl) is
experimental: it was never run.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cyclegan_batch.errors import BackendError
from cyclegan_batch.wording import first_line

_PATIENCE = datetime.timedelta(minutes=30)
"""How long a process waits for another: the slowest may have to decode all images first."""


_T = TypeVar("_T")


@dataclass(frozen=True)
class Ranks:
    """One of the processes, and what it exchanges with the others.

    All processes must call the methods in the same order. The methods raise BackendError where
    another process has ended; in a single process they return at once.
    """

    rank: int = 0
    """0 is the process that writes files and reports."""
    size: int = 1
    local: int = 0
    """The number of its GPU."""

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def average_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace the gradients of an optimiser's weights by their mean over all processes."""
        if self.size == 1:
            return
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = self.mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes, the same bits in each."""
        if self.size == 1:
            return values
        total = values.clone()
        with self._together():
            dist.all_reduce(total)
        return total / self.size

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is true in any process."""
        return bool(self.greatest([int(flag)])[0])

    def greatest(self, values: list[int]) -> list[int]:
        """Return the greatest of each value over all processes."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values)
        with self._together():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        greatest: list[int] = tensor.tolist()
        return greatest

    def gathered(self, value: _T) -> list[_T] | None:
        """Return the values of all processes by rank in the first one; None in the others."""
        if self.size == 1:
            return [value]
        # gather_object replaces every entry of the first process's list.
        values = [value] * self.size if self.first else None
        with self._together():
            dist.gather_object(value, values)
        return values

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise BackendError(
                f"process {self.rank} of {self.size} cannot go on: another one has ended "
                f"({first_line(error)}); its message says why, and --resume goes on from the last "
                "state"
            ) from error


ALONE = Ranks()
"""A single process."""


@contextlib.contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the processes that the environment names (torchrun sets it), for the block.

    ``device`` is that of the config: with ``cpu``, or without CUDA, the processes use gloo,
    otherwise nccl. Waits until all of them have joined. Raises BackendError.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    try:
        ranks = Ranks(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))
        if cuda:
            torch.cuda.set_device(ranks.local)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
    except (KeyError, ValueError, RuntimeError) as error:
        raise BackendError(
            f"cannot join {size} processes, the WORLD_SIZE: {first_line(error)}; start them with "
            "torchrun --nproc-per-node N -m cyclegan_batch train, or unset WORLD_SIZE"
        ) from error
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
