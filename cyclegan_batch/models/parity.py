"""How alike two translations of the same frames are: the measure, and the classes it falls into.

Measured in grey levels of 8 bits, against torch FP32 (or the file in FP32 where there is no
checkpoint), on natural frames at the size the model was trained at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..frames import Pixels, Size

ParityClass = Literal["exact", "half", "near", "coarse", "none"]

CLASSES: tuple[ParityClass, ...] = ("exact", "half", "near", "coarse", "none")
"""The classes, the closest first."""

LIMITS: dict[ParityClass, str] = {
    "exact": "largest difference 1",
    "half": "50 dB and 99.9 % within 2 levels",
    "near": "45 dB and 99 % within 2 levels",
    "coarse": "35 dB",
}
"""The rules of the classes, in words."""

REQUIRED_CLASS: dict[str, ParityClass] = {
    "fp32": "exact",
    "fp16": "half",
    "tf32": "half",
    "bf16": "near",
    "int8": "coarse",
}
"""The class that a model must reach in each precision to be accepted."""

OF_PRECISION = REQUIRED_CLASS  # Until the backends use the new name.


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How alike two translations are, as measured by `parity`."""

    psnr: float
    """Decibels; infinite where nothing differs."""
    max: float
    """Largest difference in grey levels."""
    p999: float
    """The difference in grey levels that 99.9 % of the values stay within."""
    within2: float
    """Share of the values, 0..1, that differ by at most two grey levels."""
    cls: ParityClass
    """The closest class that holds; ``none`` below them all, or with NaN."""

    def reaches(self, needed: ParityClass) -> bool:
        """Tell whether this is ``needed`` or closer."""
        return CLASSES.index(self.cls) <= CLASSES.index(needed)

    def __str__(self) -> str:
        """Return it as a card says it."""
        return (
            f"{self.cls}: {self.psnr:.1f} dB, {self.within2:.2%} within 2 levels, "
            f"99.9 % within {self.p999:.3g}, largest {self.max:.3g}"
        )


def parity(found: Pixels, reference: Pixels) -> Parity:
    """Compare two arrays of one shape: uint8, or float16 in [0, 1], each in its own type."""
    if found.shape != reference.shape:
        raise ValueError(f"{found.shape = } and {reference.shape = } are to be alike")
    difference = np.abs(_grey_levels(found) - _grey_levels(reference))
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
    """Return computed frames that networks find as hard as photographs: ``(count, H, W, 3)`` uint8.

    Dead leaves: discs of every size that hide one another, so edges and flat ground at every scale,
    lit from one side (Lee, Mumford, Huang, IJCV 41, 2001). Tried with four style networks in bf16:
    the class on these frames is the class on photographs, where noise of the same spectrum was
    wrong for three. The same frames for the same arguments.
    """
    height, width = size
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    largest = max(height, width) / 2
    frames = np.empty((count, height, width, 3), np.uint8)
    for frame in frames:
        frame[:] = random.uniform(0, 255, 3)
        # Radii of density r⁻³ between 1 % and half of the longer side, the large ones behind.
        radii = 0.02 * largest / np.sqrt(random.uniform(0.02**2, 1, 400))
        for radius in np.sort(radii)[::-1]:
            y, x = random.uniform(-0.1, 1.1, 2) * size
            inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            colour = random.uniform(0, 255) + random.normal(0, 40, 3)
            light = 1 + random.uniform(-0.3, 0.3) * (columns[inside] - x) / radius
            frame[inside] = np.clip(colour * light[:, np.newaxis], 0, 255)
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
