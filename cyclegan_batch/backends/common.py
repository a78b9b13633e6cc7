"""What all backends have in common: the protocol `Backend`, and functions that each one uses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..errors import BackendError, ModelError, OutOfMemoryError
from ..frames import Pixels, as_pixel_type
from ..models.model import Model, ModelCard, may_make_some_nan, sample_frames
from ..models.parity import LIMITS, REQUIRED_CLASS, Parity, natural_frames, parity
from ..wording import Note, printable

_MOST_ELEMENTS = 2**31 - 1
"""The most elements of a tensor that a kernel with 32-bit indices can address."""

_OUT_OF_MEMORY = (
    "outofmemory",  # CUDA's driver, torch, TensorRT's code 2, oneDNN
    "memoryallocation",  # cudaErrorMemoryAllocation
    "couldnotbeallocated",  # TensorRT: Requested amount of GPU memory (… bytes)
    "failedtoallocate",  # onnxruntime, OpenVINO, TensorRT
    "couldnotallocate",
    "cannotallocatememory",  # ENOMEM
    "allocfailed",  # cuBLAS, cuDNN 8
    "allocationfailed",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
    "allocationfailure",
    "badalloc",  # C++, also as "bad allocation"
    "bfcarena",  # onnxruntime's allocator
    "insufficientmemory",
)
"""Phrases of failed allocations, letters only: libraries differ in spaces and underscores."""


class Backend(Protocol):
    """One execution context of a model.

    A context is not thread-safe. For several calls at once, take several contexts (`fork`).
    """

    card: ModelCard
    name: str
    """``onnxruntime``, ``openvino`` …"""
    device: str
    """``cpu`` or ``cuda:N``: where the arithmetic happens. Arrays are in host memory."""
    precision: str
    """One of `PRECISIONS`: that of the arithmetic, which may differ from the file's."""
    notes: tuple[Note, ...]
    """What the user should be told once."""

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``(N, H, W, 3)`` into a new array of the same shape and pixel type.

        N is any number: a file of fixed batch size runs several times. H and W must meet the
        card's size requirements. Raises OutOfMemoryError; BackendError, also where `cancel`
        stopped the call; ModelError where the network changes the size or returns NaN.
        """

    def fork(self) -> Backend:
        """Return another context over the same weights."""

    def cancel(self) -> None:
        """Stop a running `infer` from another thread, where the runtime can.

        Later calls of `infer` fail at once.
        """

    def close(self) -> None:
        """Release the context. A second call does nothing."""


def checked(out: Pixels, frames: Pixels, card: ModelCard) -> Pixels:
    """Return ``out`` if it can be the translation of ``frames``. Raises ModelError.

    NaN is detected in float16 only: uint8 has none, so `verify` looks at the floats.
    """
    if out.shape != frames.shape or out.dtype != frames.dtype:
        raise ModelError(
            f"{printable(card.path)}: returns {out.shape} {out.dtype} for {frames.shape} "
            f"{frames.dtype} where a generator keeps size and type; it cannot translate images"
        )
    if out.dtype != np.uint8 and np.isnan(out).any():
        raise _not_a_number(card)
    return out


def in_batches(run: Callable[[Pixels], Pixels], frames: Pixels, batch: int | None) -> Pixels:
    """Return ``run(frames)``; if ``batch`` is given, call ``run`` with that many frames at a time.

    The last batch is filled up by repeating its last frame.
    """
    if batch is None or batch == len(frames):
        return run(frames)
    out = np.empty(frames.shape, frames.dtype)  # not in the order of ``frames`` in memory
    for begin in range(0, len(frames), batch):
        part = frames[begin : begin + batch]
        count = len(part)
        if count < batch:
            part = np.concatenate([part, np.repeat(part[-1:], batch - count, axis=0)])
        out[begin : begin + count] = run(part)[:count]
    return out


def batch_within_index(frames: Pixels, widest: float, batch: int | None) -> int | None:
    """Return the batch size for `in_batches` on a GPU: ``batch``, or less than all ``frames``.

    Several kernels index a tensor's elements with 32 bits: torch's reflection_pad2d and
    onnxruntime's InstanceNormalization refuse larger tensors, with an error that does not mention
    memory, so that the caller would not try a smaller batch. ``widest``: how many elements the
    largest tensor has for each pixel of a frame (`widest_tensor`). ``batch``: the file's fixed
    batch size, which cannot be reduced.
    """
    count, height, width = frames.shape[:3]
    most = max(1, int(_MOST_ELEMENTS / max(1.0, widest * height * width)))
    return most if batch is None and count > most else batch


def verify(card: ModelCard, run: Callable[[Pixels], tuple[Pixels, Pixels]]) -> None:
    """Check on a small sample that the network keeps size and type and returns numbers.

    ``run`` returns ``translated``, and the float values before clamping and rounding
    (`model.graph_with_values`). uint8 has no NaN: runtimes silently convert it to black, so only
    the float values show it. One check is enough, since NaN comes from the weights, the precision,
    or a division by the deviation of an image of one colour, and the sample has such an image, too.
    Raises ModelError.
    """
    frames = sample_frames(card)
    out, values = run(frames)
    if np.isnan(values).any():
        raise _not_a_number(card)
    checked(out, frames, card)


def needs_verify(model: Model, backend: Backend) -> bool:
    """Translate `sample_frames`; return whether `verify` must look at the floats, too.

    ``model``: what ``backend`` runs. Raises what `Backend.infer` does.
    """
    sample = backend.infer(sample_frames(model.card))
    return may_hide_nan(sample) or may_make_some_nan(model)


def may_hide_nan(out: Pixels) -> bool:
    """Tell whether ``out``, the translation of `sample_frames`, may have been NaN before rounding.

    NaN from weights, from the arithmetic or from a norm without deviation fills at least a channel
    of a frame, but in the networks of `may_make_some_nan`. Rounding to uint8, and clamping float16
    in some runtimes, converts it to one level. So a sample without such a channel needs no
    `verify`, for which the network is opened once more.
    """
    pixels = out.reshape(len(out), -1, out.shape[-1])
    return bool((pixels == pixels[:, :1]).all(axis=1).any())


def parity_of(reduced: Backend, exact: Backend, *, remedy: str = "leave --precision out") -> Parity:
    """Measure how close a reduced precision is to fp32, on computed frames of the trained size.

    Raises ModelError, which ends with ``remedy``, where the class of the precision is missed.
    """
    card = reduced.card
    side = card.trained_size or 256
    frames = natural_frames(card.sizes.smallest_fit((side, side)), 4)
    frames = as_pixel_type(frames, card.pixel_type)
    measured = parity(reduced.infer(frames), exact.infer(frames))
    required = REQUIRED_CLASS[reduced.precision]
    if not measured.reaches(required):
        raise ModelError(
            f"{printable(card.path)}: in {reduced.precision} it is {measured}, where {required} is "
            f"expected ({LIMITS[required]}); {remedy}"
        )
    return measured


def is_out_of_memory(error: BaseException) -> bool:
    """Tell from its message whether a runtime's error means that an allocation failed.

    Only torch has an exception type for it, and its message matches as well.
    """
    letters = re.sub(r"[^a-z]", "", str(error).lower())
    return isinstance(error, MemoryError) or any(phrase in letters for phrase in _OUT_OF_MEMORY)


def failure_of(
    runtime: str,
    error: Exception,
    card: ModelCard,
    device: str,
    frames: Pixels,
    *,
    reason: str | None = None,
) -> BackendError:
    """Return the error to raise where a runtime raised ``error`` on ``frames``.

    ``reason``: what the message gives as the reason in place of the text of ``error``.
    """
    if is_out_of_memory(error):
        return out_of_memory(runtime, device, frames)
    shape = "×".join(map(str, frames.shape))
    return BackendError(
        f"{runtime}: {printable(card.path)} fails on frames of {shape}: {reason or error}; the "
        "network may need other sizes: try --size"
    )


def out_of_memory(runtime: str, device: str, frames: Pixels) -> OutOfMemoryError:
    """Return the error to raise where there is no memory for ``frames``."""
    shape = "×".join(map(str, frames.shape))
    return OutOfMemoryError(f"{runtime}: no memory on {device} for a batch of {shape}")


def _not_a_number(card: ModelCard) -> ModelError:
    return ModelError(
        f"{printable(card.path)}: returns NaN where numbers are expected; its training diverged, "
        f"or {card.precision} is too coarse for it; use a file of another checkpoint, or one in "
        "fp32"
    )
