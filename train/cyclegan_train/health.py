"""Signs that a training goes wrong, as sentences, from its losses and its samples.

The thresholds are rules of thumb. A sign stops no run: only a loss or a weight that is not finite
does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

_WON = {"lsgan": 0.01, "vanilla": 0.02}
"""A discriminator with a lower loss no longer errs; at chance the loss is 0.25 or 0.69."""

_SAME = 0.02
"""Mean difference in [-1, 1] below which two images look alike: 2.5 grey levels of 255."""

_INVERTED = -0.5
"""Correlation of luma below which light and dark are exchanged."""


def infinite_weight(networks: Mapping[str, nn.Module]) -> str | None:
    """Return the name of the first weight that holds NaN or infinity; None where none does."""
    weights = {
        f"{name}.{key}": weight
        for name, network in networks.items()
        for key, weight in network.named_parameters()
    }
    finite = torch.stack([weight.isfinite().all() for weight in weights.values()]).tolist()
    return next((n for n, good in zip(weights, finite, strict=True) if not good), None)


def signs_in_losses(losses: Mapping[str, float], gan_mode: str) -> Iterator[str]:
    """Yield the signs in the mean losses of an epoch."""
    for name in ("D_A", "D_B"):
        if losses[name] < _WON.get(gan_mode, -float("inf")):
            yield (
                f"{name} is near zero ({losses[name]:.4f}): it recognises every fake, and "
                f"G_{name[-1]} learns little from it"
            )


def signs_in_samples(
    name: str, sources: Sequence[Tensor], fakes: Sequence[Tensor]
) -> Iterator[str]:
    """Yield the signs in a generator's outputs; ``(C, H, W)`` in [-1, 1], pair by pair."""
    pairs = list(zip(sources, fakes, strict=True))
    if not pairs:
        return
    if all(source.shape == fake.shape for source, fake in pairs):
        difference = _mean([float((fake - source).abs().mean()) for source, fake in pairs])
        if difference < _SAME:
            yield f"{name} returns its input: they differ by {difference * 127.5:.1f} grey levels"
    correlation = _mean([_correlation(_luma(source), _luma(fake)) for source, fake in pairs])
    if correlation < _INVERTED:
        yield (
            f"{name} inverts light and dark: the luma of its outputs and that of their sources "
            f"correlate by {correlation:.2f}"
        )
    if len(fakes) > 1 and len({fake.shape for fake in fakes}) == 1:
        between = float(torch.stack(list(fakes)).std(0).mean())
        one_size = len({source.shape for source in sources}) == 1
        between_sources = float(torch.stack(list(sources)).std(0).mean()) if one_size else 0.0
        if between < _SAME and between_sources > 5 * _SAME:
            yield f"{name} ignores its input: its outputs for different sources are the same"


def _luma(image: Tensor) -> Tensor:
    if len(image) == 1:
        return image[0]
    weights = image.new_tensor([0.299, 0.587, 0.114])
    return (image * weights[:, None, None]).sum(0)


def _correlation(one: Tensor, other: Tensor) -> float:
    """Return the correlation of two images; 0 where one of them is uniform."""
    one, other = one - one.mean(), other - other.mean()
    norm = float(one.norm() * other.norm())
    return float((one * other).sum()) / norm if norm > 1e-6 else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
