"""The runtimes behind one face: `open_backend` gives a `Backend`, whatever runs it."""

from __future__ import annotations

from typing import Protocol

from ..frames import Pixels
from ..model import Model, ModelCard


class Backend(Protocol):
    """One execution context of a model; not thread-safe. Overlap comes from several (`fork`)."""

    card: ModelCard
    name: str
    """``onnxruntime``, ``openvino`` …"""
    device: str
    """``cpu`` or ``cuda:N``: where the arithmetic happens. Arrays are on the host."""
    precision: str
    """``fp32``, ``fp16``, ``bf16`` or ``int8``: what the arithmetic really uses."""

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``(N, H, W, 3)`` to ``(N, H, W, 3)`` of the same pixel type; the result is the caller's.

        N is any number: a file of fixed batch runs as often as it takes. H and W must meet the card.
        Raises OutOfMemoryError, BackendError; BackendError too when `cancel` cut it off.
        """

    def fork(self) -> Backend:
        """Return another context over the same weights."""

    def cancel(self) -> None:
        """Cut off a running `infer` from another thread where the runtime can; later calls fail at once."""

    def close(self) -> None:
        """Release the context; twice is fine."""


def open_backend(
    model: Model,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    contexts: int = 1,
) -> Backend:
    """Open ``model`` with the runtime, on the device and in the precision asked for."""
    from .onnxruntime import open_onnxruntime

    return open_onnxruntime(model, threads=threads, contexts=contexts)
