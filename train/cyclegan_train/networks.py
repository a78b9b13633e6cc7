"""The discriminators, in the reference CycleGAN's module structure, so that its weights fit.

Each maps ``(N, C, H, W)`` in [-1, 1] to one score per patch, ``(N, 1, h, w)``, without a sigmoid:
the loss decides what a score means (losses.py).
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from cyclegan_batch.models.networks import InstanceNorm, Norm, convolutions_have_bias, norm_layer

from .config import TrainConfig


def discriminator_from_config(config: TrainConfig, channels: int) -> nn.Module:
    """Return the discriminator of a domain with ``channels``, with torch's own initial weights."""
    if config.netD == "pixel":
        return PixelDiscriminator(channels, config.ndf, config.norm)
    n_layers = 3 if config.netD == "basic" else config.n_layers_D
    return NLayerDiscriminator(channels, config.ndf, n_layers, config.norm)


def least_side(netD: nn.Module, batch_size: int = 1) -> int:
    """Return the side of the smallest square that a discriminator can be trained on.

    A smaller image does not hold a kernel, or leaves a norm a single value to normalise.
    """

    def accepts(side: int) -> bool:
        for layer in netD.modules():
            if isinstance(layer, nn.Conv2d):
                side = (side + 2 * int(layer.padding[0]) - layer.kernel_size[0]) // layer.stride[0]
                side += 1
                if side < 1:
                    return False
            elif isinstance(layer, InstanceNorm | nn.BatchNorm2d | nn.SyncBatchNorm):
                images = 1 if isinstance(layer, InstanceNorm) else batch_size
                if side * images == 1:
                    return False
        return True

    return next(side for side in itertools.count(1) if accepts(side))


class NLayerDiscriminator(nn.Module):
    """A PatchGAN: 4×4 convolutions, ``n_layers`` of them with stride 2, then two with stride 1.

    Three layers judge patches of 70×70. The width doubles per layer, up to 8 × ``ndf``.
    """

    def __init__(
        self, input_nc: int, ndf: int = 64, n_layers: int = 3, norm: Norm = "instance"
    ) -> None:
        super().__init__()
        bias = convolutions_have_bias(norm)
        layers: list[nn.Module] = [
            nn.Conv2d(input_nc, ndf, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        into = ndf
        for n in range(1, n_layers + 1):
            out = ndf * min(2**n, 8)
            layers += [
                nn.Conv2d(into, out, 4, stride=2 if n < n_layers else 1, padding=1, bias=bias),
                norm_layer(norm)(out),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            into = out
        layers.append(nn.Conv2d(into, 1, 4, stride=1, padding=1))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of all patches of ``(N, C, H, W)``."""
        out: Tensor = self.model(x)
        return out


class PixelDiscriminator(nn.Module):
    """1×1 convolutions, which judge every pixel by its colour alone."""

    def __init__(self, input_nc: int, ndf: int = 64, norm: Norm = "instance") -> None:
        super().__init__()
        bias = convolutions_have_bias(norm)
        self.net = nn.Sequential(
            nn.Conv2d(input_nc, ndf, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf, 2 * ndf, 1, bias=bias),
            norm_layer(norm)(2 * ndf),
            nn.LeakyReLU(0.2, inplace=True),
            # A bias only where the layer before has one, as in the reference's files.
            nn.Conv2d(2 * ndf, 1, 1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of all pixels of ``(N, C, H, W)``."""
        out: Tensor = self.net(x)
        return out
