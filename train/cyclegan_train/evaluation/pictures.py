"""PSNR, SSIM and L1 of images against their paired truth."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cyclegan_batch.errors import InputError, missing_extra
from cyclegan_batch.frames import Pixels
from cyclegan_batch.wording import printable

from .pairs import (
    INPUT,
    RESULTS,
    Sizes,
    Watch,
    match,
    other_pair,
    read_pixels,
    resized,
    size_text,
    table,
)

OTHER_TRUTH = "another image's truth"
MEAN_COLOUR = "the truth's mean colour"

_WINDOW = 11
"""Side of SSIM's window, in pixels."""


@dataclass(frozen=True)
class PictureScore:
    """How near images are to their truth: means over the images."""

    psnr: float
    """Decibels; infinite where one of the images equals its truth."""
    ssim: float
    l1: float
    """Mean absolute difference in grey levels, 0..255."""


@dataclass(frozen=True)
class PictureEvaluation:
    """The scores of images against their truth."""

    pictures: int
    """How many images were scored."""
    rows: Mapping[str, PictureScore]
    """`RESULTS` first, then the rows to compare it with."""
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return a table of the scores."""
        rows = {
            name: (f"{score.psnr:.2f} dB", f"{score.ssim:.4f}", f"{score.l1:.2f}")
            for name, score in self.rows.items()
        }
        title = f"means over {self.pictures} images"
        return table(title, ("PSNR", "SSIM", "L1 of 255"), rows)


def evaluate_pictures(
    results: Path,
    truth: Path,
    *,
    source: Path | None = None,
    resize: bool = False,
    watch: Watch = lambda done, total: None,
) -> PictureEvaluation:
    """Score images against their truth, and the images that they were made from (``source``) too.

    Each path is an image, or a folder in which partners have the same names (extensions apart).
    With ``resize``, results of another size than their truth are resized to it (bicubic). Raises
    InputError, and BackendUnavailableError where torchmetrics is not installed.
    """
    ssim = ssim_function()
    matches = match(results, truth, source)
    pairs, sizes = matches.pairs, Sizes(resize)
    total = 2 * len(pairs)
    sums, count = np.zeros(3), 0
    for number, pair in enumerate(pairs):
        pixels = read_pixels(pair.truth)
        sums += pixels.sum((0, 1), np.float64)
        count += pixels.shape[0] * pixels.shape[1]
        watch(number + 1, total)
    colour = np.rint(sums / count).astype(np.uint8)
    scores: dict[str, list[tuple[float, float, float]]] = {}
    for number, pair in enumerate(pairs):
        true = read_pixels(pair.truth)
        size = (true.shape[0], true.shape[1])
        if min(size) < _WINDOW:
            raise InputError(
                f"{printable(pair.truth)}: {size_text(size)} is too small for SSIM, whose window "
                f"has {_WINDOW} × {_WINDOW} pixels; leave it out"
            )
        rows = {RESULTS: sizes.fitted(read_pixels(pair.result), pair.result, size)}
        if pair.source is not None:
            rows[INPUT] = sizes.fitted(read_pixels(pair.source), pair.source, size)
        if len(pairs) > 1:
            rows[OTHER_TRUTH] = resized(read_pixels(other_pair(pairs, number).truth), size)
        rows[MEAN_COLOUR] = np.broadcast_to(colour, true.shape)
        for name, pixels in rows.items():
            scores.setdefault(name, []).append(picture_score(pixels, true, ssim))
        watch(len(pairs) + number + 1, total)
    means = {name: PictureScore(*np.mean(each, 0).tolist()) for name, each in scores.items()}
    notes = [*matches.notes, *sizes.notes()]
    if INPUT in means and math.isfinite(gain := means[RESULTS].psnr - means[INPUT].psnr):
        where = "nearer to the truth than" if gain >= 0 else "farther from the truth than"
        notes.append(f"{abs(gain):.1f} dB {where} the input")
    return PictureEvaluation(len(pairs), means, tuple(notes))


def ssim_function() -> Callable[..., Tensor]:
    """Return torchmetrics' SSIM. Raises BackendUnavailableError where that is not installed."""
    try:
        functional = importlib.import_module("torchmetrics.functional.image")
    except ImportError as error:
        raise missing_extra("train", error, doing="evaluate") from error
    ssim: Callable[..., Tensor] = functional.structural_similarity_index_measure
    return ssim


def picture_score(
    pixels: Pixels, true: Pixels, ssim: Callable[..., Tensor]
) -> tuple[float, float, float]:
    """Return PSNR in dB, SSIM and L1 of an image against its truth, both uint8 ``(H, W, C)``."""
    difference = pixels.astype(np.float64) - true
    mean_square = float(np.mean(np.square(difference)))
    psnr = 10 * math.log10(255.0**2 / mean_square) if mean_square else math.inf
    # float32 is exact to 1e-6 here, and twenty times as fast as float64.
    planes = [
        torch.from_numpy(np.array(each, np.float32)).permute(2, 0, 1)[None]
        for each in (pixels, true)
    ]
    similarity = float(ssim(*planes, sigma=1.5, data_range=255.0, k1=0.01, k2=0.03))
    return psnr, similarity, float(np.abs(difference).mean())
