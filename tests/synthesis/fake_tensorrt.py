"""Stand-ins for the modules ``tensorrt`` and ``cuda.bindings.runtime``, for tests without a GPU.

They have the names that the product uses, which tests look up in the real bindings. "GPU memory" is
memory of this process, an engine is its ONNX, and numpy runs it.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from . import generators

_MAGIC = b"fake engine\n"


@dataclass
class Gpu:
    """The only GPU, what happened on it, and what shall go wrong."""

    name: bytes = b"NVIDIA Fake 1"
    major: int = 8
    minor: int = 6
    memory: int = 2**30
    multiprocessors: int = 84
    version: str = "11.4.0.106"
    builds: list[SimpleNamespace] = field(default_factory=list)
    opened: list[bytes] = field(default_factory=list)
    live: dict[int, Any] = field(default_factory=dict)
    """The allocated memory, by its address."""
    streams: int = 0
    recordings: dict[Any, list[Callable[[], Any]]] = field(default_factory=dict)
    """What was enqueued on each stream that is being recorded."""
    begun: int = 0
    """How often a recording began."""
    graphs: int = 0
    launches: int = 0
    building: Callable[[], Any] = lambda: None
    """Called in the middle of a build."""
    refuse: dict[str, str] = field(default_factory=dict)
    """The calls that fail, returning None or False, and the error that each of them reports:
    builder, parse, build, open, context, shape, size, memory, enqueue, record. The last five are
    calls of a context; record is enqueue on a stream that is being recorded."""
    reported: Callable[[], Any] = lambda: None
    """Called after an error was reported and before the failing call returns."""
    code: str = "UNSPECIFIED_ERROR"
    """The error code that a context reports."""
    layers: str = '{"Layers": [{"Name": "a", "Inputs": [{"Format/Datatype": "Half"}]}, {}]}'
    add: int = 0
    """Added to every pixel, for a GPU that computes something else."""

    def enqueue(self, stream: Any, work: Callable[[], Any]) -> None:
        """Do ``work``, or append it where the stream is being recorded."""
        if stream in self.recordings:
            self.recordings[stream].append(work)
        else:
            work()


def install(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None = None) -> Gpu:
    """Put the stand-ins where ``import`` finds them, and return their GPU."""
    gpu = install_cuda(monkeypatch, gpu)
    module = _tensorrt(gpu)
    # torch looks at the spec of ``tensorrt``.
    module.__spec__ = ModuleSpec("tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return gpu


def install_cuda(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None = None) -> Gpu:
    """Put the stand-in for the CUDA runtime alone where ``import`` finds it."""
    gpu = gpu or Gpu()
    cuda, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    modules = {"cuda": cuda, "cuda.bindings": bindings, "cuda.bindings.runtime": _cuda_runtime(gpu)}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    return gpu


_Error = enum.IntEnum(
    "_Error",
    {
        "cudaSuccess": 0,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
        "cudaErrorStreamCaptureInvalidated": 901,
    },
)
_WORDS = {_Error.cudaErrorMemoryAllocation: b"out of memory"}
_Mode = enum.IntEnum("_Mode", {"cudaStreamCaptureModeThreadLocal": 1})
_Kind = enum.IntEnum("_Kind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})


def _cuda_runtime(gpu: Gpu) -> Any:
    def allocate(size: int) -> tuple[Any, ...]:
        assert not gpu.recordings, "an allocation ends a recording"
        used = sum(len(memory) for memory in gpu.live.values())
        if used + size > gpu.memory:
            return _Error.cudaErrorMemoryAllocation, None
        memory = ctypes.create_string_buffer(size)
        gpu.live[ctypes.addressof(memory)] = memory
        return _Error.cudaSuccess, ctypes.addressof(memory)

    def free(address: int) -> tuple[Any, ...]:
        del gpu.live[address]
        return (_Error.cudaSuccess,)

    def copy(to: int, of: int, size: int, kind: _Kind, stream: int) -> tuple[Any, ...]:
        assert isinstance(kind, _Kind)
        gpu.enqueue(stream, lambda: ctypes.memmove(to, of, size))
        return (_Error.cudaSuccess,)

    def make_stream(flags: int) -> tuple[Any, ...]:
        gpu.streams += 1
        return _Error.cudaSuccess, gpu.streams

    def destroy_stream(stream: int) -> tuple[Any, ...]:
        gpu.streams -= 1
        return (_Error.cudaSuccess,)

    def begin_recording(stream: int, mode: _Mode) -> tuple[Any, ...]:
        assert isinstance(mode, _Mode)
        gpu.recordings[stream], gpu.begun = [], gpu.begun + 1
        return (_Error.cudaSuccess,)

    def end_recording(stream: int) -> tuple[Any, ...]:
        if "record" in gpu.refuse:
            del gpu.recordings[stream]
            return _Error.cudaErrorStreamCaptureInvalidated, None
        gpu.graphs += 1
        return _Error.cudaSuccess, gpu.recordings.pop(stream)

    def instantiate(graph: list[Callable[[], Any]], flags: int) -> tuple[Any, ...]:
        gpu.graphs += 1
        return _Error.cudaSuccess, tuple(graph)

    def launch(graph: tuple[Callable[[], Any], ...], stream: int) -> tuple[Any, ...]:
        gpu.launches += 1
        for work in graph:
            work()
        return (_Error.cudaSuccess,)

    def destroy_graph(graph: object) -> tuple[Any, ...]:
        gpu.graphs -= 1
        return (_Error.cudaSuccess,)

    def count() -> tuple[Any, ...]:
        if gpu.memory == 0:
            return _Error.cudaErrorInsufficientDriver, None
        return _Error.cudaSuccess, 1

    properties = SimpleNamespace(
        name=gpu.name,
        major=gpu.major,
        minor=gpu.minor,
        multiProcessorCount=gpu.multiprocessors,
        totalGlobalMem=gpu.memory,
    )
    return SimpleNamespace(
        cudaError_t=_Error,
        cudaMemcpyKind=_Kind,
        cudaStreamCaptureMode=_Mode,
        cudaStreamNonBlocking=1,
        cudaGetDeviceCount=count,
        cudaSetDevice=lambda index: (_Error.cudaSuccess,),
        cudaGetDeviceProperties=lambda index: (_Error.cudaSuccess, properties),
        cudaGetErrorString=lambda code: (_Error.cudaSuccess, _WORDS.get(code, b"unknown")),
        cudaMalloc=allocate,
        cudaFree=free,
        cudaMallocHost=allocate,
        cudaFreeHost=free,
        cudaMemcpyAsync=copy,
        cudaStreamCreateWithFlags=make_stream,
        cudaStreamSynchronize=lambda stream: (_Error.cudaSuccess,),
        cudaStreamDestroy=destroy_stream,
        cudaStreamBeginCapture=begin_recording,
        cudaStreamEndCapture=end_recording,
        cudaGraphInstantiate=instantiate,
        cudaGraphLaunch=launch,
        cudaGraphDestroy=destroy_graph,
        cudaGraphExecDestroy=destroy_graph,
    )


def _tensorrt(gpu: Gpu) -> Any:
    class ILogger:
        Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

        def log(self, severity: Any, message: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        pass

    class IErrorRecorder:
        pass

    ErrorCodeTRT = enum.Enum("ErrorCodeTRT", "UNSPECIFIED_ERROR FAILED_ALLOCATION")

    def refuses(what: str, logger: Any, recorder: Any = None) -> bool:
        if what not in gpu.refuse:
            return False
        # Tried with the bindings of 11.4: an object with a recorder reports only to its recorder.
        if recorder is None:
            logger.log(ILogger.Severity.ERROR, gpu.refuse[what])
            logger.log(ILogger.Severity.WARNING, "a warning")
        else:
            recorder.report_error(ErrorCodeTRT[gpu.code], gpu.refuse[what])
        gpu.reported()
        return True

    class Profile:
        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            assert name == "frames"
            self.shapes = shapes

    class Config:
        def __init__(self) -> None:
            self.flags = {"TF32"}
            self.workspace: int | None = None
            self.timings: bytes | None = None
            self.builder_optimization_level = 3
            self.hardware_compatibility_level: str | None = None

        def set_flag(self, flag: str) -> None:
            self.flags.add(flag)

        def clear_flag(self, flag: str) -> None:
            self.flags.discard(flag)

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            self.workspace = size

        def add_optimization_profile(self, profile: Profile) -> int:
            low, opt, high = profile.shapes
            self.profile = profile.shapes
            fine = all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True))
            return 0 if fine else -1

        def create_timing_cache(self, timings: bytes) -> Any:
            self.timings = timings
            return SimpleNamespace(serialize=lambda: timings + b"timed ")

        def set_timing_cache(self, cache: Any, ignore: bool) -> bool:
            self.cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self.cache

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger
            if refuses("builder", logger):
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int) -> Any:
            assert flags == 2, "strongly typed, without other flags"
            return SimpleNamespace()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            config.progress_monitor.phase_start("Building", None, 1)
            gpu.building()
            going = config.progress_monitor.step_complete("Building", 0)
            config.progress_monitor.phase_finish("Building")
            if refuses("build", self.logger) or not going:
                return None
            gpu.builds.append(config)
            header = json.dumps({"profile": config.profile, "number": len(gpu.builds)})
            return _MAGIC + header.encode() + b"\n" + bytes(network.graph)

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self.network, self.logger, self.num_errors = network, logger, 0

        def parse(self, graph: bytes) -> bool:
            self.network.graph = graph
            self.num_errors = int(refuses("parse", self.logger))
            return not self.num_errors

        def get_error(self, index: int) -> Any:
            return SimpleNamespace(desc=lambda: gpu.refuse["parse"], node_name=lambda: "n1")

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            if refuses("open", self.logger):
                return None
            assert content.startswith(_MAGIC)
            gpu.opened.append(content)
            return Engine(content, self.logger)

    class Engine:
        def __init__(self, content: bytes, logger: Any) -> None:
            header, self.graph = content.removeprefix(_MAGIC).split(b"\n", 1)
            self.profile = json.loads(header)["profile"]
            self.logger = logger

        def create_execution_context(self, strategy: str) -> Any:
            assert strategy == "USER_MANAGED"
            return None if refuses("context", self.logger) else Context(self)

        def create_engine_inspector(self) -> Any:
            return SimpleNamespace(get_engine_information=lambda form: gpu.layers)

    class Context:
        def __init__(self, engine: Engine) -> None:
            self.engine, self.at = engine, {}  # type: ignore[var-annotated]
            self.error_recorder: Any = None

        def refuses(self, what: str) -> bool:
            return refuses(what, self.engine.logger, self.error_recorder)

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self.engine.profile
            self.shape = shape
            inside = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
            return inside and not self.refuses("shape")

        def get_tensor_shape(self, name: str) -> list[int]:
            return list(self.shape)

        def update_device_memory_size_for_shapes(self) -> int:
            return 0 if self.refuses("size") else 10 * int(np.prod(self.shape))

        def set_device_memory(self, address: int, size: int) -> None:
            assert len(gpu.live[address]) >= size
            self.refuses("memory")

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.at[name] = address
            return address in gpu.live

        def execute_async_v3(self, stream: int) -> bool:
            if self.refuses("enqueue"):
                return False
            if stream in gpu.recordings and self.refuses("record"):
                return False
            gpu.enqueue(stream, self.compute)
            return True

        def compute(self) -> None:
            proto = onnx.ModelProto.FromString(self.engine.graph)
            element = proto.graph.input[0].type.tensor_type.elem_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(element)
            size = int(np.prod(self.shape)) * dtype.itemsize
            frames = np.frombuffer(ctypes.string_at(self.at["frames"], size), dtype)
            out = generators.run(proto, frames.reshape(self.shape))
            out = (out + np.asarray(gpu.add, dtype)).astype(dtype)
            ctypes.memmove(self.at["translated"], out.tobytes(), size)

    def names(*words: str) -> Any:
        return SimpleNamespace(**{word: word for word in words})

    module: Any = ModuleType("tensorrt")
    vars(module).update(
        __version__=gpu.version,
        ILogger=ILogger,
        IErrorRecorder=IErrorRecorder,
        ErrorCodeTRT=ErrorCodeTRT,
        IProgressMonitor=IProgressMonitor,
        Builder=Builder,
        OnnxParser=OnnxParser,
        Runtime=Runtime,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        ProfilingVerbosity=names("DETAILED"),
        MemoryPoolType=names("WORKSPACE"),
        HardwareCompatibilityLevel=names("AMPERE_PLUS"),
        BuilderFlag=names("VERSION_COMPATIBLE", "TF32"),
        LayerInformationFormat=names("JSON"),
        ExecutionContextAllocationStrategy=names("USER_MANAGED"),
    )
    return module
