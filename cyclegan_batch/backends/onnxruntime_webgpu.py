"""Run a contract file with onnxruntime on the GPU of any maker, by WebGPU.

Experimental: the provider is a wheel of its own, onnxruntime-ep-webgpu, that is registered with the
ordinary onnxruntime (1.24.4 or later). It reaches AMD, Intel, Apple and NVIDIA GPUs by Vulkan,
Direct3D 12 or Metal. It has run on no GPU here, but on SwiftShader, a Vulkan that computes on the
CPU: the demo's generator drew what the CPU draws (96.3 dB, largest difference 1), with every node
on WebGPU (onnxruntime 1.32, onnxruntime-ep-webgpu 0.4). The tests run on a stand-in.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, TypeAlias

from ..errors import BackendError, BackendUnavailableError, OutOfMemoryError, missing_extra
from ..models.model import Model, graph_with_values
from ..wording import first_line, printable
from .common import is_out_of_memory, needs_verify
from .onnxruntime import (
    OnnxRuntimeBackend,
    Session,
    check_values,
    import_onnxruntime,
    nodes_on_cpu,
    session_options,
)

DEVICE = "webgpu"
"""The name of the device: the provider itself chooses among several GPUs."""

_NAME = "webgpu"
"""Under which the provider is registered with onnxruntime."""


class WebGpuBackend(OnnxRuntimeBackend):
    """A context of a session on WebGPU; onnxruntime runs one call of a session at a time."""

    how = ""
    """The GPU, by the numbers of its maker and its kind, as far as onnxruntime tells it."""

    def fork(self) -> WebGpuBackend:
        """Return another context over the same session."""
        context = WebGpuBackend(self.card, self._live_session(), self.device, self.precision)
        context.how = self.how
        return context


Device: TypeAlias = Any
"""A device of onnxruntime, which has no types."""


def open_onnxruntime_webgpu(model: Model, *, threads: int, contexts: int) -> WebGpuBackend:
    """Open ``model`` on WebGPU; see `open_backend`.

    Nodes that WebGPU cannot compute get ``threads`` threads, ``contexts`` of which are the
    callers'. Raises BackendUnavailableError, BackendError, ModelError.
    """
    device = webgpu_device()

    def opened(graph: bytes) -> Session:
        options: Any = session_options(
            threads - contexts + 1, "session.record_ep_graph_assignment_info"
        )
        name = printable(model.card.path)
        try:
            options.add_provider_for_devices([device], {})
            session: Session = import_onnxruntime().InferenceSession(
                graph, options, enable_fallback=0
            )
        # onnxruntime has no exception of its own for this.
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"onnxruntime: no memory on {DEVICE} for the weights of {name}; use another "
                    "device"
                ) from error
            # Many GPUs compute no half precision there.
            other = "use a file in fp32" if model.card.precision == "fp16" else "update its driver"
            raise BackendError(
                f"onnxruntime does not open {name} on WebGPU: {first_line(error)}; {other}, or "
                "pass --device cpu"
            ) from error
        return session

    session = opened(model.graph)
    backend = WebGpuBackend(model.card, session, DEVICE, model.card.precision)
    backend.how = gpu_words(device)
    backend.notes = nodes_on_cpu(
        session, model.card, DEVICE, "export it in fp32 with this version (opset 18)"
    )
    if needs_verify(model, backend):
        check_values(opened(graph_with_values(model)), model.card, DEVICE)
    return backend


def webgpu_device() -> Device:
    """Return onnxruntime's first device for WebGPU. Raises BackendUnavailableError."""
    onnxruntime = import_onnxruntime()
    try:
        provider = importlib.import_module("onnxruntime_ep_webgpu")
    except ImportError as error:
        raise missing_extra("webgpu", error, doing="compute on WebGPU") from error
    _register(provider.get_library_path())
    name = provider.get_ep_name()
    found = next((each for each in onnxruntime.get_ep_devices() if each.ep_name == name), None)
    if found is None:
        raise BackendUnavailableError(
            "onnxruntime finds no GPU for WebGPU on this machine (on Linux it looks in "
            "/sys/class/drm); install the GPU's driver, with its Vulkan on Linux, or pass "
            "--device cpu"
        )
    return found


def gpu_words(device: Device) -> str:
    """Return onnxruntime's device in words: ``GPU 1002:744c``."""
    hardware = device.device
    return f"GPU {hardware.vendor_id:04x}:{hardware.device_id:04x}"


@functools.cache
def _register(library: str) -> None:
    """Register the provider, which onnxruntime accepts once in a process."""
    onnxruntime = import_onnxruntime()
    try:
        onnxruntime.register_execution_provider_library(_NAME, library)
    except Exception as error:
        raise BackendUnavailableError(
            f"onnxruntime {onnxruntime.__version__} does not load its provider for WebGPU: "
            f"{first_line(error)}; it needs onnxruntime 1.24.4 or later, and on Linux "
            "libvulkan.so.1; or pass --device cpu"
        ) from error
