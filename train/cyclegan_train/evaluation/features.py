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
_WIDTHS = (32, 64, 128)
_KERNEL = 4


class RandomFeatures(nn.Module):
    """A small convolutional network with fixed random weights: it needs no file and no training.

    Maps RGB uint8 ``(N, 3, H, W)``, from 16×16 on, to ``(N, 448)`` float32: the mean and the
    standard deviation over the image of every channel of three convolutions with stride 2. The
    weights are the same on every machine. What it tells is colours and textures and not what
    InceptionV3 tells: its distances are no FID and no KID, and compare with themselves alone.
    """

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(_SEED)
        self._weights = nn.ParameterList()
        channels = 3
        for width in _WIDTHS:
            weight = torch.randn(width, channels * _KERNEL**2, generator=draws)
            weight = F.normalize(weight, dim=1).reshape(width, channels, _KERNEL, _KERNEL)
            self._weights.append(nn.Parameter(weight, requires_grad=False))
            channels = width

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, ``(N, 448)``."""
        x = images.to(torch.float32) / 127.5 - 1
        parts: list[Tensor] = []
        for weight in self._weights:
            x = F.leaky_relu(F.conv2d(x, weight, stride=2, padding=1), 0.2)
            parts += [x.mean((2, 3)), x.flatten(2).std(2, correction=0)]
        return torch.cat(parts, 1)


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
