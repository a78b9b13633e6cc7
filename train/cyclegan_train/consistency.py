"""Losses for a generator that translates a changed image as it changes its translation.

Geometry consistency is that of GcGAN (Fu et al., CVPR 2019) without its second discriminator: a
scene that is turned or mirrored is still that scene, so its translation should be the turned one.

Temporal consistency is the unsupervised loss of Wang et al., AAAI 2022, which makes the second
frame of a video out of an image: W moves its pixels along a smooth random flow, and n is noise.
With G and F the generators, L_spa = |G(W x + n) − W G(x)| and L_rec = |F(W G(x) + n) − W x|.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from cyclegan_batch.models.networks import without_halves

from .config import TrainConfig
from .losses import l1

CONSISTENCY_LOSSES = ("geometry_A", "geometry_B", "temporal_A", "temporal_B")
"""The losses of this module: those of G_A, which translates A, and of G_B."""

Translate: TypeAlias = Callable[[str, Tensor], Tensor]
"""Translates images by the generator ``A`` (from A to B) or ``B``."""

_TURNS = 4
_MOTION = 1 / 32
"""Standard deviation of the flow at a knot, as a share of the shorter side: 8 of 256 pixels."""
_SHIFT = 10 / 256
"""The most that all pixels move alike, in whole pixels, as a share of the shorter side."""
_KNOT = 100
"""Pixels between two knots of the flow."""
_NOISE = 0.001
"""Standard deviation of the noise, for values in [-1, 1]."""


@dataclass(frozen=True)
class Drawn:
    """What is drawn for a batch or a part of it; of every pair the first is for images of A."""

    turns: tuple[int, int] | None
    """See `turned`."""
    motions: tuple[tuple[Tensor, ...], ...]
    """The flow, and the noise on an image and on its translation; empty for no motion."""

    def parts(self, count: int) -> list[Drawn]:
        """Return what is drawn for each of ``count`` equal parts of the batch."""
        pieces = [[values.chunk(count) for values in motion] for motion in self.motions]
        return [
            Drawn(self.turns, tuple(tuple(each[part] for each in motion) for motion in pieces))
            for part in range(count)
        ]


class Consistency:
    """The consistency losses that a config has."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        weights = {"geometry": config.lambda_geometry, "temporal": config.lambda_temporal}
        self.names = tuple(name for name in CONSISTENCY_LOSSES if weights[name[:-2]])
        """The names of its losses."""

    def draw(self, real_A: Tensor, real_B: Tensor) -> Drawn:
        """Draw for a batch: turns from Python's random state, motions from torch's."""
        config = self._config
        turns = (draw_turn(), draw_turn()) if config.lambda_geometry else None
        pairs = ((real_A, config.output_nc), (real_B, config.input_nc))
        moving = pairs if config.lambda_temporal else ()
        return Drawn(turns, tuple(draw_motion(real, channels) for real, channels in moving))

    def losses(
        self, translate: Translate, reals: tuple[Tensor, ...], fakes: tuple[Tensor, ...], at: Drawn
    ) -> dict[str, Tensor]:
        """Return the weighted losses of real_A and real_B with their translations, by name."""
        losses = {}
        letters = (("A", "B"), ("B", "A"))
        if at.turns is not None:
            for (one, _), turn, real, fake in zip(letters, at.turns, reals, fakes, strict=True):
                error = l1(translate(one, turned(real, turn)), turned(fake, turn))
                losses[f"geometry_{one}"] = self._config.lambda_geometry * error
        if at.motions:
            for (one, other), motion, real, fake in zip(
                letters, at.motions, reals, fakes, strict=True
            ):
                flow, noise, noise_of_fake = motion
                moved, moved_fake = warped(real, flow), warped(fake, flow)
                spatial = l1(translate(one, moved + noise), moved_fake)
                recycled = l1(translate(other, moved_fake + noise_of_fake), moved)
                losses[f"temporal_{one}"] = self._config.lambda_temporal * (spatial + recycled)
        return losses


def draw_turn() -> int:
    """Draw a change for `turned` from Python's random state, all with the same probability."""
    return random.randrange(_TURNS)


def turned(images: Tensor, turn: int) -> Tensor:
    """Return ``(N, C, H, W)`` turned by 90° to the left (0) or right (1), or mirrored (2, 3).

    2 exchanges left and right, 3 exchanges top and bottom. Those turned are ``(N, C, W, H)``.
    """
    if turn < 2:
        return images.rot90(1 - 2 * turn, (2, 3))
    return images.flip(5 - turn)


def draw_motion(images: Tensor, other_channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw how images ``(N, C, H, W)`` move, from torch's global random state, on their device.

    Return the flow ``(N, 2, H, W)`` in pixels to the right and down, and the noise on the moved
    images and on translations of ``other_channels``, all in the type of the images.
    """
    count, _, height, width = images.shape
    device, least = images.device, min(height, width)
    knots = (max(2, height // _KNOT), max(2, width // _KNOT))
    flow = torch.randn(count, 2, *knots, device=device) * (_MOTION * least)
    most = int(_SHIFT * least + 0.5)
    shift = torch.rand(count, 2, 1, 1, device=device) * (2 * most + 1)
    flow = F.interpolate(flow, (height, width), mode="bicubic", align_corners=True)
    flow = flow + (shift.floor().clamp(max=2 * most) - most)
    own, other = (
        (torch.randn(count, channels, height, width, device=device) * _NOISE).to(images.dtype)
        for channels in (images.shape[1], other_channels)
    )
    return flow.to(images.dtype), own, other


def warped(images: Tensor, flow: Tensor) -> Tensor:
    """Return images whose pixel p is that at p + flow(p), bilinear, mirrored at the border.

    Both are as in `draw_motion`; the result is float32, or wider as the images.
    """
    images = without_halves(images)
    height, width = images.shape[2:]
    right = torch.arange(width, device=flow.device) + flow[:, 0]
    down = torch.arange(height, device=flow.device)[:, None] + flow[:, 1]
    # grid_sample's -1 and 1 are the middles of the first and the last pixel.
    grid = torch.stack([right * (2 / (width - 1)) - 1, down * (2 / (height - 1)) - 1], 3)
    return F.grid_sample(images, grid, "bilinear", "reflection", align_corners=True)
