"""The filter against flicker: each translated frame is blended with the one before it, moved along.

With the source frame I_t, the translated frame Y_t and the result O_t, all RGB in [0, 1]:

    f     = optical flow from I_t to I_{t−1}; W X(p) = X(p + f(p)), bicubic
    d     = I_t − W I_{t−1}, bilinear, in 8 bits
    D     = W O_{t−1} − Y_t
    m     = exp(−C(|d|²)/0.06² − |B C(d)|²/0.03² − |C(D)|²/0.2²)
    s     = exp(−|A(I_t) − A(I_{t−1})|²/0.008²)
    O_t   = Y_t + ¾·λ·U(m)·D + (λ^¾ − ¾·λ)·U(m·C(D)) + s·(√λ − λ^¾)·A(m·C(D))

C are the means of cells of 4×4 pixels, and U interpolates between the middles of the cells, so U C
is the coarse part of a picture (as by a Gaussian of σ = 2 pixels). B is the mean over 3×3 cells, A
that over the whole frame, |·|² the mean over the channels, λ the strength. At a scene cut
O_t = Y_t.

The recursion along the flow with a photometric mask is that of blind video consistency (Lai et al.,
Learning Blind Video Temporal Consistency, ECCV 2018, whose mask is exp(−50·|d|²)) without its
network. The other terms of m are ours. The second one rejects changes of light, such as fades, at
a fraction of the contrast that grain may have, since the mean of grain vanishes. The third one
rejects a picture that the flow has moved wrongly where the source is flat and shows no error: C(D)
of flicker is small. It bounds what is left of another picture to 0.086·√λ of 1.

The coarse part is blended more than the fine one, since blending the fine part costs sharpness, and
the mean colour more than both: a CycleGAN normalises by the statistics of the whole frame, so its
colours pump all over it. s is for fades: where the mean of the source changes, that of the result
must not lag.

The strength bounds how long a frame is remembered. What two runs differ by that began at different
frames shrinks with each frame: its fine part to about ¾·λ of it, its coarse part to λ^¾, and the
mean colour to √λ. The last two differ by at most 0.086 of 1, so after 9 frames at λ = 0.5 less than
a level is left.
"""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ..frames import Pixels, Size, to_uint8
from ..options import DEFAULT_STRENGTH, MOST_STRENGTH
from .motion import (
    Floats,
    Grey,
    Motion,
    Warp,
    at_size,
    cells,
    grey_of,
    is_cut,
    likeness,
    power,
    working_size,
)

FINE = 0.75
"""How much of the strength λ the fine part gets."""
COARSE, MEAN = 0.75, 0.5
"""The power of λ that the coarse part gets, and that which the mean colour gets."""
RESULT_TOLERANCE = 0.2
"""What the coarse part of the difference may be, of 1, until it is rejected (at 1/e)."""
MEAN_TOLERANCE = 0.008
"""By how much the mean colour of the source may change in a frame, of 1, until that of the result
is no longer steadied (at 1/e): two levels. The fade of a second is faster."""

_STRIP = 32
"""Rows that are computed at a time, so that they stay in the cache from one step to the next."""

Means: TypeAlias = npt.NDArray[np.float64]
"""``(3,)``, in levels of 0..255."""


def frames_to_forget(strength: float) -> int:
    """Return after how many frames at ``strength`` it does not matter with which one it began.

    The strength to the power of their number is at most 1/512. Then less than a level is left, as
    above: 9 frames at 0.5. Raises ValueError where the strength is not above 0 and below 1.
    """
    if not 0.0 < strength < 1.0:
        raise ValueError(f"the strength must be above 0 and below 1, got {strength}")
    count = 1
    while strength**count > 1 / 512:
        count += 1
    return count


def filter_bytes(size: Size) -> int:
    """Return about how many bytes a `FlowFilter` of frames of ``size`` (height, width) holds.

    Four pictures in float, weights, a flow and its maps: 66 bytes for each pixel; what has working
    size is left out.
    """
    return 66 * size[0] * size[1]


class FlowFilter:
    """Takes the frames of one video in order and returns them with less flicker.

    Not thread-safe. Call it with ``cv2.setNumThreads(1)`` (see `Motion`).
    """

    def __init__(self, strength: float = DEFAULT_STRENGTH) -> None:
        """``strength``: λ, 0 (nothing changes) to 0.9. Raises ValueError for another one."""
        if not 0.0 <= strength <= MOST_STRENGTH:
            raise ValueError(f"the strength must be in 0..{MOST_STRENGTH}, got {strength}")
        self._strength = strength
        self._before: tuple[Pixels, Grey, Means] | None = None
        """The source of the frame before, at working size, its luma and its mean colour."""
        self._state: _State | None = None

    def reset(self) -> None:
        """Forget all frames: the next one is returned as it is."""
        self._before = None

    def __call__(self, source: Pixels, translated: Pixels) -> Pixels:
        """Return ``translated``, the next frame, filtered; at a scene cut ``translated`` itself.

        Both are RGB of one size, ``(H, W, 3)``, uint8 or float16 in [0, 1], each of its own type;
        the result has the type of ``translated``. Frames of another size begin anew. Raises
        ValueError where the two differ in size.
        """
        if source.shape != translated.shape:
            raise ValueError(
                f"a frame of {source.shape} cannot have the translation {translated.shape}"
            )
        if self._strength == 0.0:
            return translated
        size = translated.shape[0], translated.shape[1]
        if self._state is None or self._state.size != size:
            self._state, self._before = _State(size), None
        before = self._before
        small = at_size(to_uint8(source), self._state.working, cv2.INTER_AREA)
        grey = grey_of(small)
        means = np.array(cv2.mean(small)[:3])
        self._before = small, grey, means
        if before is not None:
            flow = self._state.motion.between(grey, before[1])
            seen = likeness(small, before[0], flow)
            if not is_cut(seen):
                change = np.square((means - before[2]) / 255).mean() / MEAN_TOLERANCE**2
                self._state.advance(translated, flow, seen, self._strength, float(np.exp(-change)))
                return _pixels(self._state.result, translated.dtype)
        self._state.begin(translated)
        return translated


class _State:
    """The last result, and the arrays of one frame size.

    Arrays of a frame's size are kept: to get memory from the system took half the time at 1080p.
    """

    def __init__(self, size: Size) -> None:
        """``size``: height and width of the frames."""
        self.size = height, width = size
        self.working = working_size(size)
        self.motion = Motion("usual" if self.working == size else "low")
        self.result, self._levels, self._difference, self._coarse = (
            np.empty((height, width, 3), np.float32) for _ in range(4)
        )
        """O_t, in levels, and what is used on the way to it."""
        self._weights = np.empty(size, np.float32)
        self._flow = np.zeros((height, width, 2), np.float32)
        self._warp = Warp(self._flow)
        self._strips = [slice(top, top + _STRIP) for top in range(0, height, _STRIP)]

    def begin(self, translated: Pixels) -> None:
        """Take the first frame of a scene as it is."""
        _levels(translated, self.result)

    def advance(
        self, translated: Pixels, flow: Floats, seen: Floats, strength: float, steady: float
    ) -> None:
        """Take Y_t, and make `result`, O_{t−1}, to O_t.

        ``flow`` has working size, ``seen`` is the likeness of each cell of it, ``steady`` is s.
        """
        scale = [self.size[axis] / self.working[axis] for axis in (1, 0)]
        flow = flow * np.array(scale, np.float32)
        self._warp.point(at_size(flow, self.size, cv2.INTER_LINEAR, self._flow))
        difference = self._difference
        for rows in self._strips:
            self._warp.cubic(self.result, difference[rows], rows)
            _levels(translated[rows], self._levels[rows])
            cv2.subtract(difference[rows], self._levels[rows], difference[rows])
        coarse = cells(difference, (seen.shape[0], seen.shape[1]))
        mask = seen * np.exp(-power(coarse) / np.float32((255 * RESULT_TOLERANCE) ** 2))
        coarse = coarse * mask[:, :, np.newaxis]
        means = coarse.mean(axis=(0, 1)) * np.float32(steady * (strength**MEAN - strength**COARSE))
        coarse = coarse * np.float32(strength**COARSE - strength * FINE) + means
        coarse = at_size(coarse, self.size, cv2.INTER_LINEAR, self._coarse)
        mask = at_size(
            mask * np.float32(strength * FINE), self.size, cv2.INTER_LINEAR, self._weights
        )
        for rows in self._strips:
            result, weights = self.result[rows], mask[rows]
            cv2.multiply(difference[rows], cv2.merge([weights, weights, weights]), result)
            cv2.add(result, coarse[rows], result)
            cv2.add(result, self._levels[rows], result)
            np.clip(result, 0.0, 255.0, out=result)


def _levels(pixels: Pixels, into: Floats) -> None:
    """Write ``pixels`` in 0..255 into an array; not-a-number becomes 0, since it would spread."""
    if pixels.dtype == np.uint8:
        into[...] = pixels
    else:
        np.multiply(pixels, np.float32(255), out=into)
        np.nan_to_num(into, copy=False, nan=0.0, posinf=255.0, neginf=0.0)


def _pixels(levels: Floats, dtype: npt.DTypeLike) -> Pixels:
    """Return ``levels``, in 0..255, as uint8, or as float16 in [0, 1]."""
    if dtype == np.uint8:
        return cv2.convertScaleAbs(levels)
    return (levels * np.float32(1 / 255)).astype(np.float16)
