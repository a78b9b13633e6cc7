"""The CUDA runtime, for backends that copy frames to a GPU and back and launch the work themselves.

Experimental: this module has never run on a GPU; its control flow is tested on a stand-in.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, SupportsInt

import numpy as np

from ..errors import BackendError, BackendUnavailableError, OutOfMemoryError
from ..frames import Pixels
from .common import is_out_of_memory


class Cuda:
    """The CUDA runtime on one device; its error codes become exceptions of `errors`."""

    def __init__(self, device: str, user: str) -> None:
        """Take the device ``cuda[:N]`` or ``auto``; ``user`` is the backend, named in messages."""
        self.index = int(device.partition(":")[2] or 0)
        try:
            self.runtime = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise BackendUnavailableError(
                f"{user} needs cuda-bindings, which cannot be loaded ({error}); pip install "
                '"cuda-bindings>=13,<14"'
            ) from error
        try:
            count = self.call("cudaGetDeviceCount")
        except BackendError as error:
            raise BackendUnavailableError(
                f"{user} finds no NVIDIA GPU that it can use: {error}; see cyclegan-batch doctor, "
                "or pass --backend auto"
            ) from error
        if self.index >= count:
            raise BackendUnavailableError(
                f"{user} was asked for cuda:{self.index} and this machine has {count} NVIDIA "
                "GPUs, the first of them cuda:0; pass another --device"
            )

    def use(self) -> None:
        """Make the device the current device of the calling thread."""
        self.call("cudaSetDevice", self.index)

    def stream(self) -> SupportsInt:
        """Return a new stream, which does not wait for the default stream."""
        stream: SupportsInt = self.call(
            "cudaStreamCreateWithFlags", self.runtime.cudaStreamNonBlocking
        )
        return stream

    def call(self, name: str, *arguments: object) -> Any:
        """Call a function of the runtime and return its result. Raises BackendError."""
        code, *results = getattr(self.runtime, name)(*arguments)
        if int(code) != 0:
            reason = code.name
            with contextlib.suppress(Exception):
                reason += f", {self.runtime.cudaGetErrorString(code)[1].decode()}"
            error = OutOfMemoryError if is_out_of_memory(RuntimeError(reason)) else BackendError
            raise error(f"{name}: {reason}")
        return results[0] if results else None


class Buffers:
    """Memory for one batch of frames on its way to the GPU and back, all copies on one stream.

    The host's part is page-locked: only with such memory cudaMemcpyAsync is asynchronous.
    """

    def __init__(self, cuda: Cuda, stream: object, size: int) -> None:
        """Allocate for frames of ``size`` bytes. Raises OutOfMemoryError."""
        self._cuda, self._stream, self._size = cuda, stream, size
        self._releases: list[Callable[[], None]] = []
        """A function for each allocation that releases it."""
        try:
            self.device_in, self.device_out = self.on_device(size), self.on_device(size)
            """The addresses of the frames, and of their translation."""
            self._host_in, self._host_out = self._on_host(size), self._on_host(size)
        except BackendError:
            self.close()
            raise

    def on_device(self, size: int) -> int:
        """Return the address of ``size`` more bytes on the GPU, released with the others."""
        # cudaMalloc(0) returns no pointer.
        address = int(self._cuda.call("cudaMalloc", max(size, 1)))
        self._releases.append(lambda: self._cuda.call("cudaFree", address))
        return address

    def put(self, frames: Pixels) -> None:
        """Copy ``frames`` into page-locked memory."""
        self._host_in[:] = frames.reshape(-1).view(np.uint8)

    def send(self) -> None:
        """Enqueue the copy of what was `put` to the GPU."""
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        source = self._host_in.ctypes.data
        self._cuda.call("cudaMemcpyAsync", self.device_in, source, self._size, kind, self._stream)

    def fetch(self) -> None:
        """Enqueue the copy of the translation from the GPU."""
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        target = self._host_out.ctypes.data
        self._cuda.call("cudaMemcpyAsync", target, self.device_out, self._size, kind, self._stream)

    def result(self, frames: Pixels) -> Pixels:
        """Wait for the stream, and return a copy of what was fetched, of the form of ``frames``."""
        self._cuda.call("cudaStreamSynchronize", self._stream)
        # The next call writes into the same memory.
        return self._host_out.view(frames.dtype).reshape(frames.shape).copy()

    def close(self) -> None:
        """Release all memory; errors of CUDA are ignored. A second call does nothing."""
        while self._releases:
            with contextlib.suppress(BackendError):
                self._releases.pop()()

    def _on_host(self, size: int) -> Pixels:
        address = int(self._cuda.call("cudaMallocHost", size))
        self._releases.append(lambda: self._cuda.call("cudaFreeHost", address))
        memory: Pixels = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return memory


class Recorded:
    """Work that is enqueued as it is the first time, then recorded as a CUDA graph and replayed.

    The first time is a warm-up: libraries choose their kernels and allocate their memory in it,
    which they cannot do while a stream is recorded. What enqueues the work must use the same
    addresses each time. Where CUDA refuses to record it, it is enqueued as it is every time.
    """

    def __init__(self, cuda: Cuda, stream: object, enqueue: Callable[[], None]) -> None:
        self._cuda, self._stream, self._enqueue = cuda, stream, enqueue
        self._warm = self._refused = False
        self._graph: object = None

    def run(self) -> None:
        """Enqueue the work. Raises BackendError."""
        if self._warm and not self._refused and self._graph is None:
            self._record()
        if self._graph is not None:
            self._cuda.call("cudaGraphLaunch", self._graph, self._stream)
            return
        self._enqueue()
        self._warm = True

    def close(self) -> None:
        """Release the graph; errors of CUDA are ignored. A second call does nothing."""
        if self._graph is not None:
            with contextlib.suppress(BackendError):
                self._cuda.call("cudaGraphExecDestroy", self._graph)
            self._graph = None

    def _record(self) -> None:
        cuda, runtime = self._cuda, self._cuda.runtime
        # In this mode other threads may allocate memory meanwhile, as other contexts do.
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        graph: object = None
        try:
            cuda.call("cudaStreamBeginCapture", self._stream, mode)
            try:
                self._enqueue()
            except BackendError:
                # The stream stays in capture mode until this call, which fails as well.
                with contextlib.suppress(BackendError):
                    graph = cuda.call("cudaStreamEndCapture", self._stream)
                raise
            graph = cuda.call("cudaStreamEndCapture", self._stream)
            self._graph = cuda.call("cudaGraphInstantiate", graph, 0)
        except OutOfMemoryError:
            raise
        except BackendError:
            self._refused = True
        finally:
            if graph is not None:
                with contextlib.suppress(BackendError):
                    cuda.call("cudaGraphDestroy", graph)


class Turns:
    """Lets any number of threads work at a time, or one alone.

    onnxruntime may record a graph in the mode in which an allocation by any other thread makes the
    recording fail, so that thread has to be alone on the GPU meanwhile.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together = self._alone = 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Work beside others."""
        with self._changed:
            # Those who wait to be alone come first, or they might wait for ever.
            self._changed.wait_for(lambda: not self._alone)
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Work while nobody else does."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone += 1
            self._changed.wait_for(lambda: not self._together)
        try:
            yield
        finally:
            with self._changed:
                self._alone -= 1
                self._changed.notify_all()
