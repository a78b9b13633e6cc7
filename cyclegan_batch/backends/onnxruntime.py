"""Run a contract file with onnxruntime, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections import Counter
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ..errors import BackendError, BackendUnavailableError, OutOfMemoryError
from ..frames import Pixels
from ..machine import nvidia_gpus
from ..models.model import INPUT, OUTPUT, VALUES, Model, ModelCard, graph_with_values, widest_tensor
from ..wording import Note, printable
from .common import batch_within_index, checked, failure_of, in_batches, is_out_of_memory, verify

_FATAL_ONLY = 4
"""onnxruntime's log severity. Errors are raised as exceptions as well, so no log is needed."""


class _Session(Protocol):
    """An ``InferenceSession``; onnxruntime has no types."""

    def run(
        self, outputs: list[str], inputs: dict[str, Pixels], options: object = None, /
    ) -> list[Pixels]: ...

    def get_providers(self) -> list[str]: ...

    def get_provider_graph_assignment_info(self) -> list[Any]: ...


class OnnxRuntimeBackend:
    """A context of an onnxruntime session; the session serves several contexts at once."""

    name = "onnxruntime"

    def __init__(
        self,
        card: ModelCard,
        session: _Session,
        device: str,
        precision: str,
        widest: float = 0.0,
    ) -> None:
        self.card, self.device, self.precision = card, device, precision
        self.notes: tuple[Note, ...] = ()
        self._widest = widest
        self._session: _Session | None = session
        self._options = _import().RunOptions()
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

    def _live_session(self) -> _Session:
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


def open_onnxruntime(
    model: Model, *, device: str, precision: str, threads: int, contexts: int
) -> OnnxRuntimeBackend:
    """Open ``model`` on ``device`` (``auto``, ``cpu`` or ``cuda[:N]``); see `open_backend`.

    The session computes with ``threads`` threads, ``contexts`` of which are its callers'.
    """
    device = "cuda:0" if device == "cuda" else device
    # A pool of n starts n - 1 threads, and every thread that calls the session computes as well.
    pool = threads - contexts + 1

    def open_session(graph: bytes, *, on_cpu_too: bool = True) -> _Session:
        return _session(graph, model.card, device, precision, pool, on_cpu_too=on_cpu_too)

    notes: tuple[Note, ...] = ()
    try:
        session = open_session(model.graph, on_cpu_too=device == "cpu")
    except OutOfMemoryError:
        raise
    except BackendError:
        # CUDA cannot compute some nodes. The CPU computes them instead, for which every frame is
        # copied there and back; a note reports that.
        session = open_session(model.graph)
        notes = _nodes_on_cpu(session, model.card, device)
    with_values = open_session(graph_with_values(model))

    def run(frames: Pixels) -> tuple[Pixels, Pixels]:
        try:
            out, values = with_values.run([OUTPUT, VALUES], {INPUT: frames})
        except Exception as error:
            raise failure_of("onnxruntime", error, model.card, device, frames) from error
        return out, values

    verify(model.card, run)
    arithmetic = precision_on_cuda(model.card, precision)
    if device == "cpu":
        # onnxruntime has few fp16 kernels for CPUs, and they compute in fp32; weights stay fp16.
        arithmetic = "fp32" if model.card.precision == "fp16" else model.card.precision
    widest = 0.0 if device == "cpu" else widest_tensor(model)
    backend = OnnxRuntimeBackend(model.card, session, device, arithmetic, widest)
    backend.notes = notes
    return backend


def _nodes_on_cpu(session: _Session, card: ModelCard, device: str) -> tuple[Note, ...]:
    """Return a note that names the nodes that a session on a GPU computes on the CPU."""
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
        f"onnxruntime {_import().__version__} computes {share} "
        f"on the CPU instead of {device}, and copies every frame there and back; install "
        "onnxruntime-gpu 1.25 or later, or export the file with this version (opset 18)"
    )
    return (Note(Path(card.path.name), text),)


def precision_on_cuda(card: ModelCard, precision: str) -> str:
    """Return the precision in which a GPU computes a file where the user chose ``precision``."""
    return "tf32" if card.precision == "fp32" and precision != "fp32" else card.precision


def sees_cuda() -> bool:
    """Tell whether the installed onnxruntime was built for CUDA and the machine has a GPU."""
    try:
        onnxruntime = _import()
    except BackendUnavailableError:
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers() and bool(nvidia_gpus())


def both_wheels() -> bool:
    """Tell whether onnxruntime and onnxruntime-gpu are both installed; they share one folder."""
    try:
        metadata.version("onnxruntime")
        metadata.version("onnxruntime-gpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def _import() -> ModuleType:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendUnavailableError(
            f"onnxruntime cannot be loaded ({error}); "
            'pip install "cyclegan-batch[cpu]", or "cyclegan-batch[gpu]" for an NVIDIA GPU'
        ) from error


def _session(
    graph: bytes, card: ModelCard, device: str, precision: str, pool: int, *, on_cpu_too: bool
) -> _Session:
    onnxruntime = _import()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = max(1, pool)
    options.inter_op_num_threads = 1
    # Let waiting threads sleep instead of spin: decoders and encoders need the CPU time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.use_deterministic_compute = True
    # Keep the default settings of the memory arena, with which memory stays flat over many shapes.
    # Shrinking the arena after each run leaks (tried, 150 shapes: 600 MB against 160).
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if device != "cpu":
        _check_cuda(onnxruntime, device)
        cuda = {
            "device_id": device.partition(":")[2],
            # The exhaustive search times its candidates, so a second run may choose other kernels,
            # and give other pixels.
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "1" if precision_on_cuda(card, precision) == "tf32" else "0",
        }
        providers.insert(0, ("CUDAExecutionProvider", cuda))
        if on_cpu_too:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        else:
            # onnxruntime refuses this entry where the CPU is among the providers.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            providers.pop()
    try:
        # enable_fallback: by default onnxruntime prints a message and goes on with the CPU where
        # CUDA fails, also in the middle of a run.
        session: _Session = onnxruntime.InferenceSession(
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
    # Where a provider cannot start, onnxruntime uses the CPU and only writes it to its log.
    first = session.get_providers()[0]
    if device != "cpu" and first != "CUDAExecutionProvider":
        raise BackendUnavailableError(
            f"onnxruntime was asked for {device} and uses {first}: its CUDA or cuDNN libraries "
            'cannot be loaded; pip install "cyclegan-batch[gpu]", see cyclegan-batch doctor, or '
            "pass --device cpu"
        )
    return session


def _check_cuda(onnxruntime: ModuleType, device: str) -> None:
    """Refuse CUDA where this onnxruntime has none, and load its libraries. Raises BackendError."""
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
    # preload_dlls prints the libraries that it does not find. Without one the session fails, which
    # `_session` reports.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(OSError):
        onnxruntime.preload_dlls()
