"""Frames per second on the device, bytes to bytes: torch's own kernels, and the fused ones.

`host` measures what the product chooses of these, through its own contexts. `share` is the % of
this card's own fp16 matrix product, at 99.1 GFLOP for a frame of 256²; differences below `spread`
are noise. Rows with `graph` against rows without: the cost of kernel launches. If half norms are as
good in `dB` as float ones and faster, InstanceNorm is computed in half precision. `fused + cells`
stays first among the torch backend's bodies if it is 1.3 times as fast as the best row of the
section `compiled`; otherwise `compiled` takes its place. The smallest batch within 5 % of the best
is the default. `dB` below 45: look for a wrong kernel first. `flips` above 0: cuDNN returned
channels first. `tune`: `gb_per_s` (two reads and a write) far below the copy of `ceilings` means
that the norm's kernels can be improved; norms above a quarter of `kernels` mean that the
convolution should compute their sums.
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
    plain, name = partial(eager, bench, channels_last=True), "float norm, channels last"
    yield name, partial(rate, bench, plain, first, side, side, graph=False)
    yield f"{name}, graph", partial(rate, bench, plain, first, side, side)
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
            ("float norm, channels last", plain, False),
        ):
            # In Triton's interpreter one size of `fused` is enough.
            if bench.cuda or not graph:
                yield name, partial(rate, bench, make, batch, height, width, graph=graph)
    for batch in bench.batches[1:]:
        job = partial(rate, bench, plain, batch, side, side, graph=False)
        yield "float norm, channels last", job


def eager(bench: Bench, *, channels_last: bool, half_norm: bool = False) -> Body:
    """Return the network in half precision; its norms in float32, as in the project, or in half."""
    network = with_norm(bench.network(), HalfNorm) if half_norm else bench.network()
    dtype = torch.float16 if bench.cuda else torch.bfloat16
    return on_bytes(network, bench.device, dtype, channels_last=channels_last)


def rate(
    bench: Bench, make: Callable[[], Body], batch: int, height: int, width: int, graph: bool = True
) -> dict[str, Any]:
    """Measure the rate of what ``make`` returns, and its first frame's parity with float32."""
    pixels, body = bench.frames(batch, height, width), make()
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
        body(pixels)  # here cuDNN chooses its kernels
    last: list[Tensor] = []
    run: Callable[[], Tensor] = partial(body, pixels)
    run = bench.recorded(run) if graph else run

    def run_and_keep() -> None:
        last[:] = [run()]

    ms, spread = bench.timed(run_and_keep)
    measured = parity(last[0][:1].cpu().numpy(), reference(bench, height, width))
    fps = 1e3 * batch / ms
    share = fps * GFLOP * height * width / 256**2 / 10 / gemm(bench)
    values = {"batch": batch, "size": f"{width}×{height}", "fps": fps, "ms": ms, "share_%": share}
    mib = torch.cuda.max_memory_reserved() >> 20 if bench.cuda else 0
    values |= {"spread_%": spread, "mib": mib, "dB": measured.psnr, "largest": measured.max}
    return values | {"flips": getattr(body, "flips", "")}


@cache
def gemm(bench: Bench) -> float:
    """Return this card's TFLOP/s in a plain of matrices in half precision."""
    side = 8192 if bench.cuda else 64
    return float(ceilings.gemm(bench, torch.float16, side, side, side)["tflops"])


@cache
def reference(bench: Bench, height: int, width: int) -> np.ndarray[Any, Any]:
    """Return the first frame, translated in eager float32 on the device."""
    body = on_bytes(bench.network(), bench.device, torch.float32, channels_last=False)
    with arithmetic("ieee"), torch.no_grad():
        return body(bench.frames(1, height, width)).cpu().numpy()


class Fused:
    """The generator around `norm_act_pad`, with the tiling that was the fastest in `tune`."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        # Triton's interpreter is slow for each program, so a dry run has few, of many pixels each.
        self._tiling = (64, 2, 4) if bench.cuda else (512, 1, 4)

    def with_cells(self) -> Body:
        return self._body(cells=True)

    def without_cells(self) -> Body:
        return self._body(cells=False)

    def _body(self, *, cells: bool) -> Body:
        required("triton")
        from cyclegan_batch.models.fused import FusedGenerator, Tiling

        tiling = Tiling(*self._tiling)
        return FusedGenerator(self._bench.network(), self._bench.device, cells=cells, tiling=tiling)

    def tune(self) -> dict[str, Any]:
        """Find the fastest tiling for the norm of the trunk; all later rows use it."""
        required("triton")
        from cyclegan_batch.models.fused import Tiling, norm_act_pad

        bench, channels = self._bench, 4 * self._bench.config.ngf
        batch, side = bench.batches[0] if bench.cuda else 1, bench.side // 4
        x, times = torch.randn(batch, side, side, channels, device=bench.device).half(), {}
        tilings = ((64, 2, 4), (32, 4, 4), (64, 4, 8), (128, 1, 8), (128, 2, 8), (32, 2, 4))
        for tiling in tilings if bench.cuda else (self._tiling,):
            times[tiling] = bench.without_launches(
                partial(norm_act_pad, x, channels, relu=True, pad=1, tiling=Tiling(*tiling)),
                10 if bench.cuda else 1,
            )
        self._tiling = min(times, key=times.__getitem__)
        ms = times[self._tiling]
        each = ", ".join(f"{tiling}: {1e3 * took:.1f}" for tiling, took in times.items())
        return {"best": str(self._tiling), "gb_per_s": 6 * x.numel() / ms / 1e6, "us": [each]}

    def kernels(self) -> dict[str, Any]:
        """List the kernels that take the most time of one batch."""
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
