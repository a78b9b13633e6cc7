"""A ResNet generator in channels-last convolutions with the fused operator between them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from . import kernels
from .operator import Tiling, in_cells, norm_act_pad


class FusedGenerator:
    """A ResNet generator with InstanceNorm, from bytes to bytes ``(N, H, W, 3)``, in float16.

    It runs cuDNN's channels-last convolutions with `norm_act_pad` between them. H and W are
    multiples of 4. The biases before a norm are left out, since the norm subtracts the mean.
    """

    def __init__(
        self, network: nn.Module, device: str, *, cells: bool, tiling: Tiling | None = None
    ) -> None:
        """Take the weights of ``network``; with ``cells`` both ends become 4×4 between cells."""
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        weights = [module.weight.detach() for module in layers]
        # Fast kernels require multiples of 8 channels; the added channels are 0.
        self._cells, self._ngf, self._ends = cells, layers[0].out_channels, 16 if cells else 8
        first, last = (in_cells(weights[end]) if cells else weights[end] for end in (0, -1))
        weights[0] = F.pad(first, (0, 0, 0, 0, 0, self._ends - first.shape[1]))
        weights[-1] = F.pad(last, (0, 0, 0, 0, 0, 0, 0, self._ends - last.shape[0]))
        self._weights = [
            weight.to(device, torch.float16).contiguous(memory_format=torch.channels_last)
            for weight in weights
        ]
        bias = layers[-1].bias
        assert bias is not None
        self._bias = bias.detach().float().to(device)
        self._norm = functools.partial(norm_act_pad, tiling=tiling or Tiling())
        self.flips = 0
        """Convolutions whose result was channels first and was converted; it should stay 0."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Translate uint8 ``pixels``."""
        n, h, w, _ = pixels.shape
        cell, c, ends, norm = 1 + self._cells, self._ngf, self._ends, self._norm
        stem, *inner, up1, up2, head = self._weights
        down, trunk = inner[:2], inner[2:]
        ho, wo = (h + 6) // cell, (w + 6) // cell
        x = torch.empty(n, ho, wo, ends, dtype=torch.float16, device=pixels.device)
        kernels.first_input[triton.cdiv(ho * wo, 64), n](pixels, x, h, w, ho, wo, cell, ends, 64)
        x = norm(self._convolved(x, stem), c, relu=True, cells_in=self._cells)
        x = norm(self._convolved(x, down[0], stride=2, padding=1), 2 * c, relu=True)
        x = norm(self._convolved(x, down[1], stride=2, padding=1), 4 * c, relu=True, pad=1)
        for k in range(0, len(trunk), 2):
            y = norm(self._convolved(x, trunk[k]), 4 * c, relu=True, pad=1)
            y = self._convolved(y, trunk[k + 1])
            # The next block expects a border; the layers after the last block do not.
            border = int(k + 2 < len(trunk))
            x = norm(y, 4 * c, relu=False, residual=x, residual_pad=1, pad=border)
        x = norm(self._doubled(x, up1), 2 * c, relu=True)
        x = norm(self._doubled(x, up2), c, relu=True, pad=3, cells_out=self._cells)
        y, out = self._convolved(x, head), torch.empty_like(pixels)
        grid = (triton.cdiv(h * w * 3, 1024), n)
        kernels.last_output[grid](y, self._bias, out, h, w, cell, ends, 1024)
        return out

    def _convolved(self, x: Tensor, weight: Tensor, **how: int) -> Tensor:
        return self._channels_last(F.conv2d, x, weight, **how)

    def _doubled(self, x: Tensor, weight: Tensor) -> Tensor:
        how = {"stride": 2, "padding": 1, "output_padding": 1}
        return self._channels_last(F.conv_transpose2d, x, weight, **how)

    def _channels_last(
        self, op: Callable[..., Tensor], x: Tensor, weight: Tensor, **how: int
    ) -> Tensor:
        y = op(x.permute(0, 3, 1, 2), weight, **how).permute(0, 2, 3, 1)
        self.flips += not y.is_contiguous()
        return y.contiguous()
