"""TFLOP/s of useful work of every layer's convolution, in each form that computes it.

`plain` and `best` are the frames per second of the convolutions alone: of the network's own layers,
and of the fastest form of each. `best` below 4,000 means that cuDNN cannot reach the goal, and
kernels of our own or FP8 are needed. `stem cells` and `head cells` against `of 8` show whether the
7×7 convolutions at both ends are worth rewriting; `up 2×2` above `up` means that transposed
convolutions are, too. Forward and backward at batch 1 and 2: what joint_identity gains in training.
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
class Convolution:
    """A convolution that computes a layer of the network."""

    layer: str
    inputs: int
    side: int
    """The side of its input, border included."""
    outputs: int
    kernel: int
    macs: float
    """Useful multiplications for a frame, the same in each form of the layer."""
    how: dict[str, int] = field(default_factory=dict)
    times: int = 1
    """How often the network has this layer."""
    own: bool = True
    """Whether the network has this form of the layer."""


def jobs(bench: Bench) -> Iterator[Job]:
    batches = bench.batches if not bench.cuda else (*bench.batches, 1)
    for layout in bench.some((True, False), 2):
        for batch in batches:
            name = f"{'channels last' if layout else 'NCHW'}, batch {batch}"
            yield name, partial(forward, bench, batch, layout)
    for batch in bench.some((1, 2)):
        yield f"training, trunk, batch {batch}", partial(backward, bench, batch)


def forms(bench: Bench) -> dict[str, Convolution]:
    """Return every layer of the generator and its other forms, by name."""
    s, c = bench.side, bench.config.ngf
    ends, trunk, other = s * s * c * 3 * 49, s * s * c * c * 9, s * s * c * c * 9 / 2
    down = {"stride": 2, "padding": 1}
    up = down | {"output_padding": 1}
    return {
        "stem": Convolution("stem", 3, s + 6, c, 7, ends),
        "stem of 8": Convolution("stem", 8, s + 6, c, 7, ends, own=False),
        "stem cells": Convolution("stem", 16, s // 2 + 3, 4 * c, 4, ends, own=False),
        "down1": Convolution("down1", c, s, 2 * c, 3, other, down),
        "down2": Convolution("down2", 2 * c, s // 2, 4 * c, 3, other, down),
        "trunk": Convolution("trunk", 4 * c, s // 4 + 2, 4 * c, 3, trunk, times=18),
        "up1": Convolution("up1", 4 * c, s // 4, 2 * c, 3, other, up),
        "up1 2×2": Convolution("up1", 4 * c, s // 4 + 1, 8 * c, 2, other, own=False),
        "up2": Convolution("up2", 2 * c, s // 2, c, 3, other, up),
        "up2 2×2": Convolution("up2", 2 * c, s // 2 + 1, 4 * c, 2, other, own=False),
        "head": Convolution("head", c, s + 6, 3, 7, ends),
        "head of 8": Convolution("head", c, s + 6, 8, 7, ends, own=False),
        "head cells": Convolution("head", 4 * c, s // 2 + 3, 16, 4, ends, own=False),
    }


def operands(
    bench: Bench, conv: Convolution, batch: int, layout: torch.memory_format
) -> list[Tensor]:
    """Return random pixels and weights for a convolution, in float16."""
    transposed = "output_padding" in conv.how
    channels = (conv.inputs, conv.outputs) if transposed else (conv.outputs, conv.inputs)
    x = torch.randn(batch, conv.inputs, conv.side, conv.side, device=bench.device)
    weight = torch.randn(*channels, conv.kernel, conv.kernel, device=bench.device) * 0.02
    return [each.half().contiguous(memory_format=layout) for each in (x, weight)]


def forward(bench: Bench, batch: int, channels_last: bool) -> dict[str, Any]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tflops: dict[str, float] = {}
    plain, best = 0.0, {}
    for name, conv in forms(bench).items():
        if not (channels_last or conv.own):
            continue
        x, weight = operands(bench, conv, batch, layout)
        op = F.conv_transpose2d if "output_padding" in conv.how else F.conv2d
        with contextlib.suppress(RuntimeError):  # a form that cuDNN refuses has no column
            ms = bench.without_launches(partial(op, x, weight, **conv.how), 10 if bench.cuda else 1)
            tflops[name] = 2e-9 * batch * conv.macs / ms
            plain += conv.own * conv.times * ms
            best[conv.layer] = min(conv.times * ms, best.get(conv.layer, ms * conv.times))
    rates = {"plain": 1e3 * batch / plain, "best": 1e3 * batch / sum(best.values())}
    return rates | {name: float(f"{value:.3g}") for name, value in tflops.items()}


def backward(bench: Bench, batch: int) -> dict[str, Any]:
    """Measure the trunk's convolution in bf16, forward alone and with both gradients."""
    conv, tflops = forms(bench)["trunk"], {}
    for layout in (torch.channels_last, torch.contiguous_format):
        x, weight = (v.bfloat16() for v in operands(bench, conv, batch, layout))
        y = F.conv2d(x, weight)
        none = [0, 0]
        gradients = partial(torch.ops.aten.convolution_backward, y, x, weight, None, [1, 1], none,
                            [1, 1], False, none, 1, [True, True, False])  # fmt: skip
        name = "channels last" if layout is torch.channels_last else "NCHW"
        for part, run, work in (("fwd", partial(F.conv2d, x, weight), 2), ("bwd", gradients, 4)):
            ms = bench.without_launches(run, 10 if bench.cuda else 1)
            tflops[f"{part}, {name}"] = work * 1e-9 * batch * conv.macs / ms
    return tflops
