"""The small CycleGANs of courses: 32² to 128², BatchNorm, few layers.

- Udacity, deep-learning-v2-pytorch, ``cycle-gan/``: the notebook with the solution.
- University of Toronto, CSC321 (2018) and CSC413 (2019 on), the assignment on CycleGAN. Its
  students write the layers; the forward pass is given, so it is the same in all their files.
- yunjey, mnist-svhn-transfer: its two generators ``G12`` and ``G21``, one of which takes one
  channel and the other of which returns one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from torch import Tensor, nn

from ....frames import SizeRequirements
from .family import Family, Reading, Shapes, UnfitError

Course: TypeAlias = Literal["udacity", "toronto", "mnist_svhn"]

MOST_BLOCKS, LARGEST_KERNEL = 64, 9

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class CourseConfig:
    """The settings of a course's network.

    ::

        udacity     three strides of 2 down, blocks of two convolutions, three up; ReLU
        toronto     two down, one block of one convolution and a ReLU behind it, two up; ReLU
        mnist_svhn  two down, two convolutions without a block, two up; LeakyReLU of 0.05

    Each convolution but the last has a BatchNorm and no bias; the last has neither, and a tanh. All
    pad with zeros.
    """

    course: Course
    input_nc: int = 3
    output_nc: int = 3
    width: int = 64
    """The channels of the first convolution, doubled by every further one down."""
    blocks: int = 6
    """The number of blocks of ``udacity``: 0 to 64."""
    kernels: tuple[int, int, int] = (4, 3, 4)
    """The sides of the kernels down, between, and up."""
    up: Literal["transposed", "nearest"] = "transposed"
    """``transposed``: 4×4 of stride 2; ``nearest``: to twice the size, then a convolution."""

    @property
    def architecture(self) -> str:
        """The name on the card."""
        if self.course == "udacity":
            return f"udacity_resnet_{self.blocks}blocks"
        if self.course == "toronto":
            return "toronto_resnet_upsampled" if self.up == "nearest" else "toronto_resnet"
        return "mnist_svhn_transfer"

    @property
    def norm(self) -> Literal["batch"]:
        """The kind of norm."""
        return "batch"

    @property
    def downs(self) -> int:
        """The number of strides of 2 down, and of those up."""
        return 3 if self.course == "udacity" else 2

    @property
    def sizes(self) -> SizeRequirements:
        """The heights and widths that the network accepts; its output has the same."""
        return SizeRequirements(2**self.downs, 2**self.downs)


class CourseGenerator(nn.Module):
    """The network of a `CourseConfig`."""

    def __init__(self, config: CourseConfig) -> None:
        super().__init__()
        down, between, up = config.kernels
        slope = 0.05 if config.course == "mnist_svhn" else 0.0
        widths = [config.width * 2**level for level in range(config.downs)]
        trunk = widths[-1]
        self.downs = nn.Sequential()
        for into, out in zip([config.input_nc, *widths], widths, strict=False):
            self.downs.append(_Layer(into, out, down, stride=2, slope=slope))
        if config.course == "udacity":
            self.trunk = nn.Sequential(*(_Block(trunk, between) for _ in range(config.blocks)))
        elif config.course == "toronto":
            self.trunk = nn.Sequential(_ShortBlock(trunk, between))
        else:
            self.trunk = nn.Sequential(
                *(_Layer(trunk, trunk, between, slope=slope) for _ in range(2))
            )
        self.ups = nn.Sequential()
        for into, out in zip(widths[::-1], widths[-2::-1], strict=False):
            self.ups.append(_Layer(into, out, up, up=config.up, slope=slope))
        self.head = _Layer(widths[0], config.output_nc, up, up=config.up, norm=False, slope=None)

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``(N, C, H, W)`` in [-1, 1]."""
        out: Tensor = self.head(self.ups(self.trunk(self.downs(x)))).tanh()
        return out


class _Layer(nn.Module):
    """A convolution, BatchNorm, and (Leaky)ReLU; None for ``slope`` leaves the last one out."""

    def __init__(
        self,
        into: int,
        out: int,
        side: int,
        *,
        stride: int = 1,
        up: str | None = None,
        norm: bool = True,
        slope: float | None,
    ) -> None:
        super().__init__()
        self.larger = nn.Upsample(scale_factor=2) if up == "nearest" else nn.Identity()
        pad = (side - 1) // 2
        self.conv = (
            nn.ConvTranspose2d(into, out, side, 2, pad, bias=False)
            if up == "transposed"
            else nn.Conv2d(into, out, side, stride, pad, bias=False)
        )
        self.norm = nn.BatchNorm2d(out) if norm else nn.Identity()
        self.activation: nn.Module = nn.Identity()
        if slope is not None:
            self.activation = nn.LeakyReLU(slope) if slope else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.norm(self.conv(self.larger(x))))
        return out


class _Block(nn.Module):
    """The identity plus two convolutions."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.conv0 = _Layer(channels, channels, side, slope=0.0)
        self.conv1 = _Layer(channels, channels, side, slope=None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv1(self.conv0(x))
        return out


class _ShortBlock(nn.Module):
    """The identity plus one convolution, and a ReLU of the sum."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.conv = _Layer(channels, channels, side, slope=None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (x + self.conv(x)).relu()
        return out


def _read_udacity(shapes: Shapes) -> Reading | None:
    found = (re.match(r"res_blocks\.(\d{1,4})\.conv_layer[12]\.0\.", name) for name in shapes)
    blocks = max((int(match[1]) + 1 for match in found if match), default=0)
    if not blocks:
        return None
    between = "res_blocks.0.conv_layer1.0.weight"
    return _reading(
        _config("udacity", shapes, blocks, between, "deconv3.0.weight"),
        "its activations are those of the course's solution (other solutions of the exercise may "
        "have the same names)",
    )


def _read_toronto(shapes: Shapes) -> Reading | None:
    between = "resnet_block.conv_layer.0.weight"
    if between not in shapes:
        return None
    nearest = any(name.startswith("upconv") for name in shapes)
    last = "upconv2.1.weight" if nearest else "deconv2.0.weight"
    return _reading(
        _config("toronto", shapes, 1, between, last),
        "its activations are those that the assignment gives",
    )


def _read_mnist_svhn(shapes: Shapes) -> Reading | None:
    if not {"conv1.0.weight", "conv4.0.weight", "deconv1.0.weight"} <= shapes.keys():
        return None
    return _reading(
        _config("mnist_svhn", shapes, 0, "conv3.0.weight", "deconv2.0.weight"),
        "its LeakyReLU has the slope of 0.05, as published",
    )


def _config(course: Course, shapes: Shapes, blocks: int, between: str, last: str) -> CourseConfig:
    """Return the network; ``between``, ``last``: a weight of the trunk, and that of the last layer.

    Raises UnfitError for one that cannot be built.
    """
    names = ("conv1.0.weight", between, last)
    first, _, head = weights = [shapes.get(name, ()) for name in names]
    for name, shape in zip(names, weights, strict=True):
        if not shape:
            raise UnfitError(f"lacks {name!r}")
        if len(shape) != 4 or min(shape) < 1 or shape[2] != shape[3]:
            raise UnfitError(f"has {name!r} of {shape} where a square kernel is needed")
    nearest = last.startswith("upconv")
    kernels = (first[2], weights[1][2], head[2])
    odd = (False, True, nearest)
    for side, is_odd, name in zip(kernels, odd, names, strict=True):
        if side > LARGEST_KERNEL or (is_odd and side % 2 == 0):
            raise UnfitError(f"has a kernel of {side}×{side} in {name!r}, which changes the size")
    if not nearest and head[2] != 4:
        raise UnfitError(f"has a transposed kernel of {head[2]}×{head[2]} where 4×4 is supported")
    if blocks > MOST_BLOCKS:
        raise UnfitError(f"has {blocks} blocks where {MOST_BLOCKS} are supported")
    return CourseConfig(
        course,
        input_nc=first[1],
        output_nc=head[0] if nearest else head[1],
        width=first[0],
        blocks=blocks,
        kernels=kernels,
        up="nearest" if nearest else "transposed",
    )


def _reading(config: CourseConfig, *published: str) -> Reading:
    names = {}
    for in_file, layer in _layers(config):
        conv = int(config.up == "nearest" and layer.startswith(("ups", "head")))
        names[f"{in_file}.{conv}.weight"] = f"{layer}.conv.weight"
        if layer != "head":
            names |= {
                f"{in_file}.{conv + 1}.{part}": f"{layer}.norm.{part}" for part in _BATCH_NORM
            }
    return Reading(config, partial(CourseGenerator, config), names, published=published)


def _layers(config: CourseConfig) -> Iterator[tuple[str, str]]:
    """Yield the name in the file of each layer, and that in the network."""
    yield from ((f"conv{level + 1}", f"downs.{level}") for level in range(config.downs))
    if config.course == "udacity":
        for block in range(config.blocks):
            for half in range(2):
                yield f"res_blocks.{block}.conv_layer{half + 1}", f"trunk.{block}.conv{half}"
    elif config.course == "toronto":
        yield "resnet_block.conv_layer", "trunk.0.conv"
    else:
        yield from (("conv3", "trunk.0"), ("conv4", "trunk.1"))
    up = "upconv" if config.up == "nearest" else "deconv"
    yield from ((f"{up}{level + 1}", f"ups.{level}") for level in range(config.downs - 1))
    yield f"{up}{config.downs}", "head"


UDACITY = Family("udacity", "Udacity's course", _read_udacity)
TORONTO = Family("toronto", "the University of Toronto's CSC321 and CSC413", _read_toronto)
MNIST_SVHN = Family("mnist_svhn", "mnist-svhn-transfer", _read_mnist_svhn)
