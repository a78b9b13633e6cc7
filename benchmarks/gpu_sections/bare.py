"""Frames per second from bytes to bytes on the device: what the torch backend computes, and better.

`share` is % of this card's own fp16 product of matrices at 99.1 GFLOP a frame of 256²; differences
below `spread` are noise. `graph` against without: what launches cost. Half norms as good in `dB` as
float ones and faster: InstanceNorm goes into halves. `fused + cells` becomes the backend where it
is 1.3 times the best row of the section `compiled`; otherwise torch.compile does, which needs no
kernels of ours. The smallest batch within 5 % of the best is the default. `dB` below 45: look for a
wrong kernel first. `flips` above 0: cuDNN gave channels first. `tune`: `gb_per_s` (read twice,
written once) far below the copy of `ceilings` means that the norm's kernels have room left, and
norms above a quarter of `kernels` that their sums belong into the convolution's end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cyclegan_batch.models.parity import parity

from . import ceilings
from .measuring import GFLOP, Bench, HalfNorm, Job, arithmetic, on_bytes, required, with_norm

Body = Callable[[Tensor], Tensor]


def jobs(bench: Bench) -> Iterator[Job]:
    side, first = bench.side, bench.batches[0]
    product, name = partial(eager, bench, channels_last=True), "as the torch backend computes"
    yield name, partial(rate, bench, product, first, side, side, graph=False)
    yield f"{name}, graph", partial(rate, bench, product, first, side, side)
    half = partial(eager, bench, half_norm=True)
    for layout in (True, False):
        name = f"half norm, {'channels last' if layout else 'NCHW'}, graph"
        make = partial(half, channels_last=layout)
        yield name, partial(rate, bench, make, first, side, side)
    fast = Fused(bench)
    yield "tune", fast.tune
    for batch in bench.batches:
        yield "fused + cells, graph", partial(rate, bench, fast.with_cells, batch, side, side)
    yield "fused, graph", partial(rate, bench, fast.without_cells, first, side, side)
    yield "kernels of fused + cells", fast.kernels
    for height, width in bench.larger:
        batch = max(1, first * side * side // (height * width))
        for name, make, graph in (
            ("fused + cells, graph", fast.with_cells, True),
            ("as the torch backend computes", product, False),
        ):
            # In the interpreter, one size of it has shown all there is to see.
            if bench.cuda or not graph:
                yield name, partial(rate, bench, make, batch, height, width, graph=graph)
    for batch in bench.batches[1:]:
        job = partial(rate, bench, product, batch, side, side, graph=False)
        yield "as the torch backend computes", job


def eager(bench: Bench, *, channels_last: bool, half_norm: bool = False) -> Body:
    """Return the network in half precision; norms are float32 as the project has them, or half."""
    network = with_norm(bench.network(), HalfNorm) if half_norm else bench.network()
    dtype = torch.float16 if bench.cuda else torch.bfloat16
    return on_bytes(network, bench.device, dtype, channels_last=channels_last)


def rate(
    bench: Bench, make: Callable[[], Body], batch: int, height: int, width: int, graph: bool = True
) -> dict[str, Any]:
    """Measure what ``make`` returns, and how near the first frame is to eager float32."""
    pixels, body = bench.frames(batch, height, width), make()
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
        body(pixels)  # cuDNN chooses its kernels
    last: list[Tensor] = []
    run: Callable[[], Tensor] = partial(body, pixels)
    run = bench.recorded(run) if graph else run

    def kept() -> None:
        last[:] = [run()]

    ms, spread = bench.timed(kept)
    near = parity(last[0][:1].cpu().numpy(), reference(bench, height, width))
    fps = 1e3 * batch / ms
    share = fps * GFLOP * height * width / 256**2 / 10 / gemm(bench)
    values = {"batch": batch, "size": f"{width}×{height}", "fps": fps, "ms": ms, "share_%": share}
    mib = torch.cuda.max_memory_reserved() >> 20 if bench.cuda else 0
    values |= {"spread_%": spread, "mib": mib, "dB": near.psnr, "largest": near.max}
    return values | {"flips": getattr(body, "flips", "")}


@cache
def gemm(bench: Bench) -> float:
    """Return this card's TFLOP/s in a product of matrices in half precision."""
    side = 8192 if bench.cuda else 64
    return float(ceilings.gemm(bench, torch.float16, side, side, side)["tflops"])


@cache
def reference(bench: Bench, height: int, width: int) -> np.ndarray[Any, Any]:
    """Return what eager float32 on the device makes of the first frame."""
    body = on_bytes(bench.network(), bench.device, torch.float32, channels_last=False)
    with arithmetic("ieee"), torch.no_grad():
        return body(bench.frames(1, height, width)).cpu().numpy()


class Fused:
    """The generator around `norm_act_pad`, in the tiling that `tune` found the quickest."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        # Triton's interpreter takes its time for every program: few, of many pixels.
        self._tiling = (64, 2, 4) if bench.cuda else (512, 1, 4)

    def with_cells(self) -> Body:
        return self._made(cells=True)

    def without_cells(self) -> Body:
        return self._made(cells=False)

    def _made(self, *, cells: bool) -> Body:
        required("triton")
        from .norm_act_pad import FusedGenerator, Tiling

        tiling = Tiling(*self._tiling)
        return FusedGenerator(self._bench.network(), self._bench.device, cells=cells, tiling=tiling)

    def tune(self) -> dict[str, Any]:
        """Find the quickest tiling for the norm of the trunk; all later rows use it."""
        required("triton")
        from .norm_act_pad import Tiling, norm_act_pad

        bench, channels = self._bench, 4 * self._bench.config.ngf
        batch, side = bench.batches[0] if bench.cuda else 1, bench.side // 4
        x, found = torch.randn(batch, side, side, channels, device=bench.device).half(), {}
        tilings = ((64, 2, 4), (32, 4, 4), (64, 4, 8), (128, 1, 8), (128, 2, 8), (32, 2, 4))
        for tiling in tilings if bench.cuda else (self._tiling,):
            found[tiling] = bench.without_launches(
                partial(norm_act_pad, x, channels, relu=True, pad=1, tiling=Tiling(*tiling)),
                10 if bench.cuda else 1,
            )
        self._tiling = min(found, key=found.__getitem__)
        ms = found[self._tiling]
        each = ", ".join(f"{tiling}: {1e3 * took:.1f}" for tiling, took in found.items())
        return {"best": str(self._tiling), "gb_per_s": 6 * x.numel() / ms / 1e6, "us": [each]}

    def kernels(self) -> dict[str, Any]:
        """List where the time of one batch goes."""
        from torch.profiler import ProfilerActivity, profile

        cuda = self._bench.cuda
        body = self.with_cells() if cuda else eager(self._bench, channels_last=True)
        pixels = self._bench.frames(self._bench.batches[0], self._bench.side, self._bench.side)
        body(pixels)
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
            body(pixels)
            self._bench.settle()
        time = "self_device_time_total" if cuda else "self_cpu_time_total"
        spent = sorted(
            ((getattr(e, time), e.count, e.key) for e in seen.key_averages()), reverse=True
        )
        return {
            "kernels": [f"{us:8.0f} µs {count:4} × {key[:90]}" for us, count, key in spent[:14]]
        }
