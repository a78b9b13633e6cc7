"""OpenMMLab's CycleGAN: the reference's ResNet, in RGB at first, in BGR later.

Each convolution lies in a ConvModule, whose names are its own: ``model.0.conv.weight``,
``model.3.block.0.conv.weight``. The configurations of MMEditing, with which the files of 2020 were
trained, convert images to RGB; ``generators.a`` of such a file draws images of B, ``generators.b``
those of A. The configurations of MMGeneration (since September 2021, ``…convert-bgr…``) and of
MMagic leave images in BGR; ``generators.zebra`` draws images of that domain. The names of one
generator are the same in both, so the user names the family.
"""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor, nn

from .family import EDGES, Family, Reading, Shapes
from .resnet import Resnet, ResnetConfig, ResnetNorm, names_in_file, resnet_reading


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


def _read_bgr(shapes: Shapes) -> Reading | None:
    read = _config_and_places("mmgeneration", shapes)
    if read is None:
        return None
    config, places = read
    names = {key: f"network.{name}" for key, name in names_in_file(config, places).items()}
    order = "its images are in BGR, as MMGeneration and MMagic load them"
    assumed = () if _is_grey(config) else (order,)
    build = partial(BgrResnet, config)
    return Reading(config, build, names, assumed=assumed, published=(EDGES,))


def _read_rgb(shapes: Shapes) -> Reading | None:
    read = _config_and_places("mmediting", shapes)
    if read is None or _is_grey(read[0]):
        return None
    config, places = read
    order = "its images are in RGB, as MMEditing loads them"
    return resnet_reading(
        config, names_in_file(config, places), assumed=(order,), published=(EDGES,)
    )


def _is_grey(config: ResnetConfig) -> bool:
    """Return whether its images have one channel, and so no order of channels."""
    return config.input_nc == config.output_nc == 1


def _config_and_places(family: str, shapes: Shapes) -> tuple[ResnetConfig, dict[str, str]] | None:
    """Return the network, and the file's name of each module; None where they lack the sign."""
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
        family,
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
    return config, places


MMGENERATION = Family("mmgeneration", "OpenMMLab's CycleGAN since 2021, in BGR", _read_bgr)
MMEDITING = Family("mmediting", "OpenMMLab's CycleGAN of 2020, in RGB", _read_rgb)
