"""Several processes that train one model: their ranks, and what they exchange.

torchrun starts the processes and sets their ranks in the environment. Each has images, pools and
random states of its own, and a copy of the networks that stays equal in all of them: they begin
with the same weights, and before every step of an optimiser the gradients are replaced by their
mean over the processes, as DistributedDataParallel does it: in pieces, each of which is exchanged
while the backward pass computes the next. That class itself does not support a step in which a
generator runs three times and the discriminators are frozen for one half.

On the CPU (gloo) two processes are tested against one with both images as a batch. CUDA (nccl) is
experimental: it was never run.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cyclegan_batch.errors import BackendError
from cyclegan_batch.wording import first_line

_PATIENCE = datetime.timedelta(minutes=30)
"""How long a process waits for another: the slowest may have to decode all images first."""


_PIECE = 8 * 2**20
"""Bytes of gradients that are exchanged at a time: a fifth of a generator with ngf 64."""

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

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes, the same bits in each."""
        return values if self.size == 1 else self.mean_later(values.clone())()

    def mean_later(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin to exchange ``values``, which are overwritten; return a function for their mean."""
        with self._together():
            work = dist.all_reduce(values, async_op=True)

        def mean() -> Tensor:
            with self._together():
                work.wait()
            return values / self.size

        return mean

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


class Means:
    """The running means of values by name, added on the device so that no step waits for it."""

    def __init__(self, device: torch.device, names: Sequence[str]) -> None:
        self._names = names
        self._sum = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.count = 0

    def add(self, values: Tensor) -> None:
        """Add float64 scalars, ``(names,)``."""
        self._sum += values
        self.count += 1

    def take(self, ranks: Ranks) -> dict[str, float]:
        """Return the means over all processes, and start again from zero."""
        values = (ranks.mean(self._sum) / max(1, self.count)).tolist()
        self._sum.zero_()
        self.count = 0
        return dict(zip(self._names, values, strict=True))

    def state_dict(self) -> dict[str, Tensor | int]:
        """Return the sums and their number."""
        return {"sum": self._sum.cpu(), "count": self.count}

    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """Go back to where `state_dict` was called."""
        self._sum.copy_(torch.as_tensor(state["sum"]))
        self.count = int(state["count"])


class GradientMeans:
    """Replaces the gradients of an optimiser's weights by their means over all processes.

    ``passes`` backward passes add up each gradient. Gradients are exchanged in pieces of about
    `_PIECE` bytes, from the last weight to the first, which is about the order in which a backward
    pass computes them, and each piece as soon as it is whole. Biases come last: where the fused
    operator makes them superfluous they have no gradient, and a piece with one of them would be
    whole at the end only.
    """

    def __init__(self, ranks: Ranks, optimizer: torch.optim.Optimizer, passes: int) -> None:
        self._ranks, self._passes = ranks, passes
        self._pieces: list[list[Tensor]] = []
        self._coming: list[tuple[list[Tensor], Callable[[], Tensor]]] = []
        if ranks.size > 1:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            self._pieces = _pieces(weights[::-1])
        self._number = {weight: n for n, piece in enumerate(self._pieces) for weight in piece}
        for weight in self._number:
            weight.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]
        self.begin()

    def begin(self) -> None:
        """Expect the gradients of a step. Call it before its first backward pass."""
        self._missing = [self._passes * len(piece) for piece in self._pieces]
        self._coming = []

    def _arrived(self, weight: Tensor) -> None:
        self._missing[self._number[weight]] -= 1
        # In the same order in all processes, or they would exchange different pieces.
        while len(self._coming) < len(self._pieces) and not self._missing[len(self._coming)]:
            self._exchange()

    def _exchange(self) -> None:
        gradients = [w.grad for w in self._pieces[len(self._coming)] if w.grad is not None]
        flat = [gradient.reshape(-1) for gradient in gradients]
        mean = self._ranks.mean_later(torch.cat(flat)) if flat else lambda: torch.empty(0)
        self._coming.append((gradients, mean))

    def finish(self) -> None:
        """Wait for the means, and put them into the gradients. Weights without one stay so."""
        while len(self._coming) < len(self._pieces):
            self._exchange()
        for gradients, mean in self._coming:
            parts = torch.split(mean(), [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def _pieces(weights: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return weights in pieces of at least `_PIECE` bytes; the last one has the biases."""
    pieces: list[list[Tensor]] = [[]]
    for weight in weights:
        if weight.dim() > 1:
            pieces[-1].append(weight)
            if sum(each.nbytes for each in pieces[-1]) >= _PIECE:
                pieces.append([])
    pieces.append([weight for weight in weights if weight.dim() <= 1])
    return [piece for piece in pieces if piece]


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
