"""Parity: how alike two translations of the same frames are, as numbers and as a class.

The unit is the grey level of 8 bits. The reference is torch in FP32 (or the file in FP32 where
there is no checkpoint), on natural frames of the size that the model was trained at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..frames import Pixels, Size

ParityClass = Literal["exact", "half", "near", "coarse", "none"]

CLASSES: tuple[ParityClass, ...] = ("exact", "half", "near", "coarse", "none")
"""The classes, the strictest first."""

LIMITS: dict[ParityClass, str] = {
    "exact": "largest difference 1",
    "half": "50 dB and 99.9 % within 2 levels",
    "near": "45 dB and 99 % within 2 levels",
    "coarse": "35 dB",
}
"""The condition of each class, in words."""

REQUIRED_CLASS: dict[str, ParityClass] = {
    "fp32": "exact",
    "fp16": "half",
    "tf32": "half",
    "bf16": "near",
    "int8": "coarse",
}
"""The class that a model must reach in each precision to be accepted."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How alike two translations are, as measured by `parity`."""

    psnr: float
    """In decibels; infinite where nothing differs."""
    max: float
    """The largest difference in grey levels."""
    p999: float
    """The difference in grey levels that 99.9 % of the values do not exceed."""
    within2: float
    """The share of the values, 0..1, that differ by at most two grey levels."""
    cls: ParityClass
    """The strictest class whose condition holds; ``none`` where none does, or with NaN."""

    def reaches(self, required: ParityClass) -> bool:
        """Return whether the class is ``required`` or a stricter one."""
        return CLASSES.index(self.cls) <= CLASSES.index(required)

    def __str__(self) -> str:
        """Return the sentence that a card holds."""
        return (
            f"{self.cls}: {self.psnr:.1f} dB, {self.within2:.2%} within 2 levels, "
            f"99.9 % within {self.p999:.3g}, largest {self.max:.3g}"
        )


def parity(frames: Pixels, reference: Pixels) -> Parity:
    """Compare two arrays of one shape, each either uint8 or float16 in [0, 1]."""
    if frames.shape != reference.shape:
        raise ValueError(f"{frames.shape = } and {reference.shape = } must be equal")
    difference = np.abs(_grey_levels(frames) - _grey_levels(reference))
    if np.isnan(difference).any():
        return Parity(psnr=math.nan, max=math.nan, p999=math.nan, within2=0.0, cls="none")
    mean_square = float(np.mean(np.square(difference)))
    psnr = 10 * math.log10(255.0**2 / mean_square) if mean_square else math.inf
    largest = float(difference.max())
    rank = difference.size - 1 - difference.size // 1000
    p999 = float(np.partition(difference, rank, axis=None)[rank])
    within2 = float(np.mean(difference <= 2.0))
    cls = _class(psnr, largest, within2)
    return Parity(psnr=psnr, max=largest, p999=p999, within2=within2, cls=cls)


def natural_frames(size: Size, count: int) -> Pixels:
    """Return computed frames that are as hard for networks as photographs.

    ``(count, H, W, 3)`` uint8, the same for the same arguments. They are dead leaves: discs of
    every size that hide one another, with edges and flat areas at every scale, lit from one side
    (Lee, Mumford, Huang, IJCV 41, 2001). For four style networks in bf16 the class on these frames
    was the class on photographs; on noise of the same spectrum it was another for three of them.
    """
    height, width = size
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    largest = max(height, width) / 2
    frames = np.empty((count, height, width, 3), np.uint8)
    for frame in frames:
        frame[:] = random.uniform(0, 255, 3)
        # Radii of density r⁻³ between 1 % and half of the longer side, the largest drawn first.
        radii = 0.02 * largest / np.sqrt(random.uniform(0.02**2, 1, 400))
        for radius in np.sort(radii)[::-1]:
            y, x = random.uniform(-0.1, 1.1, 2) * size
            # Most discs are small: only the square around this one is looked at.
            top, left = max(0, int(y - radius)), max(0, int(x - radius))
            bottom, right = max(0, int(y + radius) + 2), max(0, int(x + radius) + 2)
            square = slice(top, bottom), slice(left, right)
            across = columns[square] - x
            inside = (rows[square] - y) ** 2 + across**2 < radius**2
            colour = random.uniform(0, 255) + random.normal(0, 40, 3)
            light = 1 + random.uniform(-0.3, 0.3) * across[inside] / radius
            frame[square][inside] = np.clip(colour * light[:, np.newaxis], 0, 255)
    return frames


def _class(psnr: float, largest: float, within2: float) -> ParityClass:
    if largest <= 1.0:
        return "exact"
    if psnr >= 50.0 and within2 >= 0.999:
        return "half"
    if psnr >= 45.0 and within2 >= 0.99:
        return "near"
    return "coarse" if psnr >= 35.0 else "none"


def _grey_levels(pixels: Pixels) -> Pixels:
    scale = 1.0 if pixels.dtype == np.uint8 else 255.0
    return pixels.astype(np.float64) * scale
