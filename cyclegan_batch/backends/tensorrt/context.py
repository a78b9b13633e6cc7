"""Run an engine on a GPU: an execution context, and the CUDA runtime that it uses."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ...errors import BackendError, BackendUnavailableError, ModelError, OutOfMemoryError
from ...frames import BatchShape, Pixels
from ...models.engine_card import EngineCard, Machine, Profile
from ...models.model import INPUT, OUTPUT, ModelCard
from ...wording import printable
from ..common import is_out_of_memory
from .library import created, error_recorder, import_tensorrt, logger


class Cuda:
    """The CUDA runtime on one device; its error codes become exceptions of `errors`."""

    def __init__(self, device: str) -> None:
        if device == "cpu":
            raise BackendUnavailableError(
                "tensorrt was asked for cpu and runs on NVIDIA GPUs only; pass --backend auto, or "
                "--device cuda"
            )
        self.index = int(device.partition(":")[2] or 0)
        try:
            self.runtime = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise BackendUnavailableError(
                f"tensorrt needs cuda-bindings, which cannot be loaded ({error}); pip install "
                '"cyclegan-batch[tensorrt]"'
            ) from error
        try:
            count = self.call("cudaGetDeviceCount")
        except BackendError as error:
            raise BackendUnavailableError(
                f"tensorrt finds no NVIDIA GPU that it can use: {error}; see cyclegan-batch "
                "doctor, or pass --backend auto"
            ) from error
        if self.index >= count:
            raise BackendUnavailableError(
                f"tensorrt was asked for cuda:{self.index} and this machine has {count} NVIDIA "
                "GPUs, the first of them cuda:0; pass another --device"
            )

    def use(self) -> None:
        """Make the device the current device of the calling thread."""
        self.call("cudaSetDevice", self.index)

    def machine(self, trt: ModuleType) -> Machine:
        """Return the properties of this machine that an engine built on it depends on."""
        properties = self.call("cudaGetDeviceProperties", self.index)
        name = properties.name.decode(errors="replace").rstrip("\0")
        return Machine(
            name,
            (int(properties.major), int(properties.minor)),
            str(trt.__version__),
            int(properties.multiProcessorCount),
            round(int(properties.totalGlobalMem) / 2**30),
        )

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


@dataclass(frozen=True, eq=False)
class Engine:
    """An engine that TensorRT has loaded."""

    engine: Any
    runtime: Any
    """The TensorRT runtime that loaded it, which must outlive the engine."""
    card: EngineCard

    @property
    def profile(self) -> Profile:
        """The shapes of frames that the engine takes."""
        return self.card.build.profile


class Context:
    """An execution context with its own CUDA stream, and buffers for frames of one shape."""

    def __init__(self, cuda: Cuda, engine: Engine, card: ModelCard) -> None:
        self.engine = engine
        self._cuda, self._card = cuda, card
        self._shape: BatchShape | None = None
        self._buffers: list[Callable[[], None]] = []
        """A function for each allocated buffer that releases it."""
        self._stream: Any = None
        trt = import_tensorrt()
        log = logger(trt)
        log.clear()
        # USER_MANAGED: `_prepare` allocates scratch memory for the current shape. TensorRT itself
        # would allocate it for the profile's largest shape, and a halved batch would free nothing.
        self._context = created(
            lambda: engine.engine.create_execution_context(
                trt.ExecutionContextAllocationStrategy.USER_MANAGED
            ),
            f"tensorrt cannot create a context of {printable(card.path)}",
            log,
        )
        # Set after `_context`: attributes are released in this order, and the context keeps a
        # pointer to its recorder.
        self._errors = error_recorder(trt)
        self._context.error_recorder = self._errors
        self._stream = cuda.call("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``, whose shape the profile covers. Raises BackendError, ModelError."""
        shape, cuda = shape_of(frames), self._cuda
        if shape != self._shape:
            self._prepare(shape, frames)
        self._host_in[:] = frames.reshape(-1).view(np.uint8)
        kind, size = cuda.runtime.cudaMemcpyKind, frames.nbytes
        cuda.call(
            "cudaMemcpyAsync", self._device_in, self._host_in.ctypes.data, size,
            kind.cudaMemcpyHostToDevice, self._stream,
        )  # fmt: skip
        self._errors.clear()
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._failed(shape)
        cuda.call(
            "cudaMemcpyAsync", self._host_out.ctypes.data, self._device_out, size,
            kind.cudaMemcpyDeviceToHost, self._stream,
        )  # fmt: skip
        cuda.call("cudaStreamSynchronize", self._stream)
        # The next call writes into the same memory.
        return self._host_out.view(frames.dtype).reshape(frames.shape).copy()

    def close(self) -> None:
        """Release everything; errors of CUDA are ignored. A second call does nothing."""
        with contextlib.suppress(BackendError):
            self._cuda.use()
        self._release()
        self._context = None
        if self._stream is not None:
            with contextlib.suppress(BackendError):
                self._cuda.call("cudaStreamDestroy", self._stream)
            self._stream = None

    def _prepare(self, shape: BatchShape, frames: Pixels) -> None:
        """Set the shape and allocate its buffers. Raises OutOfMemoryError, BackendError."""
        self._release()
        context = self._context
        self._errors.clear()
        if not context.set_input_shape(INPUT, (*shape, 3)):
            raise self._failed(shape)
        out = tuple(context.get_tensor_shape(OUTPUT))
        if out != frames.shape:
            raise ModelError(
                f"{printable(self._card.path)}: returns {out} for {frames.shape} where a generator "
                "keeps the size; it cannot translate images"
            )
        scratch = int(context.update_device_memory_size_for_shapes())
        if scratch == 0 and self._errors.num_errors():
            raise self._failed(shape)
        try:
            # cudaMalloc(0) returns no pointer, and the context requires one: allocate at least one
            # byte.
            context.set_device_memory(self._on_device(max(scratch, 1)), scratch)
            # set_device_memory returns nothing; only the recorder shows a failure.
            if self._errors.num_errors():
                raise self._failed(shape)
            self._device_in = self._on_device(frames.nbytes)
            self._device_out = self._on_device(frames.nbytes)
            self._host_in = self._on_host(frames.nbytes)
            self._host_out = self._on_host(frames.nbytes)
        except OutOfMemoryError as error:
            raise self._no_memory(shape) from error
        for name, address in ((INPUT, self._device_in), (OUTPUT, self._device_out)):
            if not context.set_tensor_address(name, address):
                raise self._failed(shape)
        self._shape = shape

    def _on_device(self, size: int) -> int:
        address = int(self._cuda.call("cudaMalloc", size))
        self._buffers.append(lambda: self._cuda.call("cudaFree", address))
        return address

    def _on_host(self, size: int) -> Pixels:
        """Return page-locked memory; only with such memory cudaMemcpyAsync is asynchronous."""
        address = int(self._cuda.call("cudaMallocHost", size))
        self._buffers.append(lambda: self._cuda.call("cudaFreeHost", address))
        memory: Pixels = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return memory

    def _release(self) -> None:
        self._shape = None
        while self._buffers:
            with contextlib.suppress(BackendError):
                self._buffers.pop()()

    def _failed(self, shape: BatchShape) -> BackendError:
        reason = self._errors.words()
        if self._errors.out_of_memory():
            return self._no_memory(shape)
        return BackendError(
            f"tensorrt: {printable(self._card.path)} fails on frames of {shape_words(shape)} "
            f"(N,H,W): {reason or 'no reason given'}; try --backend onnxruntime"
        )

    def _no_memory(self, shape: BatchShape) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"tensorrt: no memory on cuda:{self._cuda.index} for a batch of {shape_words(shape)} "
            "(N,H,W)"
        )


def shape_of(frames: Pixels) -> BatchShape:
    """Return the count, height and width of ``frames``."""
    count, height, width = frames.shape[:3]
    return count, height, width


def shape_words(shape: BatchShape) -> str:
    """Return ``shape`` as ``N,H,W`` for a message."""
    return ",".join(map(str, shape))
