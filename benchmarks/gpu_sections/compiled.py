"""Frames per second of the generator compiled by torch.compile, norms spelled out in float32.

Compared with `bare`: it becomes the backend unless `fused + cells` is 1.3 times as fast.
max-autotune is worth its seconds of compiling, which `compiles` measures, only if it is 5 % faster
than the default.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from .bare import Body, rate
from .measuring import Bench, Job, PlainNorm, on_bytes, with_norm

MODES = (("default", 8), ("max-autotune-no-cudagraphs", 8), ("default", 16))


def jobs(bench: Bench) -> Iterator[Job]:
    for mode, batch in bench.some(MODES):
        batch = batch if bench.cuda else 1
        make = partial(generator, bench, mode)
        for graph in (True, False):
            job = partial(rate, bench, make, batch, bench.side, bench.side, graph=graph)
            yield f"{mode}{', graph' if graph else ''}", job


def generator(bench: Bench, mode: str) -> Body:
    bench.forget_compiled()
    dtype = torch.float16 if bench.cuda else torch.float32
    network = with_norm(bench.network(), PlainNorm)
    body = on_bytes(network, bench.device, dtype, channels_last=True)
    return torch.compile(body, mode=mode, dynamic=False)
