"""Run a contract file with onnxruntime on an NVIDIA GPU.

Experimental: this backend has never run on a GPU; its control flow is tested on a stand-in.

There are three ways (`Way`). ``plain`` calls a session with arrays: each call copies from and to
ordinary memory, which the driver copies once more, and returns new memory. ``bound`` copies frames
through page-locked memory on a stream of the context, and binds the session to fixed addresses on
the GPU; this needs cuda-bindings. ``graph`` does so as well, and onnxruntime records a CUDA graph
for each shape and replays it. Which one is the fastest has not been measured.
"""

from __future__ import annotations

import contextlib
import functools
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from types import ModuleType
from typing import Literal, Protocol, SupportsInt, TypeAlias

import numpy as np
import onnx

from ..errors import BackendError, BackendUnavailableError, OutOfMemoryError
from ..frames import Pixels
from ..machine import nvidia_gpus
from ..models.model import INPUT, OUTPUT, Model, ModelCard, graph_with_values, widest_tensor
from ..wording import Note, first_line
from .common import Backend, batch_within_index, checked, failure_of, in_batches
from .cuda import Buffers, Cuda, Turns
from .onnxruntime import (
    Binding,
    OnnxRuntimeBackend,
    Provider,
    Session,
    check_values,
    import_onnxruntime,
    nodes_on_cpu,
    open_session,
    session_options,
)

Way: TypeAlias = Literal["plain", "bound", "graph"]
"""How frames reach a session and come back; see the top of this module."""

_MOST_GRAPHS = 4
"""How many shapes of a context get a graph: onnxruntime releases graphs with the session only. A
video has two shapes, a full batch and the last one of a stretch."""

_NO_GRAPH = -1
"""The graph ID with which onnxruntime neither records nor replays."""

_TURNS = Turns()
"""onnxruntime records a graph in CUDA's global mode, in which an allocation by any other thread of
the process makes the recording fail. (Its binaries of 1.31 hold the thread-local mode as well;
which of the two is used is not documented.)"""


class BoundBackend:
    """A context with a session, a stream and buffers of its own; they are opened in its first call.

    A session computes on one stream only where the stream is given to it, so each context has its
    own session, and the weights are on the GPU once for each.
    """

    name = "onnxruntime"

    def __init__(
        self,
        card: ModelCard,
        cuda: Cuda,
        opened: Callable[[SupportsInt], Session],
        precision: str,
        widest: float,
        *,
        graph: bool,
    ) -> None:
        """Take ``opened``, which returns a session that computes on the stream it is given."""
        self.card, self.device, self.precision = card, f"cuda:{cuda.index}", precision
        self.notes: tuple[Note, ...] = ()
        self._cuda, self._opened, self._widest, self._graph = cuda, opened, widest, graph
        self._lane: _Lane | None = None
        self._options: _RunOptions = import_onnxruntime().RunOptions()
        self._cancelled = self._closed = False

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``; see `Backend.infer`."""
        batch = batch_within_index(frames, self._widest, self.card.batch)
        return in_batches(self._run, frames, batch)

    def fork(self) -> BoundBackend:
        """Return another context of the same file."""
        self._check_open()
        return BoundBackend(
            self.card, self._cuda, self._opened, self.precision, self._widest, graph=self._graph
        )

    def cancel(self) -> None:
        """Stop a running `infer` before the graph's next node; later calls stop as well.

        A CUDA graph that is being replayed ends first.
        """
        self._cancelled = True
        self._options.terminate = True

    def close(self) -> None:
        """Release the context. A second call does nothing."""
        self._closed = True
        if self._lane is not None:
            self._lane.close()
            self._lane = None

    def open(self) -> _Lane:
        """Open the session, where it is not open yet, and return it. Raises BackendError."""
        self._check_open()
        # CUDA's current device is a setting of each thread, and any thread may call.
        self._cuda.use()
        if self._lane is None:
            self._lane = _Lane(self._cuda, self._opened, self._options, graph=self._graph)
        return self._lane

    def _run(self, frames: Pixels) -> Pixels:
        if self._cancelled:
            raise BackendError("onnxruntime: cancelled")
        lane = self.open()
        try:
            out = lane.infer(frames)
        except Exception as error:
            # The state of the stream is unknown after a failure, and its memory may be needed.
            lane.close()
            self._lane = None
            if self._cancelled:
                raise BackendError("onnxruntime: cancelled") from error
            raise failure_of("onnxruntime", error, self.card, self.device, frames) from error
        return checked(out, frames, self.card)

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("onnxruntime: this context is closed; open another")


class _RunOptions(Protocol):
    """The options of a run; onnxruntime has no types."""

    terminate: bool

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Set an option that has no attribute; a later value replaces an earlier one."""


@dataclass(frozen=True)
class _Slot:
    """The buffers of one shape, and a session's binding to them."""

    buffers: Buffers
    binding: Binding
    graph_id: int
    ran_in: set[int] = field(default_factory=set)
    """The threads that have run it: onnxruntime keeps the graphs of each thread apart."""


class _Lane:
    """A session on a stream of its own, with a slot for each shape."""

    def __init__(
        self,
        cuda: Cuda,
        opened: Callable[[SupportsInt], Session],
        options: _RunOptions,
        *,
        graph: bool,
    ) -> None:
        self._cuda, self._options, self._graph = cuda, options, graph
        self._slots: dict[tuple[int, ...], _Slot] = {}
        """By shape. One without a graph is replaced by that of the next shape."""
        self._session: Session | None = None
        with _TURNS.together():
            self._stream: SupportsInt | None = cuda.stream()
            try:
                self._session = opened(self._stream)
            except BaseException:
                self._destroy_stream()
                raise

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``. Raises BackendError, and the errors of onnxruntime."""
        slot = self._slots.get(frames.shape)
        if slot is None:
            with _TURNS.together():
                slot = self._slots[frames.shape] = self._slot_for(frames)
        slot.buffers.put(frames)
        assert self._session is not None
        thread = threading.get_ident()
        records = slot.graph_id != _NO_GRAPH and thread not in slot.ran_in
        if self._graph:
            self._options.add_run_config_entry("gpu_graph_id", str(slot.graph_id))
        with _TURNS.alone() if records else _TURNS.together():
            slot.buffers.send()
            # With a graph, the first run of a shape runs it without one, records and replays it.
            self._session.run_with_iobinding(slot.binding, self._options)
            slot.buffers.fetch()
            out = slot.buffers.result(frames)
        slot.ran_in.add(thread)
        return out

    def close(self) -> None:
        """Release everything; errors of CUDA are ignored. A second call does nothing."""
        with contextlib.suppress(BackendError):
            self._cuda.use()
        with _TURNS.together():
            buffers = [slot.buffers for slot in self._slots.values()]
            # The session first: its graphs refer to the buffers, and it uses the stream. Each
            # binding keeps its session.
            self._slots.clear()
            self._session = None
            for each in buffers:
                each.close()
            self._destroy_stream()

    def _slot_for(self, frames: Pixels) -> _Slot:
        """Allocate buffers for the shape of ``frames``, and bind the session to them."""
        for shape, slot in list(self._slots.items()):
            if slot.graph_id == _NO_GRAPH:
                del self._slots[shape]
                slot.buffers.close()
        graph_id = _NO_GRAPH
        if self._graph and len(self._slots) < _MOST_GRAPHS:
            graph_id = len(self._slots) + 1
        assert self._session is not None
        assert self._stream is not None
        buffers = Buffers(self._cuda, self._stream, frames.nbytes)
        binding, index, kind = self._session.io_binding(), self._cuda.index, frames.dtype.type
        binding.bind_input(INPUT, "cuda", index, kind, frames.shape, buffers.device_in)
        binding.bind_output(OUTPUT, "cuda", index, kind, frames.shape, buffers.device_out)
        return _Slot(buffers, binding, graph_id)

    def _destroy_stream(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(BackendError):
                self._cuda.call("cudaStreamDestroy", self._stream)
            self._stream = None


def open_onnxruntime_cuda(
    model: Model,
    *,
    device: str,
    precision: str,
    threads: int,
    contexts: int,
    way: Way = "bound",
    nhwc: bool = False,
) -> Backend:
    """Open ``model`` on ``device``, ``cuda[:N]``; see `open_backend`.

    Nodes that CUDA cannot compute get ``threads`` threads, ``contexts`` of which are the callers'.
    ``way`` and ``nhwc``, the memory layout of convolutions, are for benchmarks, which compare them.
    Where ``way`` is not possible, the plain one is used, and a note reports it.
    """
    device = "cuda:0" if device == "cuda" else device
    pool = threads - contexts + 1

    def opened(
        graph: bytes, *, on_cpu_too: bool = True, stream: SupportsInt | None = None
    ) -> Session:
        options = {
            "device_id": device.partition(":")[2],
            # The exhaustive search times its candidates, so a second run may choose other kernels,
            # and give other pixels.
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "1" if precision_on_cuda(model.card, precision) == "tf32" else "0",
            "prefer_nhwc": "1" if nhwc else "0",
        }
        if stream is not None:
            options["user_compute_stream"] = str(int(stream))
            options["enable_cuda_graph"] = "1" if way == "graph" else "0"
        return _session(graph, model.card, device, options, pool, on_cpu_too=on_cpu_too)

    check_values(opened(graph_with_values(model)), model.card, device)
    form = (precision_on_cuda(model.card, precision), widest_tensor(model))
    notes: tuple[Note, ...] = ()
    cuda = None
    if way != "plain":
        try:
            cuda = Cuda(device, "onnxruntime")
        except BackendUnavailableError as error:
            notes = (Note(None, f"{error}; frames go through ordinary memory, which is slower"),)
    try:
        if cuda is not None:
            bound = BoundBackend(
                model.card,
                cuda,
                lambda stream: opened(model.graph, on_cpu_too=False, stream=stream),
                *form,
                graph=way == "graph",
            )
            bound.open()
            return bound
        session = opened(model.graph, on_cpu_too=False)
    except OutOfMemoryError:
        raise
    except BackendError as error:
        # CUDA cannot compute some nodes. The CPU computes them instead, for which every frame is
        # copied there and back; a note reports that.
        session = opened(model.graph)
        remedy = (
            "install onnxruntime-gpu 1.25 or later, or export the file with this version (opset 18)"
        )
        on_cpu = nodes_on_cpu(session, model.card, device, remedy)
        notes += on_cpu or (Note(None, f"{error}; frames go through ordinary memory"),)
    backend = OnnxRuntimeBackend(model.card, session, device, *form)
    backend.notes = notes
    return backend


def precision_on_cuda(card: ModelCard, precision: str) -> str:
    """Return the precision in which a GPU computes a file where the user chose ``precision``."""
    return "tf32" if card.precision == "fp32" and precision != "fp32" else card.precision


def lists_cuda() -> bool:
    """Tell whether the installed onnxruntime was built for CUDA and the machine has a GPU.

    That proves nothing: `cuda_fault` tells whether it computes there.
    """
    try:
        onnxruntime = import_onnxruntime()
    except BackendUnavailableError:
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers() and bool(nvidia_gpus())


def sees_cuda() -> bool:
    """Tell whether the installed onnxruntime computes on this machine's first GPU."""
    return lists_cuda() and cuda_fault(0) is None


@functools.cache
def cuda_fault(index: int) -> str | None:
    """Let the GPU of this index compute one node; return why it cannot, None where it can.

    A wheel that was built for other chips lists CUDA, opens a session, and fails at the first
    kernel with cudaErrorNoKernelImageForDevice. The node is computed once in a process. For an
    onnxruntime that lists CUDA.
    """
    onnxruntime = import_onnxruntime()
    _load_libraries(onnxruntime)
    providers = [("CUDAExecutionProvider", {"device_id": str(index)})]
    try:
        session = onnxruntime.InferenceSession(
            _one_node(), session_options(1), providers=providers, enable_fallback=0
        )
        # Where a provider cannot start, onnxruntime uses the CPU and only writes it to its log.
        if session.get_providers()[0] != "CUDAExecutionProvider":
            return 'its CUDA or cuDNN libraries cannot be loaded; pip install "cyclegan-batch[gpu]"'
        session.run(["out"], {"in": np.ones(1, np.float32)})
    # onnxruntime has no exception of its own for this.
    except Exception as error:
        return (
            f"it cannot compute a single node there ({first_line(error)}); install an "
            "onnxruntime-gpu that was built for this GPU, its CUDA and its driver"
        )
    return None


def _one_node() -> bytes:
    """Return a graph of one Neg, for which a GPU starts a kernel of onnxruntime's own."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    values = [helper.make_tensor_value_info(name, kind, [1]) for name in ("in", "out")]
    node = helper.make_node("Neg", ["in"], ["out"])
    graph = helper.make_graph([node], "one_node", values[:1], values[1:])
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


def both_wheels() -> bool:
    """Tell whether onnxruntime and onnxruntime-gpu are both installed; they share one folder."""
    try:
        metadata.version("onnxruntime")
        metadata.version("onnxruntime-gpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def _session(
    graph: bytes,
    card: ModelCard,
    device: str,
    cuda: dict[str, str],
    pool: int,
    *,
    on_cpu_too: bool,
) -> Session:
    """Return a session with the options ``cuda`` of the provider. Raises BackendError."""
    _check_cuda(import_onnxruntime(), device)
    providers: list[Provider] = [("CUDAExecutionProvider", cuda)]
    # onnxruntime refuses this entry where the CPU is among the providers.
    switch = "session.disable_cpu_ep_fallback"
    if on_cpu_too:
        providers.append("CPUExecutionProvider")
        switch = "session.record_ep_graph_assignment_info"
    options = session_options(pool, switch)
    # A pattern would allocate once more in the second run of a shape, which may be recorded.
    options.enable_mem_pattern = cuda.get("enable_cuda_graph") != "1"
    session = open_session(graph, card, device, options, providers)
    first = session.get_providers()[0]
    if first != "CUDAExecutionProvider":
        raise BackendUnavailableError(
            f"onnxruntime was asked for {device} and uses {first}: its CUDA provider does not "
            "start; see cyclegan-batch doctor, or pass --device cpu"
        )
    return session


def _check_cuda(onnxruntime: ModuleType, device: str) -> None:
    """Refuse CUDA where this onnxruntime has none that works. Raises BackendError."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        if both_wheels():
            raise BackendUnavailableError(
                f"onnxruntime was asked for {device} and has no CUDA: onnxruntime and "
                "onnxruntime-gpu are both installed, and the first has overwritten the second; "
                'pip uninstall both, then pip install "cyclegan-batch[gpu]"'
            )
        raise BackendUnavailableError(
            f"onnxruntime was asked for {device} and has no CUDA (it has "
            f"{', '.join(onnxruntime.get_available_providers())}); pip uninstall onnxruntime, then "
            'pip install "cyclegan-batch[gpu]"; or pass --device cpu'
        )
    _load_libraries(onnxruntime)
    fault = cuda_fault(int(device.partition(":")[2]))
    if fault is not None:
        raise BackendUnavailableError(
            f"onnxruntime was asked for {device} and does not run on it: {fault}; or pass "
            "--device cpu"
        )


def _load_libraries(onnxruntime: ModuleType) -> None:
    """Load CUDA's libraries from their wheels."""
    # preload_dlls prints the libraries that it does not find. Without one the session fails, which
    # is reported then.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(OSError):
        onnxruntime.preload_dlls()
