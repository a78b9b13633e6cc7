"""ResNet generators in channels-last convolutions with the fused operator between them.

`FusedGenerator` translates frames and `FusedResnet` trains. Both leave out the biases before a
norm, which subtracts every constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..networks import GeneratorConfig, ResnetGenerator
from . import kernels
from .operator import TYPES, Tiling, current_device_of, in_cells, norm_act_pad


def why_not_fused(config: GeneratorConfig, *, training: bool = False) -> str | None:
    """Return why a generator cannot run with the fused operator, as a clause; None if it can.

    BatchNorm needs no such operator in a translation: it is folded into the convolution.
    """
    if training and config.dropout:
        return "it has dropout, which comes between a norm and its border"
    if config.family != "resnet":
        return f"{config.netG} is no plain ResNet"
    if config.norm != "instance":
        return f"its norm is {config.norm!r}, not 'instance'"
    if config.upsample != "deconv":
        return f"it upsamples by {config.upsample!r}, not 'deconv'"
    if config.input_nc not in (1, 3) or config.output_nc not in (1, 3):
        return f"it maps {config.input_nc} channels to {config.output_nc}, not 1 or 3 to 1 or 3"
    return None


def runs_on(device: torch.device) -> bool:
    """Tell whether the kernels run on ``device``: on CUDA, or in Triton's interpreter on any."""
    return device.type == "cuda" or bool(triton.knobs.runtime.interpret)


class Body:
    """Everything of a ResNet between the 7×7 convolutions at its ends."""

    def __init__(self, tiling: Tiling | None) -> None:
        self._tiling = tiling
        self.flips = 0
        """Convolutions whose result was channels first and was converted; it should stay 0."""

    def __call__(self, x: Tensor, weights: Sequence[Tensor], *, cells: bool = False) -> Tensor:
        """Return what the head reads: from ``(N, H, W, C)``, the stem's result, in float types.

        ``weights`` are two of convolutions with stride 2, two for each block, and two of transposed
        convolutions. The result ``(N, H + 6, W + 6, C)`` has the reflected border of the head. With
        ``cells`` both are in cells of 2×2 pixels.
        """
        down, trunk, up = weights[:2], weights[2:-2], weights[-2:]
        x = self._norm(x, relu=True, cells_in=cells)
        x = self._norm(self.convolved(x, down[0], stride=2, padding=1), relu=True)
        # A block expects its input with a border; the layers after the last block do not.
        x = self.convolved(x, down[1], stride=2, padding=1)
        x = self._norm(x, relu=True, pad=int(len(trunk) > 0))
        for k in range(0, len(trunk), 2):
            y = self._norm(self.convolved(x, trunk[k]), relu=True, pad=1)
            y, more = self.convolved(y, trunk[k + 1]), k + 2 < len(trunk)
            x = self._norm(y, relu=False, residual=x, residual_pad=1, pad=int(more))
        x = self._norm(self._doubled(x, up[0]), relu=True)
        return self._norm(self._doubled(x, up[1]), relu=True, pad=3, cells_out=cells)

    def convolved(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, **how: int
    ) -> Tensor:
        """Return the convolution of ``x`` ``(N, H, W, C)``, in the same layout."""
        return self._channels_last(F.conv2d(x.permute(0, 3, 1, 2), weight, bias, **how))

    def _doubled(self, x: Tensor, weight: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        return self._channels_last(
            F.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1)
        )

    def _channels_last(self, y: Tensor) -> Tensor:
        y = y.permute(0, 2, 3, 1)
        self.flips += not y.is_contiguous()
        return y.contiguous()

    def _norm(
        self, x: Tensor, *, relu: bool, pad: int = 0, residual: Tensor | None = None,
        residual_pad: int = 0, cells_in: bool = False, cells_out: bool = False,
    ) -> Tensor:  # fmt: skip
        return norm_act_pad(
            x, x.shape[-1] >> 2 * cells_in, relu=relu, pad=pad, residual=residual,
            residual_pad=residual_pad, cells_in=cells_in, cells_out=cells_out, tiling=self._tiling,
        )  # fmt: skip


class FusedGenerator:
    """A ResNet generator with InstanceNorm on frames, for the networks that `why_not_fused` allows.

    It computes in ``dtype`` with cuDNN's channels-last convolutions, and keeps copies of the
    weights. Statistics, tanh and pixels are computed in float32.
    """

    def __init__(
        self,
        network: nn.Module,
        device: str | torch.device,
        *,
        cells: bool,
        dtype: torch.dtype = torch.float16,
        tiling: Tiling | None = None,
    ) -> None:
        """Take the weights of ``network``; with ``cells`` both ends become 4×4 between cells."""
        assert dtype in TYPES
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        weights = [module.weight.detach() for module in layers]
        self._cell, self._dtype = 1 + cells, dtype
        self._channels = weights[0].shape[1], weights[-1].shape[0]
        first, last = (in_cells(weights[end]) if cells else weights[end] for end in (0, -1))
        # Fast kernels require multiples of 8 channels; the added channels are 0.
        weights[0] = F.pad(first, (0, 0, 0, 0, 0, -first.shape[1] % 8))
        weights[-1] = F.pad(last, (0, 0, 0, 0, 0, 0, 0, -last.shape[0] % 8))
        self._weights = [
            weight.to(device, dtype).contiguous(memory_format=torch.channels_last)
            for weight in weights
        ]
        bias = layers[-1].bias
        assert bias is not None
        self._bias = bias.detach().to(device, torch.float32)
        self._body = Body(tiling)

    @property
    def flips(self) -> int:
        """Convolutions whose result was channels first and was converted; it should stay 0."""
        return self._body.flips

    def __call__(self, frames: Tensor) -> Tensor:
        """Translate ``frames`` ``(N, H, W, 3)``, uint8, or float16 in [0, 1].

        H and W are multiples of 4, and 8 or more. The result has the same shape and type. A network
        of one channel reads the luma of BT.601 and returns grey frames.
        """
        return self._output(self._head(frames), frames, values=False)

    def with_values(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Translate ``frames``; return also the float32 values before they are rounded down.

        For uint8 these are 127.5 × tanh + 128, for float16 ½ × tanh + ½.
        """
        y = self._head(frames)
        return self._output(y, frames, values=False), self._output(y, frames, values=True)

    def _head(self, frames: Tensor) -> Tensor:
        """Return the output of the head, without its bias, in cells where there are any."""
        n, h, w, _ = frames.shape
        if h % 4 or w % 4 or min(h, w) < 8:
            raise ValueError(f"{h}×{w} pixels are not multiples of 4 from 8 on")
        stem, *inner, head = self._weights
        ho, wo, width = (h + 6) // self._cell, (w + 6) // self._cell, stem.shape[1]
        x = torch.empty(n, ho, wo, width, dtype=self._dtype, device=frames.device)
        tile = 64 if frames.is_cuda else 4096
        with current_device_of(frames):
            kernels.first_input[triton.cdiv(ho * wo, tile), n](
                frames.contiguous(), x, h, w, ho, wo, 2 / _top(frames),
                self._channels[0], self._cell, width, tile,
            )  # fmt: skip
        x = self._body(self._body.convolved(x, stem), inner, cells=self._cell == 2)
        return self._body.convolved(x, head)

    def _output(self, y: Tensor, frames: Tensor, *, values: bool) -> Tensor:
        n, h, w, _ = frames.shape
        dtype = torch.float32 if values else frames.dtype
        out = torch.empty(n, h, w, 3, dtype=dtype, device=frames.device)
        whole = frames.dtype == torch.uint8
        factor, tile = _top(frames) / 2, 1024 if frames.is_cuda else 16384
        with current_device_of(frames):
            kernels.last_output[triton.cdiv(h * w * 3, tile), n](
                y, self._bias, out, h, w, factor, factor + 0.5 * whole,
                self._channels[1], self._cell, y.shape[-1], whole and not values, tile,
            )  # fmt: skip
        return out


class FusedResnet(ResnetGenerator):
    """A `ResnetGenerator` with the same parameters, whose forward uses the fused operator.

    The stem's border and the head's tanh are torch's own. Biases before a norm get no gradient.
    Raises ValueError for what cannot be fused (`why_not_fused`).
    """

    def __init__(self, config: GeneratorConfig) -> None:
        why_not = why_not_fused(config, training=True)
        if why_not is not None:
            raise ValueError(f"the generator cannot run with the fused operator: {why_not}")
        super().__init__(config)
        self._body = Body(None)

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``(N, C, H, W)`` in [-1, 1]; H and W are multiples of 4, and 8 or more."""
        layers = [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        stem, *inner, head = layers
        x = F.pad(x, (3, 3, 3, 3), mode="reflect").permute(0, 2, 3, 1).contiguous()
        x = self._body(self._body.convolved(x, stem.weight), [layer.weight for layer in inner])
        return torch.tanh(self._body.convolved(x, head.weight, head.bias).permute(0, 3, 1, 2))


def _top(frames: Tensor) -> float:
    """Return the value of white."""
    return 255.0 if frames.dtype == torch.uint8 else 1.0
