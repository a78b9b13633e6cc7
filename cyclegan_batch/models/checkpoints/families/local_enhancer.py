"""pix2pixHD's local enhancer: a global generator for a small picture, others around it for details.

Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs",
CVPR 2018, section 3.1. The picture is halved once for each enhancer, by the mean of 3×3 pixels. The
global generator, without its head, makes features of the smallest picture. Each enhancer, a ResNet
of one stride of 2 each way, makes features of the next larger one: what is below it is added before
its blocks. The last one has the head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from ....frames import SizeRequirements
from .family import Reading, Shapes, UnfitError
from .resnet import MOST_BLOCKS, Resnet, ResnetConfig, names_in_file
from .sequence import assumed, config_in_sequence, places_in_sequence, published

_MOST_ENHANCERS = 3


@dataclass(frozen=True)
class LocalEnhancerConfig:
    """The settings of a local enhancer that determine its weights."""

    coarse: ResnetConfig
    """The global generator; its ngf is that of the last enhancer times ``2**enhancers``."""
    enhancers: int = 1
    """From 1 to 3."""
    blocks: int = 3
    """The residual blocks of each enhancer."""

    @property
    def architecture(self) -> str:
        """The name on the card: ``pix2pixhd_local_resnet_9blocks_3downs``."""
        return self.coarse.architecture.replace("pix2pixhd", "pix2pixhd_local")

    @property
    def input_nc(self) -> int:
        """The channels of the pictures that it takes."""
        return self.coarse.input_nc

    @property
    def output_nc(self) -> int:
        """The channels of the pictures that it returns."""
        return self.coarse.output_nc

    @property
    def norm(self) -> str:
        """As in `ResnetConfig`."""
        return self.coarse.norm

    @property
    def dropout(self) -> bool:
        """As in `ResnetConfig`."""
        return self.coarse.dropout

    @property
    def sizes(self) -> SizeRequirements:
        """The heights and widths that it accepts."""
        own, scale = self.coarse.sizes, 2**self.enhancers
        return SizeRequirements(own.multiple_of * scale, own.minimum * scale)

    def parts(self) -> Iterator[tuple[str, ResnetConfig]]:
        """Yield the ResNets in it, the smallest picture's first, and their names."""
        yield "coarse", self.coarse
        for number in range(self.enhancers):
            ngf = self.coarse.ngf // 2 ** (number + 1)
            yield f"finer.{number}", replace(self.coarse, downs=1, blocks=self.blocks, ngf=ngf)


class LocalEnhancer(nn.Module):
    """The generator of a `LocalEnhancerConfig`."""

    def __init__(self, config: LocalEnhancerConfig) -> None:
        super().__init__()
        coarse, *finer = [Resnet(part) for _, part in config.parts()]
        self.halved = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.coarse = coarse
        self.finer = nn.ModuleList(finer)
        for headless in (coarse, *finer[:-1]):
            del headless.head

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``(N, C, H, W)`` in [-1, 1]."""
        pictures = [x]
        for _ in self.finer:
            pictures.append(self.halved(pictures[-1]))
        features = self.coarse.features(pictures.pop())
        for resnet in self.finer:
            assert isinstance(resnet, Resnet)
            features = resnet.features(pictures.pop(), features)
        last = self.finer[-1]
        assert isinstance(last, Resnet)
        out: Tensor = last.head(features)
        return out


def read_local_enhancer(shapes: Shapes) -> Reading | None:
    """Return how the weights are read as a local enhancer; None where they lack its sign.

    The file has the global generator as ``model``, and as ``model1_1`` and ``model1_2`` the layers
    of an enhancer before and behind the sum. Raises UnfitError.
    """
    enhancers = {int(m[1]) for name in shapes if (m := re.match(r"model(\d{1,2})_1\.", name))}
    if not enhancers:
        return None
    last = f"model{max(enhancers)}_2"
    inner = {int(m[1]) for n in shapes if (m := re.match(last + r"\.(\d{1,3})\.conv_block\.", n))}
    if len(enhancers) > _MOST_ENHANCERS or len(inner) > MOST_BLOCKS:
        raise UnfitError(
            f"has {len(enhancers)} enhancers with {len(inner)} blocks where up to "
            f"{_MOST_ENHANCERS} with up to {MOST_BLOCKS} are supported"
        )
    coarse = config_in_sequence("pix2pixhd", shapes)
    if coarse is None:
        raise UnfitError("is pix2pixHD's local enhancer without its global generator")
    head = shapes.get(f"{last}.{len(inner) + 4}.weight", ())
    coarse = replace(coarse, output_nc=head[0] if head else coarse.input_nc)
    config = LocalEnhancerConfig(coarse, len(enhancers), len(inner))
    return Reading(
        config,
        partial(LocalEnhancer, config),
        _names(config),
        assumed=assumed(coarse),
        published=published(coarse),
    )


def _names(config: LocalEnhancerConfig) -> dict[str, str]:
    """Return the name in the network of each weight's name in the file."""
    names: dict[str, str] = {}
    for number, (part, resnet) in enumerate(config.parts()):
        places = places_in_sequence(resnet)
        if number:
            # Seven layers stand before the sum, and are counted apart from those behind it.
            for module, place in places.items():
                at, _, inside = place.removeprefix("model.").partition(".")
                half, layer = (1, int(at)) if int(at) < 7 else (2, int(at) - 7)
                places[module] = f"model{number}_{half}.{layer}" + (f".{inside}" if inside else "")
        names |= {
            in_file: f"{part}.{name}"
            for in_file, name in names_in_file(resnet, places).items()
            if number == config.enhancers or not name.startswith("head.")
        }
    return names
