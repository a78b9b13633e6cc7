"""Run a contract file with OpenVINO, on the CPU, in fp32 or in bf16."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import BackendError, BackendUnavailableError, ModelError, OutOfMemoryError
from ..frames import Pixels
from ..models.model import INPUT, OUTPUT, VALUES, Model, ModelCard, graph_with_values
from ..wording import Note, printable
from .common import checked, in_batches, parity_of, says_out_of_memory, verify

_KEPT_KERNELS = 64
"""Kernels that OpenVINO keeps for shapes seen before; its default of 5,000 grows without a visible
end over a folder of many sizes (tried: 270 MB in 450 shapes, against 50)."""


class _Network:
    """The compiled model that several contexts share, compiled anew after a failure.

    A stream in which an allocation failed is lost: it fails on every later frame, of any size, and
    takes the process down in the end (tried: 2026.4).

    Compiled in a thread of its own, which starts here: OpenVINO's threads begin with the priority
    of the thread that compiles, and those of a run that call it later have a lower one.
    """

    def __init__(self, compile_anew: Callable[[], Any]) -> None:
        self._compile, self._lock = compile_anew, threading.Lock()
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="openvino compile")
        self._compiled: Any = self._compiling.submit(compile_anew).result()

    def compiled(self) -> Any:
        """Return the model that works. Raises BackendError where it cannot be compiled again."""
        with self._lock:
            if self._compiled is None:
                self._compiled = self._compiling.submit(self._compile).result()
            return self._compiled

    def give_up(self, failed: Any) -> None:
        """Let nobody use ``failed`` again."""
        with self._lock:
            if self._compiled is failed:
                self._compiled = None


class OpenVinoBackend:
    """A request of a compiled model; several share its weights and its streams."""

    name = "openvino"
    device = "cpu"

    def __init__(self, card: ModelCard, network: _Network, precision: str) -> None:
        self.card, self.precision = card, precision
        self.notes: tuple[Note, ...] = ()
        self._network: _Network | None = network
        self._compiled: Any = network.compiled()
        self._request: Any = self._compiled.create_infer_request()
        self._cancelled = threading.Event()

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``; see `Backend.infer`."""
        return in_batches(self._run, frames, self.card.batch)

    def fork(self) -> OpenVinoBackend:
        """Return another request of the same compiled model."""
        return OpenVinoBackend(self.card, self._opened(), self.precision)

    def cancel(self) -> None:
        """Cut off a running `infer`: the graph stops before its next node."""
        self._cancelled.set()
        request = self._request
        if request is not None:
            request.cancel()

    def close(self) -> None:
        """Release the context; twice is fine. An `infer` that runs keeps what it needs."""
        self._network = None
        # The request first: it computes with what the compiled model has.
        self._request = None
        self._compiled = None

    def _opened(self) -> _Network:
        if self._network is None:
            raise BackendError("openvino: this context is closed; open another")
        return self._network

    def _run(self, frames: Pixels) -> Pixels:
        network = self._opened()
        compiled, request = network.compiled(), self._request
        if compiled is not self._compiled:
            request = compiled.create_infer_request()
            self._request = request
            self._compiled = compiled
        try:
            if self._cancelled.is_set():
                raise BackendError("openvino: cut off")
            (out,) = _run(request, frames, OUTPUT)
        except RuntimeError as error:
            if self._cancelled.is_set():
                raise BackendError("openvino: cut off") from error
            network.give_up(compiled)
            raise _translated(error, self.card, frames) from error
        return checked(out, frames, self.card)


def import_openvino() -> Any:
    """Return the package, which then reports to nobody that it was imported.

    Its import starts a copy of this process that sends the event to Google Analytics, and waits for
    it for up to 3 s; a run that ends meanwhile has the traceback of that copy (tried: 2026.4). The
    module that does so is optional to it. Raises ImportError.
    """
    absent: Any = None
    spared = "openvino_telemetry" not in sys.modules
    if spared:
        sys.modules["openvino_telemetry"] = absent
    try:
        return importlib.import_module("openvino")
    finally:
        if spared:
            del sys.modules["openvino_telemetry"]


def open_openvino(
    model: Model, *, device: str, precision: str, threads: int, contexts: int
) -> OpenVinoBackend:
    """Open ``model`` on the CPU; see `open_backend`. One stream for each context."""
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
    note: tuple[Note, ...] = ()
    bf16 = precision == "bf16"
    if bf16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendUnavailableError(
            "openvino was asked for bf16 and this CPU has none; leave --precision out"
        )
    settings = {
        "NUM_STREAMS": contexts,
        "INFERENCE_NUM_THREADS": threads,
        # Unsaid, it is bf16 wherever the CPU has it.
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        # The same cores decode and encode: nothing is nailed to one.
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_KERNELS,
    }
    network = _Network(lambda: _compiled(core, model.card, model.graph, settings))
    with_values = _compiled(
        core, model.card, graph_with_values(model), settings | {"NUM_STREAMS": 1}
    )

    def run(frames: Pixels) -> tuple[Pixels, Pixels]:
        try:
            out, values = _run(with_values.create_infer_request(), frames, OUTPUT, VALUES)
        except RuntimeError as error:
            raise _translated(error, model.card, frames) from error
        return out, values

    verify(model.card, run)
    if bf16:
        exact = _Network(
            lambda: _compiled(
                core, model.card, model.graph, settings | {"INFERENCE_PRECISION_HINT": "f32"}
            )
        )
        found = parity_of(
            OpenVinoBackend(model.card, network, "bf16"), OpenVinoBackend(model.card, exact, "fp32")
        )
        name = printable(Path(model.card.path.name))
        note = (Note(None, f"{name} in bf16 against fp32 is {found}"),)
    arithmetic = "bf16" if bf16 else "fp32"
    if model.card.precision == "int8":
        in_floats = _Network(
            lambda: _compiled(core, model.card, model.graph, settings | _NO_INTEGERS)
        )
        network, arithmetic, note = _without_overflow(model.card, network, in_floats)
    opened = OpenVinoBackend(model.card, network, arithmetic)
    opened.notes = note
    return opened


_NO_INTEGERS = {"LP_TRANSFORMS_MODE": "NO"}
"""Leaves the convolutions of an INT8 file between their (de)quantisations, in float. Not documented
by OpenVINO; `tests/export/test_quantise.py` holds it against onnxruntime."""


def _without_overflow(
    card: ModelCard, in_integers: _Network, in_floats: _Network
) -> tuple[_Network, str, tuple[Note, ...]]:
    """Return the network that draws the picture of an INT8 file, its precision, and a note.

    Without VNNI a CPU adds products of 8 bits in 16, and OpenVINO lets the sums overflow: measured
    on AVX2, a file that is 40.9 dB from its fp32 network elsewhere is 20.1 dB from it there.
    """
    try:
        parity_of(
            OpenVinoBackend(card, in_integers, "int8"), OpenVinoBackend(card, in_floats, "fp32")
        )
    except ModelError:
        text = (
            f"{printable(Path(card.path.name))} is computed in fp32: the integer arithmetic "
            "of this CPU overflows in openvino and would spoil the picture"
        )
        return in_floats, "fp32", (Note(None, text),)
    return in_integers, "int8", ()


def _run(request: Any, frames: Pixels, *names: str) -> list[Pixels]:
    """Return the outputs of ``request`` on ``frames`` that have these names, as own arrays.

    Not `request.infer`: where an allocation fails it raises nothing and leaves the output of the
    run before, which would be the wrong picture. Raises RuntimeError.
    """
    try:
        request.start_async({INPUT: frames}, share_inputs=True)
        request.wait()
    except BaseException:
        # An interrupt between the two: the frames are read where they lie, and may not be freed
        # while the network runs.
        request.cancel()
        with contextlib.suppress(RuntimeError):
            request.wait()
        raise
    # Copied: the next run writes into the same memory.
    return [request.get_tensor(name).data.copy() for name in names]


def _compiled(core: Any, card: ModelCard, graph: bytes, settings: dict[str, Any]) -> Any:
    try:
        return core.compile_model(core.read_model(graph, b""), "CPU", settings)
    except RuntimeError as error:
        if says_out_of_memory(error):
            raise OutOfMemoryError(
                f"openvino: no memory for the weights of {printable(card.path)}; close other "
                "programs"
            ) from error
        raise BackendError(
            f"openvino does not open {printable(card.path)}: {_reason(error)}; try "
            "--backend onnxruntime"
        ) from error


def _reason(error: Exception) -> str:
    """Return what OpenVINO says without the places in its source where it was said."""
    lines = [line.removeprefix("Caught exception: ").strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("Exception from")]
    return " ".join(told) or type(error).__name__


def _translated(error: Exception, card: ModelCard, frames: Pixels) -> Exception:
    shape = "×".join(map(str, frames.shape))
    if says_out_of_memory(error):
        return OutOfMemoryError(f"openvino: no memory for a batch of {shape}")
    return BackendError(
        f"openvino: {printable(card.path)} fails on frames of {shape}: {_reason(error)}; the "
        "network may need other sizes: try --size"
    )
