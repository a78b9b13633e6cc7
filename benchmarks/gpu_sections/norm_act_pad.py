"""Everything between two convolutions of a ResNet generator as one operation, in Triton.

That is InstanceNorm, then ReLU or the residual, then the next convolution's reflected border. torch
makes four to six passes over memory for it, and converts channels-last tensors to channels first
and back, as `reflection_pad2d` on CUDA has no channels-last kernel. Here one pass computes the
statistics, in float32 whatever the type of the pixels, and a second one reads and writes them. All
tensors are ``(N, H, W, C)``.

`in_cells` turns the 7×7 convolutions at both ends into 4×4 ones between *cells*. A cell is 2×2
pixels, stored as the channels of one: 3 channels leave most of a tensor core's tile empty, 12 do
not.

Experimental: tried in Triton's interpreter only.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

EPS = tl.constexpr(1e-5)


@dataclass(frozen=True)
class Tiling:
    """How the kernels divide an image."""

    pixels: int = 64
    """Pixels of a tile."""
    tiles: int = 2
    """Tiles that one program writes."""
    warps: int = 4


@triton.jit
def _reflect(i, size):
    return size - 1 - tl.abs(size - 1 - tl.abs(i))


@triton.jit
def _part(x, part, P, per, S, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Write the mean of one part of an image, and the sum of squared deviations from it.

    An image has P pixels in S parts of ``per``; a program takes BC of its C channels.
    """
    s = tl.program_id(0)
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    x += n * P * C
    first = s * per
    last = tl.minimum(first + per, P)
    inside = c < C
    # Subtract one of the values before summing: where the mean is far from 0, no digits are lost.
    shift = tl.load(x + tl.minimum(first, P - 1) * C + c, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros((BP, BC), tl.float32)
    squares = tl.zeros((BP, BC), tl.float32)
    for start in range(first, last, BP):
        p = start + tl.arange(0, BP)
        live = (p < last)[:, None] & inside[None, :]
        v = tl.load(x + p[:, None] * C + c[None, :], mask=live, other=0.0).to(tl.float32)
        v = tl.where(live, v - shift[None, :], 0.0)
        sums += v
        squares += v * v
    count = tl.maximum(last - first, 1).to(tl.float32)
    mean = tl.sum(sums, 0) / count
    at = part + (n * S + s) * 2 * C + c
    tl.store(at, mean + shift, mask=inside)
    tl.store(at + C, tl.maximum(tl.sum(squares, 0) - mean * mean * count, 0.0), mask=inside)


@triton.jit
def _total(part, stat, P, per, C: tl.constexpr, S: tl.constexpr, BC: tl.constexpr):
    """Write the mean and 1 / standard deviation of a whole image, from its S parts."""
    n = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    i = tl.arange(0, S)
    count = tl.minimum(tl.maximum(P - i * per, 0), per).to(tl.float32)[:, None]
    at = part + (n * S + i[:, None]) * 2 * C + c[None, :]
    live = (c < C)[None, :] & (i >= 0)[:, None]
    means = tl.load(at, mask=live, other=0.0)
    squares = tl.load(at + C, mask=live, other=0.0)
    mean = tl.sum(means * count, 0) / P
    away = means - mean[None, :]
    variance = tl.sum(squares + away * away * count, 0) / P
    tl.store(stat + n * 2 * C + c, mean, mask=c < C)
    tl.store(stat + n * 2 * C + C + c, 1.0 / tl.sqrt(variance + EPS), mask=c < C)


@triton.jit
def _apply(
    x, residual, stat, out, P, H, W,
    C: tl.constexpr, RELU: tl.constexpr, PAD: tl.constexpr, ADDS: tl.constexpr,
    RESIDUAL_PAD: tl.constexpr, CELLS_IN: tl.constexpr, CELLS_OUT: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Write BC channels of TILES × BP pixels of the result, border included."""
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < C
    wide = W + 2 * PAD
    pixels = (H + 2 * PAD) * wide
    mean = tl.load(stat + n * 2 * C + c, mask=inside, other=0.0)
    scale = tl.load(stat + n * 2 * C + C + c, mask=inside, other=0.0)
    x += n * P * C
    out += n * pixels * C
    residual += n * (H + 2 * RESIDUAL_PAD) * (W + 2 * RESIDUAL_PAD) * C
    for tile in tl.static_range(TILES):
        q = (tl.program_id(0) * TILES + tile) * BP + tl.arange(0, BP)
        live = (q < pixels)[:, None] & inside[None, :]
        y = q // wide
        z = q % wide
        r = _reflect(y - PAD, H)
        k = _reflect(z - PAD, W)
        source = (r * W + k) * C
        target = q * C
        if CELLS_IN:
            source = ((r // 2) * (W // 2) + k // 2) * (4 * C) + ((r % 2) * 2 + k % 2) * C
        if CELLS_OUT:
            target = ((y // 2) * (wide // 2) + z // 2) * (4 * C) + ((y % 2) * 2 + z % 2) * C
        v = tl.load(x + source[:, None] + c[None, :], mask=live, other=0.0).to(tl.float32)
        v = (v - mean[None, :]) * scale[None, :]
        if RELU:
            v = tl.maximum(v, 0.0)
        if ADDS:
            beside = ((r + RESIDUAL_PAD) * (W + 2 * RESIDUAL_PAD) + k + RESIDUAL_PAD) * C
            more = tl.load(residual + beside[:, None] + c[None, :], mask=live, other=0.0)
            v += more.to(tl.float32)
        tl.store(out + target[:, None] + c[None, :], v.to(out.dtype.element_ty), mask=live)


@triton.jit
def _first(
    u8, out, H, W, HO, WO, CELL: tl.constexpr, CP: tl.constexpr, BP: tl.constexpr
):  # fmt: skip
    """Write bytes as float16 in [-1, 1] with a border of 3, in cells or not, in CP channels."""
    n = tl.program_id(1).to(tl.int64)
    q = tl.program_id(0) * BP + tl.arange(0, BP)
    k = tl.arange(0, CP)
    live = (q < HO * WO)[:, None] & (k < 3 * CELL * CELL)[None, :]
    y = _reflect((q // WO)[:, None] * CELL + (k // 3 // 2)[None, :] - 3, H)
    z = _reflect((q % WO)[:, None] * CELL + (k // 3 % 2)[None, :] - 3, W)
    v = tl.load(u8 + n * H * W * 3 + (y * W + z) * 3 + (k % 3)[None, :], mask=live, other=0)
    v = tl.where(live, v.to(tl.float32) * (2.0 / 255.0) - 1.0, 0.0).to(out.dtype.element_ty)
    inside = (q < HO * WO)[:, None] & (k >= 0)[None, :]
    tl.store(out + n * HO * WO * CP + q[:, None] * CP + k[None, :], v, mask=inside)


@triton.jit
def _last(y, bias, u8, H, W, CELL: tl.constexpr, CP: tl.constexpr, B: tl.constexpr):
    """Write the output of the head as bytes: add the bias, tanh, round; from cells or not."""
    n = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * B + tl.arange(0, B)
    live = e < H * W * 3
    c = e % 3
    r = e // 3 // W
    k = e // 3 % W
    source = ((r // CELL) * (W // CELL) + k // CELL) * CP + ((r % CELL) * CELL + k % CELL) * 3 + c
    v = tl.load(y + n * (H // CELL) * (W // CELL) * CP + source, mask=live, other=0.0)
    v = v.to(tl.float32) + tl.load(bias + c, mask=live, other=0.0)
    # tanh by way of exp, which Triton has on every device.
    v = (1.0 - 2.0 / (tl.exp(2.0 * v) + 1.0)) * 127.5 + 128.0
    tl.store(u8 + n * H * W * 3 + e, tl.floor(v).to(tl.int32).to(tl.uint8), mask=live)


def norm_act_pad(
    x: Tensor,
    channels: int,
    *,
    relu: bool,
    pad: int = 0,
    residual: Tensor | None = None,
    residual_pad: int = 0,
    cells_in: bool = False,
    cells_out: bool = False,
    tiling: Tiling = Tiling(),
) -> Tensor:
    """Normalise ``x`` over its pixels, and return what the next convolution reads.

    ``x`` is ``(N, H, W, C)``, or in cells ``(N, H/2, W/2, 4·C)``. After the norm come ReLU, the
    addition of ``residual`` without its border of ``residual_pad``, and a reflected border of
    ``pad``.
    """
    n, h, w = x.shape[0], x.shape[1] << cells_in, x.shape[2] << cells_in
    block, pixels, parts = min(64, triton.next_power_of_2(channels)), h * w, 2
    groups = triton.cdiv(channels, block)
    # Aim at eight programs for each multiprocessor, and several tiles for each program.
    while (
        parts * groups * n < 8 * _multiprocessors(x.device) and pixels // parts > 4 * tiling.pixels
    ):
        parts *= 2
        if parts == 256:
            break
    part = x.new_empty((n, parts, 2, channels), dtype=torch.float32)
    stat = x.new_empty((n, 2, channels), dtype=torch.float32)
    ho, wo, per = h + 2 * pad, w + 2 * pad, triton.cdiv(pixels, parts)
    shape = (n, ho // 2, wo // 2, 4 * channels) if cells_out else (n, ho, wo, channels)
    out, p = x.new_empty(shape), tiling.pixels
    warps: dict[str, Any] = {"num_warps": tiling.warps}
    _part[parts, groups, n](x, part, pixels, per, parts, channels, p, block, **warps)
    _total[triton.cdiv(channels, 16), n](part, stat, pixels, per, channels, parts, 16)
    _apply[triton.cdiv(ho * wo, p * tiling.tiles), groups, n](
        x, x if residual is None else residual, stat, out, pixels, h, w, channels, relu, pad,
        residual is not None, residual_pad, cells_in, cells_out, p, block, tiling.tiles, **warps,
    )  # fmt: skip
    return out


def in_cells(weight: Tensor) -> Tensor:
    """Return 7×7 weights as 4×4 ones between cells: ``(O, I, 7, 7)`` → ``(4·O, 4·I, 4, 4)``."""
    o, i = weight.shape[:2]
    out = weight.new_zeros(2, 2, o, 2, 2, i, 4, 4)
    for a, b, k, m in itertools.product(range(2), range(2), range(7), range(7)):
        row, column = a + k, b + m
        out[a, b, :, row % 2, column % 2, :, row // 2, column // 2] = weight[:, :, k, m]
    return out.reshape(4 * o, 4 * i, 4, 4)


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
        _first[triton.cdiv(ho * wo, 64), n](pixels, x, h, w, ho, wo, cell, ends, 64)
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
        _last[grid](y, self._bias, out, h, w, cell, ends, 1024)
        return out

    def _convolved(self, x: Tensor, weight: Tensor, **how: Any) -> Tensor:
        return self._channels_last(F.conv2d, x, weight, **how)

    def _doubled(self, x: Tensor, weight: Tensor) -> Tensor:
        how = {"stride": 2, "padding": 1, "output_padding": 1}
        return self._channels_last(F.conv_transpose2d, x, weight, **how)

    def _channels_last(
        self, op: Callable[..., Tensor], x: Tensor, weight: Tensor, **how: Any
    ) -> Tensor:
        y = op(x.permute(0, 3, 1, 2), weight, **how).permute(0, 2, 3, 1)
        self.flips += not y.is_contiguous()
        return y.contiguous()


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else 1
    )
