"""A stand-in for an onnxruntime that was built for CUDA, for tests without a GPU."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from cyclegan_batch.frames import Pixels

from .fake_tensorrt import Gpu


class FakeSession:
    """A session of onnxruntime: it reports the providers that started, and computes identity."""

    first = "CUDAExecutionProvider"
    sessions: list[SimpleNamespace] = []  # noqa: RUF012
    fails: Exception | None = None
    off_by: int = 0
    """How many grey levels the GPU adds to each pixel."""
    gpu: Gpu
    """The GPU to whose memory sessions are bound."""
    computed: list[int] = []  # noqa: RUF012
    """The number of frames of each batch."""
    recording: Callable[[], Any] = staticmethod(lambda: None)
    """Called while a graph is recorded."""
    other_chips: bool = False
    """Whether its kernels were compiled for other chips than this GPU."""
    nodes: int = 0
    """How often the one node was computed that shows whether the GPU computes at all."""
    on_cpu: tuple[str, ...] = ()
    """The kinds of those nodes, of forty, for which CUDA has no kernel."""

    def __init__(
        self, graph: bytes, options: Any, providers: list[Any], enable_fallback: int
    ) -> None:
        assert enable_fallback == 0, "otherwise onnxruntime falls back to the CPU by itself"
        self.is_one_node = b"one_node" in graph
        if not self.is_one_node:
            FakeSession.sessions.append(SimpleNamespace(options=options, providers=providers))
        # onnxruntime 1.31 raises these errors (tried on a CPU).
        if options.entries.get("session.disable_cpu_ep_fallback") == "1":
            if "CPUExecutionProvider" in providers:
                raise RuntimeError("Conflicting session configuration: explicitly added the CPU EP")
            if self.on_cpu or self.first == "CPUExecutionProvider":
                raise RuntimeError("This session contains graph nodes that are assigned to the CPU")
        self.providers = providers
        cuda = next((each[1] for each in providers if isinstance(each, tuple)), {})
        assert set(cuda) <= KNOWN_OPTIONS
        self.stream = cuda.get("user_compute_stream")
        self.graphs = cuda.get("enable_cuda_graph") == "1"
        assert self.is_one_node or options.enable_mem_pattern != self.graphs
        self.graph_of: dict[tuple[int, str], tuple[int, int]] = {}
        self.recorded = options.entries.get("session.record_ep_graph_assignment_info") == "1"

    def get_providers(self) -> list[str]:
        return [self.first, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        if not self.recorded:
            raise RuntimeError("Session configuration entry is not enabled")
        kinds = {"CPUExecutionProvider": self.on_cpu, "CUDAExecutionProvider": ("Conv",) * 40}
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda k=kind: [SimpleNamespace(op_type=k)])
            for name in kinds
            for kind in kinds[name][len(self.on_cpu) if name.startswith("CUDA") else 0 :]
        ]

    def run(self, names: list[str], feed: dict[str, Pixels], options: Any = None) -> list[Pixels]:
        if self.is_one_node:
            FakeSession.nodes += 1
            if self.other_chips:
                raise RuntimeError(NO_KERNEL_IMAGE)
            return [-feed["in"]]
        if options is not None and self.fails is not None:
            raise self.fails
        if options is not None:
            self.computed.append(len(feed["frames"]))
        return [self.computes(feed["frames"])] * len(names)

    def computes(self, frames: Pixels) -> Pixels:
        on_gpu = self.providers != ["CPUExecutionProvider"]
        out: Pixels = frames + np.uint8(self.off_by if on_gpu else 0)
        return out

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self)

    def run_with_iobinding(self, binding: FakeBinding, options: Any) -> None:
        assert binding.session is self
        assert self.stream is not None, "without it the copies would not be in order"
        graph = options.entries.get("gpu_graph_id", "0")
        key, places = (threading.get_ident(), graph), (binding.input, binding.output)
        if self.graphs and graph != "-1":
            # A replay reads and writes where it was recorded, whatever is bound now.
            if key in self.graph_of:
                assert self.graph_of[key] == places
            else:
                self.gpu.recordings["onnxruntime"] = []
                self.recording()
                del self.gpu.recordings["onnxruntime"]
                self.graph_of[key] = places
        if self.fails is not None:
            raise self.fails
        assert all(place in self.gpu.live for place in places)
        size = int(np.prod(binding.shape))
        frames = np.frombuffer(ctypes.string_at(binding.input, size), np.uint8)
        self.computed.append(binding.shape[0])
        ctypes.memmove(binding.output, self.computes(frames).tobytes(), size)


class FakeBinding:
    """Where a session reads and writes."""

    def __init__(self, session: FakeSession) -> None:
        self.session = session

    def bind_input(
        self, name: str, device: str, index: int, kind: Any, shape: Any, address: int
    ) -> None:
        assert (name, device, index, kind) == ("frames", "cuda", 0, np.uint8)
        self.input, self.shape = address, shape

    def bind_output(
        self, name: str, device: str, index: int, kind: Any, shape: Any, address: int
    ) -> None:
        assert (name, device, index, kind) == ("translated", "cuda", 0, np.uint8)
        assert shape == self.shape
        self.output = address


NO_KERNEL_IMAGE = (
    "CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the "
    "device\n at cuda_call.cc"
)
"""What onnxruntime raises at the first kernel, where its wheel was built for other chips."""

KNOWN_OPTIONS = {
    "device_id", "cudnn_conv_algo_search", "arena_extend_strategy", "use_tf32", "prefer_nhwc",
    "user_compute_stream", "enable_cuda_graph",
}  # fmt: skip
"""Options of CUDA's provider. All are in the binary of onnxruntime-gpu 1.31.1."""


class FakeRunOptions(SimpleNamespace):
    """The options of a run, whose entries the tests look at."""

    def __init__(self) -> None:
        super().__init__(entries={}, terminate=False)

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


class FakeOptions(SimpleNamespace):
    """The options of a session, whose entries the tests look at."""

    def __init__(self) -> None:
        super().__init__(entries={}, enable_mem_pattern=True)

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value
