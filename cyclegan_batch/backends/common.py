"""What each backend has in common: the protocol `Backend`, and the kit that they share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..errors import BackendError, ModelError, OutOfMemoryError
from ..frames import Pixels, as_pixel_type
from ..models.model import ModelCard, sample_frames
from ..models.parity import LIMITS, OF_PRECISION, Parity, natural_frames, parity
from ..wording import Note, printable

_MOST_ELEMENTS = 2**31 - 1

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
"""How allocators word it, letters only: each spells it with spaces, underscores or neither."""


class Backend(Protocol):
    """One execution context of a model; not thread-safe. Overlap comes from several (`fork`)."""

    card: ModelCard
    name: str
    """``onnxruntime``, ``openvino`` …"""
    device: str
    """``cpu`` or ``cuda:N``: where the arithmetic happens. Arrays are on the host."""
    precision: str
    """One of `PRECISIONS`: what the arithmetic really uses."""
    notes: tuple[Note, ...]
    """What the user should be told once."""

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``(N, H, W, 3)`` to the same shape and pixel type; the result is the caller's.

        N is any number: a file of fixed batch runs as often as it takes. H and W must meet the
        card. Raises OutOfMemoryError, BackendError (also when `cancel` cut it off), ModelError
        where the network changes the size or gives NaN.
        """

    def fork(self) -> Backend:
        """Return another context over the same weights."""

    def cancel(self) -> None:
        """Cut off a running `infer` from another thread where the runtime can.

        Later calls of `infer` fail at once.
        """

    def close(self) -> None:
        """Release the context; twice is fine."""


def checked(out: Pixels, frames: Pixels, card: ModelCard) -> Pixels:
    """Return ``out`` if it is what ``frames`` may become. Raises ModelError.

    NaN shows in float16 only; in uint8 it is no longer visible, so `verify` looks before that.
    """
    if out.shape != frames.shape or out.dtype != frames.dtype:
        raise ModelError(
            f"{printable(card.path)}: gives {out.shape} {out.dtype} for {frames.shape} "
            f"{frames.dtype} where a generator keeps size and type; it cannot translate pictures"
        )
    if out.dtype != np.uint8 and np.isnan(out).any():
        raise _not_a_number(card)
    return out


def in_batches(run: Callable[[Pixels], Pixels], frames: Pixels, batch: int | None) -> Pixels:
    """Return ``run(frames)``, called with ``batch`` frames at a time where only these are taken.

    The last call is filled up by repeating its last frame.
    """
    if batch is None or batch == len(frames):
        return run(frames)
    out = np.empty_like(frames)
    for begin in range(0, len(frames), batch):
        part = frames[begin : begin + batch]
        count = len(part)
        if count < batch:
            part = np.concatenate([part, np.repeat(part[-1:], batch - count, axis=0)])
        out[begin : begin + count] = run(part)[:count]
    return out


def batch_within_index(frames: Pixels, widest: float, batch: int | None) -> int | None:
    """Return how many of ``frames`` a call on a GPU takes where that is not ``batch``, or not all.

    Several kernels count a tensor's elements in 32 bits: torch's reflection_pad2d and
    onnxruntime's InstanceNormalization refuse more, and say nothing of memory. ``widest``: how
    many elements the widest tensor has for each pixel of a frame (`widest_tensor`).
    """
    count, height, width = frames.shape[:3]
    most = max(1, int(_MOST_ELEMENTS / max(1.0, widest * height * width)))
    return most if batch is None and count > most else batch


def verify(card: ModelCard, run: Callable[[Pixels], tuple[Pixels, Pixels]]) -> None:
    """Prove on a small sample that the network keeps size and type and gives numbers.

    ``run`` returns ``translated``, and the float values before they were clamped and rounded
    (`model.graph_with_values`). NaN has no place in uint8: runtimes turn it into black without a
    word, and only the values before show it. Once is enough for the weights, the precision and the
    division by a flat picture's deviation, which the sample has too. Raises ModelError.
    """
    frames = sample_frames(card)
    out, values = run(frames)
    if np.isnan(values).any():
        raise _not_a_number(card)
    checked(out, frames, card)


def parity_of(reduced: Backend, exact: Backend, *, remedy: str = "leave --precision out") -> Parity:
    """Return how close a reduced precision comes to fp32, on computed frames of the trained size.

    Raises ModelError, which says ``remedy``, where it misses the class of its precision.
    """
    card = reduced.card
    side = card.trained_size or 256
    frames = natural_frames(card.sizes.smallest_fit((side, side)), 4)
    frames = as_pixel_type(frames, card.pixel_type)
    found = parity(reduced.infer(frames), exact.infer(frames))
    needed = OF_PRECISION[reduced.precision]
    if not found.reaches(needed):
        raise ModelError(
            f"{printable(card.path)}: in {reduced.precision} it is {found}, where {needed} is "
            f"expected ({LIMITS[needed]}); {remedy}"
        )
    return found


def says_out_of_memory(error: BaseException) -> bool:
    """Tell whether a runtime's error means that an allocation failed.

    By its words: of all runtimes only torch has a type for it, whose words are among these.
    """
    letters = re.sub(r"[^a-z]", "", str(error).lower())
    return isinstance(error, MemoryError) or any(words in letters for words in _OUT_OF_MEMORY)


def failure_of(
    runtime: str, error: Exception, card: ModelCard, device: str, frames: Pixels
) -> BackendError:
    """Return what a runtime raised on ``frames`` as an error that the user can act on."""
    if says_out_of_memory(error):
        return out_of_memory(runtime, device, frames)
    shape = "×".join(map(str, frames.shape))
    return BackendError(
        f"{runtime}: {printable(card.path)} fails on frames of {shape}: {error}; the network "
        "may need other sizes: try --size"
    )


def out_of_memory(runtime: str, device: str, frames: Pixels) -> OutOfMemoryError:
    """Return what to raise where there is no memory for ``frames``."""
    shape = "×".join(map(str, frames.shape))
    return OutOfMemoryError(f"{runtime}: no memory on {device} for a batch of {shape}")


def _not_a_number(card: ModelCard) -> ModelError:
    return ModelError(
        f"{printable(card.path)}: gives NaN where numbers are expected; its training diverged, or "
        f"{card.precision} is too coarse for it; use a file of another checkpoint, or one in fp32"
    )
