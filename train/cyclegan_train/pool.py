"""The replay pool: fakes of earlier steps, so that a discriminator does not forget them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor


def draw_place(filled: int, size: int) -> int | None:
    """Return which place of a pool the next picture takes; None for one that is not kept.

    While the pool fills it is the next empty place, without a draw. Then it is, with probability
    ½, a random one, whose picture comes back in place of the new one.
    """
    if filled < size:
        return filled
    # The reference's two draws, in its order.
    return random.randint(0, size - 1) if random.uniform(0, 1) > 0.5 else None


class ImagePool:
    """Keeps up to ``size`` pictures and mixes them into what is asked of it (Shrivastava 2017).

    The draws are Python's own (`random`), in the reference's order, so that a run seeded with
    ``random.seed`` can be compared; a run that is to be resumed keeps ``random.getstate()``.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []
        """``(1, C, H, W)`` each."""

    def query(self, images: Tensor) -> Tensor:
        """Return as many pictures as came, ``(N, C, H, W)``, without a graph.

        While the pool fills they are stored and come back as they are. Then each comes back with
        probability ½; otherwise it takes the place of a random stored one, which comes back.
        """
        images = images.detach()
        if self.size == 0:
            return images
        chosen = []
        for image in images.unsqueeze(1):
            place = draw_place(len(self.images), self.size)
            if place == len(self.images):
                self.images.append(image.clone())
            elif place is not None:
                image, self.images[place] = self.images[place], image.clone()
            chosen.append(image)
        return torch.cat(chosen)

    def state_dict(self) -> list[Tensor]:
        """Return the stored pictures in their order; the random state is Python's own."""
        return list(self.images)

    def load_state_dict(self, images: Sequence[Tensor], device: torch.device) -> None:
        """Take the pictures of `state_dict`. Raises ValueError if there are more than fit."""
        if len(images) > self.size:
            raise ValueError(f"{len(images)} stored pictures for a pool of {self.size}")
        self.images = [image.to(device) for image in images]
