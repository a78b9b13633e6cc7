"""The replay pool: fakes of earlier steps, which keep a discriminator from forgetting them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor


def draw_place(filled: int, size: int) -> int | None:
    """Return the place in a pool that the next image takes; None for one that is not stored.

    While the pool fills this is the next empty place, without a draw. Afterwards it is, with
    probability ½, a random place, whose image is returned instead of the new one.
    """
    if filled < size:
        return filled
    # Two draws in the reference's order: its random states stay comparable.
    return random.randint(0, size - 1) if random.uniform(0, 1) > 0.5 else None


class ImagePool:
    """Stores up to ``size`` images and mixes them into those of a query (Shrivastava 2017).

    It draws from Python's `random` in the reference's order, so that runs with the same
    ``random.seed`` can be compared; to resume a run, save ``random.getstate()``.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []
        """``(1, C, H, W)`` each."""

    def query(self, images: Tensor) -> Tensor:
        """Return as many images as it is given, ``(N, C, H, W)``, without a graph.

        While the pool fills, the images are stored and returned. Afterwards each is returned with
        probability ½; otherwise it replaces a random stored image, which is returned.
        """
        images = images.detach()
        if self.size == 0:
            return images
        out = []
        for image in images.unsqueeze(1):
            place = draw_place(len(self.images), self.size)
            if place == len(self.images):
                self.images.append(image.clone())
            elif place is not None:
                image, self.images[place] = self.images[place], image.clone()
            out.append(image)
        return torch.cat(out)

    def state_dict(self) -> list[Tensor]:
        """Return the stored images in their order; the random state is not part of it."""
        return list(self.images)

    def load_state_dict(self, images: Sequence[Tensor], device: torch.device) -> None:
        """Restore the images of `state_dict`. Raises ValueError if there are more than fit."""
        if len(images) > self.size:
            raise ValueError(f"{len(images)} stored images for a pool of {self.size}")
        self.images = [image.to(device) for image in images]
