"""Run a contract file with onnxruntime on the CPU; onnxruntime_cuda.py does so on a GPU."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ..errors import BackendError, BackendUnavailableError, OutOfMemoryError
from ..frames import Pixels
from ..models.model import (
    INPUT,
    OUTPUT,
    VALUES,
    Model,
    ModelCard,
    graph_with_values,
    on_cpu,
)
from ..wording import Note, printable
from .common import (
    batch_within_index,
    checked,
    failure_of,
    in_batches,
    is_out_of_memory,
    needs_verify,
    verify,
)

_FATAL_ONLY = 4
"""onnxruntime's log severity. Errors are raised as exceptions as well, so no log is needed."""

Provider = str | tuple[str, dict[str, str]]
"""What computes a session's nodes: a name, or a name and options."""


class Session(Protocol):
    """An ``InferenceSession``; onnxruntime has no types."""

    def run(
        self, outputs: list[str], inputs: dict[str, Pixels], options: object = None, /
    ) -> list[Pixels]:
        """Return the named outputs for the named inputs."""

    def io_binding(self) -> Binding:
        """Return an empty binding of the session."""

    def run_with_iobinding(self, binding: Binding, options: object) -> None:
        """Read and write where the binding says, and wait for the end."""

    def get_providers(self) -> list[str]:
        """Return the names of the providers that started, the preferred one first."""

    def get_provider_graph_assignment_info(self) -> list[Any]:
        """Return which provider computes which nodes, where the session records it."""


class SessionOptions(Protocol):
    """The options of a session, as far as they are used here."""

    log_severity_level: int
    intra_op_num_threads: int
    inter_op_num_threads: int
    use_deterministic_compute: bool
    enable_mem_pattern: bool
    """Whether all tensors of a shape lie in one allocation from its second run on."""

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Set an option that has no attribute."""


class Binding(Protocol):
    """Where the inputs and outputs of a session are in memory, an ``IOBinding``."""

    def bind_input(
        self,
        name: str,
        device_type: str,
        device_id: int,
        element_type: object,
        shape: tuple[int, ...],
        buffer_ptr: int,
    ) -> None:
        """Read the input from the address ``buffer_ptr``."""

    def bind_output(
        self,
        name: str,
        device_type: str,
        device_id: int,
        element_type: object,
        shape: tuple[int, ...],
        buffer_ptr: int,
    ) -> None:
        """Write the output to the address ``buffer_ptr``."""


class OnnxRuntimeBackend:
    """A context of an onnxruntime session; the session serves several contexts at once.

    Each call passes arrays in ordinary memory and returns a new one. ``widest``: on a GPU, the
    elements of the largest tensor for each pixel of a frame (`batch_within_index`).
    """

    name = "onnxruntime"

    def __init__(
        self,
        card: ModelCard,
        session: Session,
        device: str,
        precision: str,
        widest: float = 0.0,
    ) -> None:
        self.card, self.device, self.precision = card, device, precision
        self.notes: tuple[Note, ...] = ()
        self._widest = widest
        self._session: Session | None = session
        self._options = import_onnxruntime().RunOptions()
        self._options.log_severity_level = _FATAL_ONLY

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``; see `Backend.infer`."""
        batch = batch_within_index(frames, self._widest, self.card.batch)
        return in_batches(self._run, frames, batch)

    def fork(self) -> OnnxRuntimeBackend:
        """Return another context over the same session."""
        return OnnxRuntimeBackend(
            self.card, self._live_session(), self.device, self.precision, self._widest
        )

    def cancel(self) -> None:
        """Stop a running `infer` before the graph's next node; later calls stop as well."""
        self._options.terminate = True

    def close(self) -> None:
        """Release the context. A second call does nothing."""
        self._session = None

    def _live_session(self) -> Session:
        if self._session is None:
            raise BackendError("onnxruntime: this context is closed; open another")
        return self._session

    def _run(self, frames: Pixels) -> Pixels:
        session = self._live_session()
        try:
            (out,) = session.run([OUTPUT], {INPUT: frames}, self._options)
        except Exception as error:
            if self._options.terminate:
                raise BackendError("onnxruntime: cancelled") from error
            raise failure_of("onnxruntime", error, self.card, self.device, frames) from error
        return checked(out, frames, self.card)


def open_onnxruntime(model: Model, *, threads: int, contexts: int) -> OnnxRuntimeBackend:
    """Open ``model`` on the CPU; see `open_backend`.

    The session computes with ``threads`` threads, ``contexts`` of which are its callers'.
    """
    # Windows (winograd.py) take memory, and only OpenVINO has another network for large frames.
    model = on_cpu(model, in_float32=False)
    # A pool of n starts n - 1 threads, and every thread that calls the session computes as well.
    pool = threads - contexts + 1

    def opened(graph: bytes) -> Session:
        return open_session(
            graph, model.card, "cpu", session_options(pool), ["CPUExecutionProvider"]
        )

    session = opened(model.graph)
    # onnxruntime has few fp16 kernels for CPUs, and they compute in fp32; weights stay fp16.
    arithmetic = "fp32" if model.card.precision == "fp16" else model.card.precision
    backend = OnnxRuntimeBackend(model.card, session, "cpu", arithmetic)
    if needs_verify(model, backend):
        check_values(opened(graph_with_values(model)), model.card, "cpu")
    return backend


def import_onnxruntime() -> ModuleType:
    """Return the module ``onnxruntime``. Raises BackendUnavailableError."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendUnavailableError(
            f"onnxruntime cannot be loaded ({error}); "
            'pip install "cyclegan-batch[cpu]", or "cyclegan-batch[gpu]" for an NVIDIA GPU'
        ) from error


def session_options(pool: int, *switches: str) -> SessionOptions:
    """Return the options of a session that computes with ``pool`` threads on the CPU.

    ``switches``: the configuration entries to set to 1.
    """
    options: SessionOptions = import_onnxruntime().SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = max(1, pool)
    options.inter_op_num_threads = 1
    # Let waiting threads sleep instead of spin: decoders and encoders need the CPU time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.use_deterministic_compute = True
    # Keep the default settings of the memory arena, with which memory stays flat over many shapes.
    # Shrinking the arena after each run leaks (tried, 150 shapes: 600 MB against 160).
    for switch in switches:
        options.add_session_config_entry(switch, "1")
    return options


def open_session(
    graph: bytes, card: ModelCard, device: str, options: object, providers: list[Provider]
) -> Session:
    """Return a session of ``graph``, computed by ``providers``. Raises BackendError.

    ``card`` and ``device`` are named in messages.
    """
    onnxruntime = import_onnxruntime()
    try:
        # enable_fallback: by default onnxruntime prints a message and goes on with the CPU where
        # CUDA fails, also in the middle of a run.
        session: Session = onnxruntime.InferenceSession(
            graph, options, providers=providers, enable_fallback=0
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"onnxruntime: no memory on {device} for the weights of {printable(card.path)}; "
                "use another device"
            ) from error
        raise BackendError(
            f"onnxruntime {onnxruntime.__version__} does not open {printable(card.path)}: {error}; "
            "try --backend openvino, or export the model with a lower opset"
        ) from error
    return session


def nodes_on_cpu(session: Session, card: ModelCard, device: str, remedy: str) -> tuple[Note, ...]:
    """Return a note that names the nodes that a session on a GPU computes on the CPU.

    The session must record them (``session.record_ep_graph_assignment_info``).
    """
    try:
        parts = session.get_provider_graph_assignment_info()
    except (AttributeError, RuntimeError):  # onnxruntime older than 1.25
        share = "some nodes"
    else:
        nodes = [(part.ep_name, node.op_type) for part in parts for node in part.get_nodes()]
        kinds = Counter(kind for name, kind in nodes if name == "CPUExecutionProvider")
        if not kinds:
            return ()
        words = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        share = f"{kinds.total()} of {len(nodes)} nodes ({words})"
    text = (
        f"onnxruntime {import_onnxruntime().__version__} computes {share} "
        f"on the CPU instead of {device}, and copies every frame there and back; {remedy}"
    )
    return (Note(Path(card.path.name), text),)


def check_values(session: Session, card: ModelCard, device: str) -> None:
    """Check that a session of `graph_with_values` returns numbers. Raises ModelError."""

    def run(frames: Pixels) -> tuple[Pixels, Pixels]:
        try:
            out, values = session.run([OUTPUT, VALUES], {INPUT: frames})
        except Exception as error:
            raise failure_of("onnxruntime", error, card, device, frames) from error
        return out, values

    verify(card, run)
