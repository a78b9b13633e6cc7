"""Run an engine on a GPU: an execution context, with its stream and buffers."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, SupportsInt

from ...errors import BackendError, ModelError, OutOfMemoryError
from ...frames import BatchShape, Pixels
from ...models.engine_card import EngineCard, Machine, Profile
from ...models.model import INPUT, OUTPUT, ModelCard
from ...wording import printable
from ..cuda import Buffers, Cuda, Recorded
from .library import created, error_recorder, import_tensorrt, logger


def machine_of(cuda: Cuda, trt: ModuleType) -> Machine:
    """Return the properties of this machine that an engine built on it depends on."""
    properties = cuda.call("cudaGetDeviceProperties", cuda.index)
    name = properties.name.decode(errors="replace").rstrip("\0")
    return Machine(
        name,
        (int(properties.major), int(properties.minor)),
        str(trt.__version__),
        int(properties.multiProcessorCount),
        round(int(properties.totalGlobalMem) / 2**30),
    )


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
    """An execution context with its own CUDA stream, and buffers for frames of one shape.

    A call of `infer` waits for its batch, so a context leaves the GPU idle while the host copies.
    Several contexts fill that gap, as two slots within one context would, without a protocol in
    which a batch is sent before the one before it has come back.
    """

    def __init__(self, cuda: Cuda, engine: Engine, card: ModelCard, *, graph: bool = True) -> None:
        """Open a context of ``engine``; ``graph``: replay each shape's work as a CUDA graph."""
        self.engine = engine
        self._cuda, self._card, self._graph = cuda, card, graph
        self._shape: BatchShape | None = None
        self._buffers: Buffers | None = None
        self._work: Recorded | None = None
        self._stream: SupportsInt | None = None
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
        self._stream = cuda.stream()

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``, whose shape the profile covers. Raises BackendError, ModelError."""
        shape = shape_of(frames)
        if shape != self._shape:
            self._prepare(shape, frames)
        assert self._buffers is not None
        try:
            self._buffers.put(frames)
            if self._work is not None:
                self._work.run()
            else:
                self._enqueue()
            return self._buffers.result(frames)
        except OutOfMemoryError as error:
            raise self._no_memory(shape) from error

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

    def _enqueue(self) -> None:
        """Enqueue the copy to the GPU, the network and the copy back. Raises BackendError."""
        assert self._buffers is not None
        assert self._shape is not None
        assert self._stream is not None
        self._errors.clear()
        self._buffers.send()
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._failed(self._shape)
        self._buffers.fetch()

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
            self._buffers = Buffers(self._cuda, self._stream, frames.nbytes)
            # The context requires a pointer even where it needs no memory.
            context.set_device_memory(self._buffers.on_device(scratch), scratch)
        except OutOfMemoryError as error:
            raise self._no_memory(shape) from error
        # set_device_memory returns nothing; only the recorder shows a failure.
        if self._errors.num_errors():
            raise self._failed(shape)
        addresses = ((INPUT, self._buffers.device_in), (OUTPUT, self._buffers.device_out))
        for name, address in addresses:
            if not context.set_tensor_address(name, address):
                raise self._failed(shape)
        self._shape = shape
        if self._graph:
            # A graph is bound to the context's shape and addresses: each shape has a new one.
            self._work = Recorded(self._cuda, self._stream, self._enqueue)

    def _release(self) -> None:
        self._shape = None
        if self._work is not None:
            self._work.close()
            self._work = None
        if self._buffers is not None:
            self._buffers.close()
            self._buffers = None

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
