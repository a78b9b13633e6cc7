"""One network for every ResNet generator that is not exactly the reference's.

`ResnetConfig` says how the generator of a family differs, and `Resnet` is that generator. Its
modules have names of their own, which `modules` lists. A family derives the config from a file's
names and shapes, states how the file calls the modules, and returns a `resnet_reading`:

- `names_in_file` makes the names of weights of the file's name for each of `modules`;
- sequence.py does all that where the layers are numbered in one Sequential, as in the reference.

::

    stem        conv 7×7, norm, ReLU
    downs.0…    conv 3×3 (stride 2, or 1 with ``blur`` behind its ReLU), norm, ReLU
    blocks.0…   conv0 3×3, norm0, ReLU, conv1 3×3, norm1, and the sum with the input
    ups.0…      conv 3×3 (transposed; or behind nearest neighbour or behind ``blur``), norm, ReLU
    head        conv 7×7 with a bias, tanh

The widths are ngf, doubled by every down and halved by every up. Johnson et al., "Perceptual Losses
for Real-Time Style Transfer and Super-Resolution", 2016, and Zhu et al., "Unpaired Image-to-Image
Translation using Cycle-Consistent Adversarial Networks", 2017, describe the network; Zhang, "Making
Convolutional Networks Shift-Invariant Again", 2019, describes the filters of ``blur``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from ....frames import SizeRequirements
from ...networks import InstanceNorm
from .family import Reading

Edge: TypeAlias = Literal["zero", "reflect", "replicate"]
ResnetNorm: TypeAlias = Literal["instance", "affine_instance", "batch", "none"]
ResnetUp: TypeAlias = Literal["transposed", "nearest", "blur"]

MOST_DOWNS, MOST_BLOCKS, LARGEST_BLUR = 5, 64, 7


@dataclass(frozen=True)
class ResnetConfig:
    """The settings of a ResNet that determine its weights, and what it does at its edges.

    Raises ValueError for a network that cannot be built.
    """

    family: str
    """The family's name: "cut"."""
    downs: int = 2
    """The number of strides of 2 down, and of those up: 1 to 5."""
    blocks: int = 9
    """The number of residual blocks: 0 to 64."""
    input_nc: int = 3
    output_nc: int = 3
    ngf: int = 64
    """The channels of the first convolution."""
    norm: ResnetNorm = "instance"
    """``affine_instance`` has a weight and a bias for each channel."""
    stem_norm: bool = True
    """Whether there is a norm behind the first convolution."""
    bias: bool = True
    """Whether all convolutions have a bias; the last one has it always."""
    dropout: bool = False
    """Whether the training drops out in the blocks, which changes no translation."""
    down_blur: int = 0
    """The side of the filter behind each convolution down, which then has the stride of 2: 1 to 7;
    0: the convolution has it."""
    up: ResnetUp = "transposed"
    """``transposed``: output_padding 1. ``nearest``, ``blur``: to twice the size so, then 3×3."""
    up_blur: int = 0
    """The side of the filter of ``blur``: 1 to 7; 0 without it."""
    ends_edge: Edge = "reflect"
    """How the first and the last convolution pad."""
    down_edge: Edge = "zero"
    """How the convolutions down pad."""
    block_edge: Edge = "reflect"
    """How the convolutions in the blocks pad."""
    up_edge: Edge = "zero"
    """How the convolutions behind an enlargement pad; a transposed one pads nothing."""

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("downs", self.downs, 1, MOST_DOWNS),
            ("blocks", self.blocks, 0, MOST_BLOCKS),
            ("down_blur", self.down_blur, 0, LARGEST_BLUR),
            ("up_blur", self.up_blur, int(self.up == "blur"), LARGEST_BLUR),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name} = {value} is not from {least} to {most}")
        for name in ("input_nc", "output_nc", "ngf"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be 1 or more")
        edges = (self.ends_edge, self.down_edge, self.block_edge, self.up_edge)
        for choice, choices in (
            (self.norm, get_args(ResnetNorm)),
            (self.up, get_args(ResnetUp)),
            *((edge, get_args(Edge)) for edge in edges),
        ):
            if choice not in choices:
                raise ValueError(f"{choice!r} is none of {', '.join(choices)}")

    @property
    def architecture(self) -> str:
        """The name on the card: ``cut_resnet_9blocks``, ``pix2pixhd_resnet_9blocks_4downs``."""
        downs = "" if self.downs == 2 else f"_{self.downs}downs"
        return f"{self.family}_resnet_{self.blocks}blocks{downs}"

    @property
    def sizes(self) -> SizeRequirements:
        """The heights and widths that the network accepts; its output has the same."""
        side = 2**self.downs
        # A reflection by one pixel takes a trunk of at least two pixels, and so does a norm.
        return SizeRequirements(side, 2 * side)


class Resnet(nn.Module):
    """The generator of a `ResnetConfig`."""

    def __init__(self, config: ResnetConfig) -> None:
        super().__init__()
        widths = [config.ngf * 2**level for level in range(config.downs + 1)]
        trunk = widths[-1]
        self.stem = _unit(
            conv=_convolution(config.input_nc, config.ngf, 7, config.ends_edge, config.bias),
            norm=_norm(config, config.ngf) if config.stem_norm else None,
            relu=nn.ReLU(inplace=True),
        )
        self.downs = nn.Sequential(*(_down(config, *pair) for pair in pairwise(widths)))
        self.blocks = nn.Sequential(*(_Block(config, trunk) for _ in range(config.blocks)))
        widths.reverse()
        self.ups = nn.Sequential(*(_up(config, *pair) for pair in pairwise(widths)))
        self.head = _unit(
            conv=_convolution(config.ngf, config.output_nc, 7, config.ends_edge, bias=True),
            tanh=nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``(N, C, H, W)`` in [-1, 1]."""
        out: Tensor = self.head(self.features(x))
        return out

    def features(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return what the head gets of ``x``: ``(N, ngf, H, W)``.

        ``other``, ``(N, C, H / 2**downs, W / 2**downs)`` as wide as the blocks, is added before
        them.
        """
        small: Tensor = self.downs(self.stem(x))
        out: Tensor = self.ups(self.blocks(small if other is None else small + other))
        return out


def _unit(**modules: nn.Module | None) -> nn.Sequential:
    """Return the modules one after the other under these names, without those that are None."""
    return nn.Sequential(OrderedDict({k: m for k, m in modules.items() if m is not None}))


def _convolution(
    into: int, out: int, side: int, edge: Edge, bias: bool, *, stride: int = 1
) -> nn.Conv2d:
    mode: Literal["zeros", "reflect", "replicate"] = "zeros" if edge == "zero" else edge
    return nn.Conv2d(into, out, side, stride, side // 2, bias=bias, padding_mode=mode)


def _norm(config: ResnetConfig, channels: int) -> nn.Module | None:
    if config.norm == "none":
        return None
    if config.norm == "batch":
        return nn.BatchNorm2d(channels)
    return InstanceNorm(channels, affine=config.norm == "affine_instance")


def _down(config: ResnetConfig, into: int, out: int) -> nn.Module:
    stride = 1 if config.down_blur else 2
    return _unit(
        conv=_convolution(into, out, 3, config.down_edge, config.bias, stride=stride),
        norm=_norm(config, out),
        relu=nn.ReLU(inplace=True),
        blur=_BlurDown(out, config.down_blur) if config.down_blur else None,
    )


def _up(config: ResnetConfig, into: int, out: int) -> nn.Module:
    larger: nn.Module | None = None
    if config.up == "transposed":
        conv: nn.Module = nn.ConvTranspose2d(
            into, out, 3, stride=2, padding=1, output_padding=1, bias=config.bias
        )
    else:
        conv = _convolution(into, out, 3, config.up_edge, config.bias)
        is_blurred = config.up == "blur"
        larger = _BlurUp(into, config.up_blur) if is_blurred else nn.Upsample(scale_factor=2)
    return _unit(
        **{config.up: larger},
        conv=conv,
        norm=_norm(config, out),
        relu=nn.ReLU(inplace=True),
    )


class _Block(nn.Module):
    """The identity plus two 3×3 convolutions."""

    def __init__(self, config: ResnetConfig, channels: int) -> None:
        super().__init__()
        self.body = _unit(
            conv0=_convolution(channels, channels, 3, config.block_edge, config.bias),
            norm0=_norm(config, channels),
            relu=nn.ReLU(inplace=True),
            conv1=_convolution(channels, channels, 3, config.block_edge, config.bias),
            norm1=_norm(config, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` and the convolutions of it."""
        out: Tensor = x + self.body(x)
        return out


class _BlurDown(nn.Conv2d):
    """Half the size by a filter within each channel, with a reflected border.

    A convolution whose weights a training leaves as they are, so that whatever treats convolutions
    treats the filter alike. Of an even filter the border is wider at the lower and right edge.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__(channels, channels, side, stride=2, groups=channels, bias=False)
        before, after = (side - 1) // 2, side // 2
        self._border = (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, C, H / 2, W / 2)``; H and W are even."""
        return super().forward(F.pad(x, self._border, mode="reflect"))


class _BlurUp(nn.ConvTranspose2d):
    """Twice the size by a filter within each channel, with a replicated border of one pixel."""

    def __init__(self, channels: int, side: int) -> None:
        # The whole result of the transposed convolution has 2·(H + 2) - 2 + side rows. Those of the
        # picture begin behind 2 + (side - 1) // 2 of them: two are the border's, and the filter's
        # centre is one further where its side is even.
        super().__init__(
            channels,
            channels,
            side,
            stride=2,
            padding=2 + (side - 1) // 2,
            output_padding=side % 2,
            groups=channels,
            bias=False,
        )

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return ``(N, C, 2·H, 2·W)``."""
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="replicate"), output_size)


def modules(config: ResnetConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each module of `Resnet` that has weights, with their names, in the order of use.

    ``("stem.conv", ("weight", "bias"))``, ``("stem.norm", …)``, ``("downs.0.blur", ("weight",))``,
    ``("blocks.0.body.conv0", …)``, …, ``("head.conv", ("weight", "bias"))``. A norm without weights
    is left out.
    """
    conv = ("weight", "bias") if config.bias else ("weight",)
    norm: tuple[str, ...] = {
        "batch": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
        "affine_instance": ("weight", "bias"),
    }.get(config.norm, ())

    for name in _modules(config):
        last = name.rpartition(".")[2]
        if name == "head.conv":
            yield name, ("weight", "bias")
        elif last.startswith("conv"):
            yield name, conv
        elif last == "blur":
            yield name, ("weight",)
        elif norm:
            yield name, norm


def _modules(config: ResnetConfig) -> Iterator[str]:
    """Yield the names of the modules that have weights in any ResNet, in the order of use."""
    yield "stem.conv"
    if config.stem_norm:
        yield "stem.norm"
    for level in range(config.downs):
        yield from (f"downs.{level}.conv", f"downs.{level}.norm")
        if config.down_blur:
            yield f"downs.{level}.blur"
    for block in range(config.blocks):
        yield from (f"blocks.{block}.body.{last}" for last in ("conv0", "norm0", "conv1", "norm1"))
    for level in range(config.downs):
        if config.up == "blur":
            yield f"ups.{level}.blur"
        yield from (f"ups.{level}.conv", f"ups.{level}.norm")
    yield "head.conv"


def names_in_file(config: ResnetConfig, places: Mapping[str, str]) -> dict[str, str]:
    """Return `Reading.names`: the name in `Resnet` of each weight's name in the file.

    ``places``: the file's name of each of `modules`: ``{"stem.conv": "initial.0", …}``. The weight
    of a ``blur`` is called ``filt`` in every file.
    """
    names = {}
    for module, weights in modules(config):
        for weight in weights:
            in_file = "filt" if module.endswith(".blur") else weight
            names[f"{places[module]}.{in_file}"] = f"{module}.{weight}"
    return names


def resnet_reading(
    config: ResnetConfig,
    names: Mapping[str, str],
    *,
    assumed: tuple[str, ...] = (),
    published: tuple[str, ...] = (),
) -> Reading:
    """Return how a family reads a ResNet; ``assumed`` and ``published`` as in `Reading`."""
    return Reading(config, partial(Resnet, config), names, assumed=assumed, published=published)
