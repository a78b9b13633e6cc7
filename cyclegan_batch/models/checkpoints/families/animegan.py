"""AnimeGANv2, as its port to PyTorch stores it (bryandlee/animegan2-pytorch).

Its files are ``face_paint_512_v1``, ``face_paint_512_v2``, ``paprika``, ``celeba_distill`` and what
people trained with the same network. They differ in their weights only.

The generator (Chen, Liu and Chen 2020, "AnimeGAN"; TachibanaYoshino/AnimeGANv2):
a *unit* is a reflected border, a convolution, LayerNorm over the whole frame with a weight and a
bias for each channel (`FrameLayerNorm`), and LeakyReLU of slope 0.2. Three units at full and half
size, three at a quarter, inverted residual blocks there, one unit; then bilinear enlargement to the
size that the frame had before, two units at half size, enlargement, three units at full size, a 1×1
convolution, tanh. So any size from 8 pixels on comes back as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from ....frames import SizeRequirements
from ...networks import without_halves
from .family import EDGES, Family, Reading, Shapes, UnfitError

_MOST_BLOCKS = 99
"""More inverted residual blocks than any network has; a file may claim any number."""

_SLOPE = 0.2


_NORMS = (
    "its norms are of the whole frame, as published (InstanceNorm with weights, or GroupNorm of "
    "several groups, would have the same names)"
)


@dataclass(frozen=True)
class AnimeganConfig:
    """The settings of an AnimeGANv2 generator that determine the shapes of its weights."""

    input_nc: int = 3
    output_nc: int = 3
    down: tuple[int, ...] = (32, 64, 64, 128, 128, 128)
    """The channels behind each unit before the blocks."""
    blocks: tuple[tuple[int, int], ...] = ((256, 256), (512, 256), (512, 256), (512, 256))
    """The channels inside and behind each inverted residual block."""
    up: tuple[int, ...] = (128, 128, 128, 64, 64, 32)
    """The channels behind each unit after the blocks."""

    @property
    def architecture(self) -> str:
        """What the card shows."""
        return "animegan_v2"

    @property
    def sizes(self) -> SizeRequirements:
        """The heights and widths that the network accepts; its output has the same."""
        # The quarter is rounded down twice, and a border of one pixel reflects two pixels.
        return SizeRequirements(1, 8)


class Animegan(nn.Module):
    """The generator: ``(N, C, H, W)`` in [-1, 1], both ways."""

    def __init__(self, config: AnimeganConfig) -> None:
        super().__init__()
        down, up = config.down, config.up
        self.to_half = nn.Sequential(
            _Unit(config.input_nc, down[0], 7),
            _Unit(down[0], down[1], stride=2),
            _Unit(down[1], down[2]),
        )
        channels = down[5]
        blocks = []
        for inner, outer in config.blocks:
            blocks.append(_InvertedResidual(channels, inner, outer))
            channels = outer
        self.at_quarter = nn.Sequential(
            _Unit(down[2], down[3], stride=2),
            _Unit(down[3], down[4]),
            _Unit(down[4], down[5]),
            *blocks,
            _Unit(channels, up[0]),
        )
        self.at_half = nn.Sequential(_Unit(up[0], up[1]), _Unit(up[1], up[2]))
        self.at_full = nn.Sequential(
            _Unit(up[2], up[3]), _Unit(up[3], up[4]), _Unit(up[4], up[5], 7)
        )
        self.head = nn.Conv2d(up[5], config.output_nc, 1, bias=False)
        self.end = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``(N, C, H, W)`` in [-1, 1], of 8 pixels or more each way."""
        half = self.to_half(x)
        out = _resized(self.at_quarter(half), half.shape[2:])
        out = _resized(self.at_half(out), x.shape[2:])
        picture: Tensor = self.end(self.head(self.at_full(out)))
        return picture


class FrameLayerNorm(nn.Module):
    """LayerNorm over the channels and pixels of each image, as ``nn.GroupNorm`` with one group.

    Mean and variance are computed in float32 and for each channel first: onnxruntime's CPU sums up
    such a mean in one go, and at 1280×720 with 32 channels that was off by 5·10⁻³ of a standard
    deviation, as its InstanceNormalization is, against 4·10⁻⁶ so. The output has the type of the
    input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each image of ``(N, C, H, W)``."""
        weight, bias = (without_halves(each).view(-1, 1, 1) for each in (self.weight, self.bias))
        wide = without_halves(x)
        deviation = wide - _mean_of_frames(wide)
        variance = _mean_of_frames(deviation * deviation)
        return (deviation * (weight * torch.rsqrt(variance + self.eps)) + bias).to(x.dtype)


def _mean_of_frames(x: Tensor) -> Tensor:
    """Return the mean of each image of ``(N, C, H, W)`` as ``(N, 1, 1, 1)``."""
    return x.mean((2, 3), keepdim=True).mean(1, keepdim=True)


class _Unit(nn.Sequential):
    """A reflected border, a convolution, the norm, LeakyReLU."""

    def __init__(
        self, into: int, out: int, kernel: int = 3, *, stride: int = 1, depthwise: bool = False
    ) -> None:
        # A stride of 2 has its border at the right and the lower edge only.
        side = kernel // 2
        border = (side, side, side, side) if stride == 1 else (0, 1, 0, 1)
        super().__init__()
        self.border = nn.ReflectionPad2d(border)
        self.convolution = nn.Conv2d(
            into, out, kernel, stride, groups=into if depthwise else 1, bias=depthwise
        )
        self.norm = FrameLayerNorm(out)
        self.activation = nn.LeakyReLU(_SLOPE)


class _InvertedResidual(nn.Module):
    """1×1 to more channels, 3×3 in each of them, 1×1 back; plus the input where shapes agree."""

    def __init__(self, into: int, inner: int, out: int) -> None:
        super().__init__()
        self.expand = _Unit(into, inner, 1)
        self.depthwise = _Unit(inner, inner, depthwise=True)
        self.project = nn.Conv2d(inner, out, 1, bias=False)
        self.norm = FrameLayerNorm(out)
        self._residual = into == out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.project(self.depthwise(self.expand(x))))
        return x + out if self._residual else out


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``x`` in another height and width, whose corners have the values of its corners."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def _read(shapes: Shapes) -> Reading | None:
    if "block_a.0.1.weight" not in shapes:
        return None
    blocks = 0
    while f"block_c.{blocks + 1}.layers.0.1.weight" in shapes:
        blocks += 1
    if blocks > _MOST_BLOCKS:
        raise UnfitError(
            f"is an AnimeGANv2 of {blocks} inverted residual blocks where {_MOST_BLOCKS} at most "
            "are supported"
        )
    units = _units(blocks)
    inverted = {f"block_c.{i + 1}.layers": f"at_quarter.{i + 3}" for i in range(blocks)}

    def channels(name: str, axis: int = 0) -> int:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) == 4 and shape[axis] > 0 else 1

    widths = tuple(channels(f"{unit}.1.weight") for unit in units)
    config = AnimeganConfig(
        input_nc=channels("block_a.0.1.weight", 1),
        output_nc=channels("out_layer.0.weight"),
        down=widths[:_DOWN],
        blocks=tuple(
            (channels(f"{block}.0.1.weight"), channels(f"{block}.2.weight")) for block in inverted
        ),
        up=widths[_DOWN:],
    )
    names = {"out_layer.0.weight": "head.weight"}
    for block, ours in inverted.items():
        units |= {f"{block}.0": f"{ours}.expand", f"{block}.1": f"{ours}.depthwise"}
        names |= {
            f"{block}.1.1.bias": f"{ours}.depthwise.convolution.bias",
            f"{block}.2.weight": f"{ours}.project.weight",
            f"{block}.3.weight": f"{ours}.norm.weight",
            f"{block}.3.bias": f"{ours}.norm.bias",
        }
    for unit, ours in units.items():
        names |= {
            f"{unit}.1.weight": f"{ours}.convolution.weight",
            f"{unit}.2.weight": f"{ours}.norm.weight",
            f"{unit}.2.bias": f"{ours}.norm.bias",
        }
    return Reading(config, partial(Animegan, config), names, published=(EDGES, _NORMS))


_DOWN = 6
"""The number of units before the blocks; as many are behind them."""


def _units(blocks: int) -> dict[str, str]:
    """Return the name in a file of each unit outside the blocks, in order, with the name here."""
    names = {f"block_a.{i}": f"to_half.{i}" for i in range(3)}
    names |= {f"block_b.{i}": f"at_quarter.{i}" for i in range(2)}
    names |= {"block_c.0": "at_quarter.2", f"block_c.{blocks + 1}": f"at_quarter.{blocks + 3}"}
    names |= {f"block_d.{i}": f"at_half.{i}" for i in range(2)}
    names |= {f"block_e.{i}": f"at_full.{i}" for i in range(3)}
    return names


ANIMEGAN = Family("animegan", "AnimeGANv2", _read)
