"""The device that a training computes on: which it is, its arithmetic, and its streams."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from cyclegan_batch.errors import BackendUnavailableError

from .config import TrainConfig
from .distributed import Ranks

_T = TypeVar("_T")


def device_named(name: str, ranks: Ranks) -> torch.device:
    """Return the device of this process for ``auto``, ``cpu`` or ``cuda[:N]``.

    Raises ValueError for other names, BackendUnavailableError for a device that is missing.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.size > 1 and name == "cuda":
        name = f"cuda:{ranks.local}"
    elif ranks.size > 1 and name.startswith("cuda"):
        raise ValueError(f"device = {name!r} is one GPU for {ranks.size} processes; use cuda")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device = {name!r} is none of auto, cpu, cuda[:N]") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device = {name!r} is none of auto, cpu, cuda[:N]")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendUnavailableError(
            f"cannot train on {name!r}: torch sees {torch.cuda.device_count()} CUDA devices; "
            "check nvidia-smi and that torch is built for CUDA, or use cpu"
        )
    return device


@contextlib.contextmanager
def cudnn_benchmark(one_size: bool) -> Iterator[None]:
    """Let cuDNN search the fastest kernels, as the reference does, where all sizes are the same."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or one_size
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def float32_as(how: str) -> Iterator[None]:
    """Let CUDA multiply float32 as ``ieee`` or ``tf32`` in the block, in the whole process.

    torch's own default for convolutions is tf32, which keeps 10 of the mantissa's 23 bits.
    """
    backends: Any = torch.backends
    groups = (
        (backends.cudnn, (backends.cudnn.conv, backends.cudnn.rnn)),
        (backends.cuda.matmul, (backends.cuda.matmul,)),
    )
    before: list[tuple[bool | None, list[str]]] = []
    for group, switches in groups:
        try:
            allowed = group.allow_tf32
        except RuntimeError:  # the caller has set one of torch's two switches, not the other
            allowed = None
        before.append((allowed, [switch.fp32_precision for switch in switches]))
        # Set both: torch.compile reads the older switch, and raises where the two contradict.
        group.allow_tf32 = how == "tf32"
        for switch in switches:
            switch.fp32_precision = how
    try:
        yield
    finally:
        for (group, switches), (allowed, precisions) in zip(groups, before, strict=True):
            if allowed is not None:
                group.allow_tf32 = allowed
            for switch, precision in zip(switches, precisions, strict=True):
                switch.fp32_precision = precision


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """Return values whose copy to ``device`` does not make the host wait.

    CUDA copies asynchronously from pinned memory only; torch frees that when the copy is done.
    """
    return values.pin_memory() if device.type == "cuda" and values.device.type == "cpu" else values


class Both(Protocol):
    """How two pieces of work are done of which neither needs a result of the other."""

    def __call__(self, one: Callable[[], _T], other: Callable[[], _T]) -> tuple[_T, _T]:
        """Return the results of both."""


def in_turn(one: Callable[[], _T], other: Callable[[], _T]) -> tuple[_T, _T]:
    """Do one piece of work after the other, in this order."""
    return one(), other()


class TwoStreams:
    """Does two pieces of work on two streams of a CUDA device, which can compute them at once.

    The host launches all of the first one, on the current stream, and then the second one on a
    stream of its own, so draws have the order of `in_turn`. What was launched before is ready for
    both, and what is launched afterwards waits for both. Neither may read what the other computes.
    So autocast, which keeps the weights that it has converted, must be entered and left within a
    piece. The backward pass of an operation runs on the stream of its forward pass. Where a
    gradient goes from one stream to the other, torch lets that one wait, and keeps the memory for
    it (``InputBuffer::add`` of its autograd engine).

    Results of the second one may be used and freed like all others: since the second stream
    continues only with the next pair, which waits for the current stream, it cannot reuse memory
    that is still being read. Experimental: never run on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, one: Callable[[], _T], other: Callable[[], _T]) -> tuple[_T, _T]:
        """Return the results of both. The device must be current."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        first = one()
        with torch.cuda.stream(self._stream):
            second = other()
        current.wait_stream(self._stream)
        return first, second


def both_of(config: TrainConfig, device: torch.device) -> Both:
    """Return what runs the work of both directions of a step: two streams with CUDA graphs.

    Without a recording the GPU waits for the host at batch 1, and a second stream gains nothing.
    The running statistics of BatchNorm are written by both directions, so they are done in turn.
    """
    recorded = config.cuda_graphs and device.type == "cuda"
    return TwoStreams(device) if recorded and config.norm in ("instance", "none") else in_turn
