"""Random changes of what the discriminators see, so that a few images teach them for longer.

This is DiffAugment (Zhao et al., NeurIPS 2020): real and fake images are changed in the same random
ways before a discriminator sees them, in its own step and in the generators', whose gradients flow
through the change. The generators' outputs are not changed themselves, so nothing of it is learned.
The ranges are those of the paper's code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cyclegan_batch.models.networks import without_halves

from .config import augmentations

_DRAWS = 7
"""Random numbers for an image: brightness, saturation, contrast, two of a shift, two of a hole."""

_SHIFT = 0.125
"""The largest shift, as a share of the side."""

_HOLE = 0.5
"""The side of the hole, as a share of the image's."""


class Augmentation:
    """Changes images in ``kinds`` of random ways, a list as of the key ``diffaugment``.

    All random numbers come from `draw`, on the images' device and without waiting for it, so that
    a CUDA graph can record both. Without kinds nothing is drawn and nothing is changed.
    """

    def __init__(self, kinds: str) -> None:
        self._kinds = augmentations(kinds)

    def draw(self, count: int, device: torch.device) -> Tensor:
        """Draw from torch's global random state how ``count`` images change: one row for each.

        The numbers of a row do not depend on the kinds, which then share their draws.
        """
        if not self._kinds:
            return torch.empty(count, 0, device=device)
        return torch.rand(count, _DRAWS, device=device)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return ``(N, C, H, W)`` changed by the first N rows of draws, with a graph.

        Images of equal rows and sizes change alike. The result is float32, or wider as the images.
        """
        if not self._kinds:
            return images
        images = without_halves(images)
        u = draws[: len(images)].unbind(1)
        if "color" in self._kinds:
            brightness, saturation, contrast = (
                each.to(images.dtype).view(-1, 1, 1, 1) for each in u[:3]
            )
            images = images + (brightness - 0.5)
            grey = images.mean(dim=1, keepdim=True)
            images = (images - grey) * (2 * saturation) + grey
            mean = images.mean(dim=(1, 2, 3), keepdim=True)
            images = (images - mean) * (contrast + 0.5) + mean
        if "translation" in self._kinds:
            images = _shifted(_shifted(images, u[3], 2), u[4], 3)
        if "cutout" in self._kinds:
            in_rows, in_columns = _in_hole(images, u[5], 2), _in_hole(images, u[6], 3)
            images = images.masked_fill(in_rows & in_columns, 0.0)
        return images


def _shifted(images: Tensor, u: Tensor, dim: int) -> Tensor:
    """Shift every image along ``dim`` by up to `_SHIFT` of the side; 0 comes in at the border."""
    side = images.shape[dim]
    most = int(side * _SHIFT + 0.5)
    sources = torch.arange(side, device=images.device) + (_whole(u, 2 * most + 1) - most)[:, None]
    shape = [len(images), 1, 1, 1]
    shape[dim] = side
    sources = sources.view(shape)
    outside = (sources < 0) | (sources >= side)
    taken = images.gather(dim, sources.clamp(0, side - 1).expand_as(images))
    return taken.masked_fill(outside, 0.0)


def _in_hole(images: Tensor, u: Tensor, dim: int) -> Tensor:
    """Return for every place along ``dim`` whether it is in the hole, whose centre is anywhere."""
    side = images.shape[dim]
    hole = int(side * _HOLE + 0.5)
    first = _whole(u, side + 1 - hole % 2) - hole // 2
    places = torch.arange(side, device=images.device) - first[:, None]
    shape = [len(images), 1, 1, 1]
    shape[dim] = side
    return ((places >= 0) & (places < hole)).view(shape)


def _whole(u: Tensor, count: int) -> Tensor:
    """Return whole numbers from 0 to ``count`` − 1, for draws ``u`` from [0, 1)."""
    # The product may round up to ``count``.
    return (u * count).long().clamp(max=count - 1)
