"""Run a contract file with onnxruntime, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BackendError, BackendUnavailableError, ModelError, OutOfMemoryError
from ..frames import Pixels
from ..model import INPUT, OUTPUT, Model, ModelCard

if TYPE_CHECKING:
    import onnxruntime as ort

_SAYS_OUT_OF_MEMORY = (
    "failed to allocate memory",
    "bad allocation",
    "std::bad_alloc",
    "bfcarena",
    "out of memory",
    "cudaerrormemoryallocation",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
)
"""How onnxruntime's allocators word it, in small letters; it has no error type of its own for it."""


class OnnxRuntimeBackend:
    """A context of an onnxruntime session; contexts share the session, which may run several at once."""

    name = "onnxruntime"

    def __init__(
        self, card: ModelCard, session: ort.InferenceSession, device: str, precision: str
    ) -> None:
        import onnxruntime

        self.card, self.device, self.precision = card, device, precision
        self._session: ort.InferenceSession | None = session
        self._options = onnxruntime.RunOptions()
        self._cancelled = False

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``; see `Backend.infer`."""
        if self._session is None or self._cancelled:
            raise BackendError("onnxruntime: this context was closed or cancelled; open another")
        batch = self.card.batch
        if batch is None or batch == len(frames):
            return self._run(frames)
        return in_batches(self._run, frames, batch)

    def fork(self) -> OnnxRuntimeBackend:
        """Return another context over the same session."""
        if self._session is None:
            raise BackendError("onnxruntime: this context was closed; open another")
        return OnnxRuntimeBackend(self.card, self._session, self.device, self.precision)

    def cancel(self) -> None:
        """Cut off a running `infer`; the graph stops before its next node."""
        self._cancelled = True
        self._options.terminate = True

    def close(self) -> None:
        """Release the context; twice is fine."""
        self._session = None

    def _run(self, frames: Pixels) -> Pixels:
        assert self._session is not None
        try:
            (out,) = self._session.run([OUTPUT], {INPUT: frames}, self._options)
        except Exception as error:
            raise _translated(error, self, frames) from error
        return checked(out, frames, self.card)


def open_onnxruntime(
    model: Model, *, device: str = "cpu", threads: int | None = None, contexts: int = 1
) -> OnnxRuntimeBackend:
    """Open ``model`` on ``device`` (``cpu`` or ``cuda[:N]``); see `open_backend`."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(
            'onnxruntime is not installed; pip install "cyclegan-batch[cpu]", or '
            '"cyclegan-batch[gpu]" for an NVIDIA GPU'
        ) from error
    options = onnxruntime.SessionOptions()
    total = threads or os.cpu_count() or 1
    options.intra_op_num_threads = max(1, total - contexts + 1)
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.graph, options, providers=["CPUExecutionProvider"])
    return OnnxRuntimeBackend(model.card, session, "cpu", model.card.precision)


def in_batches(run: Any, frames: Pixels, batch: int) -> Pixels:
    """Run ``frames`` through ``run`` that takes only ``batch`` at once; the last one is filled up."""
    out = np.empty_like(frames)
    for begin in range(0, len(frames), batch):
        part = frames[begin : begin + batch]
        count = len(part)
        if count < batch:
            part = np.concatenate([part, np.repeat(part[-1:], batch - count, axis=0)])
        out[begin : begin + count] = run(part)[:count]
    return out


def checked(out: Pixels, frames: Pixels, card: ModelCard) -> Pixels:
    """Return ``out`` if it is what ``frames`` must become. Raises ModelError."""
    if out.shape != frames.shape or out.dtype != frames.dtype:
        raise ModelError(
            f"{card.path}: gives {out.shape} {out.dtype} for {frames.shape} {frames.dtype}, where "
            "a generator keeps size and type; it cannot be used for translation"
        )
    return out


def _translated(error: Exception, backend: OnnxRuntimeBackend, frames: Pixels) -> Exception:
    text = str(error)
    if any(words in text.lower() for words in _SAYS_OUT_OF_MEMORY):
        return OutOfMemoryError(
            f"onnxruntime: no memory on {backend.device} for a batch of {len(frames)} at "
            f"{frames.shape[1]}×{frames.shape[2]}"
        )
    return BackendError(f"onnxruntime: {backend.card.path} failed on {frames.shape}: {text}")
