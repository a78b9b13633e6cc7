"""Signs that a training goes wrong, in words, from its losses and its sample pictures.

The thresholds are rules of thumb: each names what to look at, and none stops a run. What stops one
is a loss that is no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

_WON = {"lsgan": 0.01, "vanilla": 0.02}
"""A discriminator's loss below which it no longer errs; at chance it is 0.25 or 0.69."""

_SAME = 0.02
"""Mean difference in [-1, 1] below which two pictures look alike: 2.5 grey levels of 255."""

_INVERTED = -0.5
"""Correlation of luma below which light has become dark."""


def signs_in_losses(losses: Mapping[str, float], gan_mode: str) -> Iterator[str]:
    """Yield what the mean losses of some steps are signs of."""
    for name in ("D_A", "D_B"):
        if losses[name] < _WON.get(gan_mode, -float("inf")):
            yield (
                f"{name} is near zero ({losses[name]:.4f}): it tells every fake apart, and "
                f"G_{name[-1]} learns little from it"
            )


def signs_in_samples(
    name: str, sources: Sequence[Tensor], fakes: Sequence[Tensor]
) -> Iterator[str]:
    """Yield what a generator's pictures are signs of; ``(C, H, W)`` in [-1, 1], pair by pair."""
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
            f"{name} inverts light and dark: the luma of its pictures and of their sources "
            f"correlates by {correlation:.2f}"
        )
    if len(fakes) > 1 and len({fake.shape for fake in fakes}) == 1:
        between = float(torch.stack(list(fakes)).std(0).mean())
        given = sources if len({source.shape for source in sources}) == 1 else []
        if between < _SAME and given and float(torch.stack(list(given)).std(0).mean()) > 5 * _SAME:
            yield f"{name} ignores its input: its pictures of different sources are the same"


def _luma(picture: Tensor) -> Tensor:
    if len(picture) == 1:
        return picture[0]
    weights = picture.new_tensor([0.299, 0.587, 0.114])
    return (picture * weights[:, None, None]).sum(0)


def _correlation(one: Tensor, other: Tensor) -> float:
    """Return the correlation of two pictures; 0 where one is of one tone."""
    one, other = one - one.mean(), other - other.mean()
    norm = float(one.norm() * other.norm())
    return float((one * other).sum()) / norm if norm > 1e-6 else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
