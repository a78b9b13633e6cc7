"""A whole optimisation step as one CUDA graph: recorded once, then replayed without the host.

At batch 1 a GPU waits for the host, which launches a few thousand kernels in a step. A graph
launches them all at once. In return, everything that differs from step to step must be in tensors
whose addresses do not change: the images, the learning rate, and the draws of the pools. The draws
are therefore made before the step, in the same order as without a graph, and the pools exchange
images by the same few kernels whatever was drawn.

Without CUDA the same lines run and nothing is recorded; the tests compare them with `ImagePool` in
this way, bit for bit. **The recording is experimental: it was never run on a GPU.**
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from cyclegan_batch.errors import BackendError

from .devices import pinned
from .pool import draw_place

Body: TypeAlias = Callable[[], dict[str, Tensor]]
"""A step on images at fixed addresses; it returns its losses."""

_WARM_UP = 3
"""Steps before the recording: libraries choose their kernels, and Adam creates its state."""


class DevicePool:
    """An `ImagePool` whose images are one tensor, and whose exchange does not involve the host.

    Call ``draw`` before the step that calls ``query``; all images have one shape and type.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self._device = size, device
        self._filled = 0
        # ``(size + 1, C, H, W)``; images that the pool does not store go to the last place.
        self._images: Tensor | None = None
        self._places: Tensor | None = None
        self._returns_old: Tensor | None = None

    def draw(self, count: int) -> None:
        """Draw the places of the next ``count`` images from Python's random state."""
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
        for fixed, drawn in ((self._places, places), (self._returns_old, returns_old)):
            values = pinned(torch.tensor(drawn).view(fixed.shape), self._device)
            fixed.copy_(values, non_blocking=True)

    def query(self, images: Tensor) -> Tensor:
        """Return as many images as it is given, ``(N, C, H, W)``, without a graph."""
        images = images.detach()
        if self.size == 0:
            return images
        assert self._places is not None
        assert self._returns_old is not None
        if self._images is None:
            self._images = images.new_zeros(self.size + 1, *images.shape[1:])
        out = []
        # One by one: an image may replace another one of the same batch.
        for number, image in enumerate(torch.split(images, 1)):
            place = self._places[number : number + 1]
            old = self._images.index_select(0, place)
            self._images.index_copy_(0, place, image)
            out.append(torch.where(self._returns_old[number], old, image))
        return torch.cat(out)

    def state_dict(self) -> list[Tensor]:
        """Return the stored images in their order, as `ImagePool` does."""
        if self._images is None:
            return []
        return list(torch.split(self._images[: self._filled].clone(), 1))

    def load_state_dict(self, images: Sequence[Tensor], device: torch.device) -> None:
        """Restore the images of `state_dict`. Raises ValueError if there are more than fit."""
        if len(images) > self.size:
            raise ValueError(f"{len(images)} stored images for a pool of {self.size}")
        self._filled, self._images = len(images), None
        if images:
            spare = [torch.zeros_like(images[0])] * (self.size + 1 - len(images))
            self._images = torch.cat([*images, *spare]).to(device)


class Recorder(Protocol):
    """How a `GraphedStep` records."""

    def rehearse(self, body: Body) -> dict[str, Tensor]:
        """Run a step without recording it, under the conditions of a recording."""

    def record(self, body: Body) -> dict[str, Tensor]:
        """Record a step without running it; return the tensors that a replay writes losses into."""

    def replay(self) -> None:
        """Run the recorded step."""


class CudaRecorder:
    """Records on one CUDA device. Experimental: never run on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # torch's default capture stream belongs to whichever device first recorded anything.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph = torch.cuda.CUDAGraph()

    def rehearse(self, body: Body) -> dict[str, Tensor]:
        """Run a step on the stream of the recording, which can then reuse its memory."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            # torch warns that a capturable optimiser runs uncaptured, and, at its first backward
            # pass, that a gradient comes from another stream; here both are intended.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
            losses = body()
        current.wait_stream(self._stream)
        return losses

    def record(self, body: Body) -> dict[str, Tensor]:
        """Record a step. Its device must be current, since Adam checks the current stream."""
        with torch.cuda.graph(self._graph, stream=self._stream):
            return body()

    def replay(self) -> None:
        """Run the recorded step on the current stream."""
        self._graph.replay()


class GraphedStep:
    """Runs ``body`` on images at fixed addresses, by replaying a recording of it.

    ``body`` takes real_A and real_B, queries the ``pools`` (that of fake_B first) and returns
    scalars by name, all without the host. The first steps run without a recording; where
    ``new_recorder`` is None, all do. ``adam_steps`` returns the optimisers' own count of their
    steps, which is on the device: a replay must increase it.
    """

    def __init__(
        self,
        body: Callable[[Tensor, Tensor], dict[str, Tensor]],
        pools: tuple[DevicePool, DevicePool],
        adam_steps: Callable[[], float],
        new_recorder: Callable[[], Recorder] | None,
    ) -> None:
        self._body, self._pools, self._adam_steps = body, pools, adam_steps
        self._new_recorder = new_recorder
        self._reals: tuple[Tensor, Tensor] | None = None
        self.reset()

    def reset(self) -> None:
        """Drop the recording, because tensors that it reads or writes have been replaced."""
        self._recorder = self._new_recorder() if self._new_recorder else None
        self._losses: dict[str, Tensor] = {}
        self._warm = 0

    def __call__(self, real_A: Tensor, real_B: Tensor) -> dict[str, Tensor]:
        """Do one step.

        Raises ValueError for images of another shape than the first ones, BackendError where a
        replay of the recording computes nothing.
        """
        if self._reals is None:
            self._reals = (real_A.clone(), real_B.clone())
        for fixed, real in zip(self._reals, (real_A, real_B), strict=True):
            if fixed.shape != real.shape:
                raise ValueError(
                    f"cuda_graphs replays one shape, {tuple(fixed.shape)}, and was given "
                    f"{tuple(real.shape)}; crop to one size, or leave it out"
                )
            fixed.copy_(real)
        # fake_B has as many images as real_A.
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
            before = self._adam_steps()
            self._losses = self._recorder.record(self._step)
            self._recorder.replay()
            if self._adam_steps() != before + 1:
                raise BackendError(
                    "the step that was recorded as a CUDA graph trains nothing when it is "
                    "replayed; leave cuda_graphs out, and report it"
                )
        # Clone: the next replay writes into the same tensors.
        return {name: loss.clone() for name, loss in self._losses.items()}

    def _step(self) -> dict[str, Tensor]:
        assert self._reals is not None
        return self._body(*self._reals)
