"""The adversarial losses, the gradient penalty of WGAN-GP, and the L1 loss.

Half-precision scores and images are converted to float32 first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from cyclegan_batch.models.networks import without_halves

from .config import GanMode


class GANLoss:
    """How far the scores of a discriminator are from those of real (1) or of fake (0) images.

    ``lsgan``: mean squared difference. ``vanilla``: cross-entropy, with the scores as logits.
    ``wgangp``: the mean score, negated for real; scores are unbounded, see `gradient_penalty`.
    """

    def __init__(self, gan_mode: GanMode) -> None:
        self.gan_mode = gan_mode

    def __call__(self, prediction: Tensor, target_is_real: bool) -> Tensor:
        """Return the loss, a scalar, for scores of any shape."""
        prediction = without_halves(prediction)
        if self.gan_mode == "wgangp":
            return -prediction.mean() if target_is_real else prediction.mean()
        target = torch.full_like(prediction, 1.0 if target_is_real else 0.0)
        if self.gan_mode == "lsgan":
            return F.mse_loss(prediction, target)
        return F.binary_cross_entropy_with_logits(prediction, target)


def l1(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean absolute difference, a scalar, whose gradient flows into both."""
    return F.l1_loss(without_halves(one), without_halves(other))


def weighted_l1(weight: float, output: Tensor | None, expected: Tensor) -> Tensor:
    """Return the weighted L1 loss; 0 where there is no output."""
    return expected.new_zeros(()) if output is None else weight * l1(output, expected)


def gradient_penalty(netD: nn.Module, real: Tensor, fake: Tensor, lambda_gp: float) -> Tensor:
    """Return λ · mean (‖∇D(x)‖₂ − 1)², at x between a real and a fake image (WGAN-GP).

    For every pair of the batch, x is one random point on the line between the two, drawn from
    torch's global random state; the norm is over all values of an image. ``real`` and ``fake`` are
    ``(N, C, H, W)``; the result is a scalar with a graph to D's weights. Raises ValueError where
    the two have different shapes.
    """
    if real.shape != fake.shape:
        raise ValueError(
            f"wgangp mixes real and fake images of one size, and they are {tuple(real.shape)} "
            f"and {tuple(fake.shape)}; crop to one size, or use lsgan"
        )
    # Not in half precision: the gradient of a gradient would have no significant digits.
    with torch.autocast(real.device.type, enabled=False):
        alpha = torch.rand(len(real), 1, 1, 1, device=real.device).to(real.dtype)
        mixed = alpha * real.detach() + (1 - alpha) * without_halves(fake.detach())
        mixed.requires_grad_()
        scores = netD(mixed)
        (gradient,) = torch.autograd.grad(scores.sum(), mixed, create_graph=True)
        # The square root has no derivative at 0.
        lengths = (gradient.flatten(1) + 1e-16).norm(2, dim=1)
        penalty: Tensor = lambda_gp * ((lengths - 1) ** 2).mean()
        return penalty
