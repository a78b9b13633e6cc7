"""Losses for a generator that translates a changed image as it changes its translation.

Geometry consistency is that of GcGAN (Fu et al., CVPR 2019) without its second discriminator: a
scene that is turned or mirrored is still that scene, so its translation should be the turned one.
"""

from __future__ import annotations

import random

from torch import Tensor

_TURNS = 4


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
