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
from .motion import Floats, Motion, Warp, at_size, grey_of, is_cut, likeness, power, working_size

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


@dataclass(frozen=True)
class Seen:
    """Where the pixels of a frame were in the frame before it, and which of them it shows."""

    warp: Warp
    mask: npt.NDArray[np.bool_]
    """M, ``(H, W)``."""

    @classmethod
    def between(cls, now: Pixels, before: Pixels) -> Seen | None:
        """Compare two consecutive frames of the source, uint8 ``(H, W, 3)``; None at a scene cut.

        Of frames whose shorter side is above 540 pixels, flow and mask are computed at a whole
        fraction of the size, as in the filter.
        """
        size = now.shape[0], now.shape[1]
        working = working_size(size)
        now, before = (at_size(frame, working, cv2.INTER_AREA) for frame in (now, before))
        greys, motion = (grey_of(now), grey_of(before)), Motion("best")
        flow = motion.between(*greys)
        if is_cut(likeness(now, before, flow)):
            return None
        mask = shown_before(flow, motion.between(*greys[::-1]))
        mask = at_size(mask.view(np.uint8), size, cv2.INTER_NEAREST).view(np.bool_)
        scale = np.array([size[axis] / working[axis] for axis in (1, 0)], np.float32)
        return cls(Warp(at_size(flow * scale, size, cv2.INTER_LINEAR)), mask)


class FlickerMeter:
    """Measures translations of one video side by side, frame by frame.

    Not thread-safe; with ``cv2.setNumThreads(1)`` the numbers do not depend on the cores.
    """

    def __init__(self, count: int) -> None:
        """``count``: how many translations there are."""
        self._tallies = [Tally() for _ in range(count)]
        self._before: Pixels | None = None

    def add(self, source: Pixels, translations: Sequence[Pixels]) -> None:
        """Take the next frame of the source and of each translation.

        All are RGB of one size, ``(H, W, 3)``, uint8 or float16 in [0, 1].
        """
        source, before = to_uint8(source), self._before
        seen = None if before is None else Seen.between(source, before)
        self._before = source
        for tally, translated in zip(self._tallies, translations, strict=True):
            tally.add(translated, seen)

    def results(self) -> list[Flicker]:
        """Return the measures of each translation. Raises ValueError before the first frame."""
        return [tally.result() for tally in self._tallies]


class Tally:
    """The sums of one translation, whose frames it takes in order. Not thread-safe."""

    def __init__(self) -> None:
        self._errors, self._weights = np.zeros(2), 0
        self._pump, self._pumps = 0.0, 0
        self._sharpness, self._frames = 0.0, 0
        self._scene: list[npt.NDArray[np.float64]] = []
        """The means of the channels of the last two frames, of one scene."""
        self._before: tuple[Floats, Floats] | None = None

    def add(self, translated: Pixels, seen: Seen | None) -> None:
        """Take the next frame; ``seen`` is None where a scene begins."""
        pixels = to_uint8(translated)
        plain = pixels.astype(np.float32)
        now = plain, cv2.GaussianBlur(plain, (0, 0), COARSE_SIGMA)
        self._sharpness += sharpness(pixels)
        self._frames += 1
        means = pixels.mean(axis=(0, 1), dtype=np.float64)
        if seen is None or self._before is None:
            self._scene = [means]
        else:
            self._weights += int(seen.mask.sum())
            for index, (frame, past) in enumerate(zip(now, self._before, strict=True)):
                squares = power(cv2.subtract(frame, seen.warp.linear(past)))
                self._errors[index] += float(squares[seen.mask].sum(dtype=np.float64)) / 255**2
            if len(self._scene) == 2:
                first, second = self._scene
                self._pump += float(np.abs(means - 2 * second + first).mean())
                self._pumps += 1
            self._scene = [*self._scene[-1:], means]
        self._before = np.asarray(now[0], np.float32), np.asarray(now[1], np.float32)

    def result(self) -> Flicker:
        """Return the measures. Raises ValueError before the first frame."""
        if not self._frames:
            raise ValueError("no frame was measured")
        errors = self._errors / self._weights if self._weights else np.full(2, np.nan)
        return Flicker(
            error=float(errors[0]),
            coarse_error=float(errors[1]),
            pump=self._pump / self._pumps if self._pumps else float("nan"),
            sharpness=self._sharpness / self._frames,
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
    squares = [square_error(*pair) for pair in zip(frames, others, strict=True)]
    if not squares:
        raise ValueError("no frame was measured")
    return decibels(float(np.mean(squares)))


def square_error(one: Pixels, other: Pixels) -> float:
    """Return the mean square difference of two uint8 frames of one shape, in levels²."""
    difference = cv2.subtract(one, other, dtype=cv2.CV_32F)
    return float(np.square(difference).mean(dtype=np.float64))


def decibels(square_error: float) -> float:
    """Return 10·log₁₀(255²/``square_error``); infinite for 0."""
    return float("inf") if square_error == 0 else 10 * float(np.log10(255**2 / square_error))


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
