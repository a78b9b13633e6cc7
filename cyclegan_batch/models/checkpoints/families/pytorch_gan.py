"""PyTorch-GAN's CycleGAN: the reference's layers, with nearest neighbour and a convolution upwards.

The generator of eriklindernoren/PyTorch-GAN, ``implementations/cyclegan``, since March 2019, which
huggan/pytorch on the Hugging Face hub has as well. Its earlier one is the reference's.

It pads the first and the last convolution, 7×7, by as many pixels as the image has channels. That
is 3 for an RGB image, as in the reference. A network of one channel loses 4 pixels at each of them
(64² becomes 56²), so its cycle loss compares images of unlike sizes, and the published code cannot
train it; what exists of one channel was trained by a copy that pads by 3.
"""

from __future__ import annotations

import re
from dataclasses import replace

from .family import Family, Reading, Shapes
from .sequence import config_in_sequence, reading_in_sequence


def _read(shapes: Shapes) -> Reading | None:
    blocks = [m for name in shapes if (m := re.match(r"model\.(\d{1,4})\.(\w+)\.\d+\.", name))]
    if not blocks:
        return None
    numbers, word = {int(match[1]) for match in blocks}, blocks[0][2]
    # The number behind the blocks is an enlargement's, which has no weights, and not that of a
    # transposed convolution.
    if f"model.{max(numbers) + 1}.weight" in shapes:
        return None
    config = config_in_sequence("pytorch_gan", shapes, block=word, up="nearest")
    if config is None or config.up != "nearest":
        return None
    enlargement = (
        "it enlarges by nearest neighbour, as published (bilinear would have the same names)"
    )
    one_channel = (
        "its ends pad by 3 pixels (as published, they pad by the number of channels, and with one "
        "channel the network cannot be trained)"
    )
    reading = reading_in_sequence(config, block=word)
    return replace(
        reading,
        assumed=(*reading.assumed, *([one_channel] if config.input_nc != 3 else [])),
        published=(*reading.published, enlargement),
    )


PYTORCH_GAN = Family("pytorch_gan", "PyTorch-GAN's CycleGAN", _read)
