"""Run a contract file with OpenVINO, on the CPU, in fp32 or in bf16."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ..errors import BackendError, BackendUnavailableError, ModelError, OutOfMemoryError
from ..frames import Pixels
from ..models.model import (
    INPUT,
    OUTPUT,
    VALUES,
    Model,
    ModelCard,
    graph_with_values,
    has_wide_convolutions,
    on_cpu,
)
from ..wording import Note, printable
from .common import (
    checked,
    failure_of,
    in_batches,
    is_out_of_memory,
    needs_verify,
    parity_of,
    verify,
)

_KEPT_KERNELS = 64
"""How many kernels OpenVINO keeps for the shapes of earlier frames. With its default of 5,000,
memory keeps growing over a folder of many sizes (tried: 270 MB in 450 shapes, against 50)."""


_LARGEST_IN_WINDOWS = 2**20
"""The most pixels of a frame whose wide convolutions are computed by way of windows (winograd.py),
which takes memory: for the reference's ResNet at 1280×720 2.0 GB a context instead of 0.85. A
constant, so that the pixels of a frame depend on no other frame and on no other program."""


class _Request(Protocol):
    """An ``InferRequest``; OpenVINO is imported late, and without its telemetry."""

    def start_async(self, inputs: dict[str, Pixels], /, *, share_inputs: bool) -> None: ...

    def wait(self) -> None: ...

    def cancel(self) -> None: ...

    def get_tensor(self, name: str, /) -> Any: ...


class _CompiledModel(Protocol):
    """A ``CompiledModel``."""

    def create_infer_request(self) -> _Request: ...


class _Network:
    """The compiled model that several contexts share. After a failure it is compiled again.

    An OpenVINO stream in which an allocation failed cannot be used again: it fails on every later
    frame, of any size, and in the end crashes the process (tried: 2026.4).

    OpenVINO's threads inherit the priority of the thread that compiles the model. The pipeline's
    worker threads run at a lower one, and a failure makes them compile. So a thread of its own,
    started with the first compilation, does all compiling.
    """

    def __init__(
        self,
        compile_anew: Callable[[], _CompiledModel],
        for_large_frames: Callable[[], _CompiledModel] | None = None,
    ) -> None:
        self._compile, self._lock = compile_anew, threading.Lock()
        self._compile_for_large = for_large_frames
        self._for_large: _Network | None = None
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="openvino compile")
        self._compiled: _CompiledModel | None = self._compiling.submit(compile_anew).result()

    def compiled(self) -> _CompiledModel:
        """Return a model that works. Raises BackendError where it cannot be compiled again."""
        with self._lock:
            if self._compiled is None:
                self._compiled = self._compiling.submit(self._compile).result()
            return self._compiled

    def suited_to(self, frames: Pixels) -> _Network:
        """Return the network for frames of this size, which is this one but for large frames."""
        if self._compile_for_large is None or frames[0, ..., 0].size <= _LARGEST_IN_WINDOWS:
            return self
        with self._lock:
            if self._for_large is None:
                self._for_large = _Network(self._compile_for_large)
            return self._for_large

    def give_up(self, failed: _CompiledModel) -> None:
        """Discard the compiled model ``failed``; the next caller of `compiled` gets a new one."""
        with self._lock:
            if self._compiled is failed:
                self._compiled = None


class OpenVinoBackend:
    """An infer request of a compiled model; several share its weights and its streams."""

    name = "openvino"
    device = "cpu"

    def __init__(self, card: ModelCard, network: _Network, precision: str) -> None:
        self.card, self.precision = card, precision
        self.notes: tuple[Note, ...] = ()
        self._network: _Network | None = network
        self._compiled: _CompiledModel | None = network.compiled()
        self._request: _Request | None = self._compiled.create_infer_request()
        self._cancelled = threading.Event()

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``; see `Backend.infer`."""
        return in_batches(self._run, frames, self.card.batch)

    def fork(self) -> OpenVinoBackend:
        """Return another request of the same compiled model."""
        return OpenVinoBackend(self.card, self._live_network(), self.precision)

    def cancel(self) -> None:
        """Stop a running `infer` before the graph's next node."""
        self._cancelled.set()
        request = self._request
        if request is not None:
            request.cancel()

    def close(self) -> None:
        """Release the context. A second call does nothing.

        An `infer` that runs in another thread keeps its own references until it ends.
        """
        self._network = None
        # The request goes first: it refers to the compiled model.
        self._request = None
        self._compiled = None

    def _live_network(self) -> _Network:
        if self._network is None:
            raise BackendError("openvino: this context is closed; open another")
        return self._network

    def _run(self, frames: Pixels) -> Pixels:
        network = self._live_network().suited_to(frames)
        compiled, request = network.compiled(), self._request
        if request is None or compiled is not self._compiled:
            request = compiled.create_infer_request()
            self._request = request
            self._compiled = compiled
        try:
            if self._cancelled.is_set():
                raise BackendError("openvino: cancelled")
            (out,) = _run(request, frames, OUTPUT)
        except RuntimeError as error:
            if self._cancelled.is_set():
                raise BackendError("openvino: cancelled") from error
            network.give_up(compiled)
            raise _failure(error, self.card, frames) from error
        return checked(out, frames, self.card)


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry. Raises ImportError.

    By default its import starts a copy of this process, which reports the import to Google
    Analytics, and waits for the copy for up to 3 s; where the program ends meanwhile, the copy
    prints a traceback (tried: 2026.4). ``openvino_telemetry``, which does this, is an optional
    dependency of OpenVINO: None in its place in ``sys.modules`` makes its import fail.
    """
    hide = "openvino_telemetry" not in sys.modules
    if hide:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if hide:
            del sys.modules["openvino_telemetry"]


def open_openvino(
    model: Model, *, device: str, precision: str, threads: int, contexts: int
) -> OpenVinoBackend:
    """Open ``model`` on the CPU, with one stream for each context; see `open_backend`."""
    if device not in ("auto", "cpu"):
        raise BackendUnavailableError(
            f"openvino was asked for {device} and runs on the CPU here; pass --backend onnxruntime "
            "for an NVIDIA GPU, or --device cpu"
        )
    try:
        openvino = import_openvino()
    except ImportError as error:
        raise BackendUnavailableError(
            f'openvino cannot be loaded ({error}); pip install "cyclegan-batch[openvino]"'
        ) from error
    core = openvino.Core()
    notes: tuple[Note, ...] = ()
    bf16 = precision == "bf16"
    if bf16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendUnavailableError(
            "openvino was asked for bf16 and this CPU has none; leave --precision out"
        )
    given, model = model, on_cpu(model, in_float32=False)
    settings: dict[str, object] = {
        "NUM_STREAMS": contexts,
        "INFERENCE_NUM_THREADS": threads,
        # OpenVINO's own default is bf16 on a CPU that has it.
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        # Do not pin threads to cores: the same cores decode and encode.
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_KERNELS,
    }

    def compiled() -> _CompiledModel:
        return _compiled(core, model.card, model.graph, settings)

    def compiled_in_windows() -> _CompiledModel:
        return _compiled(core, model.card, on_cpu(given).graph, settings)

    in_windows = not bf16 and has_wide_convolutions(given)
    network = _Network(compiled_in_windows, compiled) if in_windows else _Network(compiled)

    def run(frames: Pixels) -> tuple[Pixels, Pixels]:
        with_values = _compiled(
            core, model.card, graph_with_values(model), settings | {"NUM_STREAMS": 1}
        )
        try:
            out, values = _run(with_values.create_infer_request(), frames, OUTPUT, VALUES)
        except RuntimeError as error:
            raise _failure(error, model.card, frames) from error
        return out, values

    if needs_verify(model, OpenVinoBackend(model.card, network, precision)):
        verify(model.card, run)
    if bf16:
        exact = _Network(
            lambda: _compiled(
                core, model.card, model.graph, settings | {"INFERENCE_PRECISION_HINT": "f32"}
            )
        )
        parity = parity_of(
            OpenVinoBackend(model.card, network, "bf16"), OpenVinoBackend(model.card, exact, "fp32")
        )
        name = printable(Path(model.card.path.name))
        notes = (Note(None, f"{name} in bf16 against fp32 is {parity}"),)
    arithmetic = "bf16" if bf16 else "fp32"
    if model.card.precision == "int8":
        in_floats = _Network(
            lambda: _compiled(core, model.card, model.graph, settings | _NO_INTEGERS)
        )
        network, arithmetic, notes = _without_overflow(model.card, network, in_floats)
    backend = OpenVinoBackend(model.card, network, arithmetic)
    backend.notes = notes
    return backend


_NO_INTEGERS = {"LP_TRANSFORMS_MODE": "NO"}
"""With this setting OpenVINO computes an INT8 file in floats: it keeps the (de)quantisations and
does not turn the convolutions between them into integer ones. OpenVINO does not document it;
tests/export/test_quantise.py compares the result with onnxruntime's."""


def _without_overflow(
    card: ModelCard, in_integers: _Network, in_floats: _Network
) -> tuple[_Network, str, tuple[Note, ...]]:
    """Return the network to run an INT8 file with, its precision, and what to report.

    Without the VNNI instructions a CPU adds products of 8-bit integers in 16 bits, and OpenVINO
    lets these sums overflow: the PSNR of one file against its fp32 network was 20.1 dB on AVX2 and
    40.9 dB elsewhere. So the integer network is taken only if it agrees with the one in floats.
    """
    try:
        parity_of(
            OpenVinoBackend(card, in_integers, "int8"), OpenVinoBackend(card, in_floats, "fp32")
        )
    except ModelError:
        text = (
            f"{printable(Path(card.path.name))} is computed in fp32: the integer arithmetic "
            "of this CPU overflows in openvino and would spoil the image"
        )
        return in_floats, "fp32", (Note(None, text),)
    return in_integers, "int8", ()


def _run(request: _Request, frames: Pixels, *names: str) -> list[Pixels]:
    """Run ``request`` on ``frames`` and return copies of the outputs of these names.

    `request.infer` is not used: where an allocation fails it raises nothing and leaves the output
    of the previous run, a wrong image. Raises RuntimeError.
    """
    try:
        request.start_async({INPUT: frames}, share_inputs=True)
        request.wait()
    except BaseException:
        # KeyboardInterrupt, for one. The network reads the frames in place (share_inputs), and the
        # caller may free them once this function ends: wait until the network has stopped.
        request.cancel()
        with contextlib.suppress(RuntimeError):
            request.wait()
        raise
    # The next run writes into the memory of these tensors.
    return [request.get_tensor(name).data.copy() for name in names]


def _compiled(
    core: Any, card: ModelCard, graph: bytes, settings: Mapping[str, object]
) -> _CompiledModel:
    try:
        compiled: _CompiledModel = core.compile_model(core.read_model(graph, b""), "CPU", settings)
        return compiled
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"openvino: no memory for the weights of {printable(card.path)}; close other "
                "programs"
            ) from error
        raise BackendError(
            f"openvino does not open {printable(card.path)}: {_reason(error)}; try "
            "--backend onnxruntime"
        ) from error


def _reason(error: Exception) -> str:
    """Return OpenVINO's message without the names of its source files."""
    lines = [line.removeprefix("Caught exception: ").strip() for line in str(error).splitlines()]
    message = [line for line in lines if line and not line.startswith("Exception from")]
    return " ".join(message) or type(error).__name__


def _failure(error: Exception, card: ModelCard, frames: Pixels) -> BackendError:
    return failure_of("openvino", error, card, "cpu", frames, reason=_reason(error))
