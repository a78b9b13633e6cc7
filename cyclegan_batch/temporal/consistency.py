"""How much a translated video flickers, and what a filter against flicker has cost.

The warping error is that of Lai et al., Learning Blind Video Temporal Consistency, ECCV 2018: with
the optical flow f_t of the source, W X(p) = X(p + f_t(p)) and the mask M_t of pixels that the frame
before shows as well,

    E = Σ_t Σ_p M_t(p)·|O_t(p) − W O_{t−1}(p)|² / Σ_t Σ_p M_t(p)

in levels of 0..1, |·|² the mean over the channels. A blur makes it smaller without making anything
steadier, so it is also measured on pictures that are blurred already, with σ = 2 pixels, where
another small blur changes little. A filter should do better there than the `control`: the blur
that costs as much sharpness.

No number is taken across a scene cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..frames import Pixels, to_uint8
from .motion import Floats, Grey, Motion, Warp, grey_of, is_cut, likeness, power

COARSE_SIGMA = 2.0
"""Pixels."""


@dataclass(frozen=True)
class Flicker:
    """Measures of one translated video."""

    error: float
    """E. It and the next two are NaN where no frames could be compared."""
    coarse_error: float
    """E of the frames blurred with σ = 2 pixels."""
    pump: float
    """Mean over frames and channels of |μ_{t+1} − 2·μ_t + μ_{t−1}|, μ the mean of a channel, in
    levels of 0..255."""
    sharpness: float
    """Mean over pixels and channels of |∂x| + |∂y|, in levels of 0..255 a pixel."""


class FlickerMeter:
    """Measures translations of one video side by side, frame by frame.

    Not thread-safe; with ``cv2.setNumThreads(1)`` the numbers do not depend on the cores.
    """

    def __init__(self, count: int) -> None:
        """``count``: how many translations there are."""
        self._motion = Motion("best")
        self._tallies = [_Tally() for _ in range(count)]
        self._before: tuple[Pixels, Grey] | None = None

    def add(self, source: Pixels, translations: Sequence[Pixels]) -> None:
        """Take the next frame of the source and of each translation.

        All are RGB of one size, ``(H, W, 3)``, uint8 or float16 in [0, 1].
        """
        source = to_uint8(source)
        grey, before = grey_of(source), self._before
        self._before = source, grey
        seen = None
        if before is not None:
            flow = self._motion.between(grey, before[1])
            if not is_cut(likeness(source, before[0], flow)):
                mask = shown_before(flow, self._motion.between(before[1], grey))
                seen = Warp(flow), mask
        for tally, translated in zip(self._tallies, translations, strict=True):
            tally.add(to_uint8(translated), seen)

    def results(self) -> list[Flicker]:
        """Return the measures of each translation. Raises ValueError before the first frame."""
        return [tally.result() for tally in self._tallies]


class _Tally:
    """The sums of one translation."""

    def __init__(self) -> None:
        self._errors, self._weights = np.zeros(2), 0
        self._pumps: list[float] = []
        self._sharpness: list[float] = []
        self._scene: list[npt.NDArray[np.float64]] = []
        """The means of the channels of the last two frames, of one scene."""
        self._before: tuple[Floats, Floats] | None = None

    def add(self, pixels: Pixels, seen: tuple[Warp, npt.NDArray[np.bool_]] | None) -> None:
        """Take the next frame; ``seen`` is None where a scene begins."""
        plain = pixels.astype(np.float32)
        now = plain, cv2.GaussianBlur(plain, (0, 0), COARSE_SIGMA)
        self._sharpness.append(sharpness(pixels))
        means = pixels.mean(axis=(0, 1), dtype=np.float64)
        if seen is None or self._before is None:
            self._scene = [means]
        else:
            warp, mask = seen
            self._weights += int(mask.sum())
            for index, (frame, past) in enumerate(zip(now, self._before, strict=True)):
                squares = power(cv2.subtract(frame, warp.linear(past)))
                self._errors[index] += float(squares[mask].sum(dtype=np.float64)) / 255**2
            if len(self._scene) == 2:
                second, first = self._scene[1], self._scene[0]
                self._pumps.append(float(np.abs(means - 2 * second + first).mean()))
            self._scene = [*self._scene[-1:], means]
        self._before = np.asarray(now[0], np.float32), np.asarray(now[1], np.float32)

    def result(self) -> Flicker:
        if not self._sharpness:
            raise ValueError("no frame was measured")
        errors = self._errors / self._weights if self._weights else np.full(2, np.nan)
        return Flicker(
            error=float(errors[0]),
            coarse_error=float(errors[1]),
            pump=float(np.mean(self._pumps)) if self._pumps else float("nan"),
            sharpness=float(np.mean(self._sharpness)),
        )


def shown_before(flow: Floats, back: Floats) -> npt.NDArray[np.bool_]:
    """Return M, ``(H, W)``: which pixels the frame before shows as well.

    ``flow`` leads to the frame before, ``back`` from it. What came in over the border is not shown.
    The two contradict each other where something was hidden, and are wrong where they change
    abruptly. Both tests are those of Sundaram et al., Dense Point Trajectories by GPU-accelerated
    Large Displacement Optical Flow, ECCV 2010:
    |f + W b|² ≤ 0.01·(|f|² + |W b|²) + 0.5, and |∇f_x|² + |∇f_y|² ≤ 0.01·|f|² + 0.002.
    """
    returned = Warp(flow).linear(back)
    length, return_length = (flow**2).sum(axis=2), (returned**2).sum(axis=2)
    agree = ((flow + returned) ** 2).sum(axis=2) <= 0.01 * (length + return_length) + 0.5
    height, width = length.shape
    x = flow[:, :, 0] + np.arange(width)
    y = flow[:, :, 1] + np.arange(height)[:, np.newaxis]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    slopes = np.zeros_like(length)
    for axis in (0, 1):
        if flow.shape[axis] > 1:
            slopes += (np.gradient(flow, axis=axis) ** 2).sum(axis=2)
    return np.asarray(inside & agree & (slopes <= 0.01 * length + 0.002))


def sharpness(pixels: Pixels) -> float:
    """Return the mean of |∂x| + |∂y| of a uint8 frame ``(H, W, 3)``, in levels a pixel."""
    total = 0.0
    for axis, size in enumerate(pixels.shape[:2]):
        if size > 1:
            first, second = (
                np.take(pixels, span, axis) for span in (range(size - 1), range(1, size))
            )
            total += float(cv2.absdiff(first, second).mean(dtype=np.float64))
    return total


def psnr(frames: Iterable[Pixels], others: Iterable[Pixels]) -> float:
    """Return 10·log₁₀(255²/mean square difference) of two videos of uint8 frames, in dB.

    Infinite where they are equal. Raises ValueError for different numbers of frames, or none.
    """
    squares = [
        float(np.square(cv2.subtract(one, other, dtype=cv2.CV_32F)).mean(dtype=np.float64))
        for one, other in zip(frames, others, strict=True)
    ]
    if not squares:
        raise ValueError("no frame was measured")
    mean = float(np.mean(squares))
    return float("inf") if mean == 0 else 10 * float(np.log10(255**2 / mean))


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    """Return the control of a uint8 frame: its Gaussian blur with ``sigma`` in pixels."""
    return pixels if sigma == 0 else cv2.GaussianBlur(pixels, (0, 0), sigma)


def control_sigma(frames: Sequence[Pixels], ratio: float) -> float:
    """Return the σ with which blurring uint8 ``frames`` leaves ``ratio`` of their sharpness.

    0 to 8 pixels: 0 for a ratio of 1 or more.
    """
    whole = sum(map(sharpness, frames))
    least, most = 0.0, 8.0
    if ratio >= 1 or whole == 0:
        return least
    for _ in range(12):
        sigma = (least + most) / 2
        if sum(sharpness(blurred(frame, sigma)) for frame in frames) > ratio * whole:
            least = sigma
        else:
            most = sigma
    return (least + most) / 2
