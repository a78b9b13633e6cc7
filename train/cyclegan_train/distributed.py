"""Several processes that train one model: who they are, and how they agree.

torchrun starts the processes and tells each by the environment who it is; every one has a copy of
the networks, its own pictures, pools and random states. They differ in nothing else: the weights
begin alike, and before every step of an optimiser the gradients are replaced by their mean over
the processes, which is what DistributedDataParallel computes. It is done here in one flat exchange
and not by that class: a generator runs three times in one step, and the discriminators are frozen
for one half of it, neither of which it is made for.

On the CPU (gloo) two processes are tested against one with both pictures as a batch. CUDA (nccl)
is experimental: it was never run.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cyclegan_batch.errors import BackendError

_PATIENCE = datetime.timedelta(minutes=30)
"""How long a process waits for another: the slowest may have to decode all pictures first."""


@dataclass(frozen=True)
class Ranks:
    """One of the processes, and what it does together with the others. Alone it waits for nobody.

    What is together is called by all of them, in the same order, and raises BackendError where
    another one has ended.
    """

    rank: int = 0
    """0 is the one that writes and speaks."""
    size: int = 1
    local: int = 0
    """The number of its GPU."""

    @property
    def first(self) -> bool:
        """Whether this one writes and speaks."""
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

    def any(self, found: bool) -> bool:
        """Return whether it is so in any process."""
        return bool(self.greatest([int(found)])[0])

    def greatest(self, values: list[int]) -> list[int]:
        """Return the greatest of each value over all processes."""
        if self.size == 1:
            return values
        found = torch.tensor(values)
        with self._together():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        greatest: list[int] = found.tolist()
        return greatest

    def gathered(self, value: Any) -> list[Any] | None:
        """Return everyone's value by rank, to the first process; None to the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.first else None
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
                f"({str(error).splitlines()[0]}); its message says why, and --resume goes on from "
                "the last state"
            ) from error


ALONE = Ranks()
"""The only process."""


@contextlib.contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the other processes that the environment names (torchrun sets it), for as long.

    ``device`` is the word of the config: with ``cpu``, or without CUDA, they talk by gloo,
    otherwise by nccl. Returns only when all of them are there. Raises BackendError.
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
            f"cannot join {size} processes as WORLD_SIZE says: {str(error).splitlines()[0]}; start "
            "them with torchrun --nproc-per-node N -m cyclegan_batch train, or unset WORLD_SIZE"
        ) from error
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
