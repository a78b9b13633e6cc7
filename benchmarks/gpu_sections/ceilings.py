"""The limits of this card, to which other sections relate their rates.

`gemm fp16` is the limit for convolutions, `copy` for everything between them. Host to device and
back: pinned far above pageable means that frames belong into pinned memory. If the number of
launches × `eager_us` exceeds the milliseconds of a batch, CUDA graphs are needed. `fp8` over `fp16`
is the most that a trunk in FP8 could gain.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from .measuring import Bench, Job, arithmetic


def jobs(bench: Bench) -> Iterator[Job]:
    side = 8192 if bench.cuda else 64
    yield "card", partial(card, bench)
    yield "gemm fp16", partial(gemm, bench, torch.float16, side, side, side)
    yield "copy on the device, both ways", partial(copy, bench, bench.device, bench.device)
    for name, source, target in (("H2D", "cpu", bench.device), ("D2H", bench.device, "cpu")):
        yield f"{name} pinned", partial(copy, bench, source, target, pinned=True)
        yield f"{name} pageable", partial(copy, bench, source, target)
    yield "launch", partial(launch, bench)
    yield "gemm bf16", partial(gemm, bench, torch.bfloat16, side, side, side)
    yield "gemm tf32", partial(gemm, bench, torch.float32, side, side, side)
    yield "gemm fp8", partial(gemm, bench, torch.float8_e4m3fn, side, side, side)
    # A convolution of the trunk as one matrix product: 64² × 8 pixels, 9 × 256 inputs, 256 outputs.
    trunk = (4 * side, 9 * side // 32, side // 32)
    yield "gemm fp16 as the trunk, batch 8", partial(gemm, bench, torch.float16, *trunk)


def card(bench: Bench) -> dict[str, Any]:
    values: dict[str, Any] = {"torch": torch.__version__, "cpus": os.cpu_count()}
    if not bench.cuda:
        return values
    properties = torch.cuda.get_device_properties(0)
    values |= {
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": properties.L2_cache_size >> 20,
        "gib": properties.total_memory >> 30,
        "cudnn": torch.backends.cudnn.version(),
    }
    if tool := shutil.which("nvidia-smi"):
        fields = "--query-gpu=driver_version,clocks.max.sm,power.limit"
        query = [tool, fields, "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
        values["driver, clock, power"] = answer.stdout.strip()
    return values


def gemm(bench: Bench, dtype: torch.dtype, rows: int, inner: int, columns: int) -> dict[str, Any]:
    a = torch.randn(rows, inner, device=bench.device).to(dtype)
    b = torch.randn(columns, inner, device=bench.device).to(dtype).t()
    one = torch.ones((), device=bench.device)

    def product() -> Any:
        if dtype.itemsize > 1:
            return a @ b
        return torch._scaled_mm(
            a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=bench.cuda
        )

    with arithmetic("tf32"):
        ms, spread = bench.timed(product)
    return {"tflops": 2e-9 * rows * inner * columns / ms, "ms": ms, "spread_%": spread}


def copy(bench: Bench, source: str, target: str, *, pinned: bool = False) -> dict[str, Any]:
    inside = source == target
    size = (1 << 30 if inside else 1 << 28) if bench.cuda else 1 << 16

    def memory(device: str) -> Any:
        pin = bench.cuda and pinned and device == "cpu"
        return torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pin).fill_(1)

    x, y = memory(source), memory(target)
    ms, spread = bench.timed(lambda: y.copy_(x, non_blocking=pinned))
    # A copy on the device both reads and writes its memory.
    return {"gb_per_s": (2 if inside else 1) * size / ms / 1e6, "spread_%": spread}


def launch(bench: Bench) -> dict[str, Any]:
    x, count = torch.ones(32, device=bench.device), 500

    def chain() -> None:
        for _ in range(count):
            x.add_(1)

    eager, graph = bench.timed(chain)[0], bench.timed(bench.recorded(chain))[0]
    return {"eager_us": eager / count * 1e3, "graph_us": graph / count * 1e3}
