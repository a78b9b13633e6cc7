"""The generator networks, in the module structure of the reference CycleGAN, so that its files fit.

A `GeneratorConfig` describes a network, `generator_from_config` builds it, and `init_weights` sets
the weights that training begins with. Input and output of every generator are ``(N, C, H, W)`` in
[-1, 1]; `GeneratorConfig.sizes` are the H and W that it accepts. The parameters have the
reference's names (``model.10.conv_block.1.weight``) and its order, so the same seed gives the same
weights. Modules without parameters may differ from the reference: InstanceNorm always computes its
statistics in float32.

This module imports torch; a translation by another runtime does not import it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)
from torch.nn import init

from ..frames import SizeRequirements

Norm: TypeAlias = Literal["instance", "batch", "syncbatch", "none"]
Upsample: TypeAlias = Literal["deconv", "resize"]
InitType: TypeAlias = Literal["normal", "xavier", "kaiming", "orthogonal"]
Family: TypeAlias = Literal["resnet", "mobile_resnet", "unet"]

_NET_G = re.compile(
    r"(?P<family>resnet|mobile_resnet)_(?P<n_blocks>\d{1,3})blocks|unet_(?P<side>\d+)"
)


@dataclass(frozen=True)
class GeneratorConfig:
    """The settings of a generator that determine the names and shapes of its weights.

    Raises ValueError for a network that cannot be built.
    """

    netG: str = "resnet_9blocks"  # noqa: N815 (the reference's word)
    """``resnet_<n>blocks``, ``mobile_resnet_<n>blocks``; ``unet_<side>``, a power of 2 from 32."""
    input_nc: int = 3
    output_nc: int = 3
    ngf: int = 64
    """The channels of the first convolution."""
    norm: Norm = "instance"
    """``instance`` has no affine and no running statistics; ``none`` leaves the norm out."""
    dropout: bool = False
    """Dropout of ½ in the blocks during training."""
    upsample: Upsample = "deconv"
    """``resize``: nearest neighbour and a convolution, without checkerboard artefacts."""
    widths: tuple[int, ...] | None = None
    """The channels in a mobile ResNet: stem, after each stride of 2 down (the second is the trunk),
    inside each block, after each stride of 2 up. None: ngf × (1, 2, 4, 4…, 2, 1)."""

    def __post_init__(self) -> None:
        match = _NET_G.fullmatch(self.netG)
        if match is None:
            raise ValueError(
                f"netG = {self.netG!r} is no generator: it is resnet_<n>blocks, "
                "mobile_resnet_<n>blocks or unet_<side>"
            )
        side = int(match["side"] or 32)
        if side < 32 or side & (side - 1):
            raise ValueError(f"netG = {self.netG!r}: the side of a U-Net is a power of 2 from 32")
        for name in ("input_nc", "output_nc", "ngf"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be 1 or more")
        for name, choices in (("norm", get_args(Norm)), ("upsample", get_args(Upsample))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} is none of {', '.join(choices)}"
                )
        if self.widths is not None:
            if self.family != "mobile_resnet":
                raise ValueError(
                    f"widths = {self.widths} are for a mobile ResNet, and this is {self.netG}"
                )
            if len(self.widths) != self.n_blocks + 5 or min(self.widths) < 1:
                raise ValueError(
                    f"widths = {self.widths}: {self.netG} has {self.n_blocks + 5} widths of 1 or "
                    "more"
                )
            if self.widths[0] != self.ngf:
                raise ValueError(
                    f"widths = {self.widths} begin with the stem's, which is ngf = {self.ngf}"
                )

    @property
    def architecture(self) -> str:
        """The name on the card, which is ``netG``."""
        return self.netG

    @property
    def family(self) -> Family:
        """The kind of network."""
        match = _NET_G.fullmatch(self.netG)
        assert match is not None
        return match["family"] or "unet"  # type: ignore[return-value]

    @property
    def n_blocks(self) -> int:
        """The number of residual blocks; 0 for a U-Net."""
        match = _NET_G.fullmatch(self.netG)
        assert match is not None
        return int(match["n_blocks"] or 0)

    @property
    def num_downs(self) -> int:
        """The number of strides of 2 down."""
        return int(self.netG.partition("_")[2]).bit_length() - 1 if self.family == "unet" else 2

    @property
    def all_widths(self) -> tuple[int, ...]:
        """``widths``, or their default."""
        ngf = self.ngf
        return self.widths or (ngf, 2 * ngf, *[4 * ngf] * (self.n_blocks + 1), 2 * ngf, ngf)

    @property
    def sizes(self) -> SizeRequirements:
        """The heights and widths that the network accepts; its output has the same."""
        side = 2**self.num_downs
        # The blocks of a ResNet reflect by one pixel, which takes a trunk of at least two pixels.
        return SizeRequirements(side, side if self.family == "unet" else 2 * side)


def generator_from_config(config: GeneratorConfig) -> nn.Module:
    """Return the network with torch's own initial weights; `init_weights` sets the reference's."""
    if config.family == "unet":
        return UnetGenerator(config)
    return ResnetGenerator(config)


def init_weights(
    network: nn.Module, init_type: InitType = "normal", init_gain: float = 0.02
) -> None:
    """Set the weights that training begins with, in place, from torch's global random state.

    Convolutions: N(0, gain), or Xavier, Kaiming (which has no gain) or orthogonal; biases 0.
    BatchNorm: N(1, gain), bias 0. The random draws are in the reference's order.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if init_type == "normal":
                init.normal_(module.weight, 0.0, init_gain)
            elif init_type == "xavier":
                init.xavier_normal_(module.weight, gain=init_gain)
            elif init_type == "kaiming":
                init.kaiming_normal_(module.weight, a=0, mode="fan_in")
            elif init_type == "orthogonal":
                init.orthogonal_(module.weight, gain=init_gain)
            else:
                choices = ", ".join(get_args(InitType))
                raise ValueError(f"{init_type = } is none of {choices}")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            init.normal_(module.weight, 1.0, init_gain)
            init.zeros_(module.bias)


def without_halves(x: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32, and any wider type unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class InstanceNorm(nn.InstanceNorm2d):
    """InstanceNorm without running statistics, computed in float32.

    ``affine``: with a weight and a bias for each channel. The output has the type of the input.
    """

    def __init__(self, channels: int, *, affine: bool = False) -> None:
        super().__init__(channels, affine=affine, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each image: ``(N, C, H, W)``, more than one pixel."""
        weight, bias = self.factors()
        out = F.instance_norm(without_halves(x), weight=weight, bias=bias, eps=self.eps)
        if out.requires_grad and not torch.compiler.is_compiling():
            # Observed with torch 2.15 (CPU, batch 1): its backward reads a channels_last gradient
            # as if it were contiguous, and returns a wrong gradient without an error.
            out.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
        return out.to(x.dtype)

    def factors(self) -> tuple[Tensor | None, Tensor | None]:
        """Return weight and bias, ``(C,)`` in float32 or wider; None without an affine."""
        if not self.affine:
            return None, None
        return without_halves(self.weight), without_halves(self.bias)


def norm_layer(norm: Norm) -> Callable[[int], nn.Module]:
    """Return a function that builds the norm for a number of channels."""
    layers: dict[Norm, Callable[[int], nn.Module]] = {
        "instance": InstanceNorm,
        "batch": nn.BatchNorm2d,
        "syncbatch": nn.SyncBatchNorm,
        "none": lambda channels: nn.Identity(),
    }
    return layers[norm]


def convolutions_have_bias(norm: Norm) -> bool:
    """Return whether convolutions before a norm have a bias: only with ``instance``.

    That bias has no effect, since InstanceNorm subtracts the mean, but the reference's files hold
    it. As in the reference, a network without norm has no bias there either.
    """
    return norm == "instance"


class ResnetGenerator(nn.Module):
    """7×7 stem, two strides of 2 down, residual blocks, two up, 7×7 head, tanh.

    Plain or mobile; a mobile ResNet has separable convolutions in its blocks, and free widths.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        norm, bias = norm_layer(config.norm), convolutions_have_bias(config.norm)
        stem, middle, trunk, *inner, outer, last = config.all_widths
        block = MobileResnetBlock if config.family == "mobile_resnet" else ResnetBlock
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(config.input_nc, stem, 7, bias=bias),
            norm(stem),
            nn.ReLU(inplace=True),
        ]
        for into, out in ((stem, middle), (middle, trunk)):
            layers += [
                nn.Conv2d(into, out, 3, stride=2, padding=1, bias=bias),
                norm(out),
                nn.ReLU(inplace=True),
            ]
        layers += [block(trunk, width, config.norm, config.dropout) for width in inner]
        for into, out in ((trunk, outer), (outer, last)):
            if config.upsample == "deconv":
                up: nn.Module = nn.ConvTranspose2d(
                    into, out, 3, stride=2, padding=1, output_padding=1, bias=bias
                )
            else:
                up = ResizeConvolution(into, out, bias)
            layers += [up, norm(out), nn.ReLU(inplace=True)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(last, config.output_nc, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``(N, C, H, W)`` in [-1, 1]."""
        out: Tensor = self.model(x)
        return out


class ResnetBlock(nn.Module):
    """The identity plus two 3×3 convolutions."""

    def __init__(self, channels: int, inner: int, norm: Norm, dropout: bool) -> None:
        super().__init__()
        bias = convolutions_have_bias(norm)
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, inner, 3, bias=bias),
            norm_layer(norm)(inner),
            nn.ReLU(inplace=True),
            *([nn.Dropout(0.5)] if dropout else []),
            nn.ReflectionPad2d(1),
            nn.Conv2d(inner, channels, 3, bias=bias),
            norm_layer(norm)(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` and the convolutions of it."""
        out: Tensor = x + self.conv_block(x)
        return out


class MobileResnetBlock(nn.Module):
    """The identity plus two separable 3×3 convolutions (GAN compression, Li et al. 2020)."""

    def __init__(self, channels: int, inner: int, norm: Norm, dropout: bool) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            SeparableConvolution(channels, inner),
            norm_layer(norm)(inner),
            nn.ReLU(inplace=True),
            # Present even without dropout: in existing files the second convolution is number 6.
            nn.Dropout(0.5 if dropout else 0.0),
            nn.ReflectionPad2d(1),
            SeparableConvolution(inner, channels),
            norm_layer(norm)(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` and the convolutions of it."""
        out: Tensor = x + self.conv_block(x)
        return out


class SeparableConvolution(nn.Module):
    """3×3 within each channel, InstanceNorm whatever the network's norm, 1×1 across channels."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(into, into, 3, groups=into),
            InstanceNorm(into),
            nn.Conv2d(into, out, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out, H - 2, W - 2)``."""
        out: Tensor = self.conv(x)
        return out


class ResizeConvolution(nn.Sequential):
    """Twice the size by nearest neighbour, then a 3×3 convolution (Odena et al. 2016).

    The name of its weight (``model.19.2.weight``) differs from that of a transposed convolution
    (``model.19.weight``), so a file shows which of the two it was trained with.
    """

    def __init__(self, into: int, out: int, bias: bool) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.ReflectionPad2d(1),
            nn.Conv2d(into, out, 3, bias=bias),
        )


class UnetGenerator(nn.Module):
    """Strides of 2 down to one pixel and up again, with a skip connection at each level."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        ngf = config.ngf
        # Built from the innermost level outwards: the order of the reference's random draws.
        block = _UnetBlock(config, 8 * ngf, 8 * ngf, None)
        for _ in range(config.num_downs - 5):
            block = _UnetBlock(config, 8 * ngf, 8 * ngf, block, dropout=config.dropout)
        for outer in (4 * ngf, 2 * ngf, ngf):
            block = _UnetBlock(config, outer, 2 * outer, block)
        self.model = _UnetBlock(config, config.output_nc, ngf, block, input_nc=config.input_nc)

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``(N, C, H, W)`` in [-1, 1]."""
        out: Tensor = self.model(x)
        return out


class _UnetBlock(nn.Module):
    """One level of a U-Net around the next level; only the outermost has ``input_nc``."""

    def __init__(
        self,
        config: GeneratorConfig,
        outer: int,
        inner: int,
        submodule: nn.Module | None,
        *,
        input_nc: int | None = None,
        dropout: bool = False,
    ) -> None:
        super().__init__()
        norm, bias = norm_layer(config.norm), convolutions_have_bias(config.norm)
        self.outermost = input_nc is not None
        below = inner if submodule is None else 2 * inner
        # LeakyReLU is not in place, since the skip connection reads ``x`` again.
        down: list[nn.Module] = [] if self.outermost else [nn.LeakyReLU(0.2)]
        down.append(nn.Conv2d(input_nc or outer, inner, 4, stride=2, padding=1, bias=bias))
        if not self.outermost and submodule is not None:
            down.append(norm(inner))
        up_bias = bias or self.outermost
        up: list[nn.Module] = [nn.ReLU(inplace=True)]
        if config.upsample == "deconv":
            up.append(nn.ConvTranspose2d(below, outer, 4, stride=2, padding=1, bias=up_bias))
        else:
            up.append(ResizeConvolution(below, outer, up_bias))
        up.append(nn.Tanh() if self.outermost else norm(outer))
        if dropout:
            up.append(nn.Dropout(0.5))
        self.model = nn.Sequential(*down, *([] if submodule is None else [submodule]), *up)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` and the output of the levels below, joined; the outermost omits ``x``."""
        out: Tensor = self.model(x)
        return out if self.outermost else torch.cat([x, out], 1)
