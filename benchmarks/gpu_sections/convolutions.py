"""TFLOP/s of useful work for every layer's convolution, each way that it can be done.

`plain` and `best` are frames per second if there were nothing but convolutions: with the network's
own layers, and with the quickest way for each. `best` below 4,000 means that cuDNN cannot reach the
goal, and kernels of our own or FP8 are needed. `stem cells` and `head cells` against `of 8`: are
the 7×7 ends worth rewriting. `up 2×2` above `up`: transposed convolutions want rewriting, too.
Forward and backward at batch 1 and 2: what joint_identity gains a training step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .measuring import Bench, Job


@dataclass(frozen=True)
class Way:
    """A convolution that does the work of a layer."""

    layer: str
    inputs: int
    side: int
    """Of its input, border included."""
    outputs: int
    kernel: int
    macs: float
    """Multiplications of a frame that are useful, whichever the way."""
    how: dict[str, int] = field(default_factory=dict)
    times: int = 1
    """In the network."""
    own: bool = True
    """The network does it this way."""


def jobs(bench: Bench) -> Iterator[Job]:
    batches = bench.batches if not bench.cuda else (*bench.batches, 1)
    for layout in bench.some((True, False), 2):
        for batch in batches:
            name = f"{'channels last' if layout else 'NCHW'}, batch {batch}"
            yield name, partial(forward, bench, batch, layout)
    for batch in bench.some((1, 2)):
        yield f"training, trunk, batch {batch}", partial(backward, bench, batch)


def ways(bench: Bench) -> dict[str, Way]:
    """Return every layer of the generator, and its other ways, by name."""
    s, c = bench.side, bench.config.ngf
    ends, trunk, other = s * s * c * 3 * 49, s * s * c * c * 9, s * s * c * c * 9 / 2
    down = {"stride": 2, "padding": 1}
    up = down | {"output_padding": 1}
    return {
        "stem": Way("stem", 3, s + 6, c, 7, ends),
        "stem of 8": Way("stem", 8, s + 6, c, 7, ends, own=False),
        "stem cells": Way("stem", 16, s // 2 + 3, 4 * c, 4, ends, own=False),
        "down1": Way("down1", c, s, 2 * c, 3, other, down),
        "down2": Way("down2", 2 * c, s // 2, 4 * c, 3, other, down),
        "trunk": Way("trunk", 4 * c, s // 4 + 2, 4 * c, 3, trunk, times=18),
        "up1": Way("up1", 4 * c, s // 4, 2 * c, 3, other, up),
        "up1 2×2": Way("up1", 4 * c, s // 4 + 1, 8 * c, 2, other, own=False),
        "up2": Way("up2", 2 * c, s // 2, c, 3, other, up),
        "up2 2×2": Way("up2", 2 * c, s // 2 + 1, 4 * c, 2, other, own=False),
        "head": Way("head", c, s + 6, 3, 7, ends),
        "head of 8": Way("head", c, s + 6, 8, 7, ends, own=False),
        "head cells": Way("head", 4 * c, s // 2 + 3, 16, 4, ends, own=False),
    }


def operands(bench: Bench, way: Way, batch: int, layout: torch.memory_format) -> list[Tensor]:
    """Return random pixels and weights for a way, in halves."""
    turned = "output_padding" in way.how
    channels = (way.inputs, way.outputs) if turned else (way.outputs, way.inputs)
    x = torch.randn(batch, way.inputs, way.side, way.side, device=bench.device)
    weight = torch.randn(*channels, way.kernel, way.kernel, device=bench.device) * 0.02
    return [each.half().contiguous(memory_format=layout) for each in (x, weight)]


def forward(bench: Bench, batch: int, channels_last: bool) -> dict[str, Any]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tflops: dict[str, float] = {}
    plain, best = 0.0, {}
    for name, way in ways(bench).items():
        if not (channels_last or way.own):
            continue
        x, weight = operands(bench, way, batch, layout)
        op = F.conv_transpose2d if "output_padding" in way.how else F.conv2d
        with contextlib.suppress(RuntimeError):  # a way that cuDNN refuses has no column
            ms = bench.without_launches(partial(op, x, weight, **way.how), 10 if bench.cuda else 1)
            tflops[name] = 2e-9 * batch * way.macs / ms
            plain += way.own * way.times * ms
            best[way.layer] = min(way.times * ms, best.get(way.layer, ms * way.times))
    rates = {"plain": 1e3 * batch / plain, "best": 1e3 * batch / sum(best.values())}
    return rates | {name: float(f"{value:.3g}") for name, value in tflops.items()}


def backward(bench: Bench, batch: int) -> dict[str, Any]:
    """Measure the trunk's convolution in bf16, forward alone and with both gradients."""
    way, found = ways(bench)["trunk"], {}
    for layout in (torch.channels_last, torch.contiguous_format):
        x, weight = (v.bfloat16() for v in operands(bench, way, batch, layout))
        y = F.conv2d(x, weight)
        none = [0, 0]
        gradients = partial(torch.ops.aten.convolution_backward, y, x, weight, None, [1, 1], none,
                            [1, 1], False, none, 1, [True, True, False])  # fmt: skip
        name = "channels last" if layout is torch.channels_last else "NCHW"
        for part, run, work in (("fwd", partial(F.conv2d, x, weight), 2), ("bwd", gradients, 4)):
            ms = bench.without_launches(run, 10 if bench.cuda else 1)
            found[f"{part}, {name}"] = work * 1e-9 * batch * way.macs / ms
    return found
