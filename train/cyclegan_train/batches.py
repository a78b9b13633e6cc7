"""Which images come in which batch, and the batches themselves.

An epoch has as many samples as the larger folder has images, each of one image of A and one of B.
As in the reference, A follows an order that is shuffled anew for every epoch (and begins again
where it is the smaller folder), and B is drawn at random for every sample. Every draw depends on
nothing but the seed, the epoch and the position in the epoch. The state of the sampler is therefore
two numbers, and neither the cache nor the number of workers changes the batches.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Domain, normalized, two_sizes_error

_AHEAD = 2
"""Finished batches that wait, in addition to one in work for each worker."""


@dataclass(frozen=True)
class Draw:
    """One sample of a batch: which images, and the seed of their cut and flip."""

    a: int
    b: int
    seed: str


class Sampler:
    """Draws the images of every batch. Its state is the epoch and the position in it.

    This process is number ``rank`` of ``size`` that share the images of an epoch: in each step all
    together have the samples that one process would have with ``size`` times the batch size.
    ``serial`` takes the images of both in their order.
    """

    def __init__(
        self,
        n_a: int,
        n_b: int,
        *,
        batch_size: int = 1,
        seed: int = 0,
        serial: bool = False,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self._n_a, self._n_b, self._batch_size, self._seed = n_a, n_b, batch_size, seed
        self._serial, self._rank, self._size = serial, rank, size
        self.batches = self.whole = max(1, max(n_a, n_b) // (batch_size * size))
        """Batches in an epoch, which may be set to fewer; images that do not fill the last batch
        are left out of it. ``whole``: those of a pass over the images."""
        self.epoch = 1
        """The epoch of the next batch, counted from 1."""
        self.position = 0
        """The number of the next batch within that epoch, counted from 0."""

    def advance(self) -> None:
        """Go to the next batch, after the last one to the next epoch."""
        self.epoch, self.position = self.after(1)

    def begin_before(self, steps: int) -> None:
        """Go back by ``steps`` batches, from the first one into epochs before number 1."""
        self.epoch, self.position = self.after(-steps)

    @property
    def before_first(self) -> int:
        """The batches left before the first one of epoch 1."""
        return max(0, (1 - self.epoch) * self.batches - self.position)

    def after(self, steps: int) -> tuple[int, int]:
        """Return the epoch and the position in it, ``steps`` batches from here."""
        place = (self.epoch - 1) * self.batches + self.position + steps
        return place // self.batches + 1, place % self.batches

    def batch(self, epoch: int, position: int) -> list[Draw]:
        """Return the samples of any batch; the state does not change."""
        length = max(self._n_a, self._n_b)
        order = range(length) if self._serial else _order(length, f"{self._seed} {epoch}")
        draws = []
        begin = (position * self._size + self._rank) * self._batch_size
        for place in range(begin, begin + self._batch_size):
            number = order[place % len(order)]
            seed = f"{self._seed} {epoch} {place}"
            partner = number if self._serial else random.Random(seed).randrange(self._n_b)
            draws.append(Draw(number % self._n_a, partner % self._n_b, seed))
        return draws

    def state_dict(self) -> dict[str, int]:
        """Return the state."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go back to where `state_dict` was called."""
        self.epoch, self.position = state["epoch"], state["position"]


@functools.lru_cache(maxsize=2)
def _order(length: int, seed: str) -> list[int]:
    order = list(range(length))
    random.Random(seed).shuffle(order)
    return order


class Feed:
    """The batches in the sampler's order; threads decode images ahead that are not cached."""

    def __init__(self, a: Domain, b: Domain, sampler: Sampler, *, workers: int) -> None:
        self.a, self.b, self.sampler = a, b, sampler
        cached = a.cached is not None and b.cached is not None
        self._pool = None if cached else ThreadPoolExecutor(workers)
        # No more than keep all workers busy: a batch is float32, four times the bytes of uint8.
        self._ahead = workers + _AHEAD
        self._coming: dict[tuple[int, int], Future[tuple[Tensor, Tensor]]] = {}

    def next(self) -> tuple[Tensor, Tensor]:
        """Return real_A and real_B, float32 ``(N, C, H, W)`` in [-1, 1], and advance the sampler.

        Raises InputError where an image can no longer be read, or those of a batch differ in size.
        """
        here = (self.sampler.epoch, self.sampler.position)
        if self._pool is None:
            batch = self._make(*here)
        else:
            places = [self.sampler.after(steps) for steps in range(self._ahead)]
            # An epoch may have become shorter or longer than when these were begun.
            for place in self._coming.keys() - set(places):
                self._coming.pop(place).cancel()
            for place in places:
                if place not in self._coming:
                    self._coming[place] = self._pool.submit(self._make, *place)
            batch = self._coming.pop(here).result()
        self.sampler.advance()
        return batch

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _make(self, epoch: int, position: int) -> tuple[Tensor, Tensor]:
        draws = self.sampler.batch(epoch, position)
        return (
            _stacked(self.a, [draw.a for draw in draws], [f"A {draw.seed}" for draw in draws]),
            _stacked(self.b, [draw.b for draw in draws], [f"B {draw.seed}" for draw in draws]),
        )


def _stacked(domain: Domain, numbers: Sequence[int], seeds: Sequence[str]) -> Tensor:
    images = [
        domain.augmented(number, random.Random(seed))
        for number, seed in zip(numbers, seeds, strict=True)
    ]
    for number, image in zip(numbers, images, strict=True):
        if image.shape != images[0].shape:
            raise two_sizes_error(domain.paths[number], image.shape[1:], images[0].shape[1:])
    return normalized(torch.stack(images))
