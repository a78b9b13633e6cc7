"""A whole optimisation step as one CUDA graph: recorded once, then replayed without the host.

At batch 1 a GPU waits for the host, which has a few thousand kernels to launch in a step. A graph
launches them at once; in return everything that differs from step to step has to lie in tensors
that stay where they are: the pictures, the learning rate, and what the pools are to do. The pools'
draws are therefore made before the step, in the same order as otherwise, and the exchange itself is
the same few kernels whatever was drawn.

Without CUDA the same lines run and nothing is recorded: that is how they are tested, bit for bit
against `ImagePool`. **The recording is experimental: it was never run on a GPU.**
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from cyclegan_batch.errors import BackendError

from .pool import draw_place

Body: TypeAlias = Callable[[], dict[str, Tensor]]
"""A step on pictures that lie where they always do; it returns its losses."""

_WARM_UP = 3
"""Steps before the recording, in which libraries choose their kernels and Adam makes its state."""


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """Return values that a copy to ``device`` takes without the host waiting for it.

    CUDA copies so out of pinned memory alone, which torch gives back once the copy is done.
    """
    return values.pin_memory() if device.type == "cuda" and values.device.type == "cpu" else values


class DevicePool:
    """An `ImagePool` whose pictures are one tensor, and whose exchange asks the host nothing.

    ``draw`` is called before the step that calls ``query``; all pictures have one shape and type.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self._device = size, device
        self._filled = 0
        # ``(size + 1, C, H, W)``; the last is where a picture goes that the pool does not keep.
        self._images: Tensor | None = None
        self._places: Tensor | None = None
        self._returns_old: Tensor | None = None

    def draw(self, count: int) -> None:
        """Decide what becomes of the next ``count`` pictures, by Python's random state."""
        if self.size == 0:
            return
        places, returns_old = [], []
        for _ in range(count):
            place = draw_place(self._filled, self.size)
            returns_old.append(place is not None and place < self._filled)
            self._filled += place == self._filled
            places.append(self.size if place is None else place)
        if self._places is None or self._returns_old is None:
            self._places = torch.zeros(count, dtype=torch.int64, device=self._device)
            self._returns_old = torch.zeros(count, 1, 1, 1, dtype=torch.bool, device=self._device)
        for kept, drawn in ((self._places, places), (self._returns_old, returns_old)):
            values = pinned(torch.tensor(drawn).view(kept.shape), self._device)
            kept.copy_(values, non_blocking=True)

    def query(self, images: Tensor) -> Tensor:
        """Return as many pictures as came, ``(N, C, H, W)``, without a graph."""
        images = images.detach()
        if self.size == 0:
            return images
        assert self._places is not None
        assert self._returns_old is not None
        if self._images is None:
            self._images = images.new_zeros(self.size + 1, *images.shape[1:])
        chosen = []
        # One by one: a picture may take the place of one that came with it.
        for number, image in enumerate(torch.split(images, 1)):
            place = self._places[number : number + 1]
            old = self._images.index_select(0, place)
            self._images.index_copy_(0, place, image)
            chosen.append(torch.where(self._returns_old[number], old, image))
        return torch.cat(chosen)

    def state_dict(self) -> list[Tensor]:
        """Return the stored pictures in their order, as `ImagePool` does."""
        if self._images is None:
            return []
        return list(torch.split(self._images[: self._filled].clone(), 1))

    def load_state_dict(self, images: Sequence[Tensor], device: torch.device) -> None:
        """Take the pictures of `state_dict`. Raises ValueError if there are more than fit."""
        if len(images) > self.size:
            raise ValueError(f"{len(images)} stored pictures for a pool of {self.size}")
        self._filled, self._images = len(images), None
        if images:
            spare = [torch.zeros_like(images[0])] * (self.size + 1 - len(images))
            self._images = torch.cat([*images, *spare]).to(device)


class Recorder(Protocol):
    """What a `GraphedStep` records with."""

    def rehearse(self, body: Body) -> dict[str, Tensor]:
        """Run a step that is not recorded, as one that will be."""

    def record(self, body: Body) -> dict[str, Tensor]:
        """Record a step without running it; return where each replay leaves its losses."""

    def replay(self) -> None:
        """Run the recorded step."""


class CudaRecorder:
    """Records on one CUDA device. Experimental: never run on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # torch's own for it is of the device that was current when it first recorded anything.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph = torch.cuda.CUDAGraph()

    def rehearse(self, body: Body) -> dict[str, Tensor]:
        """Run a step on the stream that it will be recorded on.

        Not on the default one, whose memory a recording could not take over.
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            # What runs here is to be recorded next: nothing to be told of.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            losses = body()
        current.wait_stream(self._stream)
        return losses

    def record(self, body: Body) -> dict[str, Tensor]:
        """Record a step. Its device has to be the current one (Adam asks that one's stream)."""
        with torch.cuda.graph(self._graph, stream=self._stream):
            return body()

    def replay(self) -> None:
        """Run the recorded step on the current stream."""
        self._graph.replay()


class GraphedStep:
    """Runs ``body`` on pictures that lie where they always do, by replaying a recording.

    ``body`` takes real_A and real_B, asks the ``pools`` (that of fake_B first) and returns scalars
    by name; it leaves nothing to the host. The first steps are steps like any other and are not
    recorded; without a ``recorder`` none is. ``counted`` returns how many steps the optimisers have
    made, by their own count on the device: what was recorded has to move it.
    """

    def __init__(
        self,
        body: Callable[[Tensor, Tensor], dict[str, Tensor]],
        pools: tuple[DevicePool, DevicePool],
        counted: Callable[[], float],
        new_recorder: Callable[[], Recorder] | None,
    ) -> None:
        self._body, self._pools, self._counted = body, pools, counted
        self._new_recorder = new_recorder
        self._reals: tuple[Tensor, Tensor] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the recording: tensors that it reads or writes have been replaced."""
        self._recorder = self._new_recorder() if self._new_recorder else None
        self._losses: dict[str, Tensor] = {}
        self._warm = 0

    def __call__(self, real_A: Tensor, real_B: Tensor) -> dict[str, Tensor]:
        """Do one step.

        Raises ValueError for pictures of another shape than the first ones, BackendError where the
        recording computes nothing.
        """
        if self._reals is None:
            self._reals = (real_A.clone(), real_B.clone())
        for kept, given in zip(self._reals, (real_A, real_B), strict=True):
            if kept.shape != given.shape:
                raise ValueError(
                    f"cuda_graphs replays one shape, {tuple(kept.shape)}, and was given "
                    f"{tuple(given.shape)}; crop to one size, or leave it out"
                )
            kept.copy_(given)
        # fake_B has as many pictures as real_A.
        for pool, real in zip(self._pools, self._reals, strict=True):
            pool.draw(len(real))
        if self._recorder is None:
            return self._step()
        if self._warm < _WARM_UP:
            self._warm += 1
            return self._recorder.rehearse(self._step)
        if self._losses:
            self._recorder.replay()
        else:
            before = self._counted()
            self._losses = self._recorder.record(self._step)
            self._recorder.replay()
            if self._counted() != before + 1:
                raise BackendError(
                    "the step that was recorded as a CUDA graph trains nothing when it is "
                    "replayed; leave cuda_graphs out, and report it"
                )
        # The next replay writes into the same ones.
        return {name: loss.clone() for name, loss in self._losses.items()}

    def _step(self) -> dict[str, Tensor]:
        assert self._reals is not None
        return self._body(*self._reals)
