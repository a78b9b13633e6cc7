"""OpenMMLab's CycleGAN (MMGeneration, MMagic): the reference's ResNet for images in BGR.

Each convolution lies in a ConvModule, whose names are its own: ``model.0.conv.weight``,
``model.3.block.0.conv.weight``. The configurations that were published load images in BGR and do
not convert them. A file of OpenMMLab holds the generators as ``generators.DOMAIN``, after the
domain of the images that they draw.
"""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor, nn

from .family import Family, Reading, Shapes
from .resnet import Resnet, ResnetConfig, ResnetNorm, names_in_file


class BgrResnet(nn.Module):
    """A `Resnet` that takes and returns its channels in the opposite order."""

    def __init__(self, config: ResnetConfig) -> None:
        super().__init__()
        self.network = Resnet(config)

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``(N, C, H, W)`` in [-1, 1], RGB."""
        return _reversed(self.network(_reversed(x)))


def _reversed(x: Tensor) -> Tensor:
    # A flip is exported as a slice of a negative step, which not every runtime has.
    return torch.cat([x[:, k : k + 1] for k in reversed(range(x.shape[1]))], dim=1)


def _read(shapes: Shapes) -> Reading | None:
    found = [re.fullmatch(r"model\.(\d{1,4})\.block\.(\d)\.conv\.weight", name) for name in shapes]
    blocks = [match for match in found if match]
    if not blocks or shapes.get("model.0.conv.weight", ())[2:] != (7, 7):
        return None
    numbers = {int(match[1]) for match in blocks}
    second = max(int(match[2]) for match in blocks)
    n = max(numbers) - 2
    last = f"model.{n + 5}.conv"
    norm: ResnetNorm = "batch" if "model.0.bn.running_mean" in shapes else "instance"
    ngf, input_nc = shapes["model.0.conv.weight"][:2]
    config = ResnetConfig(
        "mmgeneration",
        blocks=n,
        input_nc=input_nc,
        output_nc=next(iter(shapes.get(f"{last}.weight", ())), input_nc),
        ngf=ngf,
        norm=norm,
        bias="model.0.conv.bias" in shapes,
        dropout=second == 2,
    )
    modules = {"stem": "model.0", "head": last.removesuffix(".conv")}
    for level in range(config.downs):
        modules[f"downs.{level}"] = f"model.{level + 1}"
        modules[f"ups.{level}"] = f"model.{n + 3 + level}"
    places: dict[str, str] = {}
    for own, in_file in modules.items():
        places |= {f"{own}.conv": f"{in_file}.conv", f"{own}.norm": f"{in_file}.bn"}
    for block in range(n):
        for half, number in enumerate((0, second)):
            in_file = f"model.{block + 3}.block.{number}"
            places[f"blocks.{block}.body.conv{half}"] = f"{in_file}.conv"
            places[f"blocks.{block}.body.norm{half}"] = f"{in_file}.bn"
    names = {key: f"network.{name}" for key, name in names_in_file(config, places).items()}
    return Reading(
        config,
        partial(BgrResnet, config),
        names,
        assumed=("its images are in BGR, as the published configurations load them",),
    )


MMGENERATION = Family("mmgeneration", "OpenMMLab's CycleGAN", _read)
