"""The frames between a source and a sink, and how a frame of any size fits into the network.

A `Frame` is RGB, row-major, top left first. There are two pixel types, and the model's card names
its own: ``uint8`` in 0..255, and ``float16`` in [0, 1] for sources of more than 8 bits. A
`Geometry` resizes and pads a frame to a size that the network accepts, and reverses both on the
result: a frame of 1279×717 comes back as 1279×717.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[Any]
"""RGB, ``(H, W, 3)`` or ``(N, H, W, 3)``, uint8 in 0..255 or float16 in [0, 1], C-contiguous."""

PixelType: TypeAlias = Literal["uint8", "float16"]
PlanarType: TypeAlias = Literal["nchw-float32", "nchw-float16"]
"""Planes instead of pixels: RGB, ``(N, 3, H, W)`` in [0, 1], as most other programs have them."""
FileIO: TypeAlias = Literal["uint8", "float16", "nchw-float32", "nchw-float16"]
"""The images that a model file takes and returns: `PixelType` or `PlanarType`."""
Size: TypeAlias = tuple[int, int]
"""Height and width, in the order of the array's axes."""
BatchShape: TypeAlias = tuple[int, int, int]
"""N, H, W: the shape of a batch of frames without its three channels."""

_Sample = TypeVar("_Sample", np.uint8, np.uint16, np.float16, np.float32)


@dataclass(frozen=True)
class Frame:
    """One frame of a video or one image, with the data that its sink needs to write it."""

    index: int
    """Position within its unit, from 0, in presentation order."""
    pixels: Pixels
    """``(H, W, 3)``."""
    tag: object = None
    """Set by the source and read by its sink, which checks its type: timestamps, alpha, a name."""
    warm_up: bool = False
    """It is in front of its unit: computed for the filter against flicker, and not written."""


@dataclass(frozen=True)
class SizeRequirements:
    """The heights and widths a network accepts."""

    multiple_of: int = 1
    """Both sides must be multiples of this number."""
    minimum: int = 1
    """Neither side may be smaller than this."""
    fixed: Size | None = None
    """The only accepted size, where the file fixes it."""

    def smallest_fit(self, size: Size) -> Size:
        """Return the smallest accepted size that holds ``size``, or the fixed size."""
        if self.fixed is not None:
            return self.fixed
        height, width = (
            -(-max(side, self.minimum) // self.multiple_of) * self.multiple_of for side in size
        )
        return height, width


@dataclass(frozen=True)
class Geometry:
    """How frames of one size are resized and padded for the network, and back.

    A frame is resized from ``source`` to ``content`` where they differ, then padded by reflection
    at the lower and right edge up to ``network``. The result is cropped to ``content`` and resized
    to ``source``, except with ``--keep-size``.
    """

    source: Size
    content: Size
    network: Size

    def into_network(self, pixels: Pixels) -> Pixels:
        """Return ``pixels`` of ``source`` size at ``network`` size; no copy if nothing changes."""
        return _reflect(_resize(pixels, self.content), self.network)

    def out_of_network(self, pixels: Pixels, *, keep_size: bool = False) -> Pixels:
        """Return ``pixels`` of ``network`` size at ``source`` size; ``keep_size``: ``content``."""
        height, width = self.content
        cropped = np.ascontiguousarray(pixels[:height, :width])
        return cropped if keep_size else _resize(cropped, self.source)


def geometry(
    source: Size,
    requirements: SizeRequirements,
    *,
    size: Literal["native"] | int | Size = "native",
    fit: Literal["pad", "stretch"] | None = None,
) -> Geometry:
    """Return how frames of ``source`` size are passed to the network.

    ``size``: ``"native"``, the length of the shorter side, or (height, width). ``fit``: ``pad``
    keeps the aspect ratio and pads by reflection, ``stretch`` resizes to exactly that size; None
    means ``stretch`` where the model's size is fixed, else ``pad``.
    """
    fixed = requirements.fixed
    fit = fit or ("stretch" if fixed else "pad")
    box = fixed or (size if isinstance(size, tuple) else None)
    if box is not None:
        scale = min(box[0] / source[0], box[1] / source[1])
    else:
        scale = size / min(source) if isinstance(size, int) else 1.0
    content = max(1, round(source[0] * scale)), max(1, round(source[1] * scale))
    network = requirements.smallest_fit(box or content)
    return Geometry(source, network if fit == "stretch" else content, network)


def as_pixel_type(pixels: Pixels, pixel_type: PixelType) -> Pixels:
    """Return 8-bit ``pixels`` in the model's pixel type (float16: divided by 255)."""
    if pixel_type == "uint8":
        return pixels
    return look_up(pixels, _float16_of_uint8())


def to_uint8(pixels: Pixels) -> Pixels:
    """Return ``pixels`` in [0, 1] as uint8: clamped, rounded half up; uint8 is returned as it is.

    Not-a-number becomes black.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.float16:
        return look_up(np.ascontiguousarray(pixels).view(np.uint16), _uint8_of_float16())
    return _rounded(pixels)


def look_up(array: Pixels, table: npt.NDArray[_Sample]) -> npt.NDArray[_Sample]:
    """Return ``table[array]``, where ``array`` is uint8 or uint16 and the table has all its values.

    For float16 a table is faster than arithmetic.
    """
    import cv2

    try:
        found = cv2.LUT(array.reshape(len(array), -1), table)
    except cv2.error:
        # OpenCV 4 has no tables for 16 bits: NumPy takes eight times as long.
        return np.take(table, array)
    return np.asarray(found).view(table.dtype).reshape(array.shape)


@cache
def _float16_of_uint8() -> npt.NDArray[np.float16]:
    return (np.arange(256, dtype=np.float32) / 255.0).astype(np.float16)


@cache
def _uint8_of_float16() -> npt.NDArray[np.uint8]:
    """Return a table from the bits of a float16."""
    return _rounded(np.arange(65536, dtype=np.uint16).view(np.float16))


def _rounded(values: Pixels) -> npt.NDArray[np.uint8]:
    """Return values in [0, 1] as uint8: clamped, and rounded half up."""
    numbers = np.where(np.isnan(values), 0.0, values).astype(np.float32)
    rounded: npt.NDArray[np.uint8] = np.floor(np.clip(numbers * 255.0, 0.0, 255.0) + 0.5).astype(
        np.uint8
    )
    return rounded


def same_pixels(one: Pixels, other: Pixels) -> bool:
    """Return whether two frames have the same shape, the same pixel type and the same bytes.

    Eight rows are compared first, so that frames that differ take a few microseconds.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    step = -(-len(one) // 8)
    if not np.array_equal(_bytes_of(one[::step]), _bytes_of(other[::step])):
        return False
    left, right = _bytes_of(one), _bytes_of(other)
    # NumPy compares 64-bit words twice as fast as bytes, and a block of them stays in the cache.
    words = left.size // 8 * 8
    left_words, right_words = left[:words].view(np.uint64), right[:words].view(np.uint64)
    for start in range(0, left_words.size, _COMPARED):
        block = slice(start, start + _COMPARED)
        if not np.array_equal(left_words[block], right_words[block]):
            return False
    return np.array_equal(left[words:], right[words:])


_COMPARED = 1 << 16
"""Words that are compared at a time."""


def _bytes_of(pixels: Pixels) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)


def stack(frames: Sequence[Pixels], batch_size: int) -> Pixels:
    """Return 1..N frames of one size as ``(batch_size, H, W, 3)``, filled up with the last one."""
    if len(frames) == batch_size == 1:
        return np.ascontiguousarray(frames[0])[np.newaxis]
    return np.stack([*frames, *[frames[-1]] * (batch_size - len(frames))])


def _resize(pixels: Pixels, size: Size) -> Pixels:
    """Return ``pixels`` resized by OpenCV: by area where they shrink, bicubic where they grow."""
    if pixels.shape[:2] == size:
        return pixels
    import cv2

    shrinks = size[0] * size[1] < pixels.shape[0] * pixels.shape[1]
    # cv2.resize does not support float16.
    work = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    out = cv2.resize(work, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if pixels.dtype != np.uint8:
        out = np.clip(out, 0.0, 1.0)
    return np.ascontiguousarray(out.astype(pixels.dtype, copy=False))


def _reflect(pixels: Pixels, size: Size) -> Pixels:
    """Return ``pixels`` padded to ``size`` by reflection (OpenCV's BORDER_REFLECT_101).

    The reflection is repeated where the padding is larger than the frame.
    """
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    import cv2

    # OpenCV does not pad float16, so its bits are padded as uint16.
    bits = pixels if pixels.dtype == np.uint8 else pixels.view(np.uint16)
    below, right = size[0] - height, size[1] - width
    padded = cv2.copyMakeBorder(bits, 0, below, 0, right, cv2.BORDER_REFLECT_101)
    return np.asarray(padded).view(pixels.dtype)
