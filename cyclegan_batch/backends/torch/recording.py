"""Batches on a GPU: one stream, pinned memory on both ends, and a CUDA graph for each shape.

A graph launches all kernels of a batch at once; at 256² they take less time than Python takes to
launch them one by one. What a graph reads and writes lies at fixed addresses.

Of two contexts one copies while the other computes, so a context has one batch under way and one
pinned input, which is free again when `infer` returns. The results are handed out in pinned memory
of their own and are never written again: torch keeps such memory and lends it again once the array
is gone, so there are as many as the pipeline's queues hold, and nothing is copied on the host.

**Experimental: this module was never run on a GPU**; its control flow is tested on a stand-in.
"""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...frames import Pixels
from ...wording import first_line
from ..common import is_out_of_memory
from .settings import CUDA_SETTING

MOST_GRAPHS = 8
"""The most graphs of a context. They share their memory, which is that of the largest one or a
little more; what each has for itself is its frames and its list of kernels."""

_MOST_SHAPES = 256
"""The most shapes that a context remembers to have seen once."""

_CAPTURE = threading.Lock()
"""Held while a context records, frees memory, or closes.

torch allows one capture at a time in a process, and a wait for the whole device, which freeing
memory implies, breaks a capture whatever its error mode is.
"""


class _NotRecordedError(Exception):
    """A capture failed for another reason than memory."""


@dataclass
class _Recorded:
    """A graph, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    frames: Tensor
    translated: Tensor


class CudaBatches:
    """Runs a function on frames on one CUDA device, for one thread at a time."""

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        device: str,
        arithmetic: str,
        *,
        search: bool,
        launch: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Take what translates frames ``(N, H, W, 3)`` on the device.

        ``launch``: the same for a shape that is seen once, where ``compute`` compiles each shape.
        ``arithmetic``: how float32 is multiplied, ``ieee`` or ``tf32``. ``search``: see
        `CudaSetting`; it is done before a graph is recorded.
        """
        self._compute, self._launch, self._device = compute, launch or compute, device
        self._arithmetic, self._search = arithmetic, search
        self._graphs: OrderedDict[tuple[int, ...], _Recorded] = OrderedDict()
        self._seen: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self._input: Tensor | None = None
        self.not_recorded: str | None = None
        """Why batches are launched kernel by kernel; None where they are recorded."""
        with torch.cuda.device(self._device):
            self._stream = self._new_stream()
            # A blocking event: a waiting thread leaves its core to decoders and encoders.
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def __call__(self, frames: Pixels) -> Pixels:
        """Translate ``frames``; the result is a new array in pinned memory.

        The first batch of a shape is launched kernel by kernel, the second is recorded, the others
        replay it. Where recording fails, it and all later ones are launched. Where memory fails and
        graphs hold some, it is tried once more without them. Raises what torch raises; after that
        the next call works.
        """
        with torch.cuda.device(self._device), torch.inference_mode():
            try:
                return self._translated(frames)
            except _NotRecordedError as error:
                self.not_recorded = f"recording one fails: {first_line(error)}"
            except (RuntimeError, MemoryError) as error:
                # What was enqueued still reads the pinned input, which the next call writes.
                with contextlib.suppress(RuntimeError):
                    self._stream.synchronize()
                # The tensors of the call that failed would be kept as long as the error is.
                for each in _with_origins(error):
                    traceback.clear_frames(each.__traceback__)
                if not memory_failed(error):
                    raise
                held = bool(self._graphs)
                self._free()
                if not held:
                    raise
            return self._translated(frames)

    def launch_always(self, reason: str) -> None:
        """Record no more; ``reason`` becomes `not_recorded`."""
        self.not_recorded = reason
        with torch.cuda.device(self._device):
            self._free()

    def close(self) -> None:
        """Free graphs and memory. A second call does nothing."""
        if self._input is not None or self._graphs:
            self._input = None
            with torch.cuda.device(self._device):
                self._free()

    def _translated(self, frames: Pixels) -> Pixels:
        with torch.cuda.stream(self._stream):
            sent = self._pinned(frames)
            out = self._out(sent)
            back = _pinned_memory(out.shape, out.dtype)
            back.copy_(out, non_blocking=True)
            self._done.record(self._stream)
        # Waits without the interpreter's lock; errors of the kernels are raised here as well.
        self._done.synchronize()
        return back.numpy()

    def _pinned(self, frames: Pixels) -> Tensor:
        """Copy ``frames`` into the pinned input, which is enlarged where it is too small."""
        # torch warns about read-only arrays, and refuses negative strides.
        source = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
        size = source.numel() * source.element_size()
        if self._input is None or self._input.numel() < size:
            self._input = None
            self._input = _pinned_memory((size,), torch.uint8)
        sent = self._input[:size].view(source.dtype).view(source.shape)
        sent.copy_(source)
        return sent

    def _out(self, sent: Tensor) -> Tensor:
        """Enqueue the translation of ``sent``; return where it will be, on the device."""
        shape = (*sent.shape, sent.element_size())
        recorded = self._graphs.get(shape)
        if recorded is None and shape in self._seen and self.not_recorded is None:
            recorded = self._record(shape, sent)
        if recorded is None:
            self._seen[shape] = None
            self._seen.move_to_end(shape)
            if len(self._seen) > _MOST_SHAPES:
                self._seen.popitem(last=False)
            with CUDA_SETTING.set_to(self._arithmetic):
                return self._launch(sent.to(self._device, non_blocking=True))
        self._graphs.move_to_end(shape)
        recorded.frames.copy_(sent, non_blocking=True)
        recorded.graph.replay()
        return recorded.translated

    def _record(self, shape: tuple[int, ...], sent: Tensor) -> _Recorded:
        """Record a graph for ``shape``. Raises _NotRecordedError, and what torch raises."""
        with _CAPTURE, CUDA_SETTING.set_to(self._arithmetic, search=self._search):
            while len(self._graphs) >= MOST_GRAPHS:
                # A shape that comes back is recorded again at its second batch.
                oldest, left = self._graphs.popitem(last=False)
                self._seen.pop(oldest, None)
                left.graph.reset()
            frames = sent.to(self._device, non_blocking=True)
            # Libraries choose their kernels and load them, which a capture forbids.
            self._compute(frames)
            pool = (
                next((each.graph.pool() for each in self._graphs.values()), None)
                or torch.cuda.graph_pool_handle()
            )
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads go on copying and allocating, which only this mode allows them.
                with torch.cuda.graph(
                    graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    translated = self._compute(frames)
            except RuntimeError as error:
                # The stream of a broken capture is not used again, not by this call either.
                self._stream = self._new_stream()
                if memory_failed(error):
                    raise
                raise _NotRecordedError(str(error)) from error
        self._graphs[shape] = recorded = _Recorded(graph, frames, translated)
        return recorded

    def _free(self) -> None:
        """Drop all graphs, and give torch's unused memory back to the device."""
        with _CAPTURE:
            for recorded in self._graphs.values():
                recorded.graph.reset()
            self._graphs.clear()
            self._seen.clear()
            torch.cuda.empty_cache()

    def _new_stream(self) -> torch.cuda.Stream:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # The weights may still be on their way: no stream of torch waits for another by itself.
        stream.wait_stream(torch.cuda.current_stream(self._device))
        return stream


def _pinned_memory(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return host memory that a GPU copies to and from by itself; torch keeps and reuses it."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def memory_failed(error: BaseException) -> bool:
    """Tell whether ``error``, or one that it came from, is an allocation that failed.

    Where memory fails within a capture, torch may raise that the capture is invalid, after it.
    """
    return any(
        isinstance(each, torch.OutOfMemoryError) or is_out_of_memory(each)
        for each in _with_origins(error)
    )


def _with_origins(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
