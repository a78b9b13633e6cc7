"""Distances of two sets of images by their features, and features that need no trained weights.

`evaluate_sets` compares large sets on disk; a training compares a few dozen images after every
epoch by these functions, which draw nothing at random.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

_SEED = 0
"""Of the weights of `RandomFeatures`. Another seed makes scores that cannot be compared."""
_SIDE = 32
"""Pixels to which the sides of an image are averaged."""
_WIDTHS = (32, 64)
_KERNEL = 4
_GRID = 4
"""Cells of either side over which features are averaged."""


class RandomFeatures(nn.Module):
    """A small convolutional network with fixed random weights: it needs no file and no training.

    Maps RGB uint8 ``(N, 3, H, W)`` of any size to ``(N, 1536)`` float32: every channel of two
    convolutions with stride 2 on a thumbnail of 32×32, averaged over the cells of a grid of 4×4.
    The weights are the same on every machine. What it tells is colours and coarse shapes by their
    places and not what InceptionV3 tells: its distances are no FID and no KID.
    """

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(_SEED)
        self._weights = nn.ParameterList()
        channels = 3
        for width in _WIDTHS:
            weight = torch.randn(width, channels * _KERNEL**2, generator=draws)
            if channels > 3:
                # Features of one sign would make all sums alike.
                weight = weight - weight.mean(1, keepdim=True)
            weight = F.normalize(weight, dim=1).reshape(width, channels, _KERNEL, _KERNEL)
            self._weights.append(nn.Parameter(weight, requires_grad=False))
            channels = width

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, ``(N, 1536)``."""
        x = F.adaptive_avg_pool2d(images.to(torch.float32), _SIDE) / 127.5 - 1
        parts: list[Tensor] = []
        for weight in self._weights:
            x = F.leaky_relu(F.conv2d(x, weight, stride=2, padding=1), 0.2)
            parts.append(F.adaptive_avg_pool2d(x, _GRID).flatten(1))
        return torch.cat(parts, 1)


def energy_distance(features: Tensor, real: Tensor) -> float:
    """Return the energy distance of two sets of features, ``(N, F)`` and ``(M, F)``, from 2 on.

    2 E|x − y| − E|x − x'| − E|y − y'| (Székely and Rizzo, J. Stat. Plan. Inference 143, 2013), the
    unbiased estimate of all pairs. Unlike the kernel distance it grows in proportion to how far the
    sets are apart. It may be a little below 0.
    """
    one, other = features.double(), real.double()

    def within(a: Tensor) -> Tensor:
        return torch.cdist(a, a).sum() / (len(a) * (len(a) - 1))

    return float(2 * torch.cdist(one, other).mean() - within(one) - within(other))


def kernel_distance(features: Tensor, real: Tensor) -> float:
    """Return the squared MMD of two sets of features, ``(N, F)`` and ``(M, F)``, N and M from 2 on.

    The unbiased estimate of all pairs with the kernel (x·y / F + 1)³ of KID (Bińkowski et al.,
    ICLR 2018): the KID of one subset that is the whole set. It may be a little below 0.
    """
    one, other = features.double(), real.double()
    width = one.shape[1]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / width + 1) ** 3

    def within(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))

    return float(within(one) + within(other) - 2 * kernel(one, other).mean())


def frechet_distance(features: Tensor, real: Tensor) -> float:
    """Return the Fréchet distance of two sets of features, ``(N, F)`` and ``(M, F)``: FID.

    |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr √(Σ₁Σ₂) (Heusel et al., NeurIPS 2017). The last trace is the
    sum of the singular values of X₁X₂ᵀ, where Σ = XᵀX: an N × M matrix instead of the roots of an
    F × F one, so that a few images take milliseconds.
    """
    sets = [each.double() for each in (features, real)]
    means = [each.mean(0) for each in sets]
    one, other = (
        (each - mean) / (len(each) - 1) ** 0.5 for each, mean in zip(sets, means, strict=True)
    )
    root = torch.linalg.svdvals(one @ other.T).sum()
    distance = (means[0] - means[1]).square().sum() + one.square().sum() + other.square().sum()
    return float(distance - 2 * root)
