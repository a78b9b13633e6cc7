"""Run a contract file with onnxruntime on an NVIDIA GPU.

Experimental: this backend has never run on a GPU; its control flow is tested on a stand-in.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from importlib import metadata
from pathlib import Path
from types import ModuleType

from ..errors import BackendError, BackendUnavailableError, OutOfMemoryError
from ..machine import nvidia_gpus
from ..models.model import Model, ModelCard, graph_with_values, widest_tensor
from ..wording import Note
from .onnxruntime import (
    OnnxRuntimeBackend,
    Provider,
    Session,
    check_values,
    import_onnxruntime,
    open_session,
    session_options,
)


def open_onnxruntime_cuda(
    model: Model, *, device: str, precision: str, threads: int, contexts: int
) -> OnnxRuntimeBackend:
    """Open ``model`` on ``device``, ``cuda[:N]``; see `open_backend`.

    Nodes that CUDA cannot compute get ``threads`` threads, ``contexts`` of which are the callers'.
    """
    device = "cuda:0" if device == "cuda" else device
    pool = threads - contexts + 1

    def opened(graph: bytes, *, on_cpu_too: bool = True) -> Session:
        return _session(graph, model.card, device, precision, pool, on_cpu_too=on_cpu_too)

    notes: tuple[Note, ...] = ()
    try:
        session = opened(model.graph, on_cpu_too=False)
    except OutOfMemoryError:
        raise
    except BackendError:
        # CUDA cannot compute some nodes. The CPU computes them instead, for which every frame is
        # copied there and back; a note reports that.
        session = opened(model.graph)
        notes = _nodes_on_cpu(session, model.card, device)
    check_values(opened(graph_with_values(model)), model.card, device)
    arithmetic = precision_on_cuda(model.card, precision)
    backend = OnnxRuntimeBackend(model.card, session, device, arithmetic, widest_tensor(model))
    backend.notes = notes
    return backend


def precision_on_cuda(card: ModelCard, precision: str) -> str:
    """Return the precision in which a GPU computes a file where the user chose ``precision``."""
    return "tf32" if card.precision == "fp32" and precision != "fp32" else card.precision


def sees_cuda() -> bool:
    """Tell whether the installed onnxruntime was built for CUDA and the machine has a GPU."""
    try:
        onnxruntime = import_onnxruntime()
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


def _session(
    graph: bytes, card: ModelCard, device: str, precision: str, pool: int, *, on_cpu_too: bool
) -> Session:
    _check_cuda(import_onnxruntime(), device)
    cuda = {
        "device_id": device.partition(":")[2],
        # The exhaustive search times its candidates, so a second run may choose other kernels,
        # and give other pixels.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "1" if precision_on_cuda(card, precision) == "tf32" else "0",
    }
    providers: list[Provider] = [("CUDAExecutionProvider", cuda)]
    # onnxruntime refuses this entry where the CPU is among the providers.
    switch = "session.disable_cpu_ep_fallback"
    if on_cpu_too:
        providers.append("CPUExecutionProvider")
        switch = "session.record_ep_graph_assignment_info"
    session = open_session(graph, card, device, session_options(pool, switch), providers)
    # Where a provider cannot start, onnxruntime uses the CPU and only writes it to its log.
    first = session.get_providers()[0]
    if first != "CUDAExecutionProvider":
        raise BackendUnavailableError(
            f"onnxruntime was asked for {device} and uses {first}: its CUDA or cuDNN libraries "
            'cannot be loaded; pip install "cyclegan-batch[gpu]", see cyclegan-batch doctor, or '
            "pass --device cpu"
        )
    return session


def _nodes_on_cpu(session: Session, card: ModelCard, device: str) -> tuple[Note, ...]:
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
        f"onnxruntime {import_onnxruntime().__version__} computes {share} "
        f"on the CPU instead of {device}, and copies every frame there and back; install "
        "onnxruntime-gpu 1.25 or later, or export the file with this version (opset 18)"
    )
    return (Note(Path(card.path.name), text),)


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
