"""Optical flow between two frames of a source, and what is drawn along it."""

from __future__ import annotations

from typing import Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ..frames import Pixels, Size

Floats: TypeAlias = npt.NDArray[np.float32]
Grey: TypeAlias = npt.NDArray[np.uint8]
"""``(H, W)``, the luma of a frame, 0..255."""

SOURCE_TOLERANCE = 0.06
LIGHT_TOLERANCE = 0.03
"""What a difference of two frames may be, of 1, until it is rejected (at 1/e): of single pixels,
and of the mean of some."""
_CELL = 4
_EFFORTS = {
    "low": (cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST, 2),
    "usual": (cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST, 1),
    "best": (cv2.DISOPTICAL_FLOW_PRESET_MEDIUM, 0),
}
"""Of each effort, OpenCV's preset and the last level of its pyramid: 0 has the frame's size."""
_LEAST_SIDE = 64
"""OpenCV's DIS reads beyond its buffers (OpenCV 5.0: a segmentation fault) where the shorter side
is below 32 and the other one is much longer."""

LONGEST_SIDE = 32766
"""Pixels of a side of a frame at most: `cv2.remap` takes no more."""

_WORKING_SIDE = 540
"""Of larger frames, flow and mask are computed at the whole fraction of the size whose shorter side
is at most this: at 1/2 for 720p and 1080p, at 1/4 for 2160p."""


def working_size(size: Size) -> Size:
    """Return the height and width at which the flow of frames of ``size`` is computed."""
    times = -(-min(size) // _WORKING_SIDE)
    return -(-size[0] // times), -(-size[1] // times)


def at_size(pixels: Pixels, size: Size, interpolation: int, into: Pixels | None = None) -> Pixels:
    """Return ``pixels`` at ``size`` (height, width); where they are resized, in ``into``."""
    if pixels.shape[:2] == size:
        return pixels
    return cv2.resize(pixels, size[::-1], into, interpolation=interpolation)


def grey_of(pixels: Pixels) -> Grey:
    """Return the luma of RGB ``pixels``, ``(H, W, 3)``, uint8."""
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)


class Motion:
    """Dense optical flow (Kroeger et al., Fast Optical Flow using Dense Inverse Search, ECCV 2016).

    Not thread-safe. OpenCV divides the frame among its threads: with ``cv2.setNumThreads(1)`` the
    result does not depend on the machine's number of cores.
    """

    def __init__(self, effort: Literal["low", "usual", "best"] = "usual") -> None:
        """``effort``: how much time a flow may take; at 256p about 2, 3 and 50 ms.

        OpenCV's preset ULTRAFAST; the same, but refined to half the size where it stops at a
        quarter; its preset MEDIUM refined to whole pixels. In the filter the second one left less
        flicker than the preset FAST in the same time (benchmarks/film.md).
        """
        preset, finest_scale = _EFFORTS[effort]
        self._dis = cv2.DISOpticalFlow.create(preset)
        self._dis.setFinestScale(finest_scale)

    def between(self, now: Grey, before: Grey) -> Floats:
        """Return ``f``, ``(H, W, 2)`` in pixels (x, y): ``now[p]`` was at ``before[p + f[p]]``."""
        height, width = now.shape
        below, right = max(0, _LEAST_SIDE - height), max(0, _LEAST_SIDE - width)
        if below or right:
            now, before = (
                np.asarray(
                    cv2.copyMakeBorder(grey, 0, below, 0, right, cv2.BORDER_REPLICATE), np.uint8
                )
                for grey in (now, before)
            )
        flow = self._dis.calc(now, before, None)  # type: ignore[call-overload]
        return np.asarray(flow[:height, :width], np.float32)


class Warp:
    """Draws frames at the places that a flow points to."""

    def __init__(self, flow: Floats) -> None:
        """``flow``: ``(H, W, 2)`` in pixels (x, y)."""
        height, width = flow.shape[:2]
        self._whole = np.empty((height, width, 2), np.int16)
        self._rest = np.empty((height, width), np.uint16)
        self.point(flow.copy())

    def point(self, flow: Floats) -> None:
        """Point to other places, by a flow of the same size, which is overwritten."""
        flow[:, :, 0] += np.arange(flow.shape[1], dtype=np.float32)
        flow[:, :, 1] += np.arange(flow.shape[0], dtype=np.float32)[:, np.newaxis]
        # To 1/32 pixel, as `cv2.remap` rounds them; in this form it takes less than half the time.
        cv2.convertMaps(flow, None, cv2.CV_16SC2, self._whole, self._rest)  # type: ignore[call-overload]

    def linear(self, pixels: Pixels) -> Pixels:
        """Return ``pixels[p + flow[p]]``, bilinear; beyond the border the border's pixels."""
        return self._drawn(pixels, cv2.INTER_LINEAR)

    def cubic(
        self, pixels: Pixels, into: Pixels | None = None, rows: slice = slice(None)
    ) -> Pixels:
        """Return ``pixels[p + flow[p]]``, bicubic (Keys, a = −0.75).

        ``rows``: of the result; into an array of their shape, where there is one.
        """
        return self._drawn(pixels, cv2.INTER_CUBIC, into, rows)

    def _drawn(
        self,
        pixels: Pixels,
        interpolation: int,
        into: Pixels | None = None,
        rows: slice = slice(None),
    ) -> Pixels:
        border = cv2.BORDER_REPLICATE
        return cv2.remap(
            pixels, self._whole[rows], self._rest[rows], interpolation, into, borderMode=border
        )


def cells(pixels: Pixels, across: Size | None = None) -> Pixels:
    """Return the means of cells of 4×4 pixels; of more, where ``across`` gives fewer cells."""
    height, width = across or cells_across((pixels.shape[0], pixels.shape[1]))
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def cells_across(size: Size) -> Size:
    """Return how many cells a frame of ``size`` has, down and across."""
    return -(-size[0] // _CELL), -(-size[1] // _CELL)


def power(pixels: Pixels) -> Pixels:
    """Return the mean of the squares of the three channels, ``(H, W)`` of ``(H, W, 3)``."""
    return cv2.transform(cv2.multiply(pixels, pixels), np.full((1, 3), 1 / 3, np.float32))


def likeness(now: Pixels, before: Pixels, flow: Floats) -> Floats:
    """Return for each cell how well the frame before shows what is there now, 0..1.

    ``now`` and ``before``: ``(H, W, 3)``, uint8, and ``flow`` from one to the other. With the
    difference d of the two along the flow, the mean C over a cell and B over 3×3 cells:
    exp(−C(|d|²)/0.06² − |B C(d)|²/0.03²), levels in 0..1 and |·|² the mean over the channels.
    """
    moved = cv2.subtract(now, Warp(flow).linear(before), dtype=cv2.CV_32F)
    exponent = cells(power(moved)) / np.float32((255 * SOURCE_TOLERANCE) ** 2)
    light = power(cv2.blur(cells(moved), (3, 3)))
    exponent += light / np.float32((255 * LIGHT_TOLERANCE) ** 2)
    return np.asarray(np.exp(-exponent), np.float32)


def is_cut(likeness: Floats) -> bool:
    """Return whether another scene begins: little of the frame before is seen in this one.

    At the five cuts of the clip "bikes" at 256 lines the mean is at most 0.1, between them at least
    0.57. A distance of histograms above 0.35 finds two of the five.
    """
    return float(likeness.mean()) < 0.2
