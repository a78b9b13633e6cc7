"""U-GAT-IT, full and light, as its authors' program stores it (znxlwm/UGATIT-pytorch).

The generator (Kim et al. 2020, "U-GAT-IT", arXiv 1907.10830): a reflected 7×7 stem, two strides of
2, residual blocks; the class activation map, which weighs the channels twice and mixes both by a
1×1 convolution; as many residual blocks whose norms get their scale and offset from that map
(`AdaptiveNorm`); twice the size by nearest neighbour, two times; a reflected 7×7 head, tanh. No
convolution but the 1×1 has a bias.

The scale and offset come from fully connected layers. In the light network these get the mean of
each channel, so it takes any size; in the full network they get every value, so the shape of its
``FC.0.weight`` tells the one square size that it takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from ....frames import SizeRequirements
from ...networks import InstanceNorm, without_halves
from .family import EDGES, Family, Reading, Shapes, UnfitError

_MOST_BLOCKS = 99
"""More blocks than any network has; a file may claim any number."""


@dataclass(frozen=True)
class UgatitConfig:
    """The settings of a U-GAT-IT generator that determine the shapes of its weights."""

    input_nc: int = 3
    output_nc: int = 3
    ngf: int = 64
    """The channels of the first convolution."""
    n_blocks: int = 4
    """The residual blocks before the class activation map, and those behind it."""
    side: int | None = None
    """The side of the only square that the full network takes; None for the light network."""

    @property
    def architecture(self) -> str:
        """What the card shows."""
        kind = "ugatit_light" if self.side is None else "ugatit"
        return f"{kind}_{self.n_blocks}blocks"

    @property
    def sizes(self) -> SizeRequirements:
        """The heights and widths that the network accepts; its output has the same."""
        # A trunk of one pixel has no border to reflect.
        return SizeRequirements(4, 8, None if self.side is None else (self.side, self.side))


class Ugatit(nn.Module):
    """The generator: ``(N, C, H, W)`` in [-1, 1], both ways; H and W are multiples of 4."""

    def __init__(self, config: UgatitConfig) -> None:
        super().__init__()
        ngf, trunk = config.ngf, 4 * config.ngf
        self.down = nn.Sequential(
            *_reflected(config.input_nc, ngf, 7),
            InstanceNorm(ngf),
            nn.ReLU(),
            *_reflected(ngf, 2 * ngf, 3, stride=2),
            InstanceNorm(2 * ngf),
            nn.ReLU(),
            *_reflected(2 * ngf, trunk, 3, stride=2),
            InstanceNorm(trunk),
            nn.ReLU(),
            *(_Residual(trunk) for _ in range(config.n_blocks)),
        )
        self.attention = _Attention(trunk)
        seen = trunk if config.side is None else trunk * (config.side // 4) ** 2
        self.style = _Style(trunk, seen, pooled=config.side is None)
        self.scale = _Wide(trunk, trunk)
        self.offset = _Wide(trunk, trunk)
        self.adapted = nn.ModuleList(_AdaptedResidual(trunk) for _ in range(config.n_blocks))
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            *_reflected(trunk, 2 * ngf, 3),
            LearnedNorm(2 * ngf),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="nearest"),
            *_reflected(2 * ngf, ngf, 3),
            LearnedNorm(ngf),
            nn.ReLU(),
            *_reflected(ngf, config.output_nc, 7),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``(N, C, H, W)`` in [-1, 1]."""
        x = self.attention(self.down(x))
        style = self.style(x)
        scale, offset = (layer(style)[:, :, None, None] for layer in (self.scale, self.offset))
        for block in self.adapted:
            x = block(x, scale, offset)
        out: Tensor = self.up(x)
        return out


class InstanceLayerNorm(nn.Module):
    """A mixture of InstanceNorm and LayerNorm; ``rho`` is the share of InstanceNorm by channel.

    Both variances are unbiased, divided by the number of values less one, as in the authors'
    program. ``rho`` is used as it is stored: its training keeps it in [0, 1]. All is computed in
    float32; the output has the type of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.full((1, channels, 1, 1), 0.9))
        self.eps = 1e-5

    def normalised(self, x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """Normalise each image of ``(N, C, H, W)``; ``scale`` and ``offset`` are (N or 1, C, 1, 1).

        The mean and the variance of the whole image are computed from those of its channels.
        """
        rho, scale, offset = (without_halves(each) for each in (self.rho, scale, offset))
        wide = without_halves(x)
        pixels = wide.shape[2] * wide.shape[3]
        values = pixels * wide.shape[1]
        mean = wide.mean((2, 3), keepdim=True)
        deviation = wide - mean
        variance = (deviation * deviation).mean((2, 3), keepdim=True)
        apart = mean - mean.mean(1, keepdim=True)
        whole = (variance + apart * apart).mean(1, keepdim=True)
        by_channel = rho * torch.rsqrt(variance * (pixels / (pixels - 1)) + self.eps)
        by_image = (1 - rho) * torch.rsqrt(whole * (values / (values - 1)) + self.eps)
        shift = offset + scale * by_image * apart
        return (deviation * (scale * (by_channel + by_image)) + shift).to(x.dtype)


class LearnedNorm(InstanceLayerNorm):
    """`InstanceLayerNorm` with a learned scale and offset for each channel (ILN)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.offset = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each image of ``(N, C, H, W)``."""
        return self.normalised(x, self.scale, self.offset)


class AdaptiveNorm(InstanceLayerNorm):
    """`InstanceLayerNorm` whose scale and offset are computed from the image (AdaILN)."""

    def forward(self, x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """Normalise each image of ``(N, C, H, W)``; ``scale`` and ``offset`` are (N, C, 1, 1)."""
        return self.normalised(x, scale, offset)


class _Attention(nn.Module):
    """The class activation map: the channels weighed by two classifiers, mixed by a convolution.

    The verdict of the classifiers on the whole image is used in training only.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.by_mean = nn.Parameter(torch.ones(1, channels))
        self.by_maximum = nn.Parameter(torch.ones(1, channels))
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.cat((self.by_mean, self.by_maximum), 1).view(1, -1, 1, 1)
        both = (without_halves(torch.cat((x, x), 1)) * without_halves(weights)).to(x.dtype)
        out: Tensor = self.activation(self.mix(both))
        return out


class _Style(nn.Module):
    """Fully connected layers from ``(N, C, H, W)`` to ``(N, C)``, in float32 at least."""

    def __init__(self, channels: int, seen: int, *, pooled: bool) -> None:
        super().__init__()
        self.first = _Wide(seen, channels)
        self.second = _Wide(channels, channels)
        self._pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        x = without_halves(x)
        x = x.mean((2, 3)) if self._pooled else x.flatten(1)
        return F.relu(self.second(F.relu(self.first(x))))


class _Wide(nn.Linear):
    """A layer without bias that computes in float32, whatever the type of its weight."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, without_halves(self.weight))


class _Residual(nn.Module):
    """The identity plus two 3×3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_reflected(channels, channels, 3),
            InstanceNorm(channels),
            nn.ReLU(),
            *_reflected(channels, channels, 3),
            InstanceNorm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class _AdaptedResidual(nn.Module):
    """The identity plus two 3×3 convolutions, whose norms get their scale and offset."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_reflected(channels, channels, 3))
        self.first_norm = AdaptiveNorm(channels)
        self.activation = nn.ReLU()
        self.second = nn.Sequential(*_reflected(channels, channels, 3))
        self.second_norm = AdaptiveNorm(channels)

    def forward(self, x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        out = self.activation(self.first_norm(self.first(x), scale, offset))
        added: Tensor = self.second_norm(self.second(out), scale, offset)
        return x + added


def _reflected(into: int, out: int, kernel: int, *, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """Return a reflected border and a convolution without bias."""
    return nn.ReflectionPad2d(kernel // 2), nn.Conv2d(into, out, kernel, stride, bias=False)


def _read(shapes: Shapes) -> Reading | None:
    if "DownBlock.1.weight" not in shapes and "UpBlock1_1.norm1.rho" not in shapes:
        return None
    blocks = 0
    while f"DownBlock.{12 + blocks}.conv_block.1.weight" in shapes:
        blocks += 1
    if blocks > _MOST_BLOCKS:
        raise UnfitError(
            f"is a U-GAT-IT of {blocks} residual blocks where {_MOST_BLOCKS} at most are supported"
        )

    def length(name: str, axis: int, default: int) -> int:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) > axis and shape[axis] > 0 else default

    trunk = length("conv1x1.weight", 0, 256)
    # Where the widths disagree, the first weight of another shape is told, not a square.
    agrees = length("FC.0.weight", 0, 0) == trunk
    config = UgatitConfig(
        input_nc=length("DownBlock.1.weight", 1, 3),
        output_nc=length("UpBlock2.11.weight", 0, 3),
        ngf=max(1, trunk // 4),
        n_blocks=blocks,
        side=_side(length("FC.0.weight", 1, trunk), trunk) if agrees else None,
    )
    return Reading(config, partial(Ugatit, config), _names(blocks), published=(EDGES,))


def _side(seen: int, channels: int) -> int | None:
    """Return the side of the images of a full network; None for a light one. Raises UnfitError.

    ``seen``: the values that its first fully connected layer gets, of a trunk of ``channels``.
    """
    if seen == channels:
        return None
    quarter = math.isqrt(seen // channels)
    if quarter**2 * channels != seen:
        raise UnfitError(
            f"is a U-GAT-IT whose 'FC.0.weight' takes {seen} values, which are no square of "
            f"{channels} channels"
        )
    return 4 * quarter


def _names(blocks: int) -> dict[str, str]:
    """Return the name of each weight in a file, and its name in `Ugatit`."""
    names = {
        "gap_fc.weight": "attention.by_mean",
        "gmp_fc.weight": "attention.by_maximum",
        "conv1x1.weight": "attention.mix.weight",
        "conv1x1.bias": "attention.mix.bias",
        "FC.0.weight": "style.first.weight",
        "FC.2.weight": "style.second.weight",
        "gamma.weight": "scale.weight",
        "beta.weight": "offset.weight",
    }
    names |= {f"DownBlock.{i}.weight": f"down.{i}.weight" for i in (1, 5, 9)}
    names |= {f"UpBlock2.{i}.weight": f"up.{i}.weight" for i in (2, 7, 11)}
    for norm in (3, 8):
        for theirs, ours in (("rho", "rho"), ("gamma", "scale"), ("beta", "offset")):
            names[f"UpBlock2.{norm}.{theirs}"] = f"up.{norm}.{ours}"
    for i in range(blocks):
        for layer in (1, 5):
            down = f"{12 + i}.{{}}.{layer}.weight"
            names["DownBlock." + down.format("conv_block")] = "down." + down.format("layers")
        for number, word in (("1", "first"), ("2", "second")):
            theirs, ours = f"UpBlock1_{i + 1}", f"adapted.{i}.{word}"
            names[f"{theirs}.conv{number}.weight"] = f"{ours}.1.weight"
            names[f"{theirs}.norm{number}.rho"] = f"{ours}_norm.rho"
    return names


UGATIT = Family("ugatit", "U-GAT-IT", _read)
