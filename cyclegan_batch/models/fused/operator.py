"""What stands between two convolutions of a ResNet generator, as one operation on the GPU.

That is InstanceNorm, then ReLU or the residual, then the next convolution's reflected border. torch
makes four to six passes over memory for it, and converts channels-last tensors to channels first
and back, as ``reflection_pad2d`` on CUDA has no channels-last kernel. Here one pass computes the
statistics, in float32 whatever the type of the pixels, and a second one reads and writes them. The
gradient takes two passes as well, and is the same in every run: each pixel gathers it from the
border, where torch adds the border's gradient to the pixels in any order.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from dataclasses import dataclass
from typing import TypeAlias

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from . import kernels

TYPES = (torch.float16, torch.bfloat16, torch.float32)
"""The types of the tensors that the operator takes."""

_LONG = 2**31
"""From this number of values on, an image is indexed by 64 bits."""

_Gradients: TypeAlias = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Tiling:
    """How the kernels divide an image."""

    pixels: int = 64
    """Pixels of a tile, a power of 2."""
    tiles: int = 2
    """Tiles that one program writes."""
    warps: int = 4


_INTERPRETED = Tiling(1024, 1)
"""Triton's interpreter takes its time for each program, and little more for a large tile."""


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
    eps: float = 1e-5,
    tiling: Tiling | None = None,
) -> Tensor:
    """Normalise each image of ``x`` over its pixels, and return what the next convolution reads.

    ``x`` is ``(N, H, W, C)`` with C = ``channels``, in one of `TYPES`, and so is the result, with H
    and W larger by 2 × ``pad``. After the norm (``eps`` is added to the variance) come ReLU, the
    addition of ``residual`` without its border of ``residual_pad``, and a reflected border of
    ``pad``. With ``cells_in`` ``x`` is in cells, ``(N, H/2, W/2, 4·C)``, and with ``cells_out`` the
    result is (`in_cells`). Tensors that are not contiguous are copied.

    Gradients flow to ``x`` and ``residual``, once, and not through cells. Raises ValueError for
    shapes and types that do not fit.
    """
    residual = None if residual is None else residual.contiguous()
    job = _Job(
        channels,
        relu,
        pad,
        residual_pad if residual is not None else 0,
        cells_in,
        cells_out,
        eps,
        tiling or (Tiling() if x.is_cuda else _INTERPRETED),
    )
    x = x.contiguous()
    job.check(x, residual)
    wanted = x.requires_grad or (residual is not None and residual.requires_grad)
    if not (torch.is_grad_enabled() and wanted):
        with current_device_of(x):
            return job.forward(x, residual)[0]
    if cells_in or cells_out:
        raise ValueError("norm_act_pad computes no gradients through cells")
    out: Tensor = _Differentiable.apply(x, residual, job)
    return out


@dataclass(frozen=True)
class _Job:
    """The arguments of `norm_act_pad` that are no tensors; forward and backward on the device."""

    channels: int
    relu: bool
    pad: int
    residual_pad: int
    cells_in: bool
    cells_out: bool
    eps: float
    tiling: Tiling

    def check(self, x: Tensor, residual: Tensor | None) -> None:
        """Raise ValueError where the tensors do not fit the arguments, or one another."""
        n, h, w = self._image(x)
        found, wanted = x.shape[-1], self.channels << 2 * self.cells_in
        if x.dim() != 4 or found != wanted:
            raise ValueError(f"x is {tuple(x.shape)}; norm_act_pad takes (N, H, W, {wanted})")
        if x.dtype not in TYPES:
            raise ValueError(f"x is {x.dtype}; norm_act_pad takes float16, bfloat16 and float32")
        if self.pad >= min(h, w):
            raise ValueError(f"a reflected border of {self.pad} needs more pixels than {h}×{w}")
        if self.cells_out and (h % 2 or w % 2):
            raise ValueError(f"{h}×{w} pixels are no whole number of cells of 2×2")
        more = 2 * self.residual_pad
        shape = (n, h + more, w + more, self.channels)
        if residual is not None and residual.shape != shape:
            raise ValueError(f"the residual is {tuple(residual.shape)}, not {shape}")

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the result, and the statistics ``(N, 2, C)`` that the gradient needs."""
        (n, h, w), channels, tile = self._image(x), self.channels, self.tiling
        count, per = self._parts(x)
        parts = x.new_empty((n, count, 2, channels), dtype=torch.float32)
        statistics = x.new_empty((n, 2, channels), dtype=torch.float32)
        ho, wo = h + 2 * self.pad, w + 2 * self.pad
        shape = (n, ho // 2, wo // 2, 4 * channels) if self.cells_out else (n, ho, wo, channels)
        out, pixels, long = x.new_empty(shape), h * w, self._long(h, w)
        groups, block = self._groups()
        kernels.statistics_of_parts[count, groups, n](
            x, parts, pixels, per, count, channels, long, tile.pixels, block, num_warps=tile.warps
        )
        kernels.statistics_of_images[triton.cdiv(channels, 16), n](
            parts, statistics, pixels, per, self.eps, channels, count, 16
        )
        kernels.normalized[triton.cdiv(ho * wo, tile.pixels * tile.tiles), groups, n](
            x, x if residual is None else residual, statistics, out, pixels, h, w,
            channels, self.relu, self.pad, residual is not None, self.residual_pad,
            self.cells_in, self.cells_out, long, tile.pixels, block, tile.tiles,
            num_warps=tile.warps,
        )  # fmt: skip
        return out, statistics

    def backward(
        self, gradient: Tensor, x: Tensor, statistics: Tensor, of_residual: Tensor | None
    ) -> Tensor:
        """Return the gradient of ``x``, and write that of the residual where one is given."""
        (n, h, w), channels, tile = self._image(x), self.channels, self.tiling
        (count, per), (groups, block) = self._parts(x), self._groups()
        parts = x.new_empty((n, count, 2, channels), dtype=torch.float32)
        pixels, long, of_x = h * w, self._long(h, w), torch.empty_like(x)
        border = 0 if of_residual is None else self.residual_pad
        kernels.gradient_sums_of_parts[count, groups, n](
            gradient, x, statistics, parts, pixels, h, w, per, count,
            channels, self.relu, self.pad, long, tile.pixels, block, num_warps=tile.warps,
        )  # fmt: skip
        written, more = (h + 2 * border) * (w + 2 * border), of_residual is not None
        kernels.gradients[triton.cdiv(written, tile.pixels * tile.tiles), groups, n](
            gradient, x, statistics, parts.sum(1), of_x, of_residual if more else of_x,
            pixels, h, w, channels, self.relu, self.pad, more, border, long,
            tile.pixels, block, tile.tiles, num_warps=tile.warps,
        )  # fmt: skip
        return of_x

    def _image(self, x: Tensor) -> tuple[int, int, int]:
        """Return how many images there are, and the height and width of each, in pixels."""
        return x.shape[0], x.shape[1] << self.cells_in, x.shape[2] << self.cells_in

    def _groups(self) -> tuple[int, int]:
        """Return how many groups of channels there are, and how many channels a program takes."""
        block: int = min(64, triton.next_power_of_2(self.channels))
        return triton.cdiv(self.channels, block), block

    def _parts(self, x: Tensor) -> tuple[int, int]:
        """Return how many parts an image is divided into, a power of 2, and the pixels of each."""
        n, h, w = self._image(x)
        programs, parts = n * self._groups()[0], 1
        # Aim at eight programs for each multiprocessor, and several tiles for each program.
        while (
            parts < 256
            and parts * programs < 8 * _multiprocessors(x.device)
            and h * w // parts > 4 * self.tiling.pixels
        ):
            parts *= 2
        return parts, triton.cdiv(h * w, parts)

    def _long(self, height: int, width: int) -> bool:
        """Tell whether an image, with the wider of its borders, has too many values for 32 bits."""
        border = 2 * max(self.pad, self.residual_pad)
        # The last program may begin a few tiles behind the end.
        spare = self.tiling.pixels * self.tiling.tiles
        return ((height + border) * (width + border) + spare) * self.channels >= _LONG


class _Differentiable(torch.autograd.Function):
    """`norm_act_pad` with its gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, residual: Tensor | None, job: _Job) -> Tensor:
        """Return the result."""
        with current_device_of(x):
            out, statistics = job.forward(x, residual)
        ctx.save_for_backward(x, statistics)
        ctx.job = job  # type: ignore[attr-defined]
        ctx.residual = None if residual is None else (residual.shape, residual.dtype)  # type: ignore[attr-defined]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> _Gradients:
        """Return the gradients of x and of the residual."""
        x, statistics = ctx.saved_tensors  # type: ignore[attr-defined]
        of_residual = None
        if ctx.needs_input_grad[1]:  # type: ignore[attr-defined]
            shape, dtype = ctx.residual  # type: ignore[attr-defined]
            of_residual = x.new_empty(shape, dtype=dtype)
        job: _Job = ctx.job  # type: ignore[attr-defined]
        with current_device_of(x):
            of_x = job.backward(gradient.contiguous(), x, statistics, of_residual)
        return of_x, of_residual, None


def in_cells(weight: Tensor) -> Tensor:
    """Return 7×7 weights as 4×4 ones between cells: ``(O, I, 7, 7)`` → ``(4·O, 4·I, 4, 4)``.

    A cell is 2×2 pixels, stored as the channels of one: 3 channels leave most of a tensor core's
    tile empty, 12 do not.
    """
    o, i = weight.shape[:2]
    out = weight.new_zeros(2, 2, o, 2, 2, i, 4, 4)
    for a, b, k, m in itertools.product(range(2), range(2), range(7), range(7)):
        row, column = a + k, b + m
        out[a, b, :, row % 2, column % 2, :, row // 2, column // 2] = weight[:, :, k, m]
    return out.reshape(4 * o, 4 * i, 4, 4)


def current_device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Make the device of ``x`` the current one in a block, since Triton launches kernels there."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else 1
    )
