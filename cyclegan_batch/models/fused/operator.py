"""What stands between two convolutions of a ResNet generator, as one operation on the GPU.

That is InstanceNorm, then ReLU or the residual, then the next convolution's reflected border. torch
makes four to six passes over memory for it, and converts channels-last tensors to channels first
and back, as ``reflection_pad2d`` on CUDA has no channels-last kernel. Here one pass computes the
statistics, in float32 whatever the type of the pixels, and a second one reads and writes them.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from . import kernels


@dataclass(frozen=True)
class Tiling:
    """How the kernels divide an image."""

    pixels: int = 64
    """Pixels of a tile."""
    tiles: int = 2
    """Tiles that one program writes."""
    warps: int = 4


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
    kernels.statistics_of_parts[parts, groups, n](
        x, part, pixels, per, parts, channels, p, block, num_warps=tiling.warps
    )
    kernels.statistics_of_images[triton.cdiv(channels, 16), n](
        part, stat, pixels, per, channels, parts, 16
    )
    kernels.normalized[triton.cdiv(ho * wo, p * tiling.tiles), groups, n](
        x, x if residual is None else residual, stat, out, pixels, h, w, channels, relu, pad,
        residual is not None, residual_pad, cells_in, cells_out, p, block, tiling.tiles,
        num_warps=tiling.warps,
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


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else 1
    )
